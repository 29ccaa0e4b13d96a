package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"hash/crc32"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// The stamp that begins each content: the number of the request on its connection, then the number of the
// connection, both little-endian. A shorter content carries its first bytes.
const stampLen = 16

const (
	firstBuffer = 16 << 10
	maxBuffer   = 256 << 10 // unless a frame is larger
	maxWrite    = 256 << 10 // bytes of requests written at once
	hangUpWait  = time.Second
	usefulTime  = time.Second // a connection that lived for so long may be replaced at once
	maxPending  = 4 << 20     // bytes that wait for a full socket, beyond which an open loop sends no more
)

var (
	limits = wire.Limits{MaxFrame: maxFrame}
	codec  = bolt.Codec{VerifyCRC: true}
)

// client is one of the load's connections: it dials again when it breaks.
type client struct {
	// Static after newClient.
	r     *run
	addr  string
	index int64 // from 0
	tally *tally

	first *net.TCPConn // made before the run; nil if that failed; taken by run

	room sync.Cond // the flusher has ended, or the link is dead; on mu

	// Guarded by mu.
	mu     sync.Mutex
	link   *link // nil while there is no connection
	next   int64 // open loop: which of its requests is the next to send
	target int64 // open loop: how many of its requests are due
	batch  batch
	closed bool
}

// link is one TCP connection of a client. Guarded by the client's mu but for the read loop's own.
type link struct {
	// Static after newLink.
	nc     *net.TCPConn
	raw    syscall.RawConn
	number uint64 // the second half of the stamp
	try    func(fd uintptr) bool

	// Owned by the read loop.
	in         []byte
	start, end int
	m          wire.Message

	// Guarded by the client's mu.
	flight  *flight
	frames  []byte // whole requests one after another, of which only ids and stamps change
	pending []byte // bytes that the socket did not take
	spare   []byte // the other buffer for them
	dead    bool   // no more is written; the read loop ends
	tryBuf  []byte
	tryN    int
	tryErr  error

	flushing bool           // a flusher runs: nobody else writes
	wg       sync.WaitGroup // the flusher
}

func newClient(r *run, i int, addr string) *client {
	c := &client{r: r, addr: addr, index: int64(i), tally: r.tallies[i%len(r.tallies)]}
	c.room.L = &c.mu
	return c
}

func newLink(r *run, nc *net.TCPConn) *link {
	l := &link{nc: nc, number: r.link0 + r.links.Add(1), in: make([]byte, firstBuffer), flight: newFlight(r.opts.InFlight)}
	l.raw, _ = nc.SyscallConn() // its error is that nc is nil
	l.try = func(fd uintptr) bool {
		l.tryN, l.tryErr = syscall.Write(int(fd), l.tryBuf)
		return true
	}
	size := len(r.frame)
	window := r.opts.InFlight
	if r.opts.Rate > 0 {
		window = 16
	}
	l.frames = bytes.Repeat(r.frame, min(window, max(1, maxWrite/size)))
	return l
}

// run serves one connection after another until the run ends.
func (c *client) run(ctx context.Context) {
	var backoff time.Duration
	nc, again := c.first, c.first != nil
	c.first = nil
	for ctx.Err() == nil {
		useful := false
		if nc == nil && !c.r.stopped() {
			if nc, _ = c.dial(ctx); nc != nil && again { // dial has counted the error
				c.r.reconnects.Add(1)
			}
			again = again || nc != nil
		}
		if nc != nil {
			began := time.Now()
			useful = c.serve(nc) || time.Since(began) > usefulTime
			nc = nil
		}
		if c.r.stopped() {
			return
		}
		if useful {
			backoff = 0
			continue
		}
		backoff = min(max(2*backoff, firstBackoff), maxBackoff)
		t := time.NewTimer(backoff)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
	}
	if nc != nil {
		_ = nc.Close()
	}
}

// serve uses a connection until it breaks or the run ends. It is the connection's read loop. It reports
// whether anything came.
func (c *client) serve(nc *net.TCPConn) (useful bool) {
	defer nc.Close()
	l := newLink(c.r, nc)
	if !c.install(l) {
		return false
	}
	if c.r.opts.Oneway && c.r.opts.Rate == 0 {
		l.wg.Go(func() { c.pump(l) }) // ends when the link is dead or nothing more is to be sent
	}
	for {
		n, err := nc.Read(l.in[l.end:])
		if n == 0 && err != nil {
			break
		}
		l.end += n
		useful = true
		if !c.receive(l, n) {
			break
		}
	}
	if c.r.opts.Oneway {
		_, _ = io.Copy(io.Discard, nc) // until the peer has read all, if it is only we who ended
	}
	c.uninstall(l)
	return useful
}

