//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// kind is a kind of client: all that its connections have in common.
type kind struct {
	name     string
	count    int
	listener string // its name
	service  string

	every    time.Duration // from one request to the next
	inFlight int           // at once, 0 for one; where it is reached, the next request waits for a reply
	size     int           // of a request's content, 0 for 100 bytes
	reply    int           // of a reply's, 0 for that of the request
	wait     time.Duration // that the server takes
	oneway   bool          // requests that get no reply
	beat     bool          // heartbeats instead of requests
	noted    bool          // when each reply came is kept

	pieces   int            // that a frame is cut in, 0 for one
	gap      time.Duration  // between them
	versions []bolt.Version // of the frames, one a connection in turn; none for all

	window int           // of the socket for what is to be read, an eighth of which is read at once; 0 for what is usual
	rest   time.Duration // behind each such read
	held   *holding      // what nothing is read before; nil for nothing
}

// The reasons for which a connection's life can end. Whichever comes first is counted, and it ends with it.
const (
	failRefused    = "refused"    // it could not be made
	failClosed     = "closed"     // or reset: a write or read has failed, so that it would have had to be made again
	failMalformed  = "malformed"  // what came is no frame, or has a wrong checksum
	failStatus     = "failed"     // a reply says something else than SUCCESS
	failMismatched = "mismatched" // a reply to nothing, or not to what was asked
	failDuplicated = "duplicated" // a second reply
	failLost       = "lost"       // no reply
)

// broken is the first thing that went wrong with a connection.
type broken struct {
	reason string
	err    error
}

func (b *broken) Error() string { return b.reason + ": " + b.err.Error() }

// caller is one connection that is never made again: whatever ends it, except close, is a failure.
type caller struct {
	// Static after dial.
	kind    kind
	number  uint32
	version bolt.Version
	crew    *crew
	nc      net.Conn
	places  chan struct{} // one taken for each request without a reply, never closed
	failed  chan struct{} // closed with the first failure
	done    chan struct{} // closed when read has ended

	// Owned by who sends.
	frame, content []byte

	closing atomic.Bool

	// Guarded by mu.
	mu       sync.Mutex
	why      *broken
	id       uint32           // the last one used
	open     map[uint32]asked // without a reply, by id
	requests uint32           // sent, and so the number of the next one
	oneways  uint32
	beats    uint32
	answered uint32
	counted  uint32        // of those, at the last lap
	longest  time.Duration // that a reply took beyond what was asked for
	came     []time.Time   // replies, if they are noted
}

// asked is a request, or a heartbeat, without a reply.
type asked struct {
	stamp stamp
	size  int
	beat  bool
	at    time.Time
}

// dial makes a connection, or returns nil when that has failed.
func (w *crew) dial(k kind) *caller {
	c := &caller{
		kind: k, crew: w, open: map[uint32]asked{}, places: make(chan struct{}, max(k.inFlight, 1)),
		failed: make(chan struct{}), done: make(chan struct{}),
	}
	w.mu.Lock()
	c.number = uint32(len(w.callers))
	w.callers = append(w.callers, c)
	w.mu.Unlock()
	if n := uint32(len(k.versions)); n > 0 {
		c.version = k.versions[c.number%n]
	} else {
		c.version = bolt.Version(c.number % 3)
	}

	d := net.Dialer{Timeout: patience, Control: func(network, address string, raw syscall.RawConn) (err error) {
		if k.held != nil {
			return narrow(network, address, raw)
		}
		if k.window == 0 {
			return nil
		}
		return errors.Join(raw.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, k.window)
		}), err)
	}}
	network, address := "tcp", w.addresses[k.listener]
	if strings.HasPrefix(address, "/") {
		network = "unix"
	} else {
		d.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+c.number%100))}
	}
	var err error
	if c.nc, err = d.DialContext(context.Background(), network, address); err != nil {
		c.fail(failRefused, err)
		close(c.done)
		return nil
	}
	w.readers.Go(c.read) // ends with the connection
	return c
}

// fail ends the connection. Only the first reason counts.
func (c *caller) fail(reason string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.why != nil {
		return
	}
	c.why = &broken{reason, err}
	close(c.failed)
	if c.nc != nil {
		c.nc.Close()
	}
}

// work sends until it is told to stop. The first request comes at a time of its own, so that the callers of a kind are
// spread over the time between two.
func (c *caller) work() {
	if !c.rest(rand.N(c.kind.every + 1)) {
		return
	}
	due := time.Now()
	for c.rest(time.Until(due)) {
		select {
		case c.places <- struct{}{}:
		case <-c.failed:
			return
		case <-c.crew.stop:
			return
		}
		c.send()
		if c.kind.oneway {
			<-c.places
		}
		if due = due.Add(c.kind.every); time.Until(due) < -c.kind.every {
			due = time.Now() // what could not be sent in time is not made up for
		}
	}
}

// pause waits, and reports whether there is something to go on for.
func (c *caller) rest(d time.Duration) bool {
	select {
	case <-c.failed:
		return false
	default:
	}
	return rest(c.crew.stop, d)
}

func rest(stop <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(max(d, 0))
	defer timer.Stop()
	select {
	case <-stop:
		return false
	case <-timer.C:
		return true
	}
}

// send sends one request.
func (c *caller) send() {
	frame := c.next()
	if frame == nil {
		return
	}
	if err := c.write(frame); err != nil {
		c.fail(failClosed, fmt.Errorf("writing a request: %w", err))
	}
}

