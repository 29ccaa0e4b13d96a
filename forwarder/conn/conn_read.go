package conn

import (
	"errors"
	"os"
	"runtime"
	"syscall"
)

// maxOnce is the most that one system call copies. A larger piece of a large frame would keep a processor for as
// long as others wait for it; behind each piece of this size the loop lets them go first.
const maxOnce = 256 << 10

// Read returns all unread bytes once there are at least need of them; it waits for the peer, for the gate and,
// when need is large, for memory. The bytes are valid until the next Read, Own or Release. The error is
// ErrClosed, ErrPaused or ErrLeaving. Only the read loop calls Read, Advance and Own.
func (c *Conn) Read(need int) ([]byte, error) {
	need = max(need, 1)
	for {
		if c.shut() != 0 {
			if err := c.awaitGate(); err != nil {
				return nil, err
			}
		}
		if c.w-c.r >= need {
			return c.buf[c.r:c.w], nil
		}
		if !c.room(need) {
			continue // closed or paused while we waited for memory
		}
		if err := c.fill(); err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				c.Close(ReasonReset)
			} else if c.shut() == 0 {
				c.pass()
			}
			continue // a deadline in the past is how a gate wakes us: go and look at it
		}
		switch {
		case c.readN > 0:
			c.w += c.readN
			c.ahead = c.w == len(c.buf) || c.ahead && c.readN > readSize/4
			c.got.Add(uint64(c.readN))
			if c.readN == maxOnce {
				runtime.Gosched()
			}
		case c.readE == nil:
			c.Close(ReasonPeerClosed)
		default:
			c.Close(ReasonReset)
		}
	}
}

// fill reads once, waiting for the peer.
func (c *Conn) fill() error {
	c.readN, c.readE = 0, nil
	if !c.begun() {
		return c.raw.Read(c.onRead)
	}
	c.partial.Store(true)
	err := c.raw.Read(c.onRead)
	c.partial.Store(false)
	return err
}

// shut is the set of gates that stop the read loop now: some are shut between frames only.
func (c *Conn) shut() gate {
	g := gate(c.gates.Load())
	if c.begun() {
		g &^= betweenFrames
	}
	return g
}

// begun says whether the peer has begun a frame that is not whole.
func (c *Conn) begun() bool { return c.w > c.r || c.inside }

// InFrame says whether the caller is in the middle of a frame whose bytes it takes as they come, with Advance, instead of
// letting Read gather them. Gates that shut between frames only, and timeouts, then know. Only the read loop calls it.
func (c *Conn) InFrame(inside bool) { c.inside = inside }

// Advance marks the first n unread bytes as read.
func (c *Conn) Advance(n int) {
	c.r += n
	if c.r == c.w {
		c.r, c.w = 0, 0
	}
}

// Own gives the read buffer away when the unread bytes are one frame of n bytes that has a large buffer to
// itself: the caller hands it on to AppendOwned of some connection instead of copying it. It returns nil when
// that is not so, and then the caller copies.
func (c *Conn) Own(n int) []byte {
	if len(c.buf) <= aheadSize || c.r != 0 || c.w != n {
		return nil
	}
	buf := c.buf[:n]
	c.held.Add(-int64(cap(buf)))
	c.buf, c.r, c.w = nil, 0, 0
	return buf
}

// Lend gives the read buffer away, for as long as the caller uses what it has read and marked as read: then it puts the
// buffer back where Buffers.Get gets them from. What is unread stays the connection's.
func (c *Conn) Lend() []byte {
	buf, unread := c.buf, c.buf[c.r:c.w]
	c.held.Add(-int64(cap(buf)))
	c.buf, c.r, c.w = nil, 0, 0
	if len(unread) > 0 {
		c.buf = c.get(readable(len(unread)))
		c.w = copy(c.buf, unread)
	}
	return buf
}

// readable is the size of the buffer for n unread bytes: one that is for a single large frame only where no other holds them.
func readable(n int) int {
	if n > readSize {
		return max(n, aheadSize)
	}
	return n
}

// awaitGate waits until the gate is open.
func (c *Conn) awaitGate() error {
	c.shrink()
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		switch g := c.shut(); {
		case g&gateClosed != 0:
			return ErrClosed
		case g&gatePause != 0:
			return ErrPaused
		case g&gateLeave != 0:
			c.setGate(gateLeave, false)
			return ErrLeaving
		case g == 0:
			return nil
		}
		c.cond.Wait()
	}
}

// room makes buf able to hold need unread bytes. It reports false when it could not, because the connection
// was closed or paused while it waited for memory.
func (c *Conn) room(need int) bool {
	if len(c.buf) > aheadSize && c.w == 0 {
		c.freeRead() // a large frame's, of which nobody took ownership
	}
	switch {
	case need > readSize && (need > len(c.buf) || len(c.buf) <= aheadSize):
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
	c.most = c.limit
	if len(c.buf) > aheadSize || !c.inside && gate(c.gates.Load())&betweenFrames != 0 {
		// Nothing behind the frame: so that a large buffer can be given away, and so that the read loop comes to
		// be between frames, where a gate can stop it.
		c.most = need
	}
	return true
}

// readOnce is the body of RawConn.Read: one read without waiting. While a connection waits it holds no buffer,
// or, in the middle of a frame, a small one: the large one is taken here, once there may be something to read,
// and given back before the wait.
func (c *Conn) readOnce(fd uintptr) bool {
	size := readSize
	if c.ahead && c.most == 0 && !c.inside && c.buffers.roomy() {
		size = aheadSize
	}
	if len(c.buf) < size {
		c.move(size)
	}
	end := len(c.buf)
	if c.most > 0 {
		end = min(end, c.r+c.most)
	}
	large := len(c.buf) > aheadSize
	if large {
		c.buffers.enterBulk()
	}
	n, err := c.sys.read(fd, c.buf[c.w:min(end, c.w+maxOnce)])
	if large {
		c.buffers.leaveBulk()
	}
	if err == syscall.EAGAIN {
		c.shrink()
		return false
	}
	c.readN, c.readE = max(n, 0), err
	return true
}

// shrink keeps, for a wait, no more of the read buffer than what is unread needs; that of a large frame it leaves.
func (c *Conn) shrink() {
	switch unread := c.w - c.r; {
	case unread == 0:
		c.freeRead()
	case Capacity(unread) < len(c.buf) && len(c.buf) <= aheadSize:
		c.move(Capacity(unread))
	}
}

// move puts what is unread into a buffer of another size.
func (c *Conn) move(size int) {
	buf := c.get(size)
	n := copy(buf, c.buf[c.r:c.w])
	c.freeRead()
	c.buf, c.w = buf, n
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
	if len(c.buf) > aheadSize {
		return c.get(n) // an adopted part of a large frame: others may be waiting for the memory that it has
	}
	if unread := c.w - c.r; Capacity(unread) < len(c.buf) {
		c.move(Capacity(unread)) // whoever waits for memory holds no more than it needs
	}
	t := c.buffers.reserve(n, c.cfg.Class)
	if t == nil {
		c.Close(ReasonNoMemory)
		return nil
	}
	c.mu.Lock()
	c.ticket = t
	c.mu.Unlock()
	for !c.buffers.granted(t) && gate(c.gates.Load())&(gateClosed|gatePause) == 0 {
		<-t.turn // a grant, a close or a pause: whoever brings one calls
	}
	c.mu.Lock()
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
