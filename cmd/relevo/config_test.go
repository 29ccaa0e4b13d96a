//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
	"github.com/relevo-proxy/relevo/cmd/relevo/echo"
)

// adminOf is a folder for an admin socket, and the line of a configuration that puts it there.
func adminOf(t *testing.T) (address, line string) {
	t.Helper()
	address = "unix:" + filepath.Join(t.TempDir(), "a.sock")
	return address, fmt.Sprintf("admin: {address: %q}\n", address)
}

// said runs a verb of config and returns what it prints.
func said(t *testing.T, address string, args ...string) string {
	t.Helper()
	status, out, errOut := relevo(t, "", append(append([]string{"config"}, args...), "--address", address)...)
	if status != exitDone {
		t.Fatalf("config %s: exit status %d, %s", strings.Join(args, " "), status, errOut)
	}
	return out
}

// wants fails the test unless text has all of these.
func wants(t *testing.T, what, text string, all ...string) {
	t.Helper()
	for _, has := range all {
		if !strings.Contains(text, has) {
			t.Errorf("%s is\n%s\nwant it to have %q", what, text, has)
		}
	}
}

// A change is there behind an upgrade, and so are its author and the revisions before it, whether they are in a folder or not.
func TestChangeSurvivesUpgrades(t *testing.T) {
	for name, state := range map[string]string{"folder": "state_dir: " + t.TempDir(), "memory": "state_dir: none"} {
		t.Run(name, func(t *testing.T) {
			address, line := adminOf(t)
			p := newChain(t, os.Args[0], patientUpgrades, goodConfig+line+state)
			wants(t, "a change", said(t, address, "set", "clusters/order/max_pending", "77", "--comment", "a trial"), "revision 2 is in force")
			said(t, address, "set", "workers/max", "3")
			p.upgrade(t)
			wants(t, "the cluster behind an upgrade", said(t, address, "get", "clusters/order"), "max_pending: 77")
			wants(t, "the history", said(t, address, "history"), "a trial", fmt.Sprintf("uid %d, pid %d", os.Getuid(), os.Getpid()))
			if out := said(t, address, "set", "clusters/order/max_pending", "78"); strings.Contains(out, "upgrade") || !strings.Contains(out, "revision 4 is in force") {
				t.Errorf("a change behind the upgrade says\n%s\nwant revision 4, and that no upgrade is needed any more", out)
			}
			p.upgrade(t)
			wants(t, "what the last change changed", said(t, address, "diff"), "~ clusters/order/max_pending: 77 -> 78")
			said(t, address, "restore", "1")
			if out := said(t, address, "get"); strings.Contains(out, "max_pending") {
				t.Errorf("restored is\n%s\nwant it without max_pending", out)
			}
			p.stop(t)
			p.err.find(t, `configuration: (revision 4, made by .*, is applied)`)
		})
	}
}