// install makes l the client's connection and sends what is to be sent on it at once.
func (c *client) install(l *link) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.r.now()
	if c.closed {
		return false
	}
	c.link = l
	if c.r.opts.Rate > 0 {
		c.forgive(now)
		c.pay(now)
	} else if !c.r.opts.Oneway {
		c.send(l, c.r.reserve(c.r.opts.InFlight, now), now)
	}
	c.tally.fold(&c.batch, now)
	return true
}

// uninstall ends what was in flight on l: it is lost.
func (c *client) uninstall(l *link) {
	c.mu.Lock()
	c.kill(l)
	c.mu.Unlock()
	l.wg.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.r.now()
	l.flight.clear(func(s slot) {
		if s.due >= c.r.from {
			c.batch.lost++
		}
	})
	if size := len(c.r.frame); c.r.opts.Oneway && now >= c.r.from {
		c.batch.lost += uint64((len(l.pending) + size - 1) / size)
	}
	c.link = nil
	c.tally.fold(&c.batch, now)
}

// kill marks l dead; its read loop finds its socket closed.
func (c *client) kill(l *link) {
	if !l.dead {
		l.dead = true
		_ = l.nc.Close()
		c.room.Broadcast()
	}
}

// busy says whether the client has something in flight or still to write.
func (c *client) busy() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.link
	return l != nil && !l.dead && (l.flight.n > 0 || l.flushing || len(l.pending) > 0)
}

// end closes the connection at the end of the run. What is still in flight, and what was due and has no
// connection, ends without an outcome.
func (c *client) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if l := c.link; l != nil && !l.dead {
		l.flight.clear(func(s slot) {
			if s.due >= c.r.from {
				c.batch.unfinished++
			}
		})
		if c.r.opts.Oneway {
			c.hangUp(l)
		} else {
			c.kill(l)
		}
	}
	c.overrun(c.target - c.next)
	c.tally.fold(&c.batch, c.r.now())
}

// hangUp ends sending on l but lets what was sent arrive: the read loop waits for the peer to close too.
func (c *client) hangUp(l *link) {
	l.dead = true
	c.room.Broadcast()
	_ = l.nc.SetDeadline(time.Now().Add(hangUpWait))
	_ = l.nc.CloseWrite()
}

// expire ends all requests that were sent before the given time, and sends others for them.
func (c *client) expire(before int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.link
	if l == nil || l.dead || l.flight.n == 0 {
		return
	}
	n := 0
	l.flight.expire(before, func(s slot) {
		n++
		if s.due >= c.r.from {
			c.batch.timeouts++
		}
	})
	if n == 0 {
		return
	}
	now := c.r.now()
	c.refill(l, n, now)
	c.tally.fold(&c.batch, now)
}

// receive takes all whole replies from the buffer, sends as many requests, and prepares the buffer for the
// next read. It reports false when the connection is of no more use.
func (c *client) receive(l *link, n int) bool {
	now := c.r.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.batch.bytesIn += uint64(n)
	answered, need := 0, 0
	alive := !l.dead
	for alive && l.start < l.end {
		size, err := codec.Decode(&l.m, l.in[l.start:l.end], limits)
		if err != nil {
			c.batch.malformed++
			alive = false
			break
		}
		if size > l.end-l.start {
			need = size
			break
		}
		l.start += size
		if c.reply(l, now) {
			answered++
		}
	}
	if alive {
		c.refill(l, answered, now)
	}
	c.tally.fold(&c.batch, now)
	l.makeRoom(need)
	return alive
}

// reply accounts for one frame and reports whether it ended a request.
func (c *client) reply(l *link, now int64) bool {
	if l.m.Kind != wire.Reply {
		if l.m.Kind != wire.Heartbeat && l.m.Kind != wire.GoAway {
			c.batch.straying()
		}
		return false
	}
	if c.r.opts.Oneway {
		c.batch.straying()
		return false
	}
	s, v := l.flight.take(l.m.ID)
	switch v {
	case late:
		c.batch.late++
		return false
	case duplicated:
		c.batch.duplicated++
		return false
	case unknown:
		c.batch.straying()
		return false
	case answered: // what was waited for: looked at below
	}
	counted := s.due >= c.r.from
	if l.m.Status != wire.Success {
		if counted {
			c.batch.status[l.m.Status]++
		}
		return true
	}
	switch intact := c.intact(l, s.number); {
	case !intact && counted:
		c.batch.mismatched++
	case !intact:
		c.batch.straying()
	case counted:
		c.batch.ok++
		c.batch.latency(now - s.due)
	}
	return true
}

