package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// maxAnswer is how many bytes may come without an answer among them.
const maxAnswer = 64 << 10

// phase is how far a check has come.
type phase uint8

const (
	resolving  phase = iota // its name's addresses are awaited
	connecting              // its connection is
	asking                  // its question is not sent yet
	hearing                 // its answer is awaited
)

// check is a check that is under way. Its connection has a place in Checker.sockets.
type check struct {
	phase  phase
	key    socketKey
	fd     int // -1: no connection
	by     int64
	name   *name
	port   uint16
	to     []unix.Sockaddr // what is still to be tried
	failed error           // why what was tried could not be connected
	sent   int             // bytes of the question
	got    []byte          // of the answer
}

// start begins a check.
func (c *Checker) start(ctx context.Context, e *entry, now int64) {
	t := e.target
	e.check = check{fd: -1, by: now + int64(t.Timeout)}
	if t.Network == "unix" {
		e.check.to = []unix.Sockaddr{&unix.SockaddrUnix{Name: t.Address}}
		c.connect(e, now)
		return
	}
	host, text, err := net.SplitHostPort(t.Address)
	port, portErr := strconv.ParseUint(text, 10, 16)
	if err = errors.Join(err, portErr); err != nil { // the configuration has no such address
		c.conclude(e, now, ReasonCannotConnect, err.Error())
		return
	}
	e.check.port = uint16(port)
	if ip, err := netip.ParseAddr(host); err == nil && ip.Zone() == "" {
		e.check.to = []unix.Sockaddr{sockaddr(ip, 0, e.check.port)}
		c.connect(e, now)
		return
	}
	var waits bool
	switch e.check.name, waits = c.names.of(ctx, host, e, now); {
	case !waits:
		c.resolved(e, now)
	case len(e.check.name.hosts) > 0: // which will do, if nothing comes in half of the time
		c.schedule.extend(e, now+int64(t.Timeout)/2)
	}
}

func sockaddr(ip netip.Addr, zone uint32, port uint16) unix.Sockaddr {
	if ip = ip.Unmap(); ip.Is4() {
		return &unix.SockaddrInet4{Port: int(port), Addr: ip.As4()}
	}
	return &unix.SockaddrInet6{Port: int(port), Addr: ip.As16(), ZoneId: zone}
}

// resolved goes on with a check whose name is known, or known not to be.
func (c *Checker) resolved(e *entry, now int64) {
	k := &e.check
	if len(k.name.hosts) == 0 {
		detail := "it has no address"
		if k.name.err != nil {
			detail = k.name.err.Error()
		}
		c.conclude(e, now, ReasonUnresolved, detail)
		return
	}
	for _, h := range k.name.hosts {
		k.to = append(k.to, sockaddr(h.addr, h.zone, k.port))
	}
	c.connect(e, now)
}

// connect begins a connection to the next address that is to be tried. Each has its share of the time that is left.
func (c *Checker) connect(e *entry, now int64) {
	k := &e.check
	k.phase = connecting
	for len(k.to) > 0 {
		to, share := k.to[0], (k.by-now)/int64(len(k.to))
		k.to = k.to[1:]
		fd, done, own, err := connect(to)
		if err == nil {
			if err = c.hold(e, fd); err != nil {
				_ = unix.Close(fd)
				own = true
			}
		}
		switch {
		case own:
			c.conclude(e, now, ReasonPostponed, err.Error())
			return
		case err != nil:
			k.failed = err
			continue
		case done:
			c.connected(e, now, to)
		default:
			c.schedule.extend(e, now+share)
		}
		return
	}
	c.conclude(e, now, ReasonCannotConnect, k.failed.Error())
}

// advance goes on with a check to whose connection there is something new.
func (c *Checker) advance(e *entry, now int64) {
	switch e.check.phase {
	case connecting:
		c.arrive(e, now)
	case asking:
		c.ask(e, now)
	case hearing:
		c.hear(e, now)
	default:
	}
}

