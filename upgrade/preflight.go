package upgrade

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	parentTimeout = 10 * time.Second // the process before this one lingers for a second
	checkTimeout  = 10 * time.Second
	maxOutput     = 64 << 10
	// spareDescriptors is what a new process needs beside those that it takes over: its own sockets, pipes and epoll, and
	// what the configuration adds.
	spareDescriptors = 32
)

// Able says why this process cannot be upgraded, whatever to; nil: it can.
func (g *Generation) Able() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.opts.Disabled != "":
		return errors.New(g.opts.Disabled)
	case g.sys.pid == 1:
		return errors.New("this process is PID 1: its end would be the end of its container")
	case g.sys.init != "":
		return fmt.Errorf("this process was started by %s, PID 1, which ends with it, and the container with that", g.sys.init)
	case g.spent != "":
		return errors.New(g.spent)
	}
	return nil
}

// preflight says why an upgrade to the program cannot succeed, before anything has happened.
func (g *Generation) preflight(ctx context.Context, program string) error {
	if err := g.Able(); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, parentTimeout)
	defer cancel()
	if err := g.sys.awaitParent(wait); err != nil && wait.Err() != nil {
		return fmt.Errorf("the process before this one has not ended yet: %w", err)
	}
	if dir := g.opts.RuntimeDir; dir != "" { // nobody would learn what came of it, nor who has followed this process
		if err := Writable(dir); err != nil {
			return err
		}
	}
	if g.opts.Check != nil {
		args, input := g.opts.Check()
		if err := g.sys.check(ctx, program, args, input); err != nil {
			return err
		}
	}
	open, limit, err := g.sys.descriptors()
	if err != nil {
		return fmt.Errorf("counting descriptors: %w", err)
	}
	if need := uint64(open) + spareDescriptors; need > limit {
		return fmt.Errorf("%d descriptors are open, the new process needs %d more, and its limit (RLIMIT_NOFILE) is %d",
			open, spareDescriptors, limit)
	}
	return nil
}

// runCheck runs the program that the next generation will be, as it is on disk now.
func runCheck(ctx context.Context, dir, program string, args []string, input []byte) error {
	path, err := exec.LookPath(program) // as tableflip does
	if err != nil {
		return fmt.Errorf("looking for the new program: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	output := &limitedBuffer{limit: maxOutput}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = dir
	cmd.Env = checkEnvironment(os.Environ())
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), output, output
	cmd.WaitDelay = time.Second // whoever inherits its output does not hold us
	err = cmd.Run()
	what := strings.Join(append([]string{path}, args...), " ")
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay): // the latter: it has passed, and its output has no end yet
		return nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("%s: not done within %v", what, checkTimeout)
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", what, ctx.Err())
	}
	if said := strings.TrimSpace(string(output.kept)); said != "" {
		return fmt.Errorf("%s: %w: %s", what, err, said)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// checkEnvironment leaves out what is meant for a service's process and not for its tools.
func checkEnvironment(environ []string) (list []string) {
	for _, v := range environ {
		name, _, _ := strings.Cut(v, "=")
		switch {
		case strings.HasPrefix(name, "TABLEFLIP_"), strings.HasPrefix(name, "LISTEN_"), strings.HasPrefix(name, "WATCHDOG_"),
			name == "NOTIFY_SOCKET":
		default:
			list = append(list, v)
		}
	}
	return list
}

// limitedBuffer keeps the beginning of what is written to it and takes the rest without keeping it.
type limitedBuffer struct {
	kept  []byte
	limit int
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	b.kept = append(b.kept, p[:min(len(p), b.limit-len(b.kept))]...)
	return len(p), nil
}

// countDescriptors counts our open descriptors, and those that a process may have that we start. A Go program raises the
// soft limit to the hard one; so has this one, and what it starts gets the limit from before and raises it again.
func countDescriptors() (open int, limit uint64, err error) {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return 0, 0, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return 0, 0, err
	}
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return 0, 0, os.NewSyscallError("getrlimit", err)
	}
	return len(names) - 1, r.Cur, nil // dir is one of them
}

// collect frees what nobody holds any more, descriptors too.
func collect() { runtime.GC() }
