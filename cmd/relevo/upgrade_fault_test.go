//go:build linux

package main

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Everything that can go wrong with an upgrade, one after another, with real processes and clients that never connect
// again. As long as a process is left that owns the state, no request fails and no connection ends; where none is, the
// cell says so, and what is lost.

// faultPage is the variable that names the page to write the table to. `make upgrade-faults` sets it.
const faultPage = "RELEVO_TEST_FAULT_PAGE"

// cell is one thing that goes wrong at one moment.
type cell struct {
	row, moment string
	plan        string                            // for the processes
	act         func(t *testing.T, s *faultScene) // what is done to them; what it appends to undo undoes it
	verb        bool                              // relevo upgrade asks for it, and not a signal
	bounds      string                            // of upgrades, patient ones if empty
	from, to    string                            // releases on disk before and behind the start; empty: the test's own program
	crowd       int                               // so many connections more
	small       string                            // folders that are small file systems: runtime_dir, state_dir

	outcome, step, reason string // what is reported, patterns; an empty outcome: nothing is
	owner                 string // behind it: old, new or none
	lost                  bool   // connections are lost, because nobody is left who has them
	unreported            bool   // the report cannot be written
	follows               bool   // another upgrade
	defect                string // why it is not tried
	seldom                bool   // by make upgrade-faults only, as another cell is much like it
}

// killsOld says whether it is the old process that dies.
func (c *cell) killsOld() bool {
	return slices.ContainsFunc(parsePlans(c.plan), func(p plan) bool {
		return p.side == "old" && p.what == "kill" || p.side == "new" && strings.HasPrefix(p.what, "kill-other")
	})
}

const (
	quick   = "upgrade: {ready_timeout: 2s, handover_timeout: 1s}"
	patient = "upgrade: {ready_timeout: 20s, handover_timeout: 10s}"
)

const (
	rolledBack = "rolled-back"
	endedEarly = "the new process ended"
)

// newFaults are those of the new process, and of what it meets.
func newFaults() []cell {
	list := []cell{
		{row: "exits", moment: "at its start", plan: "new start exit", step: "warm", reason: endedEarly + ".*exit status 3"},
		{seldom: true, row: "hangs", moment: "at its start", plan: "new start hang", bounds: quick, step: "warm", reason: "not warm within ready_timeout"},
		{seldom: true, row: "hangs", moment: "before WARM", plan: "new before WARM hang", bounds: quick, step: "warm", reason: "not warm within ready_timeout"},
		{row: "hangs", moment: "before PREPARED", plan: "new before PREPARED hang", bounds: quick, step: "prepare", reason: "longer than handover_timeout"},
		{row: "hangs", moment: "before STARTED", plan: "new before STARTED hang", step: "commit", reason: "did not start within its time"},
		{row: "gets a bad configuration", moment: "before the check", act: badConfiguration, outcome: "refused", step: "preflight", reason: `check.*nonsense`},
		{row: "gets a bad configuration", moment: "behind the check", plan: "new start spoil", act: restoreConfiguration, step: "warm", reason: "the new process gave up: configuration: .*"},
		{row: "cannot bind an added address", moment: "before WARM", act: takenAddress, step: "warm", reason: "gave up: build: .*address already in use"},
		{row: "speaks other versions only", moment: "OFFER", from: "this", to: "far", step: "warm", reason: "gave up: offer: .*offers 1 to 1, this one reads 8 to 9"},
		{row: "speaks other versions only, being older", moment: "OFFER", from: "far", to: "this", step: "warm", reason: "gave up: offer: .*offers 8 to 9, this one reads 1 to 1"},
		{
			row: "chooses a version that was not offered", moment: "WARM", plan: "new start other-version", bounds: quick, step: "warm", reason: "version 8",
		},
		{row: "counts wrongly", moment: "PREPARED", plan: "new start miscounts", step: "prepare", reason: "has rebuilt .* of "},
		{row: "takes what it was not given", moment: "STARTED instead of PREPARED", plan: "new start early", step: "prepare", reason: "said STARTED out of turn"},
		{seldom: true, row: "talks nonsense", moment: "instead of PREPARED", plan: "new start nonsense", step: "prepare", reason: "not understood.*begins with 0x48"},
		{row: "is killed", moment: "within CONNS", plan: "new start half-conns", step: "state|prepare", reason: endedEarly},
		{row: "runs out of descriptors", moment: "within CONNS", plan: "new start few-files", step: "state|prepare", reason: "RLIMIT_NOFILE|limit of open files"},
	}
	kill := func(plan, moment, step string, seldom bool) {
		list = append(list, cell{row: "is killed", moment: moment, plan: plan, step: step, reason: endedEarly, seldom: seldom})
	}
	kill("new start kill", "before OFFER", "warm", true)
	kill("new after OFFER kill", "behind OFFER", "warm", true)
	kill("new after LISTENERS kill", "behind LISTENERS", "warm", true)
	kill("new before WARM kill", "before WARM", "warm", true)
	kill("old after WARM kill-other", "behind WARM", "warm|settle|barrier|state|prepare", false)
	kill("new after CONNS kill", "behind the first CONNS", "state|prepare", true)
	kill("new after EXCHANGES kill", "behind EXCHANGES", "state|prepare", true)
	kill("new after END kill", "behind END", "prepare", false)
	kill("new before PREPARED kill", "before PREPARED", "prepare", true)
	kill("old after PREPARED kill-other", "behind PREPARED", "commit", false)
	list[len(list)-1].reason += "|does not listen" // where COMMIT finds nobody
	kill("new after COMMIT kill", "behind COMMIT", "commit", false)
	kill("new before STARTED kill", "before STARTED", "commit", false)
	list = append(list,
		cell{row: "is killed", moment: "before FAILED", plan: "new before FAILED kill", act: takenAddress, step: "warm", reason: endedEarly, seldom: true},
		cell{row: "is killed", moment: "behind FAILED", plan: "old after FAILED kill-other", act: takenAddress, step: "warm", reason: "gave up: build: .*address already in use"},
		cell{row: "is killed", moment: "behind END, with 1,000 connections", plan: "new after END kill", crowd: 1000 - faultConnections, step: "prepare", reason: endedEarly, seldom: true},
	)
	for i := range list {
		list[i].outcome, list[i].owner = cmp.Or(list[i].outcome, rolledBack), "old"
	}
	for _, k := range []struct {
		plan, moment string
		seldom       bool
	}{
		{"old after STARTED kill-other", "behind STARTED", false},
		{"old before COUNTERS kill-other", "before COUNTERS", true},
		{"old before COUNTERS ask\nold before FOLLOW kill-other", "behind COUNTERS, before FOLLOW", true},
	} {
		list = append(list, cell{
			row: "is killed", moment: k.moment, plan: k.plan, seldom: k.seldom,
			outcome: "failed", step: "linger", reason: "the new process died, and all connections with it", owner: "none", lost: true,
		})
	}
	return list
}

