//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
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

// The bench: for each number of connections, half of which are idle, upgrades of a proxy that has them.
const (
	benchUpgrades = 5
	benchPhase    = 5 * time.Second // between two upgrades, and before the first
	benchRequests = 5000            // a second, of all connections that are not idle
)

// benchSizes are numbers of connections, and what the longest pause should be.
var benchSizes = []struct {
	connections int
	goal        time.Duration
}{{1000, 50 * time.Millisecond}, {10000, 150 * time.Millisecond}}

// phase is a row of the table: an upgrade, or the time before the first one.
type phase struct {
	what     string
	took     time.Duration // from the signal to the report
	report   upgraded
	longest  time.Duration // that a client waited for a reply
	answered uint64
	left     *generation
}

// TestBenchUpgrade measures upgrades with many connections. It needs minutes and a machine of its own.
func TestBenchUpgrade(t *testing.T) {
	program := os.Getenv(benchProgram)
	if program == "" {
		t.Skip("`make bench-upgrade` runs this")
	}
	var tables strings.Builder
	for _, size := range benchSizes {
		fmt.Fprintf(&tables, "### %d connections\n\n", size.connections)
		benchTable(t, &tables, program, size.connections)
		fmt.Fprintf(&tables, "\nThe goal is a pause of %v at most.\n\n", size.goal)
	}
	section := benchSection(t, program, tables.String())
	t.Logf("\n%s", section)
	if page := os.Getenv(benchPage); page != "" && !t.Failed() {
		if err := yard.WriteSection(page, "upgrades", "make bench-upgrade", section); err != nil {
			t.Error(err)
		}
	}
}

// benchTable measures upgrades of a proxy with so many connections. Every one of them must survive, on both sides.
func benchTable(t *testing.T, b *strings.Builder, program string, connections int) {
	t.Helper()
	requests, oneways := newLedger(), newLedger()
	k := newKeeper(t, "127.0.0.1:0", requests, oneways, nil)
	address := steadyAddress(t)
	p := newChain(t, program, "", fmt.Sprintf(`
listeners: [{name: client, address: %q, protocol: bolt, max_connections: 20000, accept_rate: none}]
routes: [{name: rpc, rules: [{cluster: order, timeout: 1m}]}]
clusters: [{name: order, protocol: bolt, endpoints: [{address: %q}]}]
`, address, k.address()))
	w := newCrew(t, map[string]string{"client": address})
	for range connections / 2 {
		if c := w.dial(kind{name: "idle", listener: "client", service: "order", size: 1000}); c != nil {
			c.send() // so that it has been used
		}
	}
	every := time.Second * time.Duration(connections/2) / benchRequests
	w.hire(kind{name: "busy", count: connections / 2, listener: "client", service: "order", every: every, inFlight: 64, size: 1000})
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
		rows = append(rows, phase{fmt.Sprint(i + 1), took, r, longest, answered, old})
	}
	w.end()
	if err := w.check(requests, oneways); err != nil {
		t.Error(err)
	}
	failed := 0
	for _, n := range w.account().failures {
		failed += n
	}
	reconnects := k.accepted.Load() - made
	if reconnects > 0 || k.gone.Load() > 0 {
		t.Errorf("%d connections to the server were made anew, and %d ended; want none", reconnects, k.gone.Load())
	}
	w.close()
	p.stop(t)
	b.WriteString(`| upgrade | asked to done ms | pause ms | barrier | state | prepare | commit | longest ms | old process gone after ms | its RSS MiB at most | replies |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|
`)
	for i := range rows {
		fmt.Fprintf(b, "| %s |\n", strings.Join(rows[i].cells(), " | "))
	}
	fmt.Fprintf(b, "\nFailed: %d of all connections, for whatever reason. Connections to the server that had to be made anew: %d.\n", failed, reconnects)
}

// cells are the row of a phase whose processes have ended.
func (r *phase) cells() []string {
	ms := func(d time.Duration) string { return fmt.Sprintf("%.1f", d.Seconds()*1000) }
	row := []string{r.what, "", "", "", "", "", "", ms(r.longest), "", "", fmt.Sprint(r.answered)}
	if r.left == nil {
		return row
	}
	row[1], row[2] = ms(r.took), fmt.Sprintf("%.1f", r.report.Pause*1000)
	for i, step := range []string{"barrier", "state", "prepare", "commit"} {
		row[3+i] = fmt.Sprintf("%.1f", r.report.Steps[step]*1000)
	}
	row[8] = ms(max(r.left.ended.Sub(r.left.left), 0))
	if use, ok := r.left.state.SysUsage().(*syscall.Rusage); ok {
		row[9] = fmt.Sprint(use.Maxrss >> 10)
	}
	return row
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

func benchSection(t *testing.T, program, tables string) string {
	t.Helper()
	version, err := exec.Command(program, "version").Output()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `## Upgrades

Half of the connections are idle after one request, the others send %d requests of 1,000 bytes a second; %d upgrades, %v apart.
Clients, proxy and server share the cores of one machine. **Pause** is what Relevo reports: from the beginning of the barrier to the
last open gate. It has five steps: the old process comes to rest (**barrier**), says its **state**, the new one **prepare**s what
it has not yet, the state is given and taken (**commit**), and gates open, in what is left. **Longest** is the longest time
that any client waited for a reply from the moment at which it sent its request; the first row says what that is without an
upgrade. **Gone** is when the old process had ended, after the upgrade was reported as done, and its resident size is the most of its life,
in which it has given its state, and taken it but for the first one.

`, benchRequests, benchUpgrades, benchPhase)
	b.WriteString(tables)
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&b, "Measured on %s with %d cores, Linux %s, %s, and %s\n    make bench-upgrade\n", time.Now().UTC().Format(time.DateOnly),
		runtime.NumCPU(), unix.ByteSliceToString(u.Release[:]), runtime.Version(), version)
	return b.String()
}
