package handoff

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// keepOut is the size up to which the buffer of what is sent is kept for the next message.
	keepOut = 4 << 20
	// crowded is how long to wait before descriptors are tried again that the kernel did not take because too many are on
	// their way, and maxCrowded how long all in all, where no deadline says so.
	crowded    = time.Millisecond
	maxCrowded = 5 * time.Second
)

// Send sends m and the descriptors that it names, until the deadline; the zero time is none.
//
// The descriptors are read while they are sent, and every connection is held for that long: so they can belong to
// connections in use, of which nothing is changed. A connection that was closed is an error, which names it by its index.
//
// When an error has cut the message short, nothing can be sent behind it; otherwise nothing was sent, and another may follow. Once the peer's end is gone it
// is unix.EPIPE.
func (c *Conn) Send(deadline time.Time, m Message, files ...syscall.RawConn) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	if c.cut != nil {
		return fmt.Errorf("sending %s: a message before it was cut short: %w", m.kind(), c.cut)
	}
	if err := appendFrame(&c.out, m, len(files)); err != nil {
		c.release()
		return err
	}
	defer c.release()
	if err := c.file.SetWriteDeadline(deadline); err != nil {
		return fmt.Errorf("sending %s: %w", m.kind(), c.explain(err))
	}
	size := c.out.Len()
	if err := c.send(deadline, files); err != nil {
		if sent := size - c.out.Len(); sent > 0 {
			c.cut = err
			return fmt.Errorf("sending %s: after %d of %d bytes: %w", m.kind(), sent, size, err)
		}
		return fmt.Errorf("sending %s: %w", m.kind(), err)
	}
	return nil
}

// release makes room for the next frame.
func (c *Conn) release() {
	c.out.Reset()
	if c.out.Cap() > keepOut {
		c.out = bytes.Buffer{}
	}
}

// send takes from out what it sends. The descriptors go with the first byte.
func (c *Conn) send(deadline time.Time, files []syscall.RawConn) error {
	if deadline.IsZero() {
		deadline = time.Now().Add(maxCrowded)
	}
	for c.out.Len() > 0 {
		var n int
		var err error
		failed := c.raw.Write(func(fd uintptr) bool {
			n, err = c.try(int(fd), files)
			return err != unix.EAGAIN
		})
		if failed != nil {
			return c.explain(failed)
		}
		switch {
		case err == nil:
			c.out.Next(n)
			files = nil
		case err == unix.EINTR:
		case err == unix.ETOOMANYREFS && time.Now().Before(deadline):
			if err := c.pause(crowded); err != nil {
				return err
			}
		case err == unix.ECONNRESET:
			return os.NewSyscallError("sendmsg", unix.EPIPE) // it had not read everything: it is gone all the same
		default:
			if _, ok := errors.AsType[syscall.Errno](err); ok {
				err = os.NewSyscallError("sendmsg", err)
			}
			return err
		}
	}
	return nil
}

// try asks the kernel once.
func (c *Conn) try(fd int, files []syscall.RawConn) (n int, err error) {
	if len(files) == 0 {
		return c.sendmsg(fd, c.out.Bytes(), nil)
	}
	fds := make([]int, 0, len(files))
	failed := gather(files, fds, func(fds []int) {
		n, err = c.sendmsg(fd, c.out.Bytes(), unix.UnixRights(fds...))
	})
	if failed != nil {
		return 0, failed
	}
	return n, err
}

// gather calls use with the descriptors of the files behind those that it has got, in the Control of every one of them.
func gather(files []syscall.RawConn, fds []int, use func([]int)) error {
	if len(files) == 0 {
		use(fds)
		return nil
	}
	var behind error
	err := files[0].Control(func(fd uintptr) { behind = gather(files[1:], append(fds, int(fd)), use) })
	if err != nil {
		return fmt.Errorf("descriptor %d: %w", len(fds), err)
	}
	return behind
}

// pause waits, but not longer than the connection is open.
func (c *Conn) pause(d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-c.closed:
		return os.ErrClosed
	}
}
