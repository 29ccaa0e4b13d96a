package yard

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	readyTimeout = 10 * time.Second // from start to the first accepted connection, and of a program that says its version
	stopTimeout  = 5 * time.Second  // from the request to stop to the kill
)

// Yard is where the processes live. All of them end when its context does.
type Yard struct {
	// Static after Run has made it.
	Scratch string // a folder for configuration files
	ctx     context.Context

	running sync.WaitGroup
}

// Run calls f with a yard. It returns only after every process that f started has ended and the scratch folder is gone.
func Run(ctx context.Context, f func(context.Context, *Yard) error) (err error) {
	scratch, err := os.MkdirTemp("", "relevo-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	ctx, cancel := context.WithCancel(ctx)
	y := &Yard{Scratch: scratch, ctx: ctx}
	defer y.running.Wait()
	defer cancel()
	return f(ctx, y)
}

// Process is one that runs until the yard's context is done, or Stop.
type Process struct {
	// Static after Launch.
	Name string
	PID  int

	stop func()
	gone chan struct{} // closed when it has ended
	said *tail
}

// Command is a program to launch.
type Command struct {
	Name    string   // how errors call it
	Address string   // where it will listen; empty for nowhere
	Args    []string // the program first
	Env     []string // beside that of this process, NAME=VALUE each
	Log     io.Writer
}

// Launch starts a process and waits until it accepts connections at its address. What it says goes to the command's Log too,
// if it has one.
func (y *Yard) Launch(c Command) (*Process, error) {
	ctx, cancel := context.WithCancel(y.ctx)
	p := &Process{Name: c.Name, stop: cancel, gone: make(chan struct{}), said: &tail{}}
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.Stdout = io.Writer(p.said)
	if c.Log != nil {
		cmd.Stdout = io.MultiWriter(p.said, c.Log)
	}
	cmd.Stderr = cmd.Stdout
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopTimeout
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, fmt.Errorf("starting %s: %w", c.Name, err)
	}
	p.PID = cmd.Process.Pid
	// Ends when the process does, which the context asks it to.
	y.running.Go(func() {
		_ = cmd.Wait() // how it ended matters only while it should run, and then Alive tells
		cancel()
		close(p.gone)
	})
	return p, p.accepts(y.ctx, c.Address)
}

// Stop ends the process and returns when it is gone. What the command's Log holds is whole then.
func (p *Process) Stop() {
	p.stop()
	<-p.gone
}

func (p *Process) accepts(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for address != "" {
		c, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			return c.Close()
		}
		again := time.NewTimer(20 * time.Millisecond)
		select {
		case <-p.gone:
			return p.died()
		case <-ctx.Done():
			return fmt.Errorf("%s does not accept connections at %s: %w; it said: %s", p.Name, address, err, p.said)
		case <-again.C:
		}
	}
	return nil
}

// Alive says whether it still runs, and otherwise what it said last.
func (p *Process) Alive() error {
	select {
	case <-p.gone:
		return p.died()
	default:
		return nil
	}
}

func (p *Process) died() error { return fmt.Errorf("%s ended; it said: %s", p.Name, p.said) }

// RSS is the resident size of the process in bytes.
func (p *Process) RSS() (float64, error) {
	return kibibytes(field("/proc/"+strconv.Itoa(p.PID)+"/status", "VmRSS"))
}

// CPU is the time that the process has used so far, user and system, to 10 ms.
func (p *Process) CPU() (time.Duration, error) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(p.PID) + "/stat")
	if err != nil {
		return 0, err
	}
	// The name in parentheses may hold anything; the fields after it are the third and on (proc_pid_stat(5)).
	rest := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(rest) < 13 {
		return 0, fmt.Errorf("process %d has %d fields in stat", p.PID, len(rest))
	}
	user, err := strconv.ParseInt(rest[11], 10, 64)
	system, failure := strconv.ParseInt(rest[12], 10, 64)
	return time.Duration(user+system) * clockTick, errors.Join(err, failure)
}

// clockTick is USER_HZ, which Linux fixes for what it shows in /proc.
const clockTick = 10 * time.Millisecond

// Output runs a command to its end, within a time, and returns what it wrote to standard output and standard error, even if
// it did not succeed.
func Output(ctx context.Context, limit time.Duration, command ...string) (out, said []byte, err error) {
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

// FirstLine returns the first line that a program says, which is its version when asked for that.
func FirstLine(ctx context.Context, command ...string) string {
	out, said, err := Output(ctx, readyTimeout, command...)
	if err != nil {
		return "unknown"
	}
	line, _, _ := strings.Cut(string(append(out, said...)), "\n")
	return line
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

// FreeAddress returns an address on the loopback interface at which nobody listens.
func FreeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
