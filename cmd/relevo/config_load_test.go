//go:build linux

package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// stage is a proxy whose configuration changes under load: its clusters are one, whose second endpoint comes and goes, and
// other, to which requests are led at times.
type stage struct {
	chain           *chain
	desk            desk
	listener, extra string    // addresses; extra is of a listener that comes and goes
	servers         [3]string // two of cluster one, then that of other
}

// newStage starts the proxy.
func newStage(t *testing.T, program string, servers [3]string) *stage {
	t.Helper()
	address, line := adminOf(t)
	s := &stage{desk: newDesk(address), listener: steadyAddress(t), extra: filepath.Join(t.TempDir(), "s"), servers: servers}
	s.chain = newChain(t, program, patientUpgrades, fmt.Sprintf(`
listeners: [{name: in, address: %q, protocol: bolt, max_connections: 10000}]
routes: [{name: rpc, rules: [{name: all, cluster: one, timeout: 30s}]}]
clusters:
  - {name: one, protocol: bolt, endpoints: [{address: %q, weight: 100}, {address: %q}]}
  - {name: other, protocol: bolt, endpoints: [{address: %q}]}
`, s.listener, servers[0], servers[1], servers[2])+line+"state_dir: "+t.TempDir())
	s.desk.settled(t)
	return s
}

// stageChanges is after how many changes all is as it was.
const stageChanges = 10

// change makes the i-th change.
func (s *stage) change(t *testing.T, i int) {
	t.Helper()
	const rule, one = configAPI + "/routes/rpc/rules/all", configAPI + "/clusters/one"
	const there, not = "If-Match: *", "If-None-Match: *"
	ask := func(method, path, body, condition string) { s.desk.must(t, method, path, body, condition) }
	switch i % stageChanges {
	case 0, 5:
		ask(http.MethodPut, one+"/endpoints/"+s.servers[0]+"/weight", fmt.Sprint(1+i%1000), there)
	case 1:
		ask(http.MethodPatch, rule, `{"cluster": null, "clusters": [{"cluster": "one", "weight": 1}, {"cluster": "other", "weight": 1}]}`, there)
	case 2:
		ask(http.MethodDelete, one+"/endpoints/"+s.servers[1], "", there)
	case 3:
		ask(http.MethodPatch, one, fmt.Sprintf(`{"max_pending": %d, "max_requests": %d, "max_queued": "%dMiB"}`, 1000+i, 5000+i, 32+i%8), there)
	case 4:
		ask(http.MethodPut, configAPI+"/listeners/more", fmt.Sprintf(`{"address": "unix:%s", "protocol": "bolt"}`, s.extra), not)
	case 6:
		ask(http.MethodPut, one+"/endpoints/"+s.servers[1], "{}", not)
	case 7:
		ask(http.MethodPatch, configAPI+"/listeners/in", fmt.Sprintf(`{"max_connections": %d, "idle_timeout": "%dm"}`, 5000+i, 5+i%8), there)
	case 8:
		ask(http.MethodDelete, configAPI+"/listeners/more", "", there)
	case 9:
		ask(http.MethodPatch, rule, fmt.Sprintf(`{"clusters": null, "cluster": "one", "timeout": "%ds"}`, 30+i%30), there)
	}
}

// routesChanges is after how many changes of routes and weights all is as it was, but for a weight.
const routesChanges = 3

// changeRoutes makes the i-th change of those that touch only routes and weights.
func (s *stage) changeRoutes(t *testing.T, i int) {
	t.Helper()
	round := i / routesChanges * stageChanges
	s.change(t, [routesChanges]int{round, 1, round + 9}[i%routesChanges])
}

// Changes of routes, weights, limits, endpoints and listeners, one after the other under load: no request fails, and no
// connection ends but those to an endpoint and of a listener that is taken away.
func TestChangesUnderLoad(t *testing.T) {
	changes := stageChanges * rounds(t, 20)
	requests, oneways := newLedger(), newLedger()
	var servers [3]*keeper
	for i := range servers {
		servers[i] = newKeeper(t, "127.0.0.1:0", requests, oneways, nil)
	}
	s := newStage(t, os.Args[0], [3]string{servers[0].address(), servers[1].address(), servers[2].address()})
	w := newCrew(t, map[string]string{"client": s.listener, "more": s.extra})
	w.hire(kind{name: "closed", count: 8, listener: "client", service: "echo", every: 10 * time.Millisecond, inFlight: 8, size: 1000})
	w.hire(kind{name: "late", count: 8, listener: "client", service: "echo", every: 50 * time.Millisecond, inFlight: 8, wait: 200 * time.Millisecond})
	w.hire(kind{name: "one-way", count: 4, listener: "client", service: "echo", every: 20 * time.Millisecond, oneway: true})
	w.hire(kind{name: "cut", count: 4, listener: "client", service: "echo", every: 50 * time.Millisecond, size: 600, pieces: 10, gap: 10 * time.Millisecond})
	w.visit(kind{name: "visitor", listener: "client", service: "echo", every: 20 * time.Millisecond})
	for i := range changes {
		s.change(t, i)
		if i%stageChanges == 4 { // a listener that has just come serves at once
			if c := w.dial(kind{name: "guest", listener: "more", service: "echo"}); c != nil {
				c.send()
				c.await(time.Now().Add(patience))
				c.close()
			}
		}
	}
	w.end()
	w.arrived(oneways)
	if err := w.check(requests, oneways); err != nil {
		t.Error(err)
	}
	for _, i := range []int{0, 2} {
		if gone := servers[i].gone.Load(); gone > 0 {
			t.Errorf("%d connections to a server ended that was never taken away", gone)
		}
	}
	if gone := servers[1].gone.Load(); gone == 0 {
		t.Error("no connection ended to the server that was taken away again and again")
	}
	if _, newest := s.desk.document(t); newest != uint64(1+changes) {
		t.Errorf("revision %d is in force behind %d changes", newest, changes)
	}
	t.Logf("%d changes: %v", changes, w.account())
	w.close()
	s.chain.stop(t)
}
