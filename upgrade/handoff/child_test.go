package handoff

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// childRole is the variable that makes the test's program another process of a test.
const childRole = "RELEVO_HANDOFF_CHILD"

// child is what such a process does. Its descriptor 3 is its end of the hand-over socket.
func child(role string) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, role+":", err)
		return 1
	}
	switch role {
	case "answer": // what it gets, it tells
		c, err := Open(os.NewFile(3, "inherited"))
		if err != nil {
			return fail(err)
		}
		for {
			m, files, err := c.Receive()
			if errors.Is(err, io.EOF) {
				return 0
			}
			if err != nil {
				return fail(err)
			}
			for _, f := range files {
				if _, err := f.WriteString("x"); err != nil {
					return fail(err)
				}
				f.Close()
			}
			if err := c.Send(soon(), &Failed{Step: KindOf(m).String(), Reason: fmt.Sprint(len(files))}); err != nil {
				return fail(err)
			}
		}
	case "crowd":
		if err := crowd(); err != nil {
			return fail(err)
		}
		return 0
	}
	return fail(errors.New("no such role"))
}

// start runs the test's program in a role.
func start(t *testing.T, role string, files ...*os.File) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childRole+"="+role)
	cmd.ExtraFiles = files
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// A process inherits its end, even one that was made to block on the way.
func TestAnotherProcess(t *testing.T) {
	a, theirs, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	raw, err := theirs.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { err = unix.SetNonblock(int(fd), false) }); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := start(t, "answer", theirs)
	theirs.Close()
	canary := newCanary(t)
	for range 3 {
		if err := a.Send(soon(), conns(7), canary.raws(7)...); err != nil {
			t.Fatal(err)
		}
		if err := a.SetReadDeadline(soon()); err != nil {
			t.Fatal(err)
		}
		m, _, err := a.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if f, ok := m.(*Failed); !ok || f.Step != "CONNS" || f.Reason != "7" {
			t.Errorf("got %+v from the other process, want that it got CONNS with 7 descriptors", m)
		}
	}
	if n, err := unix.Read(canary.read, make([]byte, 64)); n != 21 {
		t.Errorf("got %d bytes, %v through the descriptors that it got, want 21", n, err)
	}

	// It is killed with something unread.
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := a.Send(soon(), conns(1), canary.raw()); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the process that was killed ended well")
	}
	if err := a.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	for {
		if _, _, err = a.Receive(); err != nil {
			break
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Errorf("got %v of a process that was killed, want io.EOF", err)
	}
	if !canary.gone() {
		t.Error("a copy of a descriptor that was sent to a process that is dead is still open")
	}
}

// The kernel's own bounds, with a small limit of open files: too many on their way, and too many to be received.
func TestLimitOfOpenFiles(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childRole+"=crowd")
	if os.Geteuid() == 0 {
		// The bound on what is on its way is not root's.
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		cmd.Path = "/proc/self/exe"
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("with a limit of 64 open files: %v\n%s", err, strings.TrimSpace(string(out)))
	}
}

func crowd() error {
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 64, Max: 64}); err != nil {
		return err
	}
	a, f, err := Pair()
	if err != nil {
		return err
	}
	b, err := Open(f)
	if err != nil {
		return err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	raw, err := null.SyscallConn()
	if err != nil {
		return err
	}
	files := func(n int) []syscall.RawConn {
		all := make([]syscall.RawConn, n)
		for i := range all {
			all[i] = raw
		}
		return all
	}
	// Nobody reads: the kernel stops taking them.
	sent := 0
	for err == nil && sent < 20 {
		if err = a.Send(time.Now().Add(50*time.Millisecond), conns(20), files(20)...); err == nil {
			sent++
		}
	}
	if !errors.Is(err, unix.ETOOMANYREFS) && !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("got %w after %d messages of 20 that nobody reads, want ETOOMANYREFS", err, sent)
	}
	// Somebody reads: all arrive.
	const more = 200
	done := make(chan error, 1)
	go func() { // ends when all is received
		for range sent + more {
			_, files, err := b.Receive()
			closeFiles(files)
			if err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for range more {
		if err := a.Send(soon(), conns(20), files(20)...); err != nil {
			return fmt.Errorf("while the other side reads: %w", err)
		}
	}
	if err := <-done; err != nil {
		return err
	}
	// More than the receiver can open.
	if err := a.Send(soon(), conns(100), files(100)...); err != nil {
		return err
	}
	before, err := openFiles()
	if err != nil {
		return err
	}
	if _, _, err := b.Receive(); err == nil || !strings.Contains(err.Error(), "MSG_CTRUNC") {
		return fmt.Errorf("got %w from 100 descriptors at a limit of 64, want MSG_CTRUNC", err)
	}
	after, err := openFiles()
	if err != nil {
		return err
	}
	if after != before {
		return fmt.Errorf("%d files are open behind a read that failed, %d before it", after, before)
	}
	return nil
}

func openFiles() (int, error) {
	names, err := os.ReadDir("/proc/self/fd")
	return len(names), err
}