// intact compares the reply's payload with that of request number, and its version with the request's.
func (c *client) intact(l *link, number uint64) bool {
	if bolt.VersionOf(&l.m) != c.r.opts.Version {
		return false
	}
	if c.r.opts.AnyPayload {
		return true
	}
	got, want := l.m.Content(), c.r.payload
	if len(got) != len(want) {
		return false
	}
	if len(got) >= stampLen {
		return binary.LittleEndian.Uint64(got) == number && binary.LittleEndian.Uint64(got[8:]) == l.number &&
			bytes.Equal(got[stampLen:], want[stampLen:])
	}
	return bytes.Equal(got, stamp(number, l.number)[:len(got)])
}

func stamp(number, link uint64) []byte {
	var b [stampLen]byte
	binary.LittleEndian.PutUint64(b[:], number)
	binary.LittleEndian.PutUint64(b[8:], link)
	return b[:]
}

// makeRoom prepares the buffer for the next read: for the rest of a frame of need bytes, if that is known.
func (l *link) makeRoom(need int) {
	rest, size := l.in[l.start:l.end], len(l.in)
	switch {
	case need > size:
		size = need
	case l.end == size && size < maxBuffer:
		size *= 2
	}
	if size != len(l.in) {
		grown := make([]byte, size)
		copy(grown, rest)
		l.in = grown
	} else if l.start > 0 {
		copy(l.in, rest)
	}
	l.start, l.end = 0, len(rest)
}

// refill sends what the end of n requests made room for.
func (c *client) refill(l *link, n int, now int64) {
	switch {
	case n == 0:
	case c.r.opts.Rate > 0:
		c.pay(now)
	default:
		c.send(l, c.r.reserve(n, now), now)
	}
}

// send sends n requests that are due now.
func (c *client) send(l *link, n int, now int64) {
	size := len(c.r.frame)
	for n > 0 && !l.dead {
		k := min(n, len(l.frames)/size)
		for i := range k {
			c.prepare(l, l.frames[i*size:(i+1)*size:(i+1)*size], now, now)
		}
		c.write(l, l.frames[:k*size])
		n -= k
	}
}

// prepare makes the frame the next request, and puts it in flight.
func (c *client) prepare(l *link, frame []byte, now, due int64) {
	var id uint32
	var number uint64
	if c.r.opts.Oneway {
		number = l.flight.issued
		l.flight.issued++
		id = uint32(number%maxID) + 1
	} else {
		id, number = l.flight.issue(now, due)
	}
	if due >= c.r.from {
		c.batch.sent++
	}
	binary.BigEndian.PutUint32(frame[c.r.idAt:], id)
	content := frame[c.r.content:]
	if len(c.r.payload) >= stampLen {
		binary.LittleEndian.PutUint64(content, number)
		binary.LittleEndian.PutUint64(content[8:], l.number)
	} else {
		copy(content[:len(c.r.payload)], stamp(number, l.number))
	}
	if c.r.opts.Version == bolt.V2CRC {
		end := len(frame) - crc32.Size
		binary.BigEndian.PutUint32(frame[end:], crc32.ChecksumIEEE(frame[:end]))
	}
}

// write gives b to the socket. What it does not take waits for the flusher, so that this goroutine can go on
// reading: a server that waits to write does not read.
func (c *client) write(l *link, b []byte) {
	c.batch.bytesOut += uint64(len(b))
	if !l.flushing {
		l.tryBuf = b
		err := l.raw.Write(l.try)
		if err == nil && l.tryErr != nil && l.tryErr != syscall.EAGAIN && l.tryErr != syscall.EINTR {
			err = l.tryErr
		}
		if err != nil {
			l.pending = append(l.pending, b...)
			c.kill(l)
			return
		}
		b = b[max(0, l.tryN):]
		if len(b) == 0 {
			return
		}
		l.flushing = true
		l.pending = append(l.pending, b...)
		l.wg.Go(func() { c.flush(l) }) // ends when nothing is pending or the socket is closed
		return
	}
	l.pending = append(l.pending, b...)
}

// flush writes what is pending until nothing is.
func (c *client) flush(l *link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(l.pending) > 0 && !l.dead {
		b := l.pending
		l.pending, l.spare = l.spare[:0], nil
		c.mu.Unlock()
		n, err := l.nc.Write(b)
		c.mu.Lock()
		if err != nil {
			l.pending = append(b[n:], l.pending...)
			c.kill(l)
			break
		}
		l.spare = b
	}
	l.flushing = false
	c.room.Broadcast()
}

// pump is the closed loop of a one-way run: it sends as fast as the socket takes it.
func (c *client) pump(l *link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !l.dead {
		now := c.r.now()
		n := c.r.reserve(len(l.frames)/len(c.r.frame), now)
		if n == 0 {
			return
		}
		c.send(l, n, now)
		c.tally.fold(&c.batch, now)
		for l.flushing && !l.dead {
			c.room.Wait()
		}
		c.mu.Unlock() // whoever ends the run gets a turn
		c.mu.Lock()
	}
}