// oldFaults are those of the old process.
func oldFaults() (list []cell) {
	for _, k := range []struct {
		plan, moment, outcome string
		seldom                bool
	}{
		{"old before OFFER kill", "before OFFER", "", true},
		{"old before LISTENERS kill", "behind OFFER, before LISTENERS", "", false},
		{"new after LISTENERS kill-other", "behind LISTENERS", "orphaned", false},
		{"old after WARM kill", "behind WARM", "orphaned", true},
		{"old before CONNS kill", "before CONNS", "orphaned", true},
		{"old before EXCHANGES kill", "behind CONNS, before EXCHANGES", "orphaned", false},
		{"old before END kill", "behind EXCHANGES, before END", "orphaned", true},
		{"new after CONNS kill-other-late", "behind END, of which the new one has read CONNS", "done", false},
		{"new after END kill-other", "behind END", "done", false},
		{"new before PREPARED kill-other", "before PREPARED", "done", true},
		{"old after PREPARED kill", "behind PREPARED", "done", true},
		{"old before COMMIT kill", "before COMMIT", "done", false},
		{"new after COMMIT kill-other", "behind COMMIT", "done", true},
		{"new before STARTED kill-other", "before STARTED", "done", false},
		{"old after STARTED kill", "behind STARTED", "done", false},
		{"old before COUNTERS kill", "before COUNTERS", "done", true},
		{"old before COUNTERS ask\nold before FOLLOW kill", "behind COUNTERS, before FOLLOW", "done", false},
		{"old before COUNTERS ask\nnew after FOLLOW kill-other", "behind FOLLOW", "done", true},
		{"new before FAILED kill-other", "before FAILED", "", true},
		{"old after FAILED kill", "behind FAILED", "", true},
		{"old after PREPARED delay\nold before ABORT kill", "behind SIGKILL, before ABORT", "", false},
	} {
		c := cell{row: "is killed", moment: k.moment, plan: k.plan, outcome: k.outcome, owner: "new", seldom: k.seldom}
		c.follows = strings.Contains(k.plan, "after FOLLOW")
		if strings.Contains(k.plan, "FAILED") {
			c.act = takenAddress
		}
		if strings.Contains(k.plan, "delay") {
			c.bounds = quick
		}
		switch k.outcome {
		case "":
			c.owner, c.lost = "none", true
		case "orphaned":
			c.lost, c.step, c.reason = true, "state", "listeners are all that is left"
		}
		list = append(list, c)
	}
	return list
}

