//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
