package conn

import (
	"errors"
	"os"
	"runtime"
	"syscall"
	"time"
)

// chunk is a buffer with whole frames: a frame never spans two, so a chunk begins at a frame's first byte,
// and what of it was never sent can be told from sent alone.
type chunk struct {
	buf  []byte
	sent int // bytes that the kernel took
}

// maxRounds is how often in a row a flush goes back to the kernel for what others have appended meanwhile,
// before it leaves the rest to the writer.
const maxRounds = 8

// Verdict says what became of an appended frame.
type Verdict uint8

// The verdicts.
const (
	Refused  Verdict = iota // the connection is closed or finished: the frame was not taken
	Full                    // more than MaxQueued is queued: the frame was not taken
	Appended                // it is queued, and somebody else has promised to Flush
	First                   // it is queued, and the caller now owes a Flush
)

// Append copies a whole frame into the write queue. It never waits. The caller may reuse frame.
func (c *Conn) Append(frame []byte) Verdict {
	if len(frame) > size64K {
		own := append(c.buffers.Get(len(frame))[:0], frame...) // not under the lock: it is long
		v := c.AppendOwned(own)
		if v != Appended && v != First {
			c.buffers.Put(own)
		}
		return v
	}
	c.mu.Lock()
	if v := c.admit(); v != Appended {
		c.mu.Unlock()
		return v
	}
	last := len(c.queue) - 1
	if last < 0 || cap(c.queue[last].buf)-len(c.queue[last].buf) < len(frame) {
		c.queue = append(c.queue, chunk{buf: c.get(max(len(frame), min(c.lastSize, size64K)))[:0]})
		last++
	}
	c.queue[last].buf = append(c.queue[last].buf, frame...)
	return c.queuedMore(len(frame))
}

// AppendOwned puts a whole frame that came from Own or Buffers.Get into the write queue without copying it.
// Unless the verdict is Appended or First, the buffer is still the caller's.
func (c *Conn) AppendOwned(frame []byte) Verdict {
	c.mu.Lock()
	if v := c.admit(); v != Appended {
		c.mu.Unlock()
		return v
	}
	c.held.Add(int64(cap(frame)))
	c.queue = append(c.queue, chunk{buf: frame})
	return c.queuedMore(len(frame))
}

// admit says whether another frame may be queued. Called with mu held.
func (c *Conn) admit() Verdict {
	switch {
	case c.Closed() || c.finished:
		return Refused
	case c.queued > c.cfg.MaxQueued:
		return Full
	}
	return Appended
}

// queuedMore ends an append of n bytes. Called with mu held, which it gives up.
func (c *Conn) queuedMore(n int) Verdict {
	c.queued += n
	c.backlog.Store(int64(c.queued))
	c.rise()
	v := Appended
	if !c.noted {
		c.noted = true
		v = First
	}
	c.mu.Unlock()
	return v
}

// rise and fall watch the queue cross its watermarks. Called with mu held.
func (c *Conn) rise() {
	if c.queued > c.cfg.High && !c.above.Load() {
		c.above.Store(true)
		if c.cfg.Drained == nil {
			c.setGate(gateQueue, true)
		}
	}
}

func (c *Conn) fall() (drained bool) {
	if c.queued > c.cfg.Low || !c.above.Load() {
		return false
	}
	c.above.Store(false)
	if c.cfg.Drained == nil {
		c.setGate(gateQueue, false)
		return false
	}
	return true
}

// Flush hands to the kernel what it takes without waiting, and leaves the rest to the writer. Whoever got
// First from an append calls it, at the latest when its batch ends.
func (c *Conn) Flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.noted = false
	if c.flushing || c.sealed || c.queued == 0 || c.Closed() {
		c.again = c.flushing // whoever is flushing takes ours along
		return
	}
	c.flushing = true
	c.lastSize = c.queued
	for range maxRounds {
		due := c.queued
		c.again = false
		whole := c.writeRound(true)
		// What came in meanwhile is left to who owes its flush, and by then there may be more of it.
		if c.queued == 0 || c.wrote == due && !c.again || c.Closed() || c.sealed {
			c.endFlush()
			return
		}
		if !whole || c.wrote == maxOnce {
			break // the kernel is full, or it is a large frame: that is the writer's
		}
	}
	go c.writer() // ends when all is written, or the connection is closed or paused; awaitFlush waits for it
}

// writer takes the flush over when the kernel's buffer is full. It alone may wait for the peer.
func (c *Conn) writer() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.queued > 0 && !c.Closed() && !c.sealed {
		if c.writeRound(false) {
			c.mu.Unlock()
			runtime.Gosched()
			c.mu.Lock()
		}
	}
	c.endFlush()
}

// endFlush lets the next one flush. Called with mu held.
func (c *Conn) endFlush() {
	c.flushing = false
	c.cond.Broadcast()
}