// machineFaults are those of the machine, and what is no fault.
func machineFaults() []cell {
	return []cell{
		{row: "too few descriptors", moment: "before the start", act: noDescriptors, outcome: "refused", step: "preflight", reason: `\d+ descriptors are open, the new process needs 32 more, and its limit \(RLIMIT_NOFILE\) is \d+`, owner: "old"},
		{row: "the disk is full", moment: "runtime_dir", small: "runtime_dir", act: fullDisk, verb: true, outcome: "refused", step: "preflight", reason: "cannot be written: no space left on device", owner: "old", unreported: true, defect: noMounts()},
		{row: "the disk is full", moment: "runtime_dir and state_dir", small: "runtime_dir state_dir", act: fullDisk, verb: true, outcome: "refused", step: "preflight", reason: "cannot be written: no space left on device", owner: "old", unreported: true, defect: noMounts(), seldom: true},
		{row: "the disk is full", moment: "state_dir", small: "state_dir", act: fullDisk, outcome: "done", owner: "new", defect: noMounts(), seldom: true},
		{row: "no file can be written", moment: "all the time", act: noFileGrows, outcome: "refused", step: "preflight", reason: "cannot be written: file too large", owner: "old", unreported: true, seldom: true},
		{row: "no file can be written", moment: "from WARM on", plan: "new before WARM no-file-grows\nold after WARM no-file-grows", act: filesGrowAgain, outcome: "done", owner: "new", unreported: true},
		{row: "runtime_dir is gone", moment: "all the time", act: noRuntimeDir, outcome: "refused", step: "preflight", reason: "cannot be written: no such file", owner: "old", unreported: true},
		{row: "a later release follows", moment: "versions 1 to 2, more fields, another kind", from: "this", to: "next", outcome: "done", owner: "new"},
		{row: "an earlier release follows", moment: "versions 1 to 1", from: "next", to: "this", outcome: "done", owner: "new"},
		{seldom: true, row: "a later release follows itself", moment: "version 2", from: "next", to: "next", outcome: "done", owner: "new"},
	}
}

func badConfiguration(t *testing.T, s *faultScene) {
	s.configure(t, s.chain.text+"nonsense: 1\n")
	restoreConfiguration(t, s)
}

func restoreConfiguration(t *testing.T, s *faultScene) {
	s.undo = append(s.undo, func() { s.configure(t, s.chain.text) })
}

func takenAddress(t *testing.T, s *faultScene) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	s.configure(t, strings.Replace(s.chain.text, "listeners:\n", fmt.Sprintf("listeners:\n- {name: added, address: %q, protocol: bolt}\n", l.Addr()), 1))
	restoreConfiguration(t, s)
}

