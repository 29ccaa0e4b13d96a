package upgrade

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cloudflare/tableflip"
	"golang.org/x/sys/unix"

	"github.com/relevo-proxy/relevo/upgrade/handoff"
)

// system is the operating system and tableflip, as far as an upgrade needs them; tests bring another one.
type system struct {
	pid       int
	heir      bool
	init      string       // the init of a container that ends with this process; empty: there is none
	monotonic func() int64 // nanoseconds of CLOCK_MONOTONIC, which all processes share

	program     string                     // that this process was started as
	pair        func() (*link, error)      // a hand-over socket; the next child gets its other end
	inherit     func() (*link, error)      // the end that this process got
	upgrade     func(program string) error // starts the child; ends when it is ready, or when it has ended and is reaped
	ready       func() error               // tells the parent
	awaitParent func(ctx context.Context) error
	kill        func(pid int, since int64) error // SIGKILL to our child; of pid 0, to what was started since
	ticks       func() int64                     // now, as the kernel writes down when a process was started
	check       func(ctx context.Context, program string, args []string, input []byte) error
	descriptors func() (open int, limit uint64, err error)
	makeRoom    func(descriptors int) // for so many more
	collect     func()                // lets go of what tableflip has dropped
}

// link is one end of a hand-over socket.
type link struct {
	send      func(deadline time.Time, m handoff.Message, files ...syscall.RawConn) error
	receive   func() (handoff.Message, []*os.File, error)
	interrupt func(t time.Time) // receive ends at t; zero: it does not
	hangUp    func()            // old: the child is dead; what it has said can be received, and then the end of file
	release   func()            // old: the child's end is the child's alone
	close     func()
}

const handoverName = "handover" // of the descriptor, between releases

// pinned is the upgrader of tableflip v1.2.3, and what has to be known of its inside:
//
//   - A process can have one.
//   - It starts os.Args[0], looked up as a shell would (a name without a slash in $PATH, each time anew), with the
//     arguments and the environment of this process, in the folder where this process began. To have it start another program,
//     os.Args[0] is that one's path for so long; the child finds it in its own, and goes on from there.
//   - AddFile keeps a duplicate in this process, until the child is ready or the next AddFile takes its place; the one before
//     is then closed by the garbage collector only. So the child's death does not end the socket here, and whoever makes many
//     attempts has to collect.
//   - Stop kills the child, and so does UpgradeTimeout: the one is never called, the other longer than all of ours.
//   - Upgrade is refused while the parent lives, for a moment even after WaitForParent has returned.
type pinned struct{ up *tableflip.Upgrader }

// parentLives is what Upgrade says then; it has no type of its own.
const parentLives = "parent hasn't exited"

func newSystem(longest time.Duration) (*system, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, fmt.Errorf("preparing upgrades: %w", err)
	}
	up, err := tableflip.New(tableflip.Options{UpgradeTimeout: longest})
	if err != nil {
		return nil, fmt.Errorf("preparing upgrades: %w", err)
	}
	p := &pinned{up}
	comm, _ := os.ReadFile("/proc/1/comm") // where it may not be read, PID 1 is no init of that kind
	parent := os.Getppid()
	if up.HasParent() {
		parent = 0 // an init that has adopted this process does not end with it
	}
	return &system{
		pid:         os.Getpid(),
		program:     os.Args[0],
		heir:        up.HasParent(),
		init:        endsWith(parent, strings.TrimSpace(string(comm))),
		monotonic:   func() int64 { return clock(unix.CLOCK_MONOTONIC) },
		pair:        p.pair,
		inherit:     p.inherit,
		upgrade:     p.upgrade,
		ready:       up.Ready,
		awaitParent: up.WaitForParent,
		kill:        killChild,
		ticks:       bootTicks,
		check: func(ctx context.Context, program string, args []string, input []byte) error {
			return runCheck(ctx, dir, program, args, input)
		},
		descriptors: countDescriptors,
		makeRoom:    makeRoom,
		collect:     collect,
	}, nil
}

// endsWith is the name of PID 1 if it is this parent, and an init for containers: one of those ends when what it has started does.
func endsWith(parent int, name string) string {
	inits := []string{"tini", "tini-static", "docker-init", "podman-init", "catatonit", "dumb-init"}
	if parent != 1 || !slices.Contains(inits, name) {
		return ""
	}
	return name
}

// IsHeir reports, before there is a Generation, whether another process has started this one to hand its state over. What that has
// passed on stays where it is.
func IsHeir() bool { return os.Getenv(heirVariable) != "" }

// heirVariable is how tableflip tells a process that it has a parent.
const heirVariable = "TABLEFLIP_HAS_PARENT_7DIU3"

func clock(id int32) int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(id, &t); err != nil {
		return 0 // every kernel has these clocks
	}
	return t.Nano()
}