// 100 changes of routes, weights and endpoints under load: no request fails, no client connection is closed.
func TestChangesUnderLoad(t *testing.T) {
	const changes, lasts = 100, 10 * time.Second
	var servers []string
	for range 3 {
		e, err := echo.Listen(echo.Options{Listen: "127.0.0.1:0"})
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
		servers = append(servers, e.Addr().String())
	}
	address, line := adminOf(t)
	listener := steadyAddress(t)
	p := newChain(t, os.Args[0], patientUpgrades, fmt.Sprintf(`
listeners: [{name: in, address: %q, protocol: bolt}]
routes: [{name: rpc, rules: [{name: all, cluster: a, timeout: 30s}]}]
clusters:
  - {name: a, protocol: bolt, endpoints: [{address: %q}, {address: %q}]}
  - {name: b, protocol: bolt, endpoints: [{address: %q}]}
`, listener, servers[0], servers[1], servers[2])+line)

	var over atomic.Bool
	type ending struct {
		report *bench.Report
		err    error
	}
	ended := make(chan ending, 1)
	go func() { // ends by itself; waited for below
		r, err := bench.Run(t.Context(), bench.Options{
			Addr: listener, Connections: 8, InFlight: 8, Duration: lasts, Warmup: 100 * time.Millisecond, Timeout: 30 * time.Second,
		})
		over.Store(true)
		ended <- ending{r, err}
	}()
	tick := time.NewTicker(lasts / (changes + changes/5))
	defer tick.Stop()
	during := 0
	for i := range changes {
		<-tick.C
		switch i % 4 {
		case 0:
			said(t, address, "set", "clusters/a/endpoints/"+servers[0]+"/weight", fmt.Sprint(1+i))
		case 1:
			said(t, address, "patch", "routes/rpc/rules/all", `{"cluster": null, "clusters": [{"cluster": "a", "weight": 1}, {"cluster": "b", "weight": 1}]}`)
		case 2:
			said(t, address, "delete", "clusters/a/endpoints/"+servers[1])
		case 3:
			said(t, address, "set", "clusters/a/endpoints/"+servers[1], "{}")
			said(t, address, "patch", "routes/rpc/rules/all", `{"clusters": null, "cluster": "a"}`)
		}
		if !over.Load() {
			during = i + 1
		}
	}
	e := <-ended
	if e.err != nil {
		t.Fatal(e.err)
	}
	r := e.report
	if r.OK == 0 || r.Failed() || r.Reconnects > 0 || r.DialErrors > 0 {
		t.Errorf("of %d requests %d were answered, with these statuses besides: %v; %d timed out, %d were lost, and %d connections were closed; want all, and no connection closed", r.Sent, r.OK, r.Statuses, r.Timeouts, r.Lost, r.Reconnects)
	}
	if during < changes/2 {
		t.Errorf("only %d changes were made under load", during)
	}
	t.Logf("%d changes under load, %d requests", during, r.OK)
	p.stop(t)
}

func TestConfigVerbsSayWhatIsWrong(t *testing.T) {
	address, line := adminOf(t)
	nobody := "unix:" + filepath.Join(t.TempDir(), "none.sock")
	p := spawn(t, "run", "-c", fileWith(t, goodConfig+line))
	p.err.find(t, `"msg":"serving"`)
	for _, tc := range []struct {
		args   []string
		at     string
		status int
		errOut string
	}{
		{[]string{"status"}, nobody, exitNothing, "nothing answers at " + nobody},
		{[]string{"failures"}, nobody, exitNothing, "nothing answers"},
		{[]string{"config", "get"}, nobody, exitNothing, "nothing answers"},
		{[]string{"config", "get", "clusters/x"}, address, exitFailed, "clusters/x"},
		{[]string{"config", "set", "clusters/order/max_pending", "0"}, address, exitConfig, "/clusters/0/max_pending"},
		{[]string{"config", "set", "clusters/order"}, address, exitUsage, "an argument is missing"},
		{[]string{"config", "delete", "log", "x"}, address, exitUsage, `unexpected argument "x"`},
		{[]string{"config", "delete", "log"}, address, exitFailed, "log"},
		{[]string{"config", "restore", "first"}, address, exitUsage, "not the number"},
		{[]string{"config", "restore", "9"}, address, exitFailed, "no such revision"},
		{[]string{"config", "diff"}, address, exitFailed, "no revision before"},
		{[]string{"config", "history", "--limit", "0"}, address, exitUsage, "--limit 0"},
	} {
		status, _, errOut := relevo(t, "", append(tc.args, "--address", tc.at)...)
		if status != tc.status || !strings.Contains(errOut, tc.errOut) {
			t.Errorf("%v: exit status %d, %q; want %d, with %q", tc.args, status, errOut, tc.status, tc.errOut)
		}
	}
	for form, has := range map[string]string{"text": "LISTENER", "json": `"listeners": [`, "yaml": "listeners:\n"} {
		if status, out, errOut := relevo(t, "", "status", "-o", form, "--address", address); status != exitDone || !strings.Contains(out, has) {
			t.Errorf("status -o %s: exit status %d, %s\n%s\nwant %q", form, status, errOut, out, has)
		}
	}
	t.Setenv(adminVariable, address)
	if status, out, _ := relevo(t, "8", "config", "set", "clusters/order/max_pending", "-", "--dry-run"); status != exitDone || !strings.Contains(out, "+ clusters/order/max_pending: 8") {
		t.Errorf("a dry run with the value at standard input: exit status %d\n%s", status, out)
	}
	if status, _, errOut := relevo(t, "", "config"); status != exitUsage || !strings.Contains(errOut, "history") {
		t.Errorf("config: exit status %d, %s; want %d, and the verbs", status, errOut, exitUsage)
	}
}
