package health

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// poller waits for many sockets. Each is told of when there is something new to it, not for as long as there is.
type poller struct {
	// Static after newPoller.
	file *os.File // the epoll instance; the runtime's own poller waits for it, so that no thread does
	raw  syscall.RawConn
	fd   int
	bell int // an eventfd

	// Owned by who waits.
	look   func(uintptr) bool // kept, because a fresh one would be an allocation for each wait
	events [maxReady]unix.EpollEvent
	n      int
	err    error
	ready  [maxReady]socketKey
}

func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making an epoll instance: %w", err)
	}
	bell, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("making an eventfd: %w", err)
	}
	p := &poller{fd: fd, bell: bell}
	err = errors.Join(p.add(bell, socketKey{slot: bellSlot}), unix.SetNonblock(fd, true)) // so that os.NewFile hands it to the runtime's poller
	p.file = os.NewFile(uintptr(fd), "epoll")
	if err == nil {
		p.raw, err = p.file.SyscallConn()
	}
	if err == nil {
		err = p.file.SetReadDeadline(time.Time{}) // refused where the runtime's poller has not taken it
	}
	if err != nil {
		p.close()
		return nil, fmt.Errorf("preparing an epoll instance: %w", err)
	}
	p.look = func(uintptr) bool { return p.poll() != 0 }
	return p, nil
}

// add has the poller tell of a socket. That ends when the socket is closed.
func (p *poller) add(fd int, key socketKey) error {
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET, Fd: key.slot, Pad: key.number}
	return unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, fd, &event)
}

// poll looks what there is.
func (p *poller) poll() int {
	for {
		p.n, p.err = unix.EpollWait(p.fd, p.events[:], 0)
		switch {
		case errors.Is(p.err, unix.EINTR):
			continue
		case p.err != nil:
			p.n = 0
			return -1
		}
		return p.n
	}
}

// wait waits for up to d until there is something new, and returns the sockets to which there is; of wakes it returns as well.
// all says that there is nothing new to any others. What is returned is valid until the next call.
func (p *poller) wait(d time.Duration) (ready []socketKey, all bool, err error) {
	p.n = 0
	if d <= 0 {
		p.poll()
	} else {
		if err := p.file.SetReadDeadline(time.Now().Add(d)); err != nil {
			return nil, false, err
		}
		switch err := p.raw.Read(p.look); {
		case errors.Is(err, os.ErrDeadlineExceeded):
			p.poll() // who was kept from running until then has not looked what came meanwhile
		case err != nil:
			return nil, false, err
		}
	}
	if p.err != nil {
		return nil, false, fmt.Errorf("waiting for sockets: %w", p.err)
	}
	ready = p.ready[:0]
	for i := range p.events[:p.n] {
		key := socketKey{p.events[i].Fd, p.events[i].Pad}
		if key.slot != bellSlot {
			ready = append(ready, key)
			continue
		}
		var count [8]byte
		_, _ = unix.Read(p.bell, count[:]) // so that it can ring again
	}
	return ready, p.n < maxReady, nil
}

// wake has wait return. It may be called by anybody, until close.
func (p *poller) wake() {
	one := [8]byte{7: 1}
	_, _ = unix.Write(p.bell, one[:]) // it can be refused only when it is ringing for ever
}

func (p *poller) close() {
	_ = p.file.Close() // it holds nothing that could be lost
	_ = unix.Close(p.bell)
}

// connect begins a connection. done says that there is one already. own says that it could not be begun for a reason that has
// nothing to do with the other side.
func connect(to unix.Sockaddr) (fd int, done, own bool, err error) {
	family := unix.AF_INET
	switch to.(type) {
	case *unix.SockaddrInet6:
		family = unix.AF_INET6
	case *unix.SockaddrUnix:
		family = unix.AF_UNIX
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, false, !errors.Is(err, unix.EAFNOSUPPORT), os.NewSyscallError("socket", err)
	}
	switch err = unix.Connect(fd, to); {
	case err == nil:
		return fd, true, false, nil
	case errors.Is(err, unix.EINPROGRESS), errors.Is(err, unix.EINTR):
		return fd, false, false, nil
	}
	_ = unix.Close(fd) // it has never been connected
	// To a unix socket EAGAIN means that the server's queue is full; else that there is no port left for this end.
	own = errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM) || family != unix.AF_UNIX && errors.Is(err, unix.EAGAIN)
	return -1, false, own, os.NewSyscallError("connect", err)
}
