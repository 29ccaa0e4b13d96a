//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// chain is a proxy, and the processes that take over from it, one after another.
type chain struct {
	// Static after newChain.
	program string
	environ []string
	runtime string // runtime_dir; empty where there are no upgrades
	metrics string // URL
	config  string // the file, and what was in it
	text    string

	// Of the processes since the last start.
	group int
	err   *transcript
	end   func() // ends them all, once

	now  *generation
	past []*generation
	last uint64 // id of the last upgrade
}

// generation is one process of a chain.
type generation struct {
	process *os.Process
	left    time.Time     // when its upgrade was reported as done
	killed  bool          // by the test
	gone    chan struct{} // closed when it has ended
	state   *os.ProcessState
	err     error     // both to be read after gone
	ended   time.Time // and when that was
}

// canUpgrade says whether this program can be upgraded. To be taken out, with the branches for false, once it can.
const canUpgrade = true

// upgraded is what the proxy reports of an upgrade: runtime_dir/upgrade.json.
type upgraded struct {
	ID      uint64             `json:"id"`
	Outcome string             `json:"outcome"`
	Step    string             `json:"step"`
	Reason  string             `json:"reason"`
	Release string             `json:"release_to"`
	From    int                `json:"from"` // pids
	To      int                `json:"to"`
	Pause   float64            `json:"pause"` // seconds
	Steps   map[string]float64 `json:"steps"` // likewise
	Carried struct {
		Downstreams uint64 `json:"downstreams"`
		Upstreams   uint64 `json:"upstreams"`
		Streams     uint64 `json:"streams"`
		Requests    uint64 `json:"requests"` // that had not been sent
		Uploads     uint64 `json:"uploads"`
		Bytes       uint64 `json:"bytes"`
	} `json:"carried"`

	text string
}

// add adds what another upgrade carried.
func (r *upgraded) add(o upgraded) {
	r.Pause = max(r.Pause, o.Pause)
	r.Carried.Downstreams += o.Carried.Downstreams
	r.Carried.Upstreams += o.Carried.Upstreams
	r.Carried.Streams += o.Carried.Streams
	r.Carried.Requests += o.Carried.Requests
	r.Carried.Uploads += o.Carried.Uploads
	r.Carried.Bytes += o.Carried.Bytes
}

// some says so unless something of everything was carried: what was never met has not been tried.
func (r *upgraded) some() error {
	if c := r.Carried; min(c.Downstreams, c.Upstreams, c.Streams, c.Requests, c.Uploads, c.Bytes) == 0 {
		return fmt.Errorf("all upgrades together carried %+v; want some of everything", c)
	}
	return nil
}

// patientUpgrades are the bounds of an upgrade on a machine that is busy, with the race detector: how long it takes is
// for a benchmark to say.
const patientUpgrades = "upgrade: {ready_timeout: 1m, handover_timeout: 30s}"

// newChain starts a proxy with this configuration, to which metrics, the bounds of upgrades and runtime_dir are added.
// Whatever becomes of it, all its processes end with the test, and with this process.
func newChain(t testing.TB, program, bounds, text string, environ ...string) *chain {
	t.Helper()
	// Who loses its parent becomes a child of ours, so that we learn how it ended.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatalf("becoming the reaper of the processes of a chain: %v", err)
	}
	door := steadyAddress(t)
	p := &chain{program: program, environ: environ, metrics: "http://" + door + "/metrics"}
	text += fmt.Sprintf("\nmetrics: {address: %q}\n", door)
	if canUpgrade {
		p.runtime = t.TempDir()
		text += fmt.Sprintf("runtime_dir: %q\n%s\n", p.runtime, bounds)
	}

	p.text, p.config = text, fileWith(t, text)
	p.start(t)
	return p
}

