//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/admin"
)

// binaryWith puts a program called like this one into a folder that nobody else can write.
func binaryWith(t *testing.T, content []byte) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, filepath.Base(self))
	if content == nil {
		if content, err = os.ReadFile(self); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o700); err != nil { // whatever the umask is
		t.Fatal(err)
	}
	if err := os.WriteFile(name, content, 0o700); err != nil {
		t.Fatal(err)
	}
	return name
}

// binaryOf is what an upgrade would start, and whether it could.
func binaryOf(t *testing.T, address string) (binary string, possible bool, ids []uint64) {
	t.Helper()
	var s struct {
		Binary   string
		Possible bool
		Reports  []struct{ ID uint64 }
	}
	if _, err := newAdminClient(adminDoor{address: address}).get(t.Context(), upgradeAPI, &s); err != nil {
		t.Fatal(err)
	}
	for _, r := range s.Reports {
		ids = append(ids, r.ID)
	}
	return s.Binary, s.Possible, ids
}

// eventsProcess is the verb as a process of its own, over all generations.
type eventsProcess struct {
	cmd  *exec.Cmd
	out  *json.Decoder
	pipe io.Closer
}

func followEvents(t *testing.T, address string, args ...string) *eventsProcess {
	t.Helper()
	cmd := exec.Command(os.Args[0], append([]string{"events", "--address", address, "-o", "json"}, args...)...)
	cmd.Env = append(os.Environ(), asProgram+"=1", "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	p := &eventsProcess{cmd, json.NewDecoder(pipe), pipe}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	return p
}

// until reads events until one is as wanted, and returns them all.
func (p *eventsProcess) until(t *testing.T, what string, wanted func(admin.Event) bool) (list []admin.Event) {
	t.Helper()
	timer := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() })
	defer timer.Stop()
	for {
		var e admin.Event
		if err := p.out.Decode(&e); err != nil {
			t.Fatalf("waiting for %s: %v; so far there was %+v", what, err, list)
		}
		list = append(list, e)
		if wanted(e) {
			return list
		}
	}
}

// Another binary takes over, and later upgrades go on from it; one that cannot, changes nothing, nor what the next upgrade starts.
func TestUpgradeToAnotherBinary(t *testing.T) {
	address, line := adminOf(t)
	p := newChain(t, os.Args[0], patientUpgrades, goodConfig+line)
	mine, possible, _ := binaryOf(t, address)
	if self, err := os.Executable(); err != nil || !possible || mine != self {
		t.Fatalf("an upgrade would start %s, possible: %t; want %s", mine, possible, self)
	}
	try := func(path string, status int, errOut string) string {
		t.Helper()
		got, out, said := relevo(t, "", "upgrade", "--binary", path, "--address", address)
		if got != status || !strings.Contains(said, errOut) {
			t.Fatalf("upgrade --binary %s: exit status %d, %q, %q; want %d and %q", path, got, out, said, status, errOut)
		}
		return out
	}
	unsuccessful := func(path, errOut string) {
		t.Helper()
		try(path, exitFailed, errOut)
		p.last++
		if now, _, ids := binaryOf(t, address); now != mine || ids[0] != p.last {
			t.Errorf("behind an upgrade that did not succeed the next one would start %s, and the last report is %d; want %s and %d",
				now, ids[0], mine, p.last)
		}
	}
	unsuccessful(binaryWith(t, []byte("#!/bin/sh\nif test \"$1\" = check; then echo no such field; exit 78; fi\nexit 9\n")), "refused at the step preflight")
	unsuccessful(binaryWith(t, []byte("#!/bin/sh\nif test \"$1\" = check; then exit 0; fi\nexit 9\n")), "rolled-back at the step warm")

	loose := binaryWith(t, nil)
	if err := os.Chmod(loose, 0o777); err != nil {
		t.Fatal(err)
	}
	try(loose, exitFailed, "by its group or by others")
	try(mine+"-there-is-none", exitFailed, "no such file")
	if p.upgrade(t); exe(t, p.now.process.Pid) != mine { // the signal, with the program of before
		t.Errorf("behind failures process %d runs %s, want %s", p.now.process.Pid, exe(t, p.now.process.Pid), mine)
	}

	other := binaryWith(t, nil)
	if out := try(other, exitDone, ""); !strings.Contains(out, "done") {
		t.Errorf("an upgrade to another binary prints %q", out)
	}
	p.succeeded(t, p.report(t))
	p.err.find(t, fmt.Sprintf(`asked for an upgrade to another program","by":".*uid %d, pid %d.*","binary":"%s"`, os.Getuid(), os.Getpid(), other))
	for range 2 {
		if now, possible, ids := binaryOf(t, address); now != other || !possible && len(ids) == 0 || exe(t, p.now.process.Pid) != other {
			t.Errorf("process %d runs %s, and the next upgrade would start %s; want both to be %s", p.now.process.Pid, exe(t, p.now.process.Pid), now, other)
		}
		p.upgrade(t)
	}
	if _, _, ids := binaryOf(t, address); fmt.Sprint(ids) != "[6 5 4 3 2 1]" {
		t.Errorf("the reports are those of the upgrades %v, want 6 to 1", ids)
	}
	p.stop(t)
}

