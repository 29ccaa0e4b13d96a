package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
	"github.com/relevo-proxy/relevo/cmd/relevo/call"
	"github.com/relevo-proxy/relevo/server"
	"github.com/relevo-proxy/relevo/server/config"
	"github.com/relevo-proxy/relevo/systemd"
)

func TestWrongUsageIsOneLineThatNamesTheHelp(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"bnech bolt --addr 127.0.0.1:1", `unknown verb "bnech" (did you mean bench?); see relevo --help`},
		{"quux", `unknown verb "quux", there is: bench, call, `},
		{"help quux", `unknown verb "quux"`},
		{"--quux", "unknown flag: --quux; see relevo --help"},
		{"run --quux", "unknown flag: --quux; see relevo run --help"},
		{"run relevo.yaml", `unexpected argument "relevo.yaml"; see relevo run --help`},
		{"run --trial -c x", "--trial takes no --config"},
		{"check -c", "flag needs an argument"},
		{"explain --service s --header zone", "want KEY=VALUE"},
		{"explain --service s --header zone=1 --header zone=2", `header "zone" is given twice`},
		{"explain --service s --header service=t", `header "service" is given twice`},
		{"explain --service s --method m --header sofa_head_method_name=n", `header "sofa_head_method_name" is given twice`},
		{"explain --service s -o yaml", "want text or json"},
		{"explain --service s -c ../../examples/minimal.yaml --listener nope", `there is no listener "nope", there is: `},
		{"echo", "which protocol? there is: bolt; see relevo echo --help"},
		{"echo http --listen x", `unknown protocol "http", there is: bolt; see relevo echo --help`},
		{"echo bolt", `"listen" not set; see relevo echo bolt --help`},
		{"echo bolt --listen 1234", "want HOST:PORT"},
		{"echo bolt --listen 127.0.0.1:0 --status NICE", "want a number that Bolt defines, or one of SUCCESS, ERROR"},
		{"echo bolt --listen 127.0.0.1:0 --status 10", "want a number that Bolt defines"},
		{"echo bolt --listen 127.0.0.1:0 --no-reply-rate 2 --close-after -1", "want 0 or more; no-reply rate 2: want 0 to 1; see"},
		{"call bolt", `"addr" not set; see relevo call bolt --help`},
		{"call bolt --addr 127.0.0.1", "want HOST:PORT"},
		{"call bolt --addr 127.0.0.1:1 --header zone", "want KEY=VALUE"},
		{"call bolt --addr 127.0.0.1:1 --version v3", "want v1, v2, v2-crc"},
		{"call bolt --addr 127.0.0.1:1 --timeout 0", "want more than 0"},
		{"call bolt --addr 127.0.0.1:1 --timeout -1s", "timeout -1s"},
		{"call bolt --addr 127.0.0.1:1 --content-hex xyz", "--content-hex: "},
		{"call bolt --addr 127.0.0.1:1 --content a --size 3", "exclude each other"},
		{"call bolt --addr 127.0.0.1:1 --size -1", "--size -1"},
		{"call bolt --addr 127.0.0.1:1 --oneway --heartbeat", "cannot be one-way"},
		{"bench bolt", `"addr" not set; see relevo bench bolt --help`},
		{"bench bolt --addr 127.0.0.1:1,", "want HOST:PORT"},
		{"bench bolt --addr 127.0.0.1:1 --connections 0", "--connections 0: want more than 0"},
		{"bench bolt --addr 127.0.0.1:1 --rate -5", "rate -5"},
		{"bench bolt --addr 127.0.0.1:1 -o yaml", "want text or json"},
		{"demo --load 0", "--load 0s: want more than 0"},
		{"completion", "which shell?"},
		{"version 2", `unexpected argument "2"`},
		{"endpoints drian order 127.0.0.1:1", `unknown verb "drian" (did you mean drain?)`},
		{"connections clsoe 5", `unknown verb "clsoe" (did you mean close?)`},
		{"completion powershell", `unknown shell "powershell", there is: bash, fish, zsh`},
		{"upgrade now", `unexpected argument "now"`},
		{"upgrade --timeout 0s", "--timeout 0s: want more than 0"},
		{"upgrade -c -", "want a file"},
		{"stop --timeout -1s", "--timeout -1s: want more than 0"},
	} {
		status, out, errOut := relevo(t, "", strings.Fields(c.args)...)
		if status != exitUsage || out != "" {
			t.Errorf("relevo %s: exit status %d and %q on stdout, want %d and nothing", c.args, status, out, exitUsage)
		}
		if !strings.Contains(errOut, c.want) || !strings.HasPrefix(errOut, "relevo: ") || !strings.Contains(errOut, "; see relevo") || strings.Count(errOut, "\n") != 1 {
			t.Errorf("relevo %s: stderr is %q, want one line with %q", c.args, errOut, c.want)
		}
	}
}

