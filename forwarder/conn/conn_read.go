package conn

import (
	"errors"
	"io"
	"os"
	"syscall"
)

// Read returns all unread bytes once there are at least need of them; it waits for the peer, for the gate and,
// when need is large, for memory. The bytes are valid until the next Read, Own or Release. The error is
// ErrClosed or ErrPaused. Only the read loop calls Read, Advance and Own.
func (c *Conn) Read(need int) ([]byte, error) {
	need = max(need, 1)
	for {
		if c.gates.Load() != 0 {
			if err := c.awaitGate(); err != nil {
				return nil, err
			}
		}
		if c.w-c.r >= need {
			return c.buf[c.r:c.w], nil
		}
		if !c.room(need) {
			continue // the gate was shut or the connection closed while we waited for memory
		}
		c.readN, c.readE = 0, nil
		if err := c.raw.Read(c.onRead); err != nil {
			// A deadline in the past is how a gate wakes us: go and look at it.
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				c.Close(ReasonReset)
			}
			continue
		}
		switch {
		case c.readN > 0:
			c.w += c.readN
			c.rx.Add(uint64(c.readN))
		case c.readE == nil:
			c.Close(ReasonPeerClosed)
		default:
			c.Close(ReasonReset)
		}
	}
}

// Advance marks the first n unread bytes as read.
func (c *Conn) Advance(n int) {
	c.r += n
	if c.r == c.w {
		c.r, c.w = 0, 0
	}
}

// Unread is the number of bytes that are read from the kernel and not yet marked as read.
func (c *Conn) Unread() int { return c.w - c.r }

// Own gives the read buffer away when the unread bytes are one frame of n bytes that has a large buffer to
// itself: the caller hands it on to AppendOwned of some connection instead of copying it. It returns nil when
// that is not so, and then the caller copies.
func (c *Conn) Own(n int) []byte {
	if len(c.buf) <= readSize || c.r != 0 || c.w != n {
		return nil
	}
	buf := c.buf[:n]
	c.held.Add(-int64(cap(buf)))
	c.buf, c.r, c.w = nil, 0, 0
	return buf
}

// awaitGate waits until the gate is open.
func (c *Conn) awaitGate() error {
	if c.w == 0 {
		c.freeRead()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		switch g := gate(c.gates.Load()); {
		case g&gateClosed != 0:
			return ErrClosed
		case g&gatePause != 0:
			return ErrPaused
		case g == 0:
			return nil
		}
		c.cond.Wait()
	}
}

// room makes buf able to hold need unread bytes. It reports false when it could not, because the connection
// was closed or paused while it waited for memory.
func (c *Conn) room(need int) bool {
	if len(c.buf) > readSize && c.w == 0 {
		c.freeRead() // a large frame's, of which nobody took ownership
	}
	switch {
	case need > max(readSize, len(c.buf)):
		// A large frame gets a buffer of its own, whole and at once: reading half of many large frames
		// and then having no memory for the other halves would be a deadlock.
		big := c.reserve(need)
		if big == nil {
			return false
		}
		n := copy(big, c.buf[c.r:c.w])
		c.freeRead()
		c.buf, c.r, c.w = big, 0, n
	case c.r > 0 && (c.r+need > len(c.buf) || len(c.buf)-c.w < len(c.buf)/2):
		c.w = copy(c.buf, c.buf[c.r:c.w])
		c.r = 0
	}
	c.want = len(c.buf)
	if len(c.buf) > readSize {
		c.want = c.r + need // nothing behind the frame: so that the buffer can be given away
	}
	return true
}

// readOnce is the body of RawConn.Read: one read without waiting. An idle connection holds no buffer: it is
// taken here, once there may be something to read, and given back before the wait.
func (c *Conn) readOnce(fd uintptr) bool {
	if c.buf == nil {
		c.buf = c.get(readSize)
		c.want = len(c.buf)
	}
	n, err := c.sys.read(fd, c.buf[c.w:c.want])
	if err == syscall.EAGAIN {
		if c.w == 0 {
			c.freeRead()
		}
		return false
	}
	if n == 0 && err == nil {
		c.readE = nil // end of file
		return true
	}
	c.readN, c.readE = max(n, 0), err
	if err == nil && n < 0 {
		c.readE = io.ErrUnexpectedEOF
	}
	return true
}

// freeRead gives the read buffer back, and what is unread with it.
func (c *Conn) freeRead() {
	if c.buf != nil {
		c.put(c.buf)
		c.buf, c.r, c.w = nil, 0, 0
	}
}

// reserve takes a large buffer from the budget and waits for it, behind others that wait. It returns nil when
// the connection was closed or paused meanwhile.
func (c *Conn) reserve(n int) []byte {
	if len(c.buf) > readSize {
		return c.get(n) // an adopted part of a large frame: others may be waiting for the memory that it has
	}
	t := c.buffers.reserve(n, c.cfg.Share)
	if t == nil {
		c.Close(ReasonNoMemory)
		return nil
	}
	c.mu.Lock()
	c.ticket = t
	for !t.granted.Load() && gate(c.gates.Load())&(gateClosed|gatePause) == 0 {
		c.mu.Unlock()
		<-t.look
		c.mu.Lock()
	}
	c.ticket = nil
	c.mu.Unlock()
	buf := c.buffers.collect(t)
	if buf != nil {
		c.held.Add(int64(cap(buf)))
	}
	return buf
}

func (c *Conn) get(n int) []byte {
	buf := c.buffers.Get(n)
	c.held.Add(int64(cap(buf)))
	return buf
}

func (c *Conn) put(buf []byte) {
	c.held.Add(-int64(cap(buf)))
	c.buffers.Put(buf)
}