// start starts a process that serves: the first one, or one in place of those that have all ended.
func (p *chain) start(t testing.TB) {
	t.Helper()
	if p.end != nil {
		p.end()
	}
	log := newTranscript()
	from, to, err := os.Pipe() // ours, because exec's own would be waited for until the last process has ended
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(p.program, "run", "-c", p.config)
	cmd.Env = append(append(os.Environ(), asProgram+"=1"), p.environ...)
	cmd.Stdout, cmd.Stderr = to, to
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = cmd.Start()
	to.Close()
	if err != nil {
		t.Fatal(err)
	}
	copied := make(chan struct{})
	go func() { // ends with the last process, which the clean-up sees to and waits for
		_, _ = io.Copy(log, from)
		close(copied)
	}()
	p.group = cmd.Process.Pid
	dismiss := guard(t, p.group)
	p.err, p.now, p.past = log, follow(cmd.Process, nil), nil
	p.end = sync.OnceFunc(func() {
		_ = syscall.Kill(-p.group, syscall.SIGKILL)
		for _, g := range append(p.past, p.now) {
			<-g.gone
		}
		for { // those that were never heard of
			if _, err := syscall.Wait4(-p.group, nil, 0, nil); err != nil && !errors.Is(err, syscall.EINTR) {
				break
			}
		}
		<-copied
		from.Close()
		dismiss()
		if t.Failed() {
			t.Logf("the log of all generations:\n%s", log)
		}
	})
	t.Cleanup(p.end)
	log.find(t, `"msg":"serving"`)
}

// guard starts a shell that kills a group of processes when this one has ended: nothing else is left to do it when a
// test has run into its time limit.
func guard(t testing.TB, group int) (dismiss func()) {
	t.Helper()
	cmd := exec.Command("sh", "-c", `read -r _; kill -9 -- "-$1"`, "guard", strconv.Itoa(group))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt from the terminal is not meant for it
	word, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		_ = syscall.Kill(-group, syscall.SIGKILL)
		t.Fatalf("starting the guard of a chain: %v", err)
	}
	return func() {
		word.Close()
		_ = cmd.Wait() // it has found nobody to kill
	}
}

// follow waits for the end of a process whose parent is the generation before, or this process.
func follow(process *os.Process, before *generation) *generation {
	g := &generation{process: process, gone: make(chan struct{})}
	go func() { // ends with the process, which the chain's clean-up sees to
		if before != nil {
			<-before.gone // until then it is not ours to wait for
		}
		g.state, g.err = process.Wait()
		g.ended = time.Now()
		close(g.gone)
	}()
	return g
}

// upgrade is one upgrade: the process is told to, and another one has taken over.
func (p *chain) upgrade(t testing.TB) upgraded {
	t.Helper()
	old := p.now
	p.ask(t)
	r := p.report(t)
	if r.Outcome != "done" || r.ID != p.last+1 || r.From != old.process.Pid {
		t.Fatalf("upgrade %d was asked for, from process %d, and reported is\n%s", p.last+1, old.process.Pid, r.text)
	}
	p.succeeded(t, r)
	return r
}

// ask asks for an upgrade.
func (p *chain) ask(t testing.TB) {
	t.Helper()
	if err := p.now.process.Signal(syscall.SIGHUP); err != nil {
		t.Fatalf("asking process %d for upgrade %d: %v", p.now.process.Pid, p.last+1, err)
	}
}

// succeeded makes the heir that was reported the process that serves.
func (p *chain) succeeded(t testing.TB, r upgraded) {
	t.Helper()
	old := p.now
	old.left = time.Now()
	// No signal of ours may go to a stranger.
	if group, err := syscall.Getpgid(r.To); err != nil || group != p.group {
		t.Fatalf("upgrade %d led to process %d, whose group is %d, %v; want %d. Reported is\n%s", r.ID, r.To, group, err, p.group, r.text)
	}
	heir, err := os.FindProcess(r.To)
	if err != nil {
		t.Fatal(err)
	}
	p.last = r.ID
	p.past, p.now = append(p.past, old), follow(heir, old)
}

// report waits until the next upgrade has ended.
func (p *chain) report(t testing.TB) upgraded {
	t.Helper()
	return p.reportOf(t, p.last+1)
}

