package echo

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// Buffers begin small, for the many connections that idle, and double while reads fill them.
const (
	firstBuffer = 4 << 10
	maxBuffer   = 256 << 10 // unless a frame is larger
	lingerTime  = time.Second
)

var limits = wire.Limits{MaxFrame: maxFrame}

// errDone ends a connection that had all the requests it was allowed.
var errDone = errors.New("request limit reached")

// conn is one client's connection.
type conn struct {
	// Static after newConn.
	s      *Server
	nc     *net.TCPConn
	raw    syscall.RawConn // nil where the socket has none: writes then always go through nc
	number uint64          // which connection, from 1
	try    func(fd uintptr) bool
	line   *delayLine

	// Owned by the read loop.
	in         []byte
	start, end int       // the unread part of in
	out        []byte    // replies that are due
	late       []delayed // replies that are not, in the order of their requests
	requests   uint64    // all that came on this connection, one-way ones included
	count      batch
	m          wire.Message
	reply      bolt.Response

	// Guarded by writing, which the read loop and the delay line take to write.
	writing sync.Mutex
	tryBuf  []byte
	tryN    int
	tryErr  error
}

// batch is what one read brought, counted here and added to the server's totals once.
type batch struct {
	requests, unanswered, oneways, heartbeats, ignored uint64
}

func newConn(s *Server, nc *net.TCPConn, number uint64) *conn {
	c := &conn{s: s, nc: nc, number: number, in: make([]byte, firstBuffer)}
	c.raw, _ = nc.SyscallConn()
	c.try = func(fd uintptr) bool {
		c.tryN, c.tryErr = syscall.Write(int(fd), c.tryBuf)
		return true
	}
	c.reply.Status = s.opts.Status
	c.line = newDelayLine(c)
	return c
}

// abort closes the connection, from any goroutine: reads, writes and waits end soon.
func (c *conn) abort() {
	_ = c.nc.Close()
	c.line.shut(net.ErrClosed)
}

// serve is the read loop. It returns once the connection is of no more use, and its delay line has ended.
func (c *conn) serve() {
	err := c.readLoop()
	c.line.shut(err)
	c.line.wg.Wait()
	if broken := c.line.broken(); broken != nil {
		err = broken
	}
	var bad *wire.DecodeError
	switch {
	case errors.As(err, &bad):
		c.s.malformed.Add(1)
		c.s.report(c, bad.Error())
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.s.stalled.Add(1)
		c.s.report(c, "the client does not read")
	case errors.Is(err, errDone):
		c.linger()
	}
}

func (c *conn) readLoop() error {
	for {
		n, err := c.nc.Read(c.in[c.end:])
		if n == 0 && err != nil {
			return err
		}
		c.end += n
		need, stop := c.answer()
		c.s.bytesIn.Add(uint64(n))
		c.countBatch()
		if err := c.send(); err != nil {
			return err
		}
		if stop != nil {
			return stop
		}
		c.makeRoom(need)
	}
}

// answer builds the replies to all whole requests in the buffer. It returns how long the frame is that is
// not whole yet, as far as that is known, and why no more may be read, if so.
func (c *conn) answer() (need int, stop error) {
	for c.start < c.end {
		n, err := bolt.Codec{}.Decode(&c.m, c.in[c.start:c.end], limits)
		if err != nil {
			return 0, err
		}
		if n > c.end-c.start {
			return n, nil
		}
		c.start += n
		if err := c.answerOne(); err != nil {
			return 0, err
		}
	}
	return 0, nil
}

func (c *conn) answerOne() error {
	switch c.m.Kind {
	case wire.Request:
		c.count.requests++
		if c.s.noReply > 0 && hash(c.s.opts.Seed, c.number, c.requests) < c.s.noReply {
			c.count.unanswered++
		} else if err := c.answerRequest(); err != nil {
			return err
		}
	case wire.Oneway:
		c.count.oneways++
		if c.s.audit != nil {
			c.s.audit.see(c.m.Content())
		}
	case wire.Heartbeat:
		c.count.heartbeats++
		c.out = bolt.Codec{}.AppendReply(c.out, c.m.Tag, c.m.ID, wire.Success)
		return nil
	default:
		c.count.ignored++
		return nil
	}
	c.requests++
	if limit := c.s.opts.CloseAfter; limit > 0 && c.requests >= uint64(limit) {
		return errDone
	}
	return nil
}

