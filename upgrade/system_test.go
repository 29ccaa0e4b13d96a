package upgrade

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/relevo-proxy/relevo/upgrade/handoff"
)

func TestOnlyOurChildrenAreKilled(t *testing.T) {
	since := bootTicks()
	child := exec.Command("sleep", "60")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	pid := child.Process.Pid
	for _, test := range []struct {
		what  string
		pid   int
		since int64
	}{
		{"process 1", 1, 0},
		{"our parent", os.Getppid(), 0},
		{"ourselves", os.Getpid(), 0},
		{"what is no process", 1 << 30, 0},
		{"a child from before", pid, bootTicks() + 1000},
	} {
		if killed, err := killIfOurs(test.pid, test.since); killed || err != nil {
			t.Errorf("%s, pid %d: killed is %t, %v", test.what, test.pid, killed, err)
		}
	}
	// The pid that the child has said is wrong: it is found all the same.
	if err := killChild(1, since); err != nil {
		t.Errorf("killing the child: %v", err)
	}
	if err := child.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the child ended with %v, want that it was killed", err)
	}
	if killed, err := killIfOurs(pid, since); killed || err != nil {
		t.Errorf("a child that has ended: killed is %t, %v", killed, err)
	}
}

// Under an init for containers, and nowhere else, this process's end is that of all.
func TestEndsWithAnInit(t *testing.T) {
	for _, name := range []string{"tini", "docker-init", "podman-init", "catatonit", "dumb-init"} {
		if got := endsWith(1, name); got != name {
			t.Errorf("a child of PID 1, %s: the init is %q", name, got)
		}
		if got := endsWith(7, name); got != "" {
			t.Errorf("a child of another process, with %s as PID 1: the init is %q, want none", name, got)
		}
	}
	for _, name := range []string{"systemd", "init", "bash", "s6-svscan", ""} {
		if got := endsWith(1, name); got != "" {
			t.Errorf("a child of PID 1, %s: the init is %q, want none", name, got)
		}
	}
}

// A new process that cannot become one tells the old one why, and closes the socket.
func TestGivingUpSaysWhy(t *testing.T) {
	var said []handoff.Message
	closed := false
	s := &system{inherit: func() (*link, error) {
		return &link{
			send: func(_ time.Time, m handoff.Message, _ ...syscall.RawConn) error {
				said = append(said, m)
				return nil
			},
			close: func() { closed = true },
		}, nil
	}}
	s.giveUp("start", errors.New("setsid: operation not permitted"))
	want := []handoff.Message{&handoff.Failed{Step: "start", Reason: "setsid: operation not permitted"}}
	if diff := cmp.Diff(want, said); diff != "" || !closed {
		t.Errorf("the socket is closed: %t; what was said (-want +got):\n%s", closed, diff)
	}
	s.inherit = func() (*link, error) { return nil, errors.New("there is none") }
	s.giveUp("start", errors.New("nobody hears it"))
}

func TestParseStat(t *testing.T) {
	line := "42 (a) b (c) S 7 " + strings.Repeat("1 ", 17) + "99 0 0"
	if parent, started, state, ok := parseStat(line); parent != 7 || started != 99 || state != "S" || !ok {
		t.Errorf("parseStat(%q) is %d, %d, %q, %t", line, parent, started, state, ok)
	}
	for _, line := range []string{"", "42", "42 (a", "42 (a) S 7", "42 (a) S x " + strings.Repeat("1 ", 20)} {
		if _, _, _, ok := parseStat(line); ok {
			t.Errorf("parseStat(%q) takes it", line)
		}
	}
}

// script stands in for the program; the check runs os.Args[0].
func script(t *testing.T, text string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"+text), 0o700); err != nil {
		t.Fatal(err)
	}
	before := os.Args[0]
	os.Args[0] = name
	t.Cleanup(func() { os.Args[0] = before })
}

func TestCheckSaysWhy(t *testing.T) {
	t.Setenv("TABLEFLIP_HAS_PARENT_7DIU3", "yes")
	script(t, `test -z "$TABLEFLIP_HAS_PARENT_7DIU3" || exit 9
echo "in $PWD: $* $(cat)"; exit 78`)
	dir := t.TempDir()
	err := runCheck(t.Context(), dir, os.Args[0], []string{"check", "-c", "x.yaml"}, []byte("its input"))
	if err == nil || !strings.Contains(err.Error(), "exit status 78: in "+dir+": check -c x.yaml its input") {
		t.Errorf("the check says %v", err)
	}
	script(t, "head -c 1000000 /dev/zero | tr '\\0' x; exit 1")
	if err := runCheck(t.Context(), dir, os.Args[0], nil, nil); err == nil || len(err.Error()) > maxOutput+1000 || len(err.Error()) < maxOutput {
		t.Errorf("the check says %.100v, want the first %d bytes", err, maxOutput)
	}
	for _, well := range []string{"exit 0", "sleep 2 & exit 0"} { // the latter leaves somebody behind who has its output
		script(t, well)
		if err := runCheck(t.Context(), dir, os.Args[0], nil, nil); err != nil {
			t.Errorf("the check by %q says %v", well, err)
		}
	}
}

func TestCheckEndsWithItsContext(t *testing.T) {
	script(t, "exec sleep 60")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	begun := time.Now()
	if err := runCheck(ctx, t.TempDir(), os.Args[0], nil, nil); err == nil || time.Since(begun) > 20*time.Second {
		t.Errorf("the check says %v after %v", err, time.Since(begun))
	}
}

func TestCountDescriptors(t *testing.T) {
	before, limit, err := countDescriptors()
	if err != nil || before < 3 || limit == 0 {
		t.Fatalf("%d descriptors of %d, %v", before, limit, err)
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if after, _, _ := countDescriptors(); after != before+1 {
		t.Errorf("%d descriptors after one more than %d", after, before)
	}
}

func TestReportIsBounded(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	r := Report{Reason: long, Left: slices.Repeat([]string{long}, 1000), Oldest: []string{long}, Pauses: make([]Bucket, 1000)}
	r.bound()
	dir := t.TempDir()
	if err := writeReport(dir, r); err != nil {
		t.Fatal(err)
	}
	if back, err := ReadReport(dir); err != nil || len(back.Left) != maxLines+1 || back.Left[maxLines] != "and 900 more" {
		t.Errorf("the report has %d lines, %v; want %d and one more", len(back.Left), err, maxLines)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("%d files are in the folder, want the report alone: %v, %v", len(entries), entries, err)
	}
}

func TestPIDFileIsItsOwners(t *testing.T) {
	dir := t.TempDir()
	if err := writePID(dir, 7); err != nil {
		t.Fatal(err)
	}
	if err := removePID(dir, 8); err != nil {
		t.Errorf("removing another's file: %v", err)
	}
	if pid, err := ReadPID(dir); pid != 7 || err != nil {
		t.Errorf("the file says %d, %v; want 7", pid, err)
	}
	if err := removePID(dir, 7); err != nil {
		t.Errorf("removing the file: %v", err)
	}
	if pid, err := ReadPID(dir); pid != 0 || err != nil {
		t.Errorf("the file says %d, %v; want none", pid, err)
	}
}
