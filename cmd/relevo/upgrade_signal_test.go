//go:build linux

package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A process that has handed over, and still has something to end, passes on what it is told.
func TestSignalsBehindTheLingerAreHeard(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGHUP} {
		t.Run(s.String(), func(t *testing.T) {
			p := newChain(t, os.Args[0], patientUpgrades, goodConfig, quickExit)
			// A connection to its door whose first request is half there holds it for two seconds, if it has been accepted: as it has once
			// the next one is answered.
			door, err := net.Dial("tcp", strings.TrimSuffix(strings.TrimPrefix(p.metrics, "http://"), "/metrics"))
			if err != nil {
				t.Fatal(err)
			}
			defer door.Close()
			fmt.Fprint(door, "GET /metr")
			answer, err := http.Get(p.metrics)
			if err != nil {
				t.Fatal(err)
			}
			answer.Body.Close()

			p.upgrade(t)
			old, heir := p.past[0], p.now
			p.err.find(t, `"from":"lingering","to":"exited"`)
			if err := old.process.Signal(s); err != nil {
				t.Fatalf("%v to process %d, which still has a request: %v", s, old.process.Pid, err)
			}
			if s == syscall.SIGHUP {
				if r := p.report(t); r.Outcome != "done" || r.From != heir.process.Pid {
					t.Fatalf("asked for was an upgrade of process %d, and reported is\n%s", heir.process.Pid, r.text)
				} else {
					p.succeeded(t, r)
				}
				p.stop(t)
				return
			}
			for _, g := range []*generation{old, heir} {
				select {
				case <-g.gone:
				case <-time.After(patience):
					t.Fatalf("process %d has not ended", g.process.Pid)
				}
				if g == heir && errors.Is(g.err, syscall.ECHILD) {
					continue // the old process was there still, and reaped it
				}
				if g.err != nil || g.state.ExitCode() != exitDone {
					t.Errorf("process %d ended with %v, %v; want status %d", g.process.Pid, g.state, g.err, exitDone)
				}
			}
			if text, err := os.ReadFile(filepath.Join(p.runtime, "relevo.pid")); !os.IsNotExist(err) {
				t.Errorf("the pid file is %q, %v; want none", text, err)
			}
		})
	}
}

// A process that has stopped waits for the one before it to let go of the pid file, and hears signals meanwhile.
func TestSignalsAtTheEndKillNobody(t *testing.T) {
	// Under systemd a process lingers for a second. Nobody listens here.
	p := newChain(t, os.Args[0], patientUpgrades, goodConfig, quickExit, "NOTIFY_SOCKET="+filepath.Join(t.TempDir(), "none"))
	p.upgrade(t)
	old, heir := p.past[0], p.now
	if err := old.process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatalf("stopping process %d, which lingers: %v", old.process.Pid, err)
	}
	if err := heir.process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.err.find(t, `"msg":"stopping`)
	stat := filepath.Join("/proc", fmt.Sprint(heir.process.Pid), "stat")
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) { // until it waits to be reaped
		text, err := os.ReadFile(stat)
		if err != nil {
			t.Fatal(err)
		}
		if state := string(text[strings.LastIndexByte(string(text), ')')+2:]); state[0] == 'Z' {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("process %d has not ended: %s", heir.process.Pid, text)
		}
		_ = heir.process.Signal(syscall.SIGHUP)
	}
	old.killed = true
	_ = old.process.Kill() // then its child is ours
	<-heir.gone
	if heir.err != nil || heir.state.ExitCode() != exitDone {
		t.Errorf("the process ended with %v, %v; want status %d", heir.state, heir.err, exitDone)
	}
}