func TestHelpIsThere(t *testing.T) {
	for _, args := range []string{
		"", "--help", "help", "help echo bolt", "run --help", "check --help", "explain --help", "echo --help", "echo bolt --help", "call bolt --help",
		"bench bolt --help", "demo --help", "version --help", "upgrade --help", "stop --help", "completion --help", "completion zsh --help",
	} {
		status, out, errOut := relevo(t, "", strings.Fields(args)...)
		if status != exitDone || errOut != "" || !strings.Contains(out, "Usage:") {
			t.Errorf("relevo %s: exit status %d, stdout %q, stderr %q; want the help", args, status, out, errOut)
		}
	}
}

func TestNothingToTalkTo(t *testing.T) {
	for _, verb := range []string{"call", "bench"} {
		addr := closedAddress(t)
		status, out, errOut := relevo(t, "", verb, "bolt", "--addr", addr)
		if status != exitNothing || out != "" || !strings.Contains(errOut, addr) || strings.Count(errOut, "\n") != 1 {
			t.Errorf("relevo %s bolt --addr %s: exit status %d, stdout %q, stderr %q; want %d and a line with the address",
				verb, addr, status, out, errOut, exitNothing)
		}
	}
}

// closedAddress is one at which nobody listens.
func closedAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	return l.Addr().String()
}

func TestStatusOfErrors(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, exitDone},
		{errors.New("anything"), exitFailed},
		{syscall.EADDRINUSE, exitFailed},
		{misused("flag"), exitUsage},
		{bench.ErrNothing, exitNothing},
		{&call.Error{Err: fmt.Errorf("%w: %w", call.ErrNothing, syscall.EACCES)}, exitNothing},
		{fs.ErrPermission, exitPermission},
		{&net.OpError{Op: "listen", Err: os.NewSyscallError("bind", syscall.EACCES)}, exitPermission},
		{&config.Errors{Faults: []config.Fault{{Message: "x"}}}, exitConfig},
		{&server.ConfigError{Err: fs.ErrPermission}, exitConfig},
		{&failure{exitConfig, fs.ErrNotExist}, exitConfig},
	} {
		err := c.err
		if err != nil {
			err = fmt.Errorf("doing something: %w", err)
		}
		if got := statusOf(err); got != c.want {
			t.Errorf("statusOf(%v) is %d, want %d", err, got, c.want)
		}
	}
}

// Why a process ends is an error in the journal, an entry a line.
func TestComplaintsInTheJournal(t *testing.T) {
	var got []systemd.Entry
	j := systemd.NewJournal(func(m string, p systemd.Priority, vars map[string]string) error {
		got = append(got, systemd.Entry{Message: m, Priority: p, Vars: vars})
		return nil
	})
	if err := complainTo(j, []string{"one", "two"}, exitConfig); err != nil {
		t.Fatal(err)
	}
	var want []systemd.Entry
	for _, line := range []string{"one", "two"} {
		want = append(want, systemd.Entry{Message: line, Priority: systemd.Error, Vars: map[string]string{
			"SYSLOG_IDENTIFIER": "relevo", "RELEVO_ERROR": line, "RELEVO_EXIT_STATUS": "78",
		}})
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the entries differ (-want +got):\n%s", diff)
	}
}

const goodConfig = `
listeners: [{name: client, address: "127.0.0.1:0", protocol: bolt}]
routes: [{name: rpc, rules: [{cluster: order}, {cluster: order}]}]
clusters: [{name: order, protocol: bolt, endpoints: [{address: "127.0.0.1:12200"}]}]
`

const badConfig = `
listeners: [{name: client, address: "127.0.0.1:0", protocol: bolt, max_frames: 1MiB}]
routes: [{name: rpc, rules: [{cluster: ordre, timeout: 3}]}]
clusters: [{name: order, protocol: bolt, endpoints: [{address: "127.0.0.1:0"}]}]
`

