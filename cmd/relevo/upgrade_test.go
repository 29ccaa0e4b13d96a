package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/upgrade"
)

// asOwner makes the test binary a process that has a pid file in this folder and does what a file there says when it is
// asked for an upgrade: write the reports, one a line.
const asOwner = "RELEVO_TEST_AS_OWNER"

func runOwner(dir string) int {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM)
	pidFile := filepath.Join(dir, upgrade.PIDFile)
	if err := os.WriteFile(pidFile, []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
		return 1
	}
	for s := range signals {
		if s == syscall.SIGTERM {
			_ = os.Remove(pidFile)
			return 0
		}
		plan, err := os.ReadFile(filepath.Join(dir, "plan"))
		if err != nil {
			return 1
		}
		for line := range strings.Lines(string(plan)) {
			if strings.TrimSpace(line) == "die" {
				return 3
			}
			temp := filepath.Join(dir, "temp")
			if os.WriteFile(temp, []byte(line), 0o600) != nil || os.Rename(temp, filepath.Join(dir, upgrade.ReportFile)) != nil {
				return 1
			}
		}
	}
	return 0
}

// startOwner starts a process that is asked for upgrades, and says what it will report.
func startOwner(t *testing.T, plan ...string) (dir string, pid int) {
	t.Helper()
	return startOwnerOf(t, os.Args[0], plan...)
}

func startOwnerOf(t *testing.T, program string, plan ...string) (dir string, pid int) {
	t.Helper()
	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "plan"), []byte(strings.Join(plan, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), asOwner+"="+dir, "GORACE=atexit_sleep_ms=0")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() { // ends with the process, which the cleanup ends
		_ = cmd.Wait()
		close(gone)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-gone
	})
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if pid, err := upgrade.ReadPID(dir); err == nil && pid > 0 {
			return dir, pid
		}
		if time.Now().After(end) {
			t.Fatal("the process writes no pid file")
		}
	}
}