// limit bounds what whoever owns the state then may do, up to the end of the cell; so it does with what that starts.
func limit(t *testing.T, s *faultScene, what int, to uint64) {
	t.Helper()
	var before unix.Rlimit
	if err := unix.Prlimit(s.chain.now.process.Pid, what, nil, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prlimit(s.chain.now.process.Pid, what, &unix.Rlimit{Cur: to, Max: before.Max}, nil); err != nil {
		t.Fatal(err)
	}
	s.undo = append(s.undo, func() {
		if err := unix.Prlimit(s.chain.now.process.Pid, what, &before, nil); err != nil {
			t.Fatal(err)
		}
	})
}

func noDescriptors(t *testing.T, s *faultScene) { limit(t, s, unix.RLIMIT_NOFILE, faultConnections+35) }

// noFileGrows makes what is written an error.
func noFileGrows(t *testing.T, s *faultScene) { limit(t, s, unix.RLIMIT_FSIZE, 0) }

// filesGrowAgain ends what the plan begins.
func filesGrowAgain(t *testing.T, s *faultScene) { limit(t, s, unix.RLIMIT_FSIZE, unix.RLIM_INFINITY) }

// fullDisk fills the file systems of the chain's own.
func fullDisk(t *testing.T, s *faultScene) {
	for _, folder := range s.small {
		name := filepath.Join(folder, "filler")
		for size := 1 << 20; size > 0; size /= 2 { // down to the last byte
			f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			if _, err = f.Write(make([]byte, size)); size == 1 && !errors.Is(err, unix.ENOSPC) {
				t.Errorf("a byte more on a full disk: %v, want %v", err, unix.ENOSPC)
			}
			f.Close()
		}
		s.undo = append(s.undo, func() {
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// noMounts says why a chain cannot have file systems of its own. Empty: it can.
func noMounts() string {
	cmd := exec.Command("true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if err := cmd.Run(); err != nil {
		return "file systems of its own: " + err.Error()
	}
	return ""
}

func noRuntimeDir(t *testing.T, s *faultScene) {
	if err := os.RemoveAll(s.chain.runtime); err != nil {
		t.Fatal(err)
	}
	s.undo = append(s.undo, func() {
		if err := os.Mkdir(s.chain.runtime, 0o700); err != nil {
			t.Fatal(err)
		}
	})
}

func TestUpgradeFaults(t *testing.T) {
	programs := releases(t)
	page := os.Getenv(faultPage)
	places := make(chan struct{}, 2) // never closed; as many cells as these at once
	if page != "" {
		places = make(chan struct{}, 1) // what is written down is measured one by one
	}
	tables := []table{
		{title: "The new process …", cells: newFaults()},
		{title: "The old process …", cells: oldFaults()},
		{title: "The machine, and other releases", cells: machineFaults()},
	}
	t.Run("cells", func(t *testing.T) {
		for i := range tables {
			tab := &tables[i]
			tab.outcomes = make([]*outcome, len(tab.cells))
			for k := range tab.cells {
				c := &tab.cells[k]
				t.Run(strings.Trim(fmt.Sprintf("%s %s %s", strings.Fields(tab.title)[1], c.row, c.moment), "… "), func(t *testing.T) {
					t.Parallel()
					places <- struct{}{}
					defer func() { <-places }()
					if c.defect != "" {
						t.Skip(c.defect)
					}
					if c.seldom && page == "" {
						t.Skip("`make upgrade-faults` tries this")
					}
					tab.outcomes[k] = c.try(t, programs)
				})
			}
		}
	})
	if page != "" && !t.Failed() {
		writeFaults(t, page, tables)
	}
}

// try is one cell.
func (c *cell) try(t *testing.T, programs map[string]string) *outcome {
	program := os.Args[0]
	if c.from != "" {
		program = filepath.Join(t.TempDir(), "relevo")
		installAt(t, programs[c.from], program)
	}
	s := newFaultScene(t, program, c)
	if c.to != "" {
		s.install(t, programs[c.to])
	}
	if c.plan != "" {
		if err := os.WriteFile(s.plan, []byte(c.plan), 0o600); err != nil {
			t.Fatal(err)
		}
		s.undo = append(s.undo, func() {
			if err := os.Remove(s.plan); err != nil {
				t.Fatal(err)
			}
		})
	}
	if c.act != nil {
		c.act(t, s)
	}
	o := s.upgrade(t, c)
	r := o.reported
	for _, is := range []struct{ what, got, want string }{
		{"outcome", r.Outcome, c.outcome},
		{"step", r.Step, c.step},
		{"reason", r.Reason, c.reason},
		{"owner", o.owner, c.owner},
		{"new release", r.Release, c.to},
	} {
		if !regexp.MustCompile(`(?s)`+cmp.Or(is.want, "^$")).MatchString(is.got) && !c.skips(is.what) {
			t.Errorf("the %s is %q, want %q; reported is\n%s", is.what, is.got, is.want, r.text)
		}
	}
	soon := time.Second // on a machine that is busy with other tests, or with the race detector
	if page := os.Getenv(faultPage); page != "" && page != os.DevNull {
		soon = 100 * time.Millisecond
	}
	if o.again > soon {
		t.Errorf("the old process read again after %v, want %v", o.again, soon)
	}
	if c.from != "" && o.owner == "old" {
		s.install(t, programs[c.from]) // so that there is a next upgrade
	}
	for _, undo := range s.undo {
		undo()
	}
	time.Sleep(100 * time.Millisecond) // for what has been broken to show
	s.finish(t, c, &o)
	return &o
}

// skips says whether nothing can be said of what is reported.
func (c *cell) skips(what string) bool {
	switch what {
	case "step", "reason":
		return c.outcome == "done" || c.unreported
	case "new release": // where versions do not overlap, it has not said which it is
		return c.outcome != "done" || c.to == ""
	default:
		return false
	}
}
