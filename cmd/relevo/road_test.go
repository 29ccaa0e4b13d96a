//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/admin"
	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
	"github.com/relevo-proxy/relevo/cmd/relevo/echo"
)

// twoEchoes is a configuration with a listener, two echo servers that answer after a delay, and a door.
func twoEchoes(t *testing.T, delay time.Duration) (text, listener, door string, servers [2]string) {
	t.Helper()
	for i := range servers {
		e, err := echo.Listen(echo.Options{Listen: "127.0.0.1:0", Delay: delay})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- e.Run(ctx) }() // ends with ctx
		t.Cleanup(func() {
			cancel()
			<-done
		})
		servers[i] = e.Addr().String()
	}
	door, line := adminOf(t)
	listener = steadyAddress(t)
	return fmt.Sprintf(`
listeners: [{name: in, address: %q, protocol: bolt}]
routes: [{name: rpc, rules: [{name: all, cluster: a, timeout: 30s, retry: {attempts: 1}}]}]
clusters: [{name: a, protocol: bolt, endpoints: [{address: %q}, {address: %q}]}]
state_dir: none
`, listener, servers[0], servers[1]) + line, listener, door, servers
}

// The verbs show what a load does, in each form, and say what is wrong with what they are asked.
func TestRoadVerbs(t *testing.T) {
	text, listener, door, servers := twoEchoes(t, 50*time.Millisecond)
	p := spawn(t, "run", "-c", fileWith(t, text))
	p.err.find(t, `"msg":"serving"`)
	var group sync.WaitGroup
	defer group.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	group.Go(func() { // ends with ctx
		_, _ = bench.Run(ctx, bench.Options{Addr: listener, Connections: 2, InFlight: 4, Duration: time.Hour, Timeout: 30 * time.Second}) // it is cut
	})
	run := func(args ...string) string {
		t.Helper()
		status, out, errOut := relevo(t, "", append(args, "--address", door)...)
		if status != exitDone {
			t.Fatalf("%v: exit status %d, %s", args, status, errOut)
		}
		return out
	}
	for end := time.Now().Add(patience); !strings.Contains(run("streams"), "\n8 in all"); {
		if time.Now().After(end) {
			t.Fatalf("the streams stay so:\n%s\nwant 8", run("streams"))
		}
	}
	wants(t, "listeners", run("listeners"), "LISTENER", listener, "2 of 10000", "accepting")
	wants(t, "listeners in", run("listeners", "in"), listener)
	wants(t, "routes", run("routes"), "rpc/all", "everything", "30s")
	wants(t, "clusters", run("clusters"), "2 of 2", "8 of 100000", "2 of 1024", "64.0 MiB")
	wants(t, "endpoints", run("endpoints"), servers[0], servers[1], "usable")
	wants(t, "endpoints a", run("endpoints", "a"), servers[0], servers[1], "usable")
	wants(t, "connections", run("connections"), "client", "server", "a "+servers[0], "reading", "ready")
	wants(t, "a page of connections", run("connections", "--limit", "1"), "more: --after ")
	wants(t, "streams", run("streams", "--cluster", "a", "--limit", "2"), "rpc/all", "in-flight", "8 in all")
	for verb, list := range map[string]string{
		"listeners": "listeners", "routes": "routes", "clusters": "clusters", "endpoints a": "endpoints", "connections": "connections", "streams": "streams",
	} {
		wants(t, verb+" -o json", run(append(strings.Fields(verb), "-o", "json")...), `"`+list+`": [`)
		wants(t, verb+" -o yaml", run(append(strings.Fields(verb), "-o", "yaml")...), list+":\n")
	}

	wants(t, "a dry run", run("endpoints", "drain", "a", servers[0], "--dry-run"), "drain: true", "a dry run")
	wants(t, "a drain", run("endpoints", "drain", "a", servers[0], "--comment", "out of use"), "drain: true", "revision 2 is in force")
	for end := time.Now().Add(patience); !strings.Contains(run("endpoints", "a"), "drained"); {
		if time.Now().After(end) {
			t.Fatalf("the endpoints stay so:\n%s", run("endpoints", "a"))
		}
	}
	wants(t, "the status", run("status"), "drained")
	wants(t, "the history", run("config", "history"), "out of use")
	wants(t, "an undrain", run("endpoints", "undrain", "a", servers[0]), "- clusters/a/endpoints/"+servers[0]+"/drain: true", "revision 3")
	wants(t, "the same once more", run("endpoints", "undrain", "a", servers[0]), "nothing changes; revision 3")
	wants(t, "a weight", run("endpoints", "weight", "a", servers[1], "7"), "weight: 7", "revision 4")

	run("config", "set", "clusters/a/slow_start", "1h")
	run("endpoints", "drain", "a", servers[0])
	run("endpoints", "undrain", "a", servers[0])
	for end := time.Now().Add(patience); !strings.Contains(run("endpoints", "a"), "10% of 100"); {
		if time.Now().After(end) {
			t.Fatalf("the endpoints stay so:\n%s\nwant the first in its slow start", run("endpoints", "a"))
		}
	}

	var list struct{ Connections []admin.Connection }
	if err := json.Unmarshal([]byte(run("connections", "--side", "server", "-o", "json")), &list); err != nil || len(list.Connections) == 0 {
		t.Fatalf("the server connections are %+v, %v", list, err)
	}
	id := strconv.FormatUint(list.Connections[0].ID, 10)
	wants(t, "a close", run("connections", "close", id), "behind its last reply")
	wants(t, "a list of none", run("connections", "--listener", "none"), "no connections\n")

	for _, tc := range []struct {
		args   string
		status int
		errOut string
	}{
		{"listeners none", exitFailed, "none"},
		{"endpoints none", exitFailed, "none"},
		{"endpoints a b", exitUsage, `unexpected argument "b"`},
		{"endpoints a --colour", exitUsage, "--colour"},
		{"endpoints drain a", exitUsage, "an argument is missing"},
		{"endpoints drain a 127.0.0.1:1", exitFailed, "127.0.0.1:1"},
		{"endpoints weight a " + servers[0] + " many", exitUsage, "not a weight"},
		{"endpoints weight a " + servers[0] + " 0", exitConfig, "weight"},
		{"connections close x", exitUsage, "not the id"},
		{"connections close 4711", exitFailed, "no such connection"},
		{"connections --limit 0", exitUsage, "--limit 0"},
		{"connections --side both", exitUsage, "side"},
		{"streams --limit 1001", exitUsage, "--limit 1001"},
	} {
		status, _, errOut := relevo(t, "", append(strings.Fields(tc.args), "--address", door)...)
		if status != tc.status || !strings.Contains(errOut, tc.errOut) {
			t.Errorf("%s: exit status %d, %q; want %d, with %q", tc.args, status, errOut, tc.status, tc.errOut)
		}
	}
}

