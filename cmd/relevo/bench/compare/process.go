package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	readyTimeout = 10 * time.Second // from start to the first accepted connection
	stopTimeout  = 5 * time.Second  // from the request to stop to the kill
)

// yard is where the processes live. All of them end when its context does.
type yard struct {
	// Static after New.
	ctx     context.Context // the yard's life
	scratch string          // a folder for configuration files

	running sync.WaitGroup
}

// wait blocks until every process is gone. The context has to be done.
func (y *yard) wait() { y.running.Wait() }

// process is one that runs until the yard's context is done.
type process struct {
	name string
	pid  int
	gone chan struct{} // closed when it has ended
	said *tail
}

// launch starts a process and waits until it accepts connections at the address.
func (y *yard) launch(name, address string, command ...string) (*process, error) {
	p := &process{name: name, gone: make(chan struct{}), said: &tail{}}
	cmd := exec.CommandContext(y.ctx, command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = p.said, p.said
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopTimeout
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	p.pid = cmd.Process.Pid
	// Ends when the process does, which the context asks it to.
	y.running.Go(func() {
		_ = cmd.Wait() // how it ended matters only while it should run, and then alive tells
		close(p.gone)
	})
	return p, p.accepts(y.ctx, address)
}

func (p *process) accepts(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		c, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			return c.Close()
		}
		again := time.NewTimer(20 * time.Millisecond)
		select {
		case <-p.gone:
			return p.died()
		case <-ctx.Done():
			return fmt.Errorf("%s does not accept connections at %s: %w; it said: %s", p.name, address, err, p.said)
		case <-again.C:
		}
	}
}

// alive says whether it still runs, and otherwise what it said last.
func (p *process) alive() error {
	select {
	case <-p.gone:
		return p.died()
	default:
		return nil
	}
}

func (p *process) died() error { return fmt.Errorf("%s ended; it said: %s", p.name, p.said) }

// output runs a command to its end, within a time, and returns what it wrote to standard output and standard error, even if
// it did not succeed.
func output(ctx context.Context, limit time.Duration, command ...string) (out, said []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.WaitDelay = stopTimeout
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err = cmd.Run(); err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(command, " "), errors.Join(err, ctx.Err()), bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.Bytes(), stderr.Bytes(), err
}

// tail keeps the end of what was written to it.
type tail struct {
	mu  sync.Mutex
	end []byte // Guarded by mu.
}

const tailSize = 4 << 10

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
		return "nothing"
	}
	return string(bytes.TrimSpace(t.end))
}

// freeAddress returns an address on the loopback interface at which nobody listens.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