func (p *pinned) pair() (*link, error) {
	ours, theirs, err := handoff.Pair()
	if err != nil {
		return nil, err
	}
	if err := p.up.AddFile(handoverName, theirs); err != nil {
		_, _ = ours.Close(), theirs.Close()
		return nil, fmt.Errorf("passing the hand-over socket on: %w", err)
	}
	l := linkOf(ours)
	l.hangUp = func() {
		// Other copies are left in this process, so closing ours would not do.
		if raw, err := theirs.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
		}
	}
	l.release = func() { _ = theirs.Close() }
	l.close = func() { _, _ = ours.Close(), theirs.Close() }
	return l, nil
}

func (p *pinned) inherit() (*link, error) {
	f, err := p.up.File(handoverName)
	if err != nil {
		return nil, fmt.Errorf("taking the hand-over socket: %w", err)
	}
	if f == nil {
		return nil, errors.New("taking the hand-over socket: the process that started this one has passed on none")
	}
	c, err := handoff.Open(f)
	if err != nil {
		return nil, fmt.Errorf("taking the hand-over socket: %w", err)
	}
	return linkOf(c), nil
}

func linkOf(c *handoff.Conn) *link {
	return &link{
		send:      c.Send,
		receive:   c.Receive,
		interrupt: func(t time.Time) { _ = c.SetReadDeadline(t) },
		hangUp:    func() {},
		release:   func() {},
		close:     func() { _ = c.Close() },
	}
}

// upgrade is never called twice at once. Nobody else looks at os.Args while the process runs.
func (p *pinned) upgrade(program string) error {
	mine := os.Args[0]
	os.Args[0] = program
	defer func() { os.Args[0] = mine }()
	for range 1000 { // of a millisecond each; it takes none or one
		err := p.up.Upgrade()
		if err == nil || err.Error() != parentLives {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return errors.New(parentLives)
}

// leaveSession has an heir leave the session of a terminal, if its parent leads it: at its leader's end the kernel sends SIGHUP
// to who is left in the foreground, and nobody would have asked for that upgrade.
func leaveSession() error {
	leader, err := unix.Getsid(0)
	if err != nil || leader != os.Getppid() {
		return os.NewSyscallError("getsid", err)
	}
	terminal, err := unix.Open("/dev/tty", unix.O_RDONLY|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil //nolint:nilerror // the session has none
	}
	_ = unix.Close(terminal)
	_, err = unix.Setsid()
	return os.NewSyscallError("setsid", err)
}

// died tells the death of the other side from a failure of ours.
func died(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.EPIPE)
}

// bootTicks is now, in the unit and with the beginning that /proc/PID/stat has for the start of a process.
func bootTicks() int64 { return clock(unix.CLOCK_BOOTTIME) / (int64(time.Second) / userHz) }

const userHz = 100 // on every architecture that Go knows

// makeRoom lets the kernel's table of our descriptors grow before so many more come. It grows by doubling, and each time all
// threads wait for each other: with ten thousand descriptors that alone would take some 50 ms, of a pause.
func makeRoom(descriptors int) {
	if descriptors <= 0 {
		return
	}
	high, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, descriptors+spareDescriptors)
	if err == nil { // else there is no such descriptor, or the limit is lower: then it grows when it must
		_ = unix.Close(high)
	}
}

// killChild kills our child. Where its pid is not known, or what it says is not true, it is every child that was started
// since: there is one, as this program starts nothing else meanwhile.
func killChild(pid int, since int64) error {
	if pid > 0 {
		if killed, err := killIfOurs(pid, since); killed || err != nil {
			return err
		}
	}
	list, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("looking for the new process: %w", err)
	}
	var errs []error
	for _, entry := range list {
		if pid, err := strconv.Atoi(entry.Name()); err == nil {
			_, err := killIfOurs(pid, since)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// killIfOurs kills pid if it is a child of ours that lives and was started since. The process is held while it is looked at,
// so that its number cannot become another one's.
func killIfOurs(pid int, since int64) (bool, error) {
	if !isOurs(pid, since) {
		return false, nil
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		return false, nil //nolint:nilerror // it has ended meanwhile
	}
	defer func() { _ = p.Release() }()
	if !isOurs(pid, since) {
		return false, nil
	}
	if err := p.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return false, fmt.Errorf("killing the new process, pid %d: %w", pid, err)
	}
	return true, nil
}

func isOurs(pid int, since int64) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	parent, started, state, ok := parseStat(string(data))
	return ok && parent == os.Getpid() && started >= since-1 && state != "Z" && state != "X"
}

// parseStat reads the line of /proc/PID/stat. The second field, a name in parentheses, may have anything in it.
func parseStat(line string) (parent int, started int64, state string, ok bool) {
	end := strings.LastIndexByte(line, ')')
	if end < 0 {
		return 0, 0, "", false
	}
	fields := strings.Fields(line[end+1:]) // from the third on
	if len(fields) < 20 {
		return 0, 0, "", false
	}
	parent, err := strconv.Atoi(fields[1])
	started, err2 := strconv.ParseInt(fields[19], 10, 64)
	return parent, started, fields[0], err == nil && err2 == nil
}
