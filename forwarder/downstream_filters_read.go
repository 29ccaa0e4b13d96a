package forwarder

import (
	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/filter"
)

// readBuffer is the most that one read brings to the chain.
const readBuffer = 64 << 10

// read returns the bytes behind the chain once there are at least need of them. It reads more only while there are fewer,
// so it holds less than a frame (max_frame) and what came out of one read (readBuffer and max_frame).
func (c *connFilters) read(need int) ([]byte, error) {
	if !c.made {
		c.make()
	}
	for {
		c.conn.InFrame(c.inside || c.w > c.r)
		if err := c.conn.Await(); err != nil {
			return nil, err
		}
		switch {
		case c.end != nil:
			return nil, c.endIn()
		case !c.released(): // then Await waits
		case c.asked < len(c.news):
			c.ask()
		case len(c.readers) == 0:
			return c.conn.Read(need)
		case c.kept != nil:
			kept := c.kept
			c.kept = nil
			c.pass(c.at, kept)
			c.held.Add(-int64(len(kept)))
			c.conn.Put(kept)
		case c.w-c.r >= need:
			return c.buf[c.r:c.w], nil
		default:
			if err := c.fill(need); err != nil {
				return nil, err
			}
		}
	}
}

// released says whether nothing keeps the way in from going on. If something does, the gate is shut, until wake opens it.
func (c *connFilters) released() bool {
	if c.hold == nil {
		return true
	}
	if !c.hold.Resumed() {
		c.conn.GateFilter(true)
		if !c.hold.Resumed() { // again: who resumed it before the gate was shut has not opened it
			return false
		}
	}
	c.conn.GateFilter(false)
	c.hold = nil
	c.stopped[wayNew].Store(0)
	c.stopped[wayIn].Store(0)
	return true
}

// stop stops the way in until a hold is resumed.
func (c *connFilters) stop(h *filter.Hold, way int) {
	c.hold = h
	c.stopped[way].Store(c.now())
}

// ask asks the next filter about the new connection.
func (c *connFilters) ask() {
	var hold *filter.Hold
	_, hold, c.end = c.news[c.asked].call(nil, 0)
	c.asked++
	if hold != nil {
		c.stop(hold, wayNew)
	}
}

// fill reads once and passes it through the chain.
func (c *connFilters) fill(need int) error {
	if !c.room(need) {
		return nil // closed or paused: Await tells
	}
	limit := readBuffer
	if unread := c.w - c.r; unread > 0 && (len(c.buf) > readBuffer || c.conn.Gated()) {
		// Nothing behind the frame, as in conn: for filters that do not change the length, that is.
		limit = need - unread
	}
	c.conn.Limit(limit)
	p, err := c.conn.Read(1)
	if err != nil {
		return err
	}
	c.pass(0, p)
	c.conn.Advance(len(p))
	return nil
}

// pass passes bytes through the chain from a filter on.
func (c *connFilters) pass(from int, p []byte) {
	limit := len(p) + c.growth
	for i := from; i < len(c.readers) && len(p) > 0; i++ {
		out, hold, end := c.readers[i].call(p, limit)
		if end != nil {
			c.end = end
			return
		}
		if hold != nil {
			if len(out) > 0 {
				c.kept = c.conn.Get(len(out))
				c.kept = c.kept[:copy(c.kept, out)]
				c.at = i + 1
				c.held.Add(int64(len(out)))
			}
			c.stop(hold, wayIn)
			return
		}
		p = out
	}
	c.gather(p)
}

// room makes ready for what is missing to need bytes. It reports false when the connection was closed or paused while it
// waited for memory. Who waits for the peer holds no buffer, or one no larger than the unread part of a frame needs; but
// for a large frame one for all of it is there before it is read.
func (c *connFilters) room(need int) bool {
	unread := c.w - c.r
	size := max(unread, need)
	if need <= readBuffer {
		size = unread // gather takes a larger one when there is something to put into it
	}
	switch {
	case size == 0:
		c.conn.Put(c.buf)
		c.buf = nil
	case size > len(c.buf), size <= readBuffer && conn.Capacity(size) < len(c.buf):
		buf := c.conn.Reserve(size)
		if buf == nil {
			return false
		}
		copy(buf, c.buf[c.r:c.w])
		c.conn.Put(c.buf)
		c.buf = buf
	case c.r > 0:
		copy(c.buf, c.buf[c.r:c.w])
	}
	c.r, c.w = 0, unread
	return true
}

// gather puts bytes behind the unread ones.
func (c *connFilters) gather(p []byte) {
	if len(p) > len(c.buf)-c.w {
		buf := c.conn.Get(c.w - c.r + len(p))
		c.w = copy(buf, c.buf[c.r:c.w])
		c.conn.Put(c.buf)
		c.buf, c.r = buf, 0
	}
	c.w += copy(c.buf[c.w:], p)
}

func (c *connFilters) advance(n int) {
	c.r += n
	if c.r == c.w {
		c.r, c.w = 0, 0
	}
}

// own gives the buffer away when one frame of n bytes has a large one to itself.
func (c *connFilters) own(n int) []byte {
	if len(c.buf) <= readBuffer || c.r != 0 || c.w != n {
		return nil
	}
	buf := c.buf[:n]
	c.conn.Disown(buf)
	c.buf, c.w = nil, 0
	return buf
}

// endIn closes the connection because a filter on the way in wants it closed: gently, unless it
// was not let in. A pause that comes first does not lose the ending.
func (c *connFilters) endIn() error {
	if !c.told {
		c.told = true
		c.tell(c.end)
	}
	if read, _ := c.conn.Bytes(); read == 0 {
		c.conn.Close(c.end.reason)
	} else if err := c.finish(c.end.reason); err != nil {
		return err
	}
	return conn.ErrClosed
}
