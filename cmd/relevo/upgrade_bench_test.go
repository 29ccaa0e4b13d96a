//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench/yard"
)

// What `make bench-upgrade` sets: the program to upgrade, and the page to write to.
const (
	benchProgram = "RELEVO_BENCH_UPGRADE"
	benchPage    = "RELEVO_BENCH_PAGE"
)

// The bench: connections, half of which are idle, and upgrades of a proxy that has them.
const (
	benchConnections = 10000
	benchUpgrades    = 5
	benchPhase       = 5 * time.Second // between two upgrades, and before the first
)

// phase is a row of the table: an upgrade, or the time before the first one.
type phase struct {
	what     string
	took     time.Duration // from the signal to the report
	pause    time.Duration // as reported
	longest  time.Duration // that a client waited for a reply
	answered uint64
	left     *generation
}

// TestBenchUpgrade measures upgrades with very many connections. It needs minutes and a machine of its own.
func TestBenchUpgrade(t *testing.T) {
	program := os.Getenv(benchProgram)
	if program == "" {
		t.Skip("`make bench-upgrade` runs this")
	}
	requests, oneways := newLedger(), newLedger()
	k := newKeeper(t, "127.0.0.1:0", requests, oneways, nil)
	address := steadyAddress(t)
	p := newChain(t, program, "", fmt.Sprintf(`
listeners: [{name: client, address: %q, protocol: bolt, max_connections: 20000, accept_rate: none}]
routes: [{name: rpc, rules: [{cluster: order, timeout: 1m}]}]
clusters: [{name: order, protocol: bolt, endpoints: [{address: %q}]}]
`, address, k.address()))
	w := newCrew(t, map[string]string{"client": address})
	for range benchConnections / 2 {
		if c := w.dial(kind{name: "idle", listener: "client", service: "order", size: 1000}); c != nil {
			c.send() // so that it has been used
		}
	}
	w.hire(kind{name: "busy", count: benchConnections / 2, listener: "client", service: "order", every: time.Second, inFlight: 64, size: 1000})
	time.Sleep(benchPhase) // what connecting has cost is over
	made := k.accepted.Load()
	w.lap()

	var rows []phase
	time.Sleep(benchPhase)
	longest, answered := w.lap()
	rows = append(rows, phase{what: "none", longest: longest, answered: answered})
	for i := range benchUpgrades {
		if !canUpgrade {
			break
		}
		before, old := time.Now(), p.now
		r := p.upgrade(t)
		took := time.Since(before)
		time.Sleep(benchPhase)
		longest, answered := w.lap()
		rows = append(rows, phase{fmt.Sprint(i + 1), took, time.Duration(r.Pause * float64(time.Second)), longest, answered, old})
	}
	w.end()
	if err := w.check(requests, oneways); err != nil {
		t.Error(err)
	}
	a := w.account()
	failed := 0
	for _, n := range a.failures {
		failed += n
	}
	reconnects := k.accepted.Load() - made
	if reconnects > 0 || k.gone.Load() > 0 {
		t.Errorf("%d connections to the server were made anew, and %d ended; want none", reconnects, k.gone.Load())
	}
	w.close()
	p.stop(t)
	section := benchSection(t, program, rows, failed, reconnects)
	t.Logf("\n%s", section)
	if page := os.Getenv(benchPage); page != "" && !t.Failed() {
		if err := yard.WriteSection(page, "upgrades", "make bench-upgrade", section); err != nil {
			t.Error(err)
		}
	}
}

// lap is the longest time that a reply has taken, and how many came, since the last lap.
func (w *crew) lap() (longest time.Duration, answered uint64) {
	for _, c := range w.all() {
		c.mu.Lock()
		longest = max(longest, c.longest)
		answered += uint64(c.answered - c.counted)
		c.longest, c.counted = 0, c.answered
		c.mu.Unlock()
	}
	return longest, answered
}

func benchSection(t *testing.T, program string, rows []phase, failed int, reconnects int64) string {
	t.Helper()
	version, err := exec.Command(program, "version").Output()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `## Upgrades

%d connections from 100 addresses, half of them idle after one request, the others with one request of 1,000 bytes a second each; %d upgrades, %v
apart. Clients, proxy and server share the cores of one machine. **Longest** is the longest time that any client waited for a reply
from the moment at which it sent its request; the first row says what that is without an upgrade. **Pause** is what Relevo reports: from the
beginning of the barrier to the first open gate. **Gone** is when the old process had ended, after the upgrade was reported as done.

| upgrade | asked to done ms | pause ms | longest ms | old process gone after ms | replies |
|---|--:|--:|--:|--:|--:|
`, benchConnections, benchUpgrades, benchPhase)
	ms := func(d time.Duration) string { return fmt.Sprintf("%.1f", d.Seconds()*1000) }
	for _, r := range rows {
		took, pause, gone := "", "", ""
		if r.left != nil {
			took, pause, gone = ms(r.took), ms(r.pause), ms(max(r.left.ended.Sub(r.left.left), 0))
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %d |\n", r.what, took, pause, ms(r.longest), gone, r.answered)
	}
	fmt.Fprintf(&b, "\nFailed: %d of all connections, for whatever reason. Connections to the server that had to be made anew: %d.\n", failed, reconnects)
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&b, "\nMeasured on %s with %d cores, Linux %s, %s, and %s\n    make bench-upgrade\n", time.Now().UTC().Format(time.DateOnly),
		runtime.NumCPU(), unix.ByteSliceToString(u.Release[:]), runtime.Version(), version)
	return b.String()
}