// arrive looks what has become of a connection that was begun.
func (c *Checker) arrive(e *entry, now int64) {
	errno, err := unix.GetsockoptInt(e.check.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && errno != 0 {
		err = unix.Errno(errno)
	}
	if err != nil {
		e.check.failed = os.NewSyscallError("connect", err)
		c.drop(e)
		c.connect(e, now)
		return
	}
	peer, err := unix.Getpeername(e.check.fd)
	if err != nil {
		return // told of too early
	}
	c.connected(e, now, peer)
}

// connected goes on with a check that has its connection.
func (c *Checker) connected(e *entry, now int64, peer unix.Sockaddr) {
	if ask := e.target.Ask; ask != nil {
		e.check.phase, e.check.to = asking, nil
		c.schedule.extend(e, e.check.by)
		c.ask(e, now)
		return
	}
	if self(e.check.fd, peer) {
		c.conclude(e, now, ReasonCannotConnect, "nobody listens: the connection got the port that it was to")
		return
	}
	c.conclude(e, now, Passed, "")
}

// self says whether a connection is one with itself, as may come of connecting to a port of this host that the kernel then
// chooses for this end.
func self(fd int, peer unix.Sockaddr) bool {
	own, err := unix.Getsockname(fd)
	if err != nil {
		return false
	}
	switch own := own.(type) {
	case *unix.SockaddrInet4:
		p, ok := peer.(*unix.SockaddrInet4)
		return ok && p.Port == own.Port && p.Addr == own.Addr
	case *unix.SockaddrInet6:
		p, ok := peer.(*unix.SockaddrInet6)
		return ok && p.Port == own.Port && p.Addr == own.Addr
	}
	return false
}

// ask sends what is left of the question.
func (c *Checker) ask(e *entry, now int64) {
	k, question := &e.check, e.target.Ask.Question
	for k.sent < len(question) {
		n, err := unix.Write(k.fd, question[k.sent:])
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return
		case err != nil:
			c.conclude(e, now, ReasonClosed, os.NewSyscallError("write", err).Error())
			return
		default:
			k.sent += n
		}
	}
	k.phase = hearing
	c.hear(e, now)
}

// hear reads what there is of the answer.
func (c *Checker) hear(e *entry, now int64) {
	k := &e.check
	for {
		n, err := unix.Read(k.fd, c.buf)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return
		case err != nil:
			c.conclude(e, now, ReasonClosed, os.NewSyscallError("read", err).Error())
			return
		case n == 0:
			c.conclude(e, now, ReasonClosed, fmt.Sprintf("it closed the connection behind %d bytes", len(k.got)))
			return
		}
		got := c.buf[:n]
		if len(k.got) > 0 {
			k.got = append(k.got, got...)
			got = k.got
		}
		answered, err := e.target.Ask.Answered(got)
		switch {
		case err != nil:
			c.conclude(e, now, ReasonBadAnswer, err.Error())
		case answered:
			c.conclude(e, now, Passed, "")
		case len(got) > maxAnswer:
			c.conclude(e, now, ReasonBadAnswer, fmt.Sprintf("there was no answer in %d bytes", len(got)))
		default:
			if len(k.got) == 0 {
				k.got = bytes.Clone(got)
			}
			continue
		}
		return
	}
}

// expire ends a check whose time is over, or tries the next address.
func (c *Checker) expire(e *entry, now int64) {
	k, timeout := &e.check, e.target.Timeout
	switch {
	case k.phase == connecting && len(k.to) > 0 && now < k.by:
		k.failed = unix.ETIMEDOUT
		c.drop(e)
		c.connect(e, now)
	case k.phase == resolving && len(k.name.hosts) > 0 && now < k.by: // whom nobody answers who knows names
		c.resolved(e, now)
	case k.phase == connecting:
		c.conclude(e, now, ReasonConnectTimeout, fmt.Sprintf("no connection in %v", timeout))
	case k.phase == resolving:
		c.conclude(e, now, ReasonUnresolved, fmt.Sprintf("no address in %v", timeout))
	case len(k.got) > 0:
		c.conclude(e, now, ReasonNoAnswer, fmt.Sprintf("no whole answer in %v, only %d bytes", timeout, len(k.got)))
	default:
		c.conclude(e, now, ReasonNoAnswer, fmt.Sprintf("no answer in %v", timeout))
	}
}

// conclude ends a check and tells its result.
func (c *Checker) conclude(e *entry, now int64, reason, detail string) {
	c.drop(e)
	e.check = check{fd: -1}
	if reason == ReasonPostponed {
		c.schedule.postpone(e, now)
	} else {
		c.schedule.end(e, now)
	}
	e.target.Told(Result{now, reason, detail})
}