func reportLine(t *testing.T, r upgrade.Report) string {
	t.Helper()
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestUpgradeSaysWhatHappened(t *testing.T) {
	running := upgrade.Report{ID: 1, Outcome: upgrade.Running, Step: upgrade.StepWarm}
	done := upgrade.Report{
		ID: 1, Outcome: upgrade.Done, From: 10, To: 11, ReleaseFrom: "v1", ReleaseTo: "v2", Pause: 0.0123,
		Carried: upgrade.Carried{Downstreams: 2, Upstreams: 1, Streams: 4, Replies: 1},
	}
	undone := upgrade.Report{ID: 1, Outcome: upgrade.RolledBack, Step: upgrade.StepPrepare, Reason: "no memory"}
	for _, test := range []struct {
		name        string
		plan        []string
		args        []string
		status      int
		out, errOut string
	}{
		{
			"done",
			[]string{reportLine(t, running), reportLine(t, done)},
			nil, exitDone,
			"upgrade 1: done: pid 10 (v1) to pid 11 (v2), pause 12.3ms, 3 connections and 5 requests carried\n", "",
		},
		{
			"undone",
			[]string{reportLine(t, running), reportLine(t, undone)},
			nil, exitFailed,
			"", "relevo: upgrade 1: rolled-back at the step prepare: no memory\n",
		},
		{"not waited for", []string{reportLine(t, running)}, []string{"--wait=false"}, exitDone, "", ""},
		{
			"too slow",
			[]string{reportLine(t, running)},
			[]string{"--timeout", "300ms"},
			exitFailed,
			"", "relevo: waiting for the upgrade: --timeout has passed: upgrade 1 has reached the step warm\n",
		},
		{"dead", []string{reportLine(t, running), "die"}, nil, exitFailed, "", "has ended, and no other runs in its place"},
	} {
		dir, _ := startOwner(t, test.plan...)
		status, out, errOut := relevo(t, "", append([]string{"upgrade", "--runtime-dir", dir}, test.args...)...)
		if status != test.status || out != test.out || !strings.Contains(errOut, test.errOut) {
			t.Errorf("%s: exit status %d, stdout %q, stderr %q; want %d, %q, %q",
				test.name, status, out, errOut, test.status, test.out, test.errOut)
		}
	}
}

// A report from before is not taken for the one that was asked for.
func TestUpgradeWaitsForAGreaterNumber(t *testing.T) {
	done := upgrade.Report{ID: 8, Outcome: upgrade.Done, From: 10, To: 11}
	dir, _ := startOwner(t, reportLine(t, done))
	old := upgrade.Report{ID: 7, Outcome: upgrade.Done, From: 9, To: 10}
	if err := os.WriteFile(filepath.Join(dir, upgrade.ReportFile), []byte(reportLine(t, old)), 0o600); err != nil {
		t.Fatal(err)
	}
	status, out, errOut := relevo(t, "", "upgrade", "--runtime-dir", dir, "-o", "json")
	var got upgrade.Report
	if err := json.Unmarshal([]byte(out), &got); err != nil || status != exitDone || got.ID != 8 || errOut != "" {
		t.Errorf("exit status %d, report %d, %v, stderr %q; want 0 and report 8", status, got.ID, err, errOut)
	}
}

func TestStopWaitsForTheEnd(t *testing.T) {
	dir, pid := startOwner(t)
	status, out, errOut := relevo(t, "", "stop", "--runtime-dir", dir)
	if status != exitDone || out != "" || errOut != "" {
		t.Errorf("exit status %d, stdout %q, stderr %q; want 0 and nothing", status, out, errOut)
	}
	if runs, err := upgrade.Runs(pid); runs || err != nil {
		t.Errorf("pid %d runs: %t, %v; want that it has ended", pid, runs, err)
	}
}

// A process is found whose file was moved aside, as one does to keep the old one beside the new.
func TestProgramMovedAsideIsFound(t *testing.T) {
	program := filepath.Join(t.TempDir(), filepath.Base(os.Args[0]))
	if err := os.Link(os.Args[0], program); err != nil {
		t.Fatal(err)
	}
	dir, _ := startOwnerOf(t, program)
	if err := os.Rename(program, program+".old"); err != nil {
		t.Fatal(err)
	}
	if status, _, errOut := relevo(t, "", "stop", "--runtime-dir", dir); status != exitDone {
		t.Errorf("stop: exit status %d, %s; want 0", status, errOut)
	}
}

// Neither an empty folder, nor a pid that is none, nor one that is somebody else's is signalled.
func TestNobodyElseIsSignalled(t *testing.T) {
	other := exec.Command("sleep", "60")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = other.Process.Kill()
		_ = other.Wait()
	}()
	for _, test := range []struct {
		content string
		status  int
	}{
		{"", exitFailed},
		{"0\n", exitFailed},
		{"-1\n", exitFailed},
		{"x\n", exitFailed},
		{strings.Repeat("1", 100), exitFailed},
		{fmt.Sprintln(other.Process.Pid), exitNothing},
		{"999999999\n", exitNothing},
		{"no file", exitNothing},
	} {
		dir := t.TempDir()
		if test.content != "no file" {
			if err := os.WriteFile(filepath.Join(dir, upgrade.PIDFile), []byte(test.content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for _, verb := range []string{"upgrade", "stop"} {
			status, out, errOut := relevo(t, "", verb, "--runtime-dir", dir)
			if status != test.status || out != "" || strings.Count(errOut, "\n") != 1 {
				t.Errorf("%s with the pid file %.20q: exit status %d, stdout %q, stderr %q; want %d and one line",
					verb, test.content, status, out, errOut, test.status)
			}
		}
	}
	if err := other.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("another program's process: %v, want that it lives", err)
	}
}

func TestRuntimeDirOfTheConfiguration(t *testing.T) {
	dir, _ := startOwner(t)
	file := fileWith(t, "runtime_dir: "+dir+"\n"+goodConfig)
	if status, _, errOut := relevo(t, "", "stop", "-c", file); status != exitDone {
		t.Errorf("stop -c %s: exit status %d, %q; want 0", file, status, errOut)
	}
	dir, _ = startOwner(t)
	t.Setenv("RUNTIME_DIRECTORY", dir)
	if status, _, errOut := relevo(t, "", "stop"); status != exitDone {
		t.Errorf("stop with RUNTIME_DIRECTORY: exit status %d, %q; want 0", status, errOut)
	}
	file = fileWith(t, "runtime_dir: none\n"+goodConfig)
	if status, _, errOut := relevo(t, "", "stop", "-c", file); status != exitNothing || !strings.Contains(errOut, "none") {
		t.Errorf("stop with runtime_dir: none: exit status %d, %q; want %d", status, errOut, exitNothing)
	}
	if status, _, _ := relevo(t, "", "stop", "-c", filepath.Join(dir, "missing.yaml")); status == exitDone {
		t.Error("stop with a file that is not there: exit status 0, want another one")
	}
}
