package forwarder

import (
	"errors"
	"slices"

	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/filter"
)

// append passes bytes through the chain into the write queue; where the chain is stopped, they wait. owned, unless it
// is nil, is the buffer in which they lie, which is taken with them, as by conn.AppendOwned.
func (c *connFilters) append(frame, owned []byte) conn.Verdict {
	c.mu.Lock()
	v, end := c.admit(frame, owned)
	c.mu.Unlock()
	if end != nil {
		c.endOut(end)
	}
	return v
}

// admit is append, with mu held.
func (c *connFilters) admit(frame, owned []byte) (conn.Verdict, *ending) {
	switch {
	case c.broken || c.conn.Closed():
		return conn.Refused, nil
	case c.held.Load()+c.conn.Queued() > c.maxQueued:
		return conn.Full, nil
	case c.behind:
		c.wait(frame, owned)
		return conn.Appended, nil // pump flushes
	}
	return c.send(0, frame, owned)
}

// send passes bytes through the chain from a filter on, and into the write queue. Called with mu held.
func (c *connFilters) send(from int, p, owned []byte) (conn.Verdict, *ending) {
	limit := len(p) + c.growth
	for i := from; i < len(c.writers) && len(p) > 0; i++ {
		out, hold, end := c.writers[i].call(p, limit)
		if end != nil {
			c.broken = true
			return conn.Refused, end
		}
		if hold != nil && c.halt(hold) {
			c.keep(i+1, out)
			c.d.listener.f.buffers.Put(owned)
			return conn.Appended, nil
		}
		p = out
	}
	v := conn.Appended
	switch {
	case len(p) == 0:
	case len(owned) > 0 && &p[0] == &owned[0] && cap(p) == cap(owned):
		return c.conn.AppendOwned(p), nil
	default:
		v = c.conn.Append(p)
	}
	if v == conn.Appended || v == conn.First {
		c.d.listener.f.buffers.Put(owned)
	}
	return v, nil
}

// halt stops the way out until a hold is resumed. It reports false when that has happened already. Called with mu held.
func (c *connFilters) halt(h *filter.Hold) bool {
	c.starting.Lock()
	defer c.starting.Unlock()
	if h.Resumed() {
		return false
	}
	c.outHold = h
	c.stopped[wayOut].Store(c.now())
	c.halted, c.behind = true, true
	return true
}

// keep holds what a filter returned when it stopped. Called with mu held.
func (c *connFilters) keep(at int, p []byte) {
	if len(p) > 0 {
		buf := c.conn.Get(len(p))
		c.mid, c.outAt = buf[:copy(buf, p)], at
		c.held.Add(int64(len(p)))
	}
	c.gate()
}

// wait puts bytes behind those that wait. Called with mu held.
func (c *connFilters) wait(p, owned []byte) {
	buffers := c.d.listener.f.buffers
	last := len(c.waiting) - 1
	switch {
	case len(owned) > readBuffer:
		c.conn.Claim(owned)
		c.waiting = append(c.waiting, owned)
	case last >= 0 && cap(c.waiting[last])-len(c.waiting[last]) >= len(p):
		c.waiting[last] = append(c.waiting[last], p...)
		buffers.Put(owned)
	default:
		buf := c.conn.Get(max(len(p), min(int(c.held.Load()), readBuffer)))
		c.waiting = append(c.waiting, append(buf[:0], p...))
		buffers.Put(owned)
	}
	c.held.Add(int64(len(p)))
	c.gate()
}

// gate keeps the client from sending more while too much waits for it, and the read loop from going on while it waits
// for the end. Called with mu held.
func (c *connFilters) gate() {
	c.conn.GateHeld(c.behind && (c.finishing || c.held.Load() > c.high))
}

// pump goes on with the way out once it was resumed, until nothing waits any more or the chain stops again. Between two
// pieces it lets others append, which wait behind.
func (c *connFilters) pump() {
	c.mu.Lock()
	c.halted = false
	c.mu.Unlock()
	for {
		c.mu.Lock()
		v, more, end := c.pumpOne()
		c.mu.Unlock()
		if v == conn.First {
			c.conn.Flush()
		}
		if end != nil {
			c.endOut(end)
			return
		}
		if !more {
			return
		}
	}
}

// pumpOne passes on one piece of what waits, and says whether more may follow. Called with mu held.
func (c *connFilters) pumpOne() (v conn.Verdict, more bool, end *ending) {
	var p []byte
	from := 0
	switch {
	case c.broken:
		return conn.Refused, false, nil
	case c.mid != nil:
		p, from = c.mid, c.outAt
		c.mid = nil
	case len(c.waiting) > 0:
		p = c.waiting[0]
		c.waiting = slices.Delete(c.waiting, 0, 1)
	default:
		c.behind = false
		c.gate()
		return conn.Refused, false, nil
	}
	n := len(p)
	c.conn.Disown(p)
	v, end = c.send(from, p, p)
	c.held.Add(-int64(n))
	c.gate()
	switch v {
	case conn.Appended, conn.First:
		return v, !c.halted, nil
	case conn.Full:
		c.broken = true
		end = &ending{reason: conn.ReasonQueueFull}
	default: // closed, or closed by a filter
	}
	c.d.listener.f.buffers.Put(p)
	return v, false, end
}

// endOut closes the connection because of the way out. Called without a lock.
func (c *connFilters) endOut(e *ending) {
	if e.reason != conn.ReasonQueueFull {
		c.tell(e)
	}
	c.conn.Close(e.reason)
}

// finish waits until the way out is empty, as long as that may be stopped, and finishes the connection. Only the read
// loop calls it.
func (c *connFilters) finish(reason string) error {
	c.conn.InFrame(true) // so that the gates between frames do not keep it
	for c.occupied() {
		if err := c.conn.Await(); errors.Is(err, conn.ErrPaused) {
			return err
		} else if err != nil {
			break
		}
	}
	return c.conn.Finish(reason)
}

// occupied says whether something waits on the way out; then the gate is shut until nothing does.
func (c *connFilters) occupied() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.finishing = true
	c.gate()
	return c.behind && !c.broken
}