// reportOf waits until this upgrade has ended, or a later one.
func (p *chain) reportOf(t testing.TB, id uint64) upgraded {
	t.Helper()
	deadline := time.Now().Add(2 * patience)
	for {
		r, err := p.reported()
		if err == nil && r.ID >= id {
			return r
		}
		if time.Now().After(deadline) {
			t.Fatalf("upgrade %d has no end after %v: %v", id, 2*patience, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// reported is the report of the next upgrade, if that has ended.
func (p *chain) reported() (r upgraded, err error) {
	text, err := os.ReadFile(filepath.Join(p.runtime, "upgrade.json"))
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if r.text = string(text); err == nil && (r.ID <= p.last || r.Outcome == "running") {
		err = errors.New("it has not ended")
	}
	if err != nil {
		return r, fmt.Errorf("%w; reported is %q", err, text)
	}
	return r, nil
}

// read reads the metrics of whoever serves. On a machine that is too busy its door may give up on us, so it is tried again;
// where it hangs, the stacks in the log say why.
func (p *chain) read(t *testing.T) reading {
	t.Helper()
	dump := time.AfterFunc(patience/3, func() { _ = p.now.process.Signal(syscall.SIGQUIT) })
	defer dump.Stop()
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	deadline := time.Now().Add(patience)
	for {
		var text []byte
		answer, err := client.Get(p.metrics)
		if err == nil {
			text, err = io.ReadAll(answer.Body)
			answer.Body.Close()
		}
		var m reading
		if err == nil {
			m, err = parseReading(string(text))
		}
		if err == nil && len(m) > 0 {
			return m
		}
		if time.Now().After(deadline) {
			t.Fatalf("reading the metrics of process %d: %v, %d bytes", p.now.process.Pid, err, len(text))
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// until reads the metrics until they are as wanted, for a while; then it fails the test.
func (p *chain) until(t *testing.T, wanted func(reading) error) reading {
	t.Helper()
	deadline := time.Now().Add(patience / 6)
	for {
		m := p.read(t)
		err := wanted(m)
		if err == nil {
			return m
		}
		if time.Now().After(deadline) {
			t.Errorf("the metrics stay so:\n%v", err)
			return m
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// stop ends the last generation as an operator does, and sees to it that all have ended as they should. Built with the race
// detector, each says in its exit status if that found something. It returns how long the slowest lived on.
func (p *chain) stop(t testing.TB) (slowest time.Duration) {
	t.Helper()
	for _, g := range p.past { // whose last act is the pid file, and whom nobody has to tell to end
		select {
		case <-g.gone:
		case <-time.After(patience):
			t.Fatalf("process %d, which has handed over, has not ended", g.process.Pid)
		}
	}
	if p.runtime != "" {
		name := filepath.Join(p.runtime, "relevo.pid")
		if text, err := os.ReadFile(name); err != nil || strings.TrimSpace(string(text)) != strconv.Itoa(p.now.process.Pid) {
			t.Errorf("%s is %q, %v; want it to name process %d, which serves", filepath.Base(name), text, err, p.now.process.Pid)
		}
	}
	if err := p.now.process.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("SIGTERM to process %d: %v", p.now.process.Pid, err)
	}
	select {
	case <-p.now.gone:
	case <-time.After(patience):
		t.Fatalf("process %d, which was told to stop, has not ended", p.now.process.Pid)
	}
	for i, g := range append(p.past, p.now) {
		if g.killed && g.err == nil && g.state.Sys() == syscall.WaitStatus(syscall.SIGKILL) {
			continue
		}
		if g.err != nil || g.killed || g.state.ExitCode() != exitDone {
			t.Errorf("generation %d, process %d, ended with %v, %v; want status %d", i+1, g.process.Pid, g.state, g.err, exitDone)
		}
		if !g.left.IsZero() {
			slowest = max(slowest, g.ended.Sub(g.left))
		}
	}
	return slowest
}

// kill kills the process that serves.
func (p *chain) kill(t testing.TB) {
	t.Helper()
	p.now.killed = true
	if err := p.now.process.Kill(); err != nil {
		t.Fatalf("killing process %d: %v", p.now.process.Pid, err)
	}
	<-p.now.gone
}

// monotonic says which counters have fallen, or are gone, since an earlier reading.
func (m reading) monotonic(before reading) error {
	now := m.counters()
	var errs []error
	for key, was := range before.counters() {
		if now[key] < was {
			errs = append(errs, fmt.Errorf("%s is %v, and was %v", key, now[key], was))
		}
	}
	return errors.Join(errs...)
}

// counters are the series of ours that must not fall, by name and labels.
func (m reading) counters() map[string]float64 {
	list := map[string]float64{}
	for _, s := range m {
		if !strings.HasPrefix(s.name, "relevo_") || !slices.ContainsFunc([]string{"_total", "_count", "_sum", "_bucket"}, func(end string) bool {
			return strings.HasSuffix(s.name, end)
		}) {
			continue
		}
		var key strings.Builder
		key.WriteString(s.name)
		for _, l := range slices.Sorted(maps.Keys(s.labels)) {
			fmt.Fprintf(&key, " %s=%q", l, s.labels[l])
		}
		list[key.String()] = s.value
	}
	return list
}
