//go:build linux

package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// faultScene is a chain of proxies in which an upgrade goes wrong, between a server and clients that never connect again.
type faultScene struct {
	chain             *chain
	crew              *crew
	requests, oneways *ledger
	server            *keeper
	plan              string   // its file
	program           string   // the file that the chain runs
	small             []string // folders that are small file systems
	undo              []func() // what a cell has done
}

// faultClients are the connections of a scene. What is noted is the clock by which the time of a rollback is taken.
func faultClients() []kind {
	const every = 20 * time.Millisecond
	return []kind{
		{name: "clock", count: 2, listener: "client", every: 2 * time.Millisecond, noted: true},
		{name: "clock worker", count: 2, listener: "worker", every: 2 * time.Millisecond, noted: true},
		{name: "busy", count: 10, listener: "client", every: every, inFlight: 2, size: 1000},
		{name: "busy worker", count: 6, listener: "worker", every: every, inFlight: 2, size: 1000},
		{name: "late", count: 8, listener: "client", every: 100 * time.Millisecond, inFlight: 4, wait: 200 * time.Millisecond},
		{name: "late worker", count: 4, listener: "worker", every: 100 * time.Millisecond, inFlight: 4, wait: 200 * time.Millisecond},
		{name: "one-way", count: 2, listener: "client", every: every, oneway: true},
		{name: "heartbeats", count: 2, listener: "client", every: 5 * every, beat: true},
		{name: "idle", count: 4, listener: "client", every: 15 * every},
	}
}

const faultConnections = 40 // of them

// faultCrowd are so many more, for what takes longer the more there are. The clock goes by those that connect last, too.
func faultCrowd(count int) []kind {
	clocks := min(count, 2)
	return []kind{
		{name: "crowd", count: count - clocks, listener: "client", every: time.Second},
		{name: "clock of the crowd", count: clocks, listener: "client", every: 2 * time.Millisecond, noted: true},
	}
}

// quickExit has a process with the race detector not wait for a second before it ends, checks of configurations included.
const quickExit = "GORACE=atexit_sleep_ms=50"

// faultVisitor connects, asks and closes: who is refused is in its books.
func faultVisitor(listener string) kind {
	return kind{name: "visitor of " + listener, listener: listener, every: 20 * time.Millisecond}
}

func newFaultScene(t *testing.T, program string, c *cell) *faultScene {
	t.Helper()
	s := &faultScene{requests: newLedger(), oneways: newLedger(), plan: filepath.Join(t.TempDir(), "plan"), program: program}
	s.server = newKeeper(t, "127.0.0.1:0", s.requests, s.oneways, nil)
	addresses := map[string]string{"client": steadyAddress(t), "worker": steadyAddress(t)}
	environ := []string{faultPlan + "=" + s.plan, quickExit, smallFolders + "=" + c.small}
	var state, text string
	if strings.Contains(c.small, "state_dir") {
		state = t.TempDir()
		text = fmt.Sprintf("state_dir: %q\n", state)
	}
	s.chain = newChain(t, program, cmp.Or(c.bounds, patient), fmt.Sprintf(`
listeners:
- {name: client, address: %q, protocol: bolt}
- {name: worker, address: %q, protocol: bolt, forwarding: worker}
routes: [{name: rpc, rules: [{cluster: echo, timeout: 20s}]}]
clusters: [{name: echo, protocol: bolt, endpoints: [{address: %q}]}]
stop_timeout: 20s
`, addresses["client"], addresses["worker"], s.server.address())+text, environ...)
	if strings.Contains(c.small, "runtime_dir") {
		s.chain.runtime = s.seen(t, s.chain.runtime)
		s.small = append(s.small, s.chain.runtime)
	}
	if state != "" {
		s.small = append(s.small, s.seen(t, state))
	}
	s.crew = newCrew(t, addresses)
	for _, k := range append(faultClients(), faultCrowd(c.crowd)...) {
		s.crew.hire(k)
	}
	for name := range addresses {
		s.crew.visit(faultVisitor(name))
	}
	s.answered(t, "", 0)
	return s
}

// answered waits until all clients, or those of one kind, have got a reply each behind so many.
func (s *faultScene) answered(t *testing.T, kind string, n uint32) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for waiting := true; waiting; time.Sleep(time.Millisecond) {
		waiting = false
		for _, c := range s.crew.all() {
			if strings.HasPrefix(c.kind.name, "visitor") || kind != "" && c.kind.name != kind {
				continue
			}
			c.mu.Lock()
			waiting = waiting || c.answered+c.oneways <= n
			why := c.why
			c.mu.Unlock()
			if why != nil {
				t.Fatalf("%s (connection %d): %v; want %d replies", c.kind.name, c.number, why, n+1)
			}
		}
		if waiting && time.Now().After(deadline) {
			t.Fatalf("not all clients have got %d replies after %v", n+1, patience)
		}
	}
}