// putSpent gives written buffers back. Called without mu: that may let another connection's read go on; and with
// flushing set: who waits for the flush finds them back.
func (c *Conn) putSpent() {
	for i, buf := range c.spent {
		if buf == nil {
			return
		}
		c.spent[i] = nil
		c.put(buf)
	}
}

// writeRound makes one write of what is in front of the queue and reports whether the kernel took all of it.
// Called with mu held and flushing set; it gives mu up while it writes.
func (c *Conn) writeRound(try bool) bool {
	n, size := 0, 0
	for n < min(len(c.queue), maxIOV) && size < maxOnce {
		c.out[n] = c.queue[n].buf[c.queue[n].sent:]
		c.out[n] = c.out[n][:min(len(c.out[n]), maxOnce-size)]
		size += len(c.out[n])
		n++
	}
	c.mu.Unlock()
	c.mayEnd, c.wrote, c.writeE = try, 0, nil
	out := c.out[:n]
	err := c.raw.Write(c.onWrite)
	clear(out)
	if err == nil {
		err = c.writeE
	}
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.Close(ReasonReset)
	}
	c.taken.Add(uint64(c.wrote))
	c.mu.Lock()
	c.took(c.wrote)
	drained := c.fall()
	if drained || c.spent[0] != nil {
		c.mu.Unlock()
		c.putSpent()
		if drained {
			c.cfg.Drained()
		}
		c.mu.Lock()
	}
	return c.wrote == size
}

// writeOnce is the body of RawConn.Write: one write, without waiting unless it is the writer's.
func (c *Conn) writeOnce(fd uintptr) bool {
	n := 0
	for n < maxIOV && c.out[n] != nil {
		n++
	}
	large := false
	for _, piece := range c.out[:n] {
		large = large || cap(piece) > aheadSize
	}
	if large {
		c.buffers.enterBulk()
	}
	wrote, err := c.sys.write(fd, c.out[:n])
	if large {
		c.buffers.leaveBulk()
	}
	if err == syscall.EAGAIN {
		return c.mayEnd
	}
	c.wrote, c.writeE = wrote, err
	return true
}

// took drops n written bytes from the front of the queue. Called with mu held.
func (c *Conn) took(n int) {
	c.queued -= n
	c.backlog.Store(int64(c.queued))
	done := 0
	for n > 0 {
		ch := &c.queue[done]
		left := len(ch.buf) - ch.sent
		if n < left {
			ch.sent += n
			break
		}
		n -= left
		c.spent[done] = ch.buf // at most maxIOV: no more were written
		done++
	}
	if done > 0 {
		kept := copy(c.queue, c.queue[done:])
		clear(c.queue[kept:])
		c.queue = c.queue[:kept]
	}
}

// Unsent calls f for each chunk of a closed connection's queue, in order: whole frames, of which the first
// sent bytes were taken by the kernel. A frame that begins at or behind sent was never sent. The bytes are
// f's until it returns. Called by the read loop, before Release; it waits for the writer.
func (c *Conn) Unsent(f func(frames []byte, sent int)) {
	c.mu.Lock()
	c.awaitFlush()
	queue := c.queue
	c.queue, c.queued = nil, 0
	c.backlog.Store(0)
	c.mu.Unlock()
	for i := range queue {
		f(queue[i].buf, queue[i].sent)
		c.put(queue[i].buf)
	}
}

// The bounds of Finish: what a peer that was told that no more follows may still send, and for how long.
const (
	lingerTime  = 250 * time.Millisecond
	lingerBytes = 1 << 20
)

// Finish closes the connection gently: it waits until all that is queued is written or the peer is given up
// (WriteTimeout), tells the peer that no more follows, and discards for a moment what it still sends, because
// closing with unread bytes makes the kernel reset the connection and destroy our last reply. Only the read
// loop calls it. The error is ErrPaused: a pause came before the peer was told. Then nothing is closed and
// nothing lost, and the caller finishes after Resume or Adopt.
func (c *Conn) Finish(reason string) error {
	c.mu.Lock()
	for c.queued > 0 && !c.sealed && !c.Closed() {
		if c.flushing {
			c.cond.Wait()
			continue
		}
		c.mu.Unlock()
		c.Flush()
		c.mu.Lock()
	}
	if c.sealed && !c.Closed() {
		c.mu.Unlock()
		return ErrPaused
	}
	c.finished = !c.Closed()
	clean := c.finished && c.sock.SetReadDeadline(time.Now().Add(lingerTime)) == nil // under the lock: a pause from here on ends it
	c.mu.Unlock()
	if clean {
		_ = c.raw.Control(c.sys.finish)
		c.discard()
	}
	c.Close(reason)
	return nil
}

// discard reads and forgets, within bounds.
func (c *Conn) discard() {
	c.freeRead()
	for got := 0; got < lingerBytes && !c.Closed(); got += c.readN {
		c.r, c.w, c.most = 0, 0, 0
		c.readN, c.readE = 0, nil
		if err := c.raw.Read(c.onRead); err != nil || c.readN == 0 {
			return
		}
	}
}
