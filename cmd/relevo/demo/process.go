package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	readyTimeout = 15 * time.Second // from start to the first "ready"
	stopTimeout  = 15 * time.Second // from the request to stop to the kill
	pollPeriod   = 20 * time.Millisecond
	httpTimeout  = 5 * time.Second
)

// errTaken says that an address that was free was bound by somebody else first.
var errTaken = errors.New("an address was taken meanwhile")

// client asks the processes for their state. It keeps no connection, which would keep goroutines.
var client = &http.Client{Timeout: httpTimeout, Transport: &http.Transport{DisableKeepAlives: true}}

// crew is the processes of a phase. Who launches one must call stop.
type crew struct {
	members []*member
}

// member is one process, and those that have taken over from it.
type member struct {
	// Static after launch.
	name string
	pid  int // of the first one, and of the group of all
	cmd  *exec.Cmd
	said *tail
	gone chan struct{} // closed when all have ended

	err error // how they ended; to be read after gone
}

// launch starts a process.
func (c *crew) launch(name, program string, args ...string) error {
	m := &member{name: name, said: &tail{}, gone: make(chan struct{})}
	m.cmd = exec.Command(program, args...)
	m.cmd.Stdout, m.cmd.Stderr = m.said, m.said
	// A group of its own: a terminal's Ctrl-C is for the demo, which stops the load before the hops.
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := m.cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	m.pid = m.cmd.Process.Pid
	go func() { // ends with the last process, which stop sees to and waits for
		defer close(m.gone)
		m.err = errors.Join(m.cmd.Wait(), m.reap()) // the former lasts until nobody writes to said any more
	}()
	c.members = append(c.members, m)
	return nil
}

// reap waits for those that have taken over. Each was started by the one before it, and became a child of this process when
// that one ended; so where there is no child any more, there is none to come.
func (m *member) reap() error {
	var errs []error
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-m.pid, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil: // ECHILD
			return errors.Join(errs...)
		case status.Signaled():
			errs = append(errs, fmt.Errorf("process %d: signal: %v", pid, status.Signal()))
		case status.ExitStatus() != 0:
			errs = append(errs, fmt.Errorf("process %d: exit status %d", pid, status.ExitStatus()))
		}
	}
}

// stop ends the processes, the first hop first, so that nothing is sent to one that is gone. The error names
// those that did not end by themselves, or not well.
func (c *crew) stop() error {
	var errs []error
	for _, m := range c.members {
		errs = append(errs, m.stop())
	}
	return errors.Join(errs...)
}

func (m *member) stop() error {
	select {
	case <-m.gone:
		return m.died()
	default:
	}
	// All of its group: in the middle of an upgrade there are two, and whichever has the connections stops in order.
	_ = syscall.Kill(-m.pid, syscall.SIGTERM) // it may end this very moment
	patience := time.NewTimer(stopTimeout)
	defer patience.Stop()
	select {
	case <-m.gone:
	case <-patience.C:
		_ = syscall.Kill(-m.pid, syscall.SIGKILL)
		<-m.gone
		return fmt.Errorf("%s had to be killed: it did not stop within %v; %s", m.name, stopTimeout, m.said)
	}
	if m.err != nil {
		return fmt.Errorf("%s did not stop well: %w; %s", m.name, m.err, m.said)
	}
	return nil
}

func (m *member) died() error {
	if strings.Contains(m.said.String(), syscall.EADDRINUSE.Error()) {
		return fmt.Errorf("%s: %w", m.name, errTaken)
	}
	return fmt.Errorf("%s has ended by itself; %s", m.name, m.said)
}

// ready waits until the process says at its metrics address that it is ready.
func (m *member) ready(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	again := time.NewTicker(pollPeriod)
	defer again.Stop()
	for {
		_, err := get(ctx, "http://"+address+"/readyz")
		if err == nil {
			return nil
		}
		select {
		case <-m.gone:
			return m.died()
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w; %s", m.name, err, m.said)
		case <-again.C:
		}
	}
}

// tail keeps the end of what was written to it.
type tail struct {
	mu  sync.Mutex
	end []byte // Guarded by mu.
}

const tailSize = 2 << 10

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end = append(t.end, b...)
	t.end = t.end[max(0, len(t.end)-tailSize):]
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.end) == 0 {
		return "it said nothing"
	}
	return "it said: " + string(bytes.TrimSpace(t.end))
}