var badPaths = []string{
	"listeners[0] (client).max_frames: ", "routes[0] (rpc).rules[0].cluster: ", "routes[0] (rpc).rules[0].timeout: ",
	"clusters[0] (order).endpoints[0].address: ",
}

func TestCheck(t *testing.T) {
	const ok = ": ok: 1 listener, 1 route table with 2 rules, 1 cluster with 1 endpoint\n"
	const warning = ": warning: routes[0] (rpc).rules[1]: never matches"
	good := fileWith(t, goodConfig)
	for name, c := range map[string]struct{ file, stdin string }{good: {good, ""}, "standard input": {"-", goodConfig}} {
		status, out, errOut := relevo(t, c.stdin, "check", "-c", c.file)
		if status != exitDone || errOut != "" || !strings.HasSuffix(out, name+ok) || !strings.HasPrefix(out, name+warning) {
			t.Errorf("check of a good file: exit status %d, stdout %q, stderr %q", status, out, errOut)
		}
	}
}

func TestBadConfigurationIsRefusedWithAllItsFaults(t *testing.T) {
	bad := fileWith(t, badConfig)
	for _, c := range []struct{ verb, file, stdin, name string }{
		{"check", bad, "", bad},
		{"check", "-", badConfig, "standard input"},
		{"explain", bad, "", bad},
		{"run", bad, "", bad},
	} {
		args := []string{c.verb, "-c", c.file}
		if c.verb == "explain" {
			args = append(args, "--service", "s")
		}
		status, out, errOut := relevo(t, c.stdin, args...)
		if status != exitConfig || out != "" {
			t.Errorf("%s -c %s: exit status %d and %q on stdout, want %d and nothing", c.verb, c.file, status, out, exitConfig)
		}
		if got, want := strings.Count(errOut, "\n"), len(badPaths); got != want {
			t.Errorf("%s -c %s: %d lines on stderr, want one for each of %d faults:\n%s", c.verb, c.file, got, want, errOut)
		}
		for _, p := range badPaths {
			if !strings.Contains(errOut, "relevo: "+c.name+": "+p) {
				t.Errorf("%s -c %s: no line begins with the file and %q:\n%s", c.verb, c.file, p, errOut)
			}
		}
	}
}

func TestUnreadableFile(t *testing.T) {
	secret := fileWith(t, goodConfig)
	if err := os.Chmod(secret, 0); err != nil {
		t.Fatal(err)
	}
	files := map[string]int{secret + ".missing": exitConfig, t.TempDir(): exitConfig}
	if os.Getuid() != 0 { // root may read everything
		files[secret] = exitPermission
	}
	for file, want := range files {
		for _, verb := range []string{"check", "run"} {
			status, _, errOut := relevo(t, "", verb, "-c", file)
			if status != want || strings.Count(errOut, "\n") != 1 || !strings.Contains(errOut, file) {
				t.Errorf("%s -c %s: exit status %d, stderr %q; want %d and one line", verb, file, status, errOut, want)
			}
		}
	}
}

// A frame for which the file itself leaves no room refuses a start on any machine, so check finds it on this one.
func TestFramesThatDoNotFit(t *testing.T) {
	file := fileWith(t, goodConfig+"max_buffered: 16MiB\n")
	for _, verb := range []string{"check", "check --as-started"} {
		status, _, errOut := relevo(t, "", append(strings.Fields(verb), "-c", file)...)
		if status != exitConfig || !strings.Contains(errOut, file+": max_buffered is 16MiB: a frame as large as max_frame (16MiB) of listener client") {
			t.Errorf("%s: exit status %d, stderr %q; want %d and what does not fit", verb, status, errOut, exitConfig)
		}
	}
}

// Who looks at what a start would apply leaves nothing behind, least of all a folder of root's in which the service cannot write.
func TestCheckWritesNothing(t *testing.T) {
	state := t.TempDir()
	file := fileWith(t, goodConfig+"state_dir: "+state+"\n")
	status, out, errOut := relevo(t, "", "check", "--as-started", "-c", file)
	if status != exitDone || !strings.Contains(out, "there is no revision yet") {
		t.Errorf("check: exit status %d, stdout %q, stderr %q", status, out, errOut)
	}
	if left, err := os.ReadDir(state); err != nil || len(left) > 0 {
		t.Errorf("check has left %v, %v in state_dir, want nothing", left, err)
	}
}