// seen is the path by which this process sees a folder that is a file system of the chain's own.
func (s *faultScene) seen(t *testing.T, folder string) string {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/root%s", s.chain.now.process.Pid, folder))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
}

// install makes another program the one on disk, as a package manager does.
func (s *faultScene) install(t *testing.T, program string) {
	t.Helper()
	installAt(t, program, s.program)
}

func installAt(t *testing.T, program, at string) {
	t.Helper()
	if err := os.Link(program, at+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(at+".new", at); err != nil {
		t.Fatal(err)
	}
}

// configure makes another configuration the one on disk, up to the end of the cell.
func (s *faultScene) configure(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(s.chain.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// outcome is what came of an upgrade that went wrong.
type outcome struct {
	reported upgraded
	owner    string        // old, new or none
	failed   uint64        // requests without a reply
	lost     int           // connections that ended
	refused  int           // connections that could not be made
	again    time.Duration // from when the old process learned of the failure to the next reply; of the slowest clock
}

// upgrade makes the upgrade that goes wrong and says who owns the state then.
func (s *faultScene) upgrade(t *testing.T, c *cell) (o outcome) {
	t.Helper()
	p := s.chain
	old := p.now
	old.killed = c.killsOld()
	if c.verb {
		began := time.Now()
		status, _, text := relevo(t, "", "upgrade", "--runtime-dir", p.runtime)
		if took := time.Since(began); status != exitFailed || !regexp.MustCompile(c.reason).MatchString(text) || took > patience/2 {
			t.Errorf("relevo upgrade: exit status %d after %v, and %q; want %d soon, and %q", status, took, text, exitFailed, c.reason)
		}
	} else {
		p.ask(t)
	}
	switch {
	case c.unreported: // neither is there a report, nor a pid file
		p.err.find(t, `"msg":"the report of the upgrade is in memory only"`)
		o.reported.ID = p.last + 1
		if c.outcome != "done" {
			said := func(field string) string {
				return p.err.find(t, `"msg":"the upgrade did not succeed"[^\n]*"`+field+`":"([^"]+)"`)
			}
			o.reported.Outcome, o.reported.Step, o.reported.Reason = said("outcome"), said("step"), said("reason")
			p.last, o.owner = o.reported.ID, "old"
			break
		}
		o.reported.Outcome = p.err.find(t, `"msg":"upgraded"[^\n]*"outcome":"([^"]+)"`)
		p.err.find(t, `"msg":"the pid file [^\n]*"error":`)
		<-old.gone
		for _, other := range processes() {
			if other.group == p.group && !other.dead {
				o.reported.To = other.pid
			}
		}
		p.succeeded(t, o.reported)
		o.owner = "new"
	case c.owner == "none":
		<-old.gone
		if !old.killed && old.state.ExitCode() != exitFailed {
			t.Errorf("the old process, whose heir died, ended with %v; want status %d, so that it is started again", old.state, exitFailed)
		}
		o.owner = "none"
		s.nobodyLeft(t)
		if text, err := os.ReadFile(filepath.Join(p.runtime, "upgrade.json")); err == nil && strings.Contains(string(text), `"failed"`) {
			o.reported = p.report(t)
		}
	case c.follows:
		o.reported = p.reportOf(t, p.last+2)
		<-old.gone
		old.killed = old.state.ExitCode() != exitDone // else it has ended by itself before that
		p.succeeded(t, upgraded{ID: p.last + 1, To: o.reported.From})
		p.succeeded(t, o.reported)
		o.owner = "new"
	default:
		o.reported = p.report(t)
		switch o.reported.Outcome {
		case "done", "orphaned":
			<-old.gone // the plan may be for its last words
			p.succeeded(t, o.reported)
			o.owner = "new"
		default:
			p.last = o.reported.ID
			o.owner = "old"
			if o.reported.Outcome == rolledBack {
				o.again = s.readsAgain(t)
			}
		}
	}
	return o
}

// nobodyLeft waits for the end of all processes of the chain.
func (s *faultScene) nobodyLeft(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		var status syscall.WaitStatus
		switch pid, err := syscall.Wait4(-s.chain.group, &status, syscall.WNOHANG, nil); {
		case errors.Is(err, syscall.ECHILD):
			return
		case pid > 0 && status.ExitStatus() != exitFailed && !status.Signaled():
			t.Errorf("the new process, which owned nothing, ended with status %d; want %d", status.ExitStatus(), exitFailed)
		case time.Now().After(deadline):
			t.Fatal("a process of the chain that owns nothing does not end")
		}
		time.Sleep(time.Millisecond)
	}
}

// learned is the line with which the old process says that it has learned of the failure.
const learned = `"time":"([^"]+)"[^\n]*"msg":"upgrade"[^\n]*"to":"(?:rolling-back|judging|idle)"`

// readsAgain is how long it took from when the old process had learned of the failure until each clock had another reply;
// of the slowest.
func (s *faultScene) readsAgain(t *testing.T) (slowest time.Duration) {
	t.Helper()
	text := s.chain.err.find(t, learned)
	learned, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(patience)
	for _, c := range s.crew.all() {
		for c.kind.noted {
			c.mu.Lock()
			why := c.why
			i := len(c.came)
			for i > 0 && c.came[i-1].After(learned) {
				i--
			}
			if i < len(c.came) {
				slowest = max(slowest, c.came[i].Sub(learned))
				c.mu.Unlock()
				break
			}
			c.mu.Unlock()
			if why != nil || time.Now().After(deadline) {
				t.Errorf("%s (connection %d) got no reply behind the rollback: %v", c.kind.name, c.number, why)
				return slowest
			}
			time.Sleep(time.Millisecond)
		}
	}
	return slowest
}

// goOn shows that there is a proxy behind what went wrong, and that the next upgrade succeeds.
func (s *faultScene) goOn(t *testing.T, c *cell) {
	t.Helper()
	const replies = 5
	upgrades := uint64(1)
	if c.follows {
		upgrades++
	}
	s.chain.until(t, func(m reading) error { return m.is(upgrades, "relevo_upgrades_total", "outcome="+c.outcome) })
	s.chain.until(t, func(m reading) error { return m.is(0, "relevo_upgrade_running") })
	fastest := patience
	for range 3 {
		asked := time.Now()
		s.chain.read(t)
		fastest = min(fastest, time.Since(asked))
	}
	if fastest > 900*time.Millisecond {
		t.Errorf("behind the upgrade every scrape takes %v or longer: it waits for counters that do not come", fastest)
	}
	if c.lost {
		for _, listener := range []string{"client", "worker"} {
			s.crew.hire(kind{name: "afterwards", count: 4, listener: listener, every: 5 * time.Millisecond})
		}
		s.answered(t, "afterwards", replies)
	}
	r := s.chain.upgrade(t)
	if all := faultConnections + c.crowd; r.Carried.Downstreams < uint64(all) && !c.lost {
		t.Errorf("the next upgrade carried %d client connections, want all %d", r.Carried.Downstreams, all)
	}
	if c.lost {
		s.answered(t, "afterwards", 2*replies)
	} else {
		time.Sleep(50 * time.Millisecond)
	}
}

// finish goes through everybody's books.
func (s *faultScene) finish(t *testing.T, c *cell, o *outcome) {
	t.Helper()
	if o.owner != "none" {
		s.goOn(t, c)
	}
	s.crew.end()
	s.crew.arrived(s.oneways)
	for _, k := range s.crew.all() {
		k.mu.Lock()
		if k.why != nil {
			o.failed += uint64(len(k.open))
			if k.why.reason == failRefused {
				o.refused++
			} else {
				o.lost++
			}
		}
		k.mu.Unlock()
	}
	if !c.lost {
		if err := s.crew.check(s.requests, s.oneways); err != nil {
			t.Error(err)
		}
		if accepted, gone, bad := s.server.accepted.Load(), s.server.gone.Load(), s.server.bad.Load(); accepted != 1 || gone > 0 || bad > 0 {
			t.Errorf("the server got %d connections, of which %d ended, and %d frames that were not as sent; want 1, 0 and 0", accepted, gone, bad)
		}
	}
	if c.lost && o.lost < faultConnections {
		t.Errorf("%d connections were lost, want all %d: somebody owns what nobody should", o.lost, faultConnections)
	}
	if o.owner != "none" && o.refused > 0 {
		t.Errorf("%d connections were refused, want none while somebody listens", o.refused)
	}
	a := s.crew.account()
	t.Logf("%v; %v", a, *o)
	s.crew.close()
	if o.owner != "none" {
		s.chain.stop(t)
	}
}
