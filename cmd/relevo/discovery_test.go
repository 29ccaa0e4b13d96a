//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/admin"
	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
)

// A set of endpoints goes over to the heir, which serves with it from the first request on although its source fails, and says so.
// When the source has a set again, that enters.
func TestFoundEndpointsGoOver(t *testing.T) {
	text, listener, door, servers := twoEchoes(t, 0)
	path := filepath.Join(t.TempDir(), "endpoints.yaml")
	write := func(content string) {
		t.Helper()
		if err := errors.Join(os.WriteFile(path+".new", []byte(content), 0o600), os.Rename(path+".new", path)); err != nil {
			t.Fatal(err)
		}
	}
	write(fmt.Sprintf("- address: %q\n", servers[0]))
	list := fmt.Sprintf("endpoints: [{address: %q}, {address: %q}]", servers[0], servers[1])
	p := newChain(t, os.Args[0], patientUpgrades, strings.Replace(text, list, fmt.Sprintf("discovery: {file: %q}", path), 1))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	type result struct {
		report *bench.Report
		err    error
	}
	done := make(chan result, 1)
	go func() { // ends with ctx
		r, err := bench.Run(ctx, bench.Options{Addr: listener, Connections: 4, InFlight: 8, Duration: time.Hour, Timeout: 30 * time.Second})
		done <- result{r, err}
	}()
	const failing = "relevo_discovery_failing"
	p.until(t, func(m reading) error { return m.is(1, "relevo_discovery_endpoints", "cluster=a") })
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	p.until(t, func(m reading) error { return m.is(1, failing, "cluster=a") })
	for range 2 {
		p.upgrade(t)
	}
	p.until(t, func(m reading) error {
		return errors.Join(m.is(1, failing, "cluster=a"), m.is(1, "relevo_discovery_endpoints", "cluster=a"),
			m.is(1, "relevo_discovery_updates_total", "cluster=a", "outcome=changed"))
	})
	var k admin.Cluster
	if _, err := newAdminClient(adminDoor{address: door}).get(t.Context(), "/v1/clusters/a", &k); err != nil || k.Discovery == nil ||
		k.Discovery.State != "failing" || k.Discovery.Updated == nil || len(k.Endpoints) != 1 || k.Endpoints[0].Address != servers[0] {
		t.Errorf("behind upgrades the cluster is %+v with discovery %+v, %v", k, k.Discovery, err)
	}
	want := fmt.Sprintf("a: discovery by file %s is failing, with 1 endpoint: stat %s: no such file or directory\n", path, path)
	if status, out, errOut := relevo(t, "", "clusters", "--address", door); status != exitDone || !strings.HasSuffix(out, want) {
		t.Errorf("relevo clusters: exit status %d, %s%s; want %s", status, out, errOut, want)
	}
	write(fmt.Sprintf("- address: %q\n", servers[1]))
	p.until(t, func(m reading) error {
		if m.sum("relevo_endpoint_requests_total", "endpoint="+servers[1]) == 0 {
			return errors.New("the endpoint that is new has no request")
		}
		return m.is(0, failing, "cluster=a")
	})
	cancel()
	if r := <-done; r.err != nil || r.report.Failed() || r.report.OK == 0 {
		t.Errorf("under load the report is %+v, %v", r.report, r.err)
	}
	p.stop(t)
}
