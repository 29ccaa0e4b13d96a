//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A log that nobody reads keeps no process from its end.
func TestStopBesideALogThatNobodyReads(t *testing.T) {
	for name, signals := range map[string][]syscall.Signal{
		"once": {syscall.SIGQUIT, syscall.SIGTERM}, "twice": {syscall.SIGTERM, syscall.SIGTERM},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // they wait
			out, in, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			defer in.Close()
			cmd := exec.Command(os.Args[0], "run", "-c", fileWith(t, goodConfig+fmt.Sprintf("runtime_dir: %q\nstop_timeout: 0s\n", t.TempDir())))
			cmd.Env, cmd.Stderr = append(os.Environ(), asProgram+"=1"), in
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			late := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
			defer late.Stop()
			said, buf := "", make([]byte, 4096)
			for !strings.Contains(said, `"msg":"serving"`) {
				n, err := out.Read(buf)
				if err != nil {
					t.Fatal(err)
				}
				said += string(buf[:n])
			}
			fill(t, in)
			for i, s := range signals {
				if i > 0 {
					time.Sleep(100 * time.Millisecond) // two at once may come in any order, or be one
				}
				if err := cmd.Process.Signal(s); err != nil {
					t.Fatal(err)
				}
			}
			began := time.Now()
			_ = cmd.Wait()
			if status := cmd.ProcessState.ExitCode(); status != exitFailed {
				t.Errorf("behind %v: %v, want exit status %d", time.Since(began).Round(time.Millisecond), cmd.ProcessState, exitFailed)
			}
		})
	}
}

// fill writes into a pipe until no byte fits.
func fill(t *testing.T, pipe *os.File) {
	t.Helper()
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", pipe.Fd()), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }() // nothing of it is kept
	for size := 4096; size > 0; {
		switch _, err := unix.Write(fd, make([]byte, size)); {
		case errors.Is(err, unix.EAGAIN):
			size /= 2
		case err != nil:
			t.Fatal(err)
		}
	}
}