// A folder that is not there refuses the configuration, which is not tried again, and check finds it where a start would.
func TestMissingFolder(t *testing.T) {
	missing := t.TempDir() + "/missing"
	for _, c := range []struct {
		line, args string
		want       int
	}{
		{"state_dir: " + missing, "run", exitConfig},
		{"state_dir: " + missing, "check --as-started", exitConfig},
		{"state_dir: " + missing, "check", exitDone}, // it may be meant for another machine
		{"access_log: {path: " + missing + "/access.log}", "check --as-started", exitConfig},
		{"access_log: {path: " + missing + "/access.log}", "check", exitDone},
	} {
		status, _, errOut := relevo(t, "", append(strings.Fields(c.args), "-c", fileWith(t, goodConfig+c.line+"\n"))...)
		if status != c.want || status != exitDone && !strings.Contains(errOut, missing+"/revisions: no such file") && !strings.Contains(errOut, missing+": no such file") {
			t.Errorf("%s with %s: exit status %d, stderr %q; want %d, and a line with the folder where that is not 0", c.args, c.line, status, errOut, c.want)
		}
	}
	if os.Getuid() == 0 {
		return // who may write everywhere
	}
	locked := t.TempDir()
	if err := os.Chmod(locked, 0o500); err != nil {
		t.Fatal(err)
	}
	file := fileWith(t, goodConfig+"access_log: {path: "+locked+"/access.log}\n")
	if status, _, errOut := relevo(t, "", "check", "--as-started", "-c", file); status != exitPermission || !strings.Contains(errOut, locked) {
		t.Errorf("a log in a folder of others: exit status %d, stderr %q; want %d and the folder", status, errOut, exitPermission)
	}
}

// check finds what a start would make of a configuration on this machine, and only where it is asked about that.
func TestCheckOfThisMachine(t *testing.T) {
	for line, says := range map[string]string{
		"admin: {address: \"unix:/tmp/a.sock\", group: no-such-group}\n": "admin.group: group: unknown group no-such-group",
	} {
		file := fileWith(t, goodConfig+line)
		if status, _, errOut := relevo(t, "", "check", "--as-started", "-c", file); status != exitConfig || !strings.Contains(errOut, says) {
			t.Errorf("check --as-started with %s: exit status %d, stderr %q; want %d, and %q", line, status, errOut, exitConfig, says)
		}
		if status, _, errOut := relevo(t, "", "check", "-c", file); status != exitDone {
			t.Errorf("check with %s: exit status %d, stderr %q; want %d", line, status, errOut, exitDone)
		}
	}
}

func TestVersion(t *testing.T) {
	status, out, _ := relevo(t, "", "version")
	if status != exitDone || !strings.HasPrefix(out, "relevo ") || !strings.Contains(out, runtime.GOOS+"/"+runtime.GOARCH) {
		t.Errorf("version: exit status %d, %q", status, out)
	}
	status, out, _ = relevo(t, "", "version", "-o", "json")
	var got map[string]string
	if err := json.Unmarshal([]byte(out), &got); err != nil || status != exitDone {
		t.Fatalf("version -o json: exit status %d, %q, %v", status, out, err)
	}
	for _, key := range []string{"version", "commit", "go_version", "os", "arch"} {
		if got[key] == "" {
			t.Errorf("version -o json has no %s: %q", key, out)
		}
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if status, out, _ := relevo(t, "", "completion", shell); status != exitDone || !strings.Contains(out, "relevo") {
			t.Errorf("completion %s: exit status %d, %d bytes", shell, status, len(out))
		}
	}
	for args, want := range map[string]string{
		"echo bolt --status":   "SUCCESS\nERROR\nSERVER_EXCEPTION\n",
		"call bolt --version":  "v1\nv2\nv2-crc\n",
		"bench bolt --output":  "text\njson\n",
		"version -o":           "text\njson\n",
		"upgrade -o":           "text\njson\n",
		"explain -o":           "text\njson\n",
		"explain --format":     "text\njson\n",
		"completion":           "bash",
		"help config":          "delete\ndiff\n",
		"bench bolt --version": "v1\nv2\nv2-crc\n",
	} {
		_, out, _ := relevo(t, "", append(append([]string{"__complete"}, strings.Fields(args)...), "")...)
		if !strings.HasPrefix(out, want) {
			t.Errorf("completing %q gives %q, want it to begin with %q", args, out, want)
		}
	}
}
