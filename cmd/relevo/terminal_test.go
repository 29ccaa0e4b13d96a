//go:build linux

package main

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/relevo-proxy/relevo/cmd/relevo/call"
	"github.com/relevo-proxy/relevo/cmd/relevo/echo"
	"github.com/relevo-proxy/relevo/upgrade"
)

// terminal makes one, as sshd does. Closing the outer side hangs it up.
func terminal(t *testing.T) (outer, inner *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("no terminal can be had here: %v", err)
	}
	outer = os.NewFile(uintptr(fd), "/dev/ptmx")
	t.Cleanup(func() { outer.Close() })
	err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0) // it begins locked
	if err != nil {
		t.Fatalf("unlocking a terminal: %v", err)
	}
	number, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatalf("reading the number of a terminal: %v", err)
	}
	inner, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no terminal can be had here: %v", err)
	}
	t.Cleanup(func() { inner.Close() })
	return outer, inner
}

// The end of its terminal stops a process in order, however often it is told of it.
func TestTerminalThatClosesStops(t *testing.T) {
	s := upstream(t, echo.Options{Delay: time.Second})
	outer, inner := terminal(t)
	p := spawnAt(t, inner, "run", "-c", fileWith(t, fmt.Sprintf(`
listeners: [{name: client, address: "127.0.0.1:0", protocol: bolt}]
routes: [{name: rpc, rules: [{cluster: order, timeout: 10m}]}]
clusters: [{name: order, protocol: bolt, endpoints: [{address: %q}]}]
runtime_dir: %q
`, s.Addr(), t.TempDir())))
	address := p.err.find(t, `"listener":"client","address":"([^"]+)"`)
	p.err.find(t, `"msg":"serving"`)
	var wg sync.WaitGroup
	wg.Go(func() { // ends with the reply
		if r, err := call.Do(t.Context(), call.Options{Addr: address, Timeout: patience}); err != nil || r.Failed() {
			t.Errorf("the request in flight got %+v, %v; want SUCCESS", r, err)
		}
	})
	requested(t, s, 1)
	inner.Close()
	outer.Close()
	p.err.find(t, `"msg":"signal: stopping","signal":"hangup"`)
	p.signal(t, syscall.SIGHUP) // as from the shell
	if status := p.status(t); status != exitDone || strings.Contains(p.err.String(), "asked for an upgrade") {
		t.Errorf("exit status %d, want %d and no upgrade", status, exitDone)
	}
	wg.Wait()
}

// The kernel's SIGHUP at the end of a session's leader is not taken for a request by the process that it has handed over to, and
// that goes on without the terminal.
func TestLeaderOfASessionHandsOver(t *testing.T) {
	outer, inner := terminal(t)
	dir := t.TempDir()
	p := spawnAt(t, inner, "run", "-c", fileWith(t, goodConfig+fmt.Sprintf("runtime_dir: %q\n%s\n", dir, patientUpgrades)))
	p.err.find(t, `"msg":"serving"`)
	for range 2 {
		if status, _, errOut := relevo(t, "", "upgrade", "--runtime-dir", dir); status != exitDone {
			t.Fatalf("upgrade: exit status %d, %s", status, errOut)
		}
		r, err := upgrade.ReadReport(dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if runs, _ := upgrade.Runs(r.To); runs {
				_ = syscall.Kill(r.To, syscall.SIGKILL)
			}
		})
		for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
			if runs, err := upgrade.Runs(r.From); err == nil && !runs {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("process %d, which has handed over, has not ended", r.From)
			}
		}
		inner.Close()
		outer.Close() // as sshd does when what it has started ends
	}
	// Of signals that wait for a process, the least comes first: SIGHUP.
	if status, _, errOut := relevo(t, "", "stop", "--runtime-dir", dir); status != exitDone {
		t.Errorf("stop: exit status %d, %s", status, errOut)
	}
	if asked := strings.Count(p.err.String(), "asked for an upgrade"); asked != 2 {
		t.Errorf("upgrades were asked for %d times, want twice", asked)
	}
}
