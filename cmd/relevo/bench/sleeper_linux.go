package bench

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// timerFD sleeps on a timer of the kernel's that wakes the runtime's poller: exact to some microseconds, where
// the runtime's own timers round up to a millisecond in a process with nothing else to do.
type timerFD struct {
	f    *os.File
	fd   int
	stop func() bool
}

func newSleeper(ctx context.Context) (sleeper, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "timerfd")
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	return &timerFD{f: f, fd: fd, stop: stop}, nil
}

func (t *timerFD) sleep(d time.Duration) bool {
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}
	if err := unix.TimerfdSettime(t.fd, 0, &spec, nil); err != nil {
		return false
	}
	var expirations [8]byte
	_, err := t.f.Read(expirations[:])
	return err == nil
}

func (t *timerFD) close() {
	t.stop()
	_ = t.f.Close()
}