// Whoever looks, drains and closes while the process is upgraded under load gets whole answers, and no request notices.
func TestRoadThroughUpgrades(t *testing.T) {
	text, listener, door, servers := twoEchoes(t, 2*time.Millisecond)
	p := newChain(t, os.Args[0], patientUpgrades, text)
	var over atomic.Bool
	var group sync.WaitGroup
	group.Go(func() { // ends with over, or with a failure
		for !over.Load() && !t.Failed() {
			r, err := bench.Run(t.Context(), bench.Options{Addr: listener, Connections: 8, InFlight: 8, Count: 2000, Timeout: 30 * time.Second})
			if err != nil || r.Failed() || r.OK != 2000 {
				t.Errorf("of 2000 requests %d came back right, %v: %+v", r.OK, err, r)
			}
		}
	})
	var looks, closes atomic.Int64
	for _, path := range []string{"/v1/status", "/v1/listeners", "/v1/routes/rpc", "/v1/clusters", "/v1/connections?limit=3", "/v1/streams?limit=3"} {
		group.Go(func() { // ends with over, or with a failure
			c := newAdminClient(adminDoor{address: door})
			for !over.Load() && !t.Failed() {
				if _, err := c.get(t.Context(), path, new(map[string]any)); err != nil {
					t.Errorf("%s: %v", path, err)
				}
				looks.Add(1)
			}
		})
	}
	group.Go(func() { // ends with over, or with a failure
		c := newAdminClient(adminDoor{address: door})
		for !over.Load() && !t.Failed() {
			var list struct{ Connections []admin.Connection }
			if _, err := c.get(t.Context(), "/v1/connections?side=server", &list); err != nil {
				t.Error(err)
			}
			for _, x := range list.Connections {
				// Whichever process is asked by now: the id is no other's.
				if status, _, _ := relevo(t, "", "connections", "close", fmt.Sprint(x.ID), "--address", door); status == exitDone {
					closes.Add(1)
				}
			}
		}
	})
	for i := range 3 {
		p.upgrade(t)
		verb := []string{"drain", "undrain"}[i%2]
		if status, _, errOut := relevo(t, "", "endpoints", verb, "a", servers[0], "--address", door); status != exitDone {
			t.Errorf("%s behind upgrade %d: exit status %d, %s", verb, i+1, status, errOut)
		}
	}
	over.Store(true)
	group.Wait()
	if looks.Load() == 0 || closes.Load() == 0 {
		t.Errorf("%d looks and %d closes, want some: this tests too little", looks.Load(), closes.Load())
	}
	t.Logf("%d looks, %d closes", looks.Load(), closes.Load())
	p.stop(t)
}
