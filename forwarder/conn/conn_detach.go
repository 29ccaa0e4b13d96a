package conn

import (
	"slices"
	"time"
)

// Detached is a connection outside any process: everything that Adopt needs to go on with it, to the byte. What Detach
// returns shows the connection's own buffers, so that a hand-over needs no memory beside what is buffered anyway: it is
// valid until Resume or Release.
type Detached struct {
	Socket   Socket // still open; in another process the same description under another descriptor
	Unread   []byte // read from the kernel, not yet by the read loop
	Unsent   []Queued
	LastRead int64 // time of the last Touch
	RX, TX   uint64
}

// Queued is a run of whole frames of a write queue, of which the kernel took the first Sent bytes.
type Queued struct {
	Frames []byte
	Sent   int
}

// Pause shuts the gates in both directions and wakes whoever waits at them: Read returns ErrPaused and the
// writer ends. Appending goes on to be possible. Resume undoes it.
func (c *Conn) Pause() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.Closed() || c.sealed {
		return
	}
	c.sealed = true
	if c.flushing { // whoever does may wait for the peer; nobody begins any more
		c.hurried = true
		_ = c.sock.SetWriteDeadline(past)
	}
	c.setGate(gatePause, true)
}

// Resume opens the gates again. The caller starts the read loop again, and what is queued is written.
func (c *Conn) Resume() {
	c.mu.Lock()
	if c.Closed() || !c.sealed {
		c.mu.Unlock()
		return
	}
	c.awaitFlush() // a writer that has not seen the seal yet must not meet the new deadline
	c.sealed = false
	if c.hurried {
		c.hurried = false
		_ = c.sock.SetWriteDeadline(time.Time{})
	}
	c.setGate(gatePause, false)
	c.mu.Unlock()
	c.Flush()
}

// AwaitWriter waits for the writer as long as the connection is paused, which ends it: with Drained, and all that this does.
func (c *Conn) AwaitWriter() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.flushing && c.sealed && !c.Closed() {
		c.cond.Wait()
	}
}

// Detach returns the state of a paused connection whose read loop has ended, and false when it was closed meanwhile. It
// waits for the writer, which the pause ends. The connection stays as it is, so that a
// hand-over that fails ends in Resume, and one that succeeds in Release.
func (c *Conn) Detach() (Detached, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.awaitFlush()
	if c.Closed() || !c.sealed {
		return Detached{}, false
	}
	d := Detached{
		Socket:   c.sock,
		Unread:   c.buf[c.r:c.w:c.w],
		LastRead: c.lastRead.Load(),
		RX:       c.got.Load(),
		TX:       c.taken.Load(),
	}
	for _, ch := range c.queue {
		d.Unsent = append(d.Unsent, Queued{Frames: slices.Clip(ch.buf), Sent: ch.sent})
	}
	return d, true
}

// Gone returns a connection that was closed for a reason before anybody had it: what stands for a peer that has left
// while something of it is still under way.
func Gone(reason string) *Conn {
	c := &Conn{reason: reason}
	c.cond.L = &c.mu
	c.gates.Store(uint32(gateClosed))
	return c
}

// Adopt returns a connection that goes on where Detach left off. Nothing is read before the first Read and
// nothing is written before the first Flush.
func Adopt(d Detached, buffers *Buffers, cfg Config) (*Conn, error) {
	return adopt(d, osSystem, buffers, cfg)
}

func adopt(d Detached, sys system, buffers *Buffers, cfg Config) (*Conn, error) {
	c, err := newConn(d.Socket, sys, buffers, cfg)
	if err != nil {
		return nil, err
	}
	if len(d.Unread) > 0 {
		c.buf = c.get(readable(len(d.Unread))) // the first read takes a larger one when there is something to put into it
		c.w = copy(c.buf, d.Unread)
	}
	c.lastRead.Store(d.LastRead)
	c.got.Store(d.RX)
	c.taken.Store(d.TX)
	c.seenRX, c.seenTX, c.rxAt, c.shortAt = d.RX, d.TX, d.LastRead, unknown // that it was taken over is no byte of the peer's
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, q := range d.Unsent {
		buf := c.get(len(q.Frames))[:len(q.Frames)]
		copy(buf, q.Frames)
		c.queue = append(c.queue, chunk{buf: buf, sent: q.Sent})
		c.queued += len(q.Frames) - q.Sent
	}
	c.backlog.Store(int64(c.queued))
	c.rise()
	return c, nil
}
