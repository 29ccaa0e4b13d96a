package upgrade

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait of a test; none of them is expected to last.
const patience = 30 * time.Second

// chain is a chain of real processes, and one client.
type chain struct {
	dir    string
	first  *exec.Cmd
	gone   chan error // gets what Wait says of the first process, once
	client *lineClient
}

func startChain(t *testing.T, env ...string) *chain {
	t.Helper()
	c := &chain{dir: t.TempDir(), gone: make(chan error, 1)}
	logs, err := os.Create(filepath.Join(c.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer logs.Close()
	c.first = exec.Command(os.Args[0], "run")
	c.first.Env = append(append(os.Environ(), asProgram+"="+c.dir, "GORACE=atexit_sleep_ms=0"), env...)
	c.first.Stdout, c.first.Stderr = logs, logs // a file: a pipe would be held by the heirs
	if err := c.first.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { c.gone <- c.first.Wait() }() // ends with the process, which the cleanup kills
	t.Cleanup(func() {
		_ = c.first.Process.Kill()
		// An heir is not our child: what the files name is killed, if it is of this program.
		pid, _ := ReadPID(c.dir)
		last, _ := ReadReport(c.dir)
		for _, heir := range []int{pid, last.To} {
			if runs, _ := Runs(heir); runs && heir != os.Getpid() {
				_ = syscall.Kill(heir, syscall.SIGKILL)
			}
		}
		if c.client != nil {
			c.client.conn.Close()
		}
		if t.Failed() {
			said, _ := os.ReadFile(logs.Name())
			t.Logf("the processes said:\n%s", said)
		}
	})
	var address []byte
	c.await(t, "the address of the first process", func() bool {
		address, _ = os.ReadFile(filepath.Join(c.dir, listenFile))
		return len(address) > 0
	})
	conn, err := net.Dial("tcp", string(address))
	if err != nil {
		t.Fatal(err)
	}
	c.client = &lineClient{conn, bufio.NewReader(conn)}
	return c
}

// await polls: what other processes do has no clock of ours.
func (c *chain) await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

func (c *chain) pid(t *testing.T) int {
	t.Helper()
	pid, err := ReadPID(c.dir)
	if err != nil || pid == 0 {
		t.Fatalf("the pid file says %d, %v", pid, err)
	}
	return pid
}

// upgrade asks the owner for an upgrade and returns its report.
func (c *chain) upgrade(t *testing.T) Report {
	t.Helper()
	before, err := ReadReport(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(c.pid(t), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	return c.report(t, before.ID+1)
}

func (c *chain) report(t *testing.T, id uint64) (r Report) {
	t.Helper()
	c.await(t, fmt.Sprintf("the report of upgrade %d", id), func() bool {
		var err error
		if r, err = ReadReport(c.dir); err != nil {
			t.Fatal(err)
		}
		return r.ID >= id && r.Outcome.Final()
	})
	return r
}

func (c *chain) fail(t *testing.T, how string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(c.dir, failFile), []byte(how), 0o600); err != nil {
		t.Fatal(err)
	}
}

func descriptorsOf(t *testing.T, pid int) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// One connection is answered by one generation after the other, and no generation has more descriptors than the one before.
func TestGenerationsFollowEachOther(t *testing.T) {
	c := startChain(t)
	pid := c.pid(t)
	c.client.ask(t)
	fresh := descriptorsOf(t, pid)
	for n := uint64(1); n <= 5; n++ {
		if got := c.client.ask(t); got != strconv.Itoa(pid) {
			t.Fatalf("before upgrade %d pid %s answered, want the owner, %d", n, got, pid)
		}
		r := c.upgrade(t)
		if r.ID != n || r.Outcome != Done || r.From != pid || r.To == pid || r.Generation != n+1 {
			t.Fatalf("upgrade %d from pid %d: the report is %+v", n, pid, r)
		}
		if r.Carried.Downstreams != 1 || r.Pause <= 0 || len(r.Left) != 1 || len(r.Pauses) != 1 || r.Steps[StepWarm] <= 0 {
			t.Errorf("upgrade %d: the report lacks something: %+v", n, r)
		}
		c.await(t, "the pid file to move", func() bool { return c.pid(t) == r.To })
		pid = r.To
		if got := c.client.ask(t); got != strconv.Itoa(pid) {
			t.Fatalf("after upgrade %d pid %s answered, want the new one, %d", n, got, pid)
		}
		// The heir still listens to the process before it until it sees its end.
		c.await(t, "the old process to end", func() bool { runs, _ := Runs(r.From); return !runs })
		// An heir keeps tableflip's copies of the hand-over socket and of the pipe from its parent.
		c.await(t, fmt.Sprintf("generation %d to have %d descriptors and 2 more", n+1, fresh), func() bool {
			return descriptorsOf(t, pid) <= fresh+2
		})
	}
	if err := <-c.gone; err != nil {
		t.Errorf("the first process ended with %v, want status 0", err)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	c.await(t, "the pid file to go", func() bool { pid, err := ReadPID(c.dir); return err == nil && pid == 0 })
}

// Whatever goes wrong, the old process goes on, says why, and the next upgrade succeeds.
func TestFailuresAreUndone(t *testing.T) {
	c := startChain(t)
	pid := c.pid(t)
	tests := []struct {
		fail    string
		outcome Outcome
		step    string
		reason  string
	}{
		{"check", Refused, StepPreflight, "listeners[0]: no such protocol"},
		{"build", RolledBack, StepWarm, "the new process gave up: build: 127.0.0.1:1: permission denied"},
		{"crash", RolledBack, StepWarm, "exit status 3"},
		{"barrier", RolledBack, StepBarrier, "2 streams do not rest"},
		{"prepare", RolledBack, StepPrepare, "the new process gave up: prepare: no memory for them"},
		{"crash-prepare", RolledBack, StepPrepare, "exit status 3"},
	}
	for _, test := range tests {
		c.fail(t, test.fail)
		r := c.upgrade(t)
		if r.Outcome != test.outcome || r.Step != test.step || !strings.Contains(r.Reason, test.reason) {
			t.Errorf("%s: the outcome is %s at %s because %q, want %s at %s because %q",
				test.fail, r.Outcome, r.Step, r.Reason, test.outcome, test.step, test.reason)
		}
		if got := c.client.ask(t); got != strconv.Itoa(pid) {
			t.Errorf("%s: pid %s answers, want the old one, %d", test.fail, got, pid)
		}
		if test.fail == "barrier" && len(r.Oldest) != 1 {
			t.Errorf("the report of a barrier that did not rest names no stream: %+v", r)
		}
	}
	c.fail(t, "")
	r := c.upgrade(t)
	if r.Outcome != Done || r.From != pid {
		t.Errorf("the upgrade after the failures: %+v", r)
	}
}

// tableflip drops the descriptors of earlier attempts, and only the garbage collector closes them.
func TestFailedUpgradesLeaveNoDescriptors(t *testing.T) {
	c := startChain(t)
	pid := c.pid(t)
	var counts []int
	for _, fail := range []string{"build", "check", "build", "crash", "build", "prepare", "build", "build", "check", "build"} {
		c.fail(t, fail)
		if r := c.upgrade(t); r.Outcome == Done {
			t.Fatalf("%s: the upgrade succeeded", fail)
		}
		counts = append(counts, descriptorsOf(t, pid))
	}
	last := counts[len(counts)-1]
	c.await(t, fmt.Sprintf("as few descriptors as after the second attempt, of %v", counts), func() bool {
		last = descriptorsOf(t, pid)
		return last <= counts[1]
	})
}

// A process that does nothing at all is found as our child and killed.
func TestHangingProcessIsKilled(t *testing.T) {
	c := startChain(t)
	c.fail(t, "hang")
	if err := syscall.Kill(c.pid(t), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	c.await(t, "the upgrade to begin", func() bool { r, _ := ReadReport(c.dir); return r.ID == 1 })
	// SIGTERM undoes it at once, and the process stops in order.
	c.await(t, "the new process", func() bool { return len(childrenOf(t, c.first.Process.Pid)) > 0 && hanging(t, c) })
	if err := syscall.Kill(c.pid(t), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-c.gone; err != nil {
		t.Errorf("the process ended with %v, want status 0", err)
	}
	r, err := ReadReport(c.dir)
	if err != nil || r.Outcome != RolledBack || r.Reason != reasonStop {
		t.Errorf("the report is %+v, %v; want rolled back because %q", r, err, reasonStop)
	}
	if pid, err := ReadPID(c.dir); err != nil || pid != 0 {
		t.Errorf("the pid file says %d, %v; want none", pid, err)
	}
}

func childrenOf(t *testing.T, parent int) (list []int) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		data, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		if p, _, state, ok := parseStat(string(data)); ok && p == parent && state != "Z" {
			list = append(list, pid)
		}
	}
	return list
}

// hanging reports whether the heir has come to Build.
func hanging(t *testing.T, c *chain) bool {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(c.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Contains(data, []byte(`"to":"building"`))
}

// The old process dies by kill -9 when the state is whole but not given away: the new one has it all.
func TestHeirOfADeadProcessHasEverything(t *testing.T) {
	c := startChain(t)
	c.fail(t, "die")
	r := c.upgrade(t)
	if r.Outcome != Done || r.Reason != reasonWidowed {
		t.Fatalf("the report is %+v, want done because %q", r, reasonWidowed)
	}
	if got := c.client.ask(t); got != strconv.Itoa(r.To) {
		t.Errorf("pid %s answered, want the new process, %d", got, r.To)
	}
	c.await(t, "the pid file to move", func() bool { return c.pid(t) == r.To })
}

// A process that stands still when the new one starts does not kill it for being late: what was said in time is heard before it is judged.
func TestWhatWasSaidInTimeIsHeardLate(t *testing.T) {
	c := startChain(t)
	c.fail(t, "standstill")
	r := c.upgrade(t)
	if r.Outcome != Done {
		t.Fatalf("the report is %+v, want done", r)
	}
	if err := <-c.gone; err != nil {
		t.Errorf("the old process ended with %v, want status 0", err)
	}
	if got := c.client.ask(t); got != strconv.Itoa(r.To) {
		t.Errorf("pid %s answered, want the new process, %d", got, r.To)
	}
}

// While the old process lingers, the death of its heir is its own.
func TestDeathOfTheHeirEndsWhoLingers(t *testing.T) {
	c := startChain(t, asLinger+"=1h")
	r := c.upgrade(t)
	if r.Outcome != Done {
		t.Fatalf("the report is %+v", r)
	}
	if err := syscall.Kill(r.To, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-c.gone; c.first.ProcessState.ExitCode() != 1 {
		t.Errorf("the old process ended with %v, want status 1", err)
	}
}

// A signal that comes to the wrong process goes to the right one.
func TestSignalsFollowTheOwner(t *testing.T) {
	c := startChain(t, asLinger+"=2s")
	first := c.pid(t)
	r := c.upgrade(t)
	if got := c.pid(t); got != first {
		t.Fatalf("the pid file says %d while the old process, %d, lingers", got, first)
	}
	if err := syscall.Kill(first, syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	r2 := c.report(t, 2)
	if r2.Outcome != Done || r2.From != r.To {
		t.Errorf("the second upgrade: %+v, want one from pid %d", r2, r.To)
	}
	if err := syscall.Kill(r.To, syscall.SIGTERM); err != nil { // it lingers, and passes this on
		t.Fatal(err)
	}
	c.await(t, "the pid file to go", func() bool { pid, err := ReadPID(c.dir); return err == nil && pid == 0 })
}