// exe is the file that a process runs.
func exe(t *testing.T, pid int) string {
	t.Helper()
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Who follows events sees an upgrade from the first step in the old process to the end in the new one; a level of the log that was
// asked for goes over with it.
func TestEventsGoOnOverAnUpgrade(t *testing.T) {
	address, line := adminOf(t)
	p := newChain(t, os.Args[0], patientUpgrades, goodConfig+line)
	events := followEvents(t, address, "--recent")
	first := events.until(t, "the listener", func(e admin.Event) bool { return e.Type == admin.EventListener })[0]
	status, out, errOut := relevo(t, "", "log", "debug", "--for", "1h", "--address", address)
	if status != exitDone || !strings.HasPrefix(out, "debug until ") || !strings.Contains(out, "then info, which is configured") {
		t.Fatalf("log debug: exit status %d, %q, %q", status, out, errOut)
	}
	events.until(t, "the level", func(e admin.Event) bool { return e.Type == admin.EventLog && e.Log.Level == "debug" })
	p.upgrade(t)
	old := events.until(t, "the end of the old process", func(e admin.Event) bool { return e.Type == admin.EventEnd })
	var steps []string
	for _, e := range old {
		if e.Type == admin.EventUpgrade {
			steps = append(steps, e.Upgrade.Step)
		}
	}
	if got := strings.Join(steps, " "); !strings.HasPrefix(got, "preflight warm settle barrier state prepare commit") {
		t.Errorf("the steps in the old process are %s", got)
	}
	heir := events.until(t, "the outcome", func(e admin.Event) bool { return e.Type == admin.EventUpgrade && e.Upgrade.Outcome == "done" })
	if e := heir[0]; e.Type != admin.EventUpgrade || e.Upgrade.ID != 1 || e.Upgrade.Generation != 2 || e.Upgrade.To != p.now.process.Pid ||
		!strings.HasSuffix(e.ID, "-1") || strings.Split(e.ID, "-")[0] != "2" || strings.Split(first.ID, "-")[0] != "1" {
		t.Errorf("the first event of the new process is %+v (id %s), behind %s; want the upgrade that made it", e.Upgrade, e.ID, first.ID)
	}
	if status, out, errOut := relevo(t, "", "log", "--address", address); status != exitDone || !strings.HasPrefix(out, "debug until ") {
		t.Errorf("the level behind the upgrade: exit status %d, %q, %q; want debug still", status, out, errOut)
	}
	if status, out, errOut := relevo(t, "", "log", "reset", "--address", address, "-o", "json"); status != exitDone || !strings.Contains(out, `"level": "info"`) {
		t.Errorf("log reset: exit status %d, %q, %q", status, out, errOut)
	}
	events.until(t, "the level's end", func(e admin.Event) bool { return e.Type == admin.EventLog && e.Log.Level == "info" })
	if err := events.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := events.cmd.Wait(); err != nil {
		t.Errorf("interrupted, events ends with %v, want status 0", err)
	}
	p.stop(t)
}

func TestEventsAndLogSayWhatIsWrong(t *testing.T) {
	address, line := adminOf(t)
	file := fileWith(t, goodConfig+line)
	for _, args := range [][]string{{"events"}, {"log"}, {"upgrade", "--binary", "/bin/sh"}} {
		if status, _, errOut := relevo(t, "", append(args, "--address", address)...); status != exitNothing || strings.Count(errOut, "\n") != 1 {
			t.Errorf("%s where nothing runs: exit status %d, %q; want %d and one line", args, status, errOut, exitNothing)
		}
	}
	p := spawn(t, "run", "-c", file)
	p.err.find(t, `"msg":"serving"`)
	for _, tc := range []struct {
		args   string
		status int
		errOut string
	}{
		{"events --type config,x", exitUsage, `"x" is no type of events`},
		{"events more", exitUsage, "unexpected argument"},
		{"log loud", exitUsage, "want one of debug, info, warn, error"},
		{"log debug --for 2d", exitUsage, "not a duration"},
		{"log debug --for 48h", exitUsage, "out of range"},
		{"log --for 10m", exitUsage, "which one?"},
		{"log reset --for 10m", exitUsage, "takes no --for"},
		{"config set log {", exitConfig, "valid\nrelevo: reading YAML"},
		{"upgrade --binary /bin/sh", exitFailed, "is not started"},
	} {
		status, _, errOut := relevo(t, "", append(strings.Fields(tc.args), "--address", address)...)
		if status != tc.status || !strings.Contains(errOut, tc.errOut) {
			t.Errorf("%s: exit status %d, %q; want %d and %q", tc.args, status, errOut, tc.status, tc.errOut)
		}
	}
}