// answerRequest puts the reply where it waits until it is due.
func (c *conn) answerRequest() (err error) {
	delay := delayOf(&c.m, c.s.opts.Delay)
	if delay <= 0 {
		c.out, err = c.appendReply(c.out)
		return err
	}
	if n := len(c.late); n == 0 || c.late[n-1].delay != delay {
		c.late = append(c.late, delayed{delay: delay, replies: c.line.buffer()})
	}
	last := &c.late[len(c.late)-1]
	last.replies, err = c.appendReply(last.replies)
	return err
}

func (c *conn) appendReply(dst []byte) ([]byte, error) {
	r := &c.reply
	if r.Status != wire.Success {
		return bolt.Codec{}.AppendReply(dst, c.m.Tag, c.m.ID, r.Status), nil
	}
	r.Version, r.Codec, r.ID = bolt.VersionOf(&c.m), bolt.CodecOf(&c.m), c.m.ID
	r.Class, r.Content = bolt.ClassResponse, c.m.Content()
	return r.Append(dst)
}

// hash is a number that only the seed, the connection and the request decide: SplitMix64's output function.
func hash(seed, conn, request uint64) uint64 {
	x := seed + conn*0x9e3779b97f4a7c15 + request*0xd1b54a32d192ed03
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func (c *conn) countBatch() {
	s, b := c.s, &c.count
	if b.requests > 0 {
		s.requests.Add(b.requests)
	}
	if *b != (batch{requests: b.requests}) {
		s.unanswered.Add(b.unanswered)
		s.oneways.Add(b.oneways)
		s.heartbeats.Add(b.heartbeats)
		s.ignored.Add(b.ignored)
	}
	*b = batch{}
}

// send writes the replies that are due, then hands the others to the delay line, where it may wait for room.
func (c *conn) send() error {
	var now time.Time
	if len(c.late) > 0 {
		now = time.Now()
	}
	if len(c.out) > 0 {
		err := c.write(c.out)
		c.out = trim(c.out)[:0]
		if err != nil {
			return err
		}
	}
	for _, d := range c.late {
		d.due = now.Add(d.delay)
		if err := c.line.add(d); err != nil {
			return err
		}
	}
	clear(c.late)
	c.late = c.late[:0]
	return nil
}

// write writes all of b. It tries without a deadline first, because setting one costs more than all else a
// small batch needs.
func (c *conn) write(b []byte) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	n := 0
	if c.raw != nil {
		c.tryBuf = b
		if err := c.raw.Write(c.try); err != nil {
			return err
		}
		c.tryBuf = nil
		if c.tryErr == nil {
			n = c.tryN
		}
	}
	if n < len(b) {
		if err := c.nc.SetWriteDeadline(time.Now().Add(c.s.patience)); err != nil {
			return err
		}
		if _, err := c.nc.Write(b[n:]); err != nil {
			return err
		}
		_ = c.nc.SetWriteDeadline(time.Time{})
	}
	c.s.bytesOut.Add(uint64(len(b)))
	return nil
}

// makeRoom prepares the buffer for the next read: for the rest of a frame of need bytes, if that is known.
func (c *conn) makeRoom(need int) {
	filled := c.end == len(c.in)
	rest := c.in[c.start:c.end]
	size := len(c.in)
	switch {
	case need > size:
		size = need
	case filled && size < maxBuffer:
		size = min(2*size, maxBuffer)
	case size > maxBuffer && need <= maxBuffer:
		size = maxBuffer
	}
	if size != len(c.in) && size >= len(rest) {
		grown := make([]byte, size)
		copy(grown, rest)
		c.in = grown
	} else if c.start > 0 {
		copy(c.in, rest)
	}
	c.start, c.end = 0, len(rest)
}

// trim drops a buffer that one large frame has blown up.
func trim(b []byte) []byte {
	if cap(b) > 4*maxBuffer {
		return nil
	}
	return b
}

// linger ends the connection so that the last replies arrive: closing with unread requests would reset it.
func (c *conn) linger() {
	if c.nc.CloseWrite() != nil || c.nc.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	_, _ = io.CopyBuffer(io.Discard, struct{ io.Reader }{c.nc}, c.in)
}