// next enters the next request in the books and returns its frame, which is then to be sent.
func (c *caller) next() []byte { return c.nextLike(&c.kind) }

// nextLike is next for a request as this kind sends them.
func (c *caller) nextLike(k *kind) []byte {
	a := asked{stamp: stamp{caller: c.number, wait: k.wait, reply: uint32(k.reply)}, size: max(k.size, stampSize), beat: k.beat}
	if k.size == 0 {
		a.size = 100
	}
	r := bolt.Request{Version: c.version, Codec: bolt.CodecHessian2, Oneway: k.oneway, Heartbeat: k.beat}
	c.mu.Lock()
	c.id++
	r.ID = c.id
	switch {
	case k.beat:
		c.beats++
	case k.oneway:
		a.stamp.number = c.oneways
		c.oneways++
	default:
		a.stamp.number = c.requests
		c.requests++
	}
	c.mu.Unlock()
	if !k.beat {
		c.content = a.stamp.content(c.content[:0], a.size)
		r.Class, r.Content = bolt.ClassRequest, c.content
		r.Headers = []bolt.Pair{{Key: "service", Value: k.service}}
	}
	var err error
	if c.frame, err = r.Append(c.frame[:0]); err != nil {
		c.fail(failMalformed, err)
		return nil
	}
	c.mu.Lock()
	a.at = time.Now()
	if !k.oneway {
		c.open[r.ID] = a
	}
	c.mu.Unlock()
	return c.frame
}

// write writes a frame as the kind says. One that has begun is ended, even if it is time to stop.
func (c *caller) write(frame []byte) error {
	piece := (len(frame) + max(c.kind.pieces, 1) - 1) / max(c.kind.pieces, 1)
	for part := range slices.Chunk(frame, piece) {
		if _, err := c.nc.Write(part); err != nil {
			return err
		}
		if len(part) == piece && c.kind.gap > 0 {
			time.Sleep(c.kind.gap)
		}
	}
	return nil
}

// read takes what comes until the connection ends.
func (c *caller) read() {
	defer close(c.done)
	in := inbox{from: c.kind.held.reader(c.nc)}
	if c.kind.window > 0 {
		in.from = &dawdler{c, c.kind.window / 8}
	}
	for {
		m, err := in.next()
		if err == nil {
			if bad := c.take(m); bad != nil {
				c.fail(bad.reason, bad.err)
				return
			}
			continue
		}
		if _, ok := errors.AsType[*wire.DecodeError](err); ok {
			c.fail(failMalformed, err)
		} else if !c.closing.Load() {
			c.fail(failClosed, fmt.Errorf("reading: %w", err))
		}
		return
	}
}

// dawdler is a reader that takes little, and then rests, until it is time to stop.
type dawdler struct {
	caller *caller
	most   int
}

func (d *dawdler) Read(b []byte) (int, error) {
	rest(d.caller.crew.stop, d.caller.kind.rest)
	return d.caller.nc.Read(b[:min(len(b), d.most)])
}

// take finds the request that a frame answers, and says what is wrong if it does not.
func (c *caller) take(m *wire.Message) *broken {
	now := time.Now()
	c.mu.Lock()
	a, found := c.open[m.ID]
	used := m.ID <= c.id && m.ID > 0
	c.mu.Unlock()
	want := wire.Reply
	if a.beat {
		want = wire.Ack
	}
	switch {
	case !found && used:
		return &broken{failDuplicated, fmt.Errorf("another reply with id %d", m.ID)}
	case !found:
		return &broken{failMismatched, fmt.Errorf("a reply with id %d, which was never used", m.ID)}
	case m.Kind != want || bolt.VersionOf(m) != c.version:
		return &broken{failMismatched, fmt.Errorf("id %d got a %v of %v, want a %v of %v", m.ID, m.Kind, bolt.VersionOf(m), want, c.version)}
	case m.Status != wire.Success:
		return &broken{failStatus, fmt.Errorf("id %d got %v after %v", m.ID, m.Status, now.Sub(a.at))}
	case !a.beat && (len(m.Content()) != a.stamp.replySize(a.size) || !a.stamp.matches(m.Content())):
		got, _ := readStamp(m.Content())
		return &broken{failMismatched, fmt.Errorf("id %d got %d bytes of %+v, want %d of %+v", m.ID, len(m.Content()), got, a.stamp.replySize(a.size), a.stamp)}
	}
	c.mu.Lock()
	delete(c.open, m.ID)
	c.answered++
	c.longest = max(c.longest, now.Sub(a.at)-a.stamp.wait)
	if c.kind.noted {
		c.came = append(c.came, now)
	}
	c.mu.Unlock()
	select {
	case <-c.places:
	default: // whoever visits has taken none
	}
	return nil
}

// await waits until all has been answered; what has not by the deadline is lost.
func (c *caller) await(deadline time.Time) {
	for {
		c.mu.Lock()
		n, why := len(c.open), c.why
		c.mu.Unlock()
		if n == 0 || why != nil {
			return
		}
		if time.Now().After(deadline) {
			c.fail(failLost, fmt.Errorf("%d requests got no reply", n))
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// close ends the connection as its client does, and waits for the end.
func (c *caller) close() {
	c.closing.Store(true)
	if c.nc != nil {
		c.nc.Close()
	}
	<-c.done
}
