package forwarder_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// peer is one end of a connection that speaks Bolt as a test tells it to.
type peer struct {
	*net.TCPConn
	t      *testing.T
	number int // on a server: which connection this is, from 1
	buf    []byte
}

// dial makes a client connection that is closed when the test ends.
func dial(t *testing.T, address string) *peer {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &peer{TCPConn: c.(*net.TCPConn), t: t}
}

// next reads one frame, in memory of its own.
func (p *peer) next() (wire.Message, error) {
	var m wire.Message
	for need := 1; ; {
		if len(p.buf) >= need {
			n, err := bolt.Codec{VerifyCRC: true}.Decode(&m, p.buf, wire.Limits{})
			if err != nil {
				return m, err
			}
			if n <= len(p.buf) {
				m.Frame = bytes.Clone(m.Frame)
				p.buf = p.buf[n:]
				return m, nil
			}
			need = n
		}
		if cap(p.buf) < need {
			p.buf = append(make([]byte, 0, max(need, 4096)), p.buf...)
		}
		n, err := p.Read(p.buf[len(p.buf):max(need, cap(p.buf))])
		p.buf = p.buf[:len(p.buf)+n]
		if err != nil && n == 0 {
			return m, err
		}
	}
}

// receive reads one frame and fails the test when there is none.
func (p *peer) receive() wire.Message {
	p.t.Helper()
	_ = p.SetReadDeadline(time.Now().Add(patience))
	m, err := p.next()
	if err != nil {
		p.t.Fatalf("got %v (%d bytes of an unfinished frame), want a frame", err, len(p.buf))
	}
	return m
}

// receiveByID reads n frames and sorts them by id; an id that comes twice fails the test.
func (p *peer) receiveByID(n int) map[uint32]wire.Message {
	p.t.Helper()
	out := make(map[uint32]wire.Message, n)
	for range n {
		m := p.receive()
		if _, twice := out[m.ID]; twice {
			p.t.Fatalf("got id %d twice, want each request answered once", m.ID)
		}
		out[m.ID] = m
	}
	return out
}

// wantEnd fails unless nothing but the end of the connection comes, and closes this end.
func (p *peer) wantEnd() {
	p.t.Helper()
	_ = p.SetReadDeadline(time.Now().Add(patience))
	m, err := p.next()
	switch {
	case err == nil:
		p.t.Fatalf("got a %v with id %d and status %v, want the end of the connection", m.Kind, m.ID, m.Status)
	case isTimeout(err):
		p.t.Fatalf("got nothing for %v, want the end of the connection", patience)
	}
	p.hangUp()
}

func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}

// send writes bytes and fails the test when they are not taken.
func (p *peer) send(b ...[]byte) {
	p.t.Helper()
	_ = p.SetWriteDeadline(time.Now().Add(patience))
	for _, b := range b {
		if _, err := p.Write(b); err != nil {
			p.t.Fatalf("writing %d bytes: %v", len(b), err)
		}
	}
}

// call sends a request and receives its reply.
func (p *peer) call(r bolt.Request) wire.Message {
	p.t.Helper()
	p.send(encode(p.t, r))
	m := p.receive()
	if m.ID != r.ID {
		p.t.Fatalf("got a reply with id %d, want id %d", m.ID, r.ID)
	}
	return m
}

// reset closes the connection so that the other end gets a reset.
func (p *peer) reset() {
	_ = p.SetLinger(0)
	p.hangUp()
}

// hangUp closes the connection; it may be called twice.
func (p *peer) hangUp() { _ = p.Close() }

// reply answers a request with a status and content, in its version.
func (p *peer) reply(m wire.Message, status wire.Status, content []byte) error {
	b, err := (&bolt.Response{
		Version: bolt.VersionOf(&m), Codec: bolt.CodecOf(&m), ID: m.ID, Status: status, Content: content,
	}).Append(nil)
	if err == nil {
		_, err = p.Write(b)
	}
	return err
}

// request is a request of this id to the service of the tests.
func request(id uint32, content string) bolt.Request {
	return bolt.Request{
		Codec: bolt.CodecHessian2, ID: id, Timeout: 60_000, Class: bolt.ClassRequest,
		Headers: []bolt.Pair{{Key: "service", Value: service}}, Content: []byte(content),
	}
}

func oneway(id uint32, content string) bolt.Request {
	r := request(id, content)
	r.Oneway = true
	return r
}

func encode(t *testing.T, r bolt.Request) []byte {
	t.Helper()
	b, err := r.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// frameOf is the frame of request.
func frameOf(t *testing.T, id uint32, content string) []byte {
	t.Helper()
	return encode(t, request(id, content))
}

// server is a Bolt server that does on each connection what a script says.
type server struct {
	address  string
	accepted atomic.Int64
	frames   atomic.Int64 // that serveEach's scripts have got
	listener net.Listener
	group    sync.WaitGroup

	// Guarded by mu.
	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

// serve runs a server until the test ends. A connection is closed when its script returns.
func serve(t *testing.T, script func(*peer)) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, l, script)
}

func serveOn(t *testing.T, l net.Listener, script func(*peer)) *server {
	s := &server{address: l.Addr().String(), listener: l, conns: make(map[net.Conn]struct{})}
	s.group.Go(func() { s.accept(t, script) }) // ends when the listener is closed
	t.Cleanup(s.stop)
	return s
}

func (s *server) accept(t *testing.T, script func(*peer)) {
	for {
		c, err := s.listener.Accept()
		if err != nil {
			return
		}
		p := &peer{TCPConn: c.(*net.TCPConn), t: t, number: int(s.accepted.Add(1))}
		s.mu.Lock()
		s.conns[c] = struct{}{}
		s.mu.Unlock()
		s.group.Go(func() { // ends with the script, which ends when the connection is closed
			defer s.forget(c)
			script(p)
		})
	}
}

func (s *server) forget(c net.Conn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	c.Close()
}

// stop closes the server and all of its connections. It may be called twice.
func (s *server) stop() {
	s.listener.Close()
	s.mu.Lock()
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.group.Wait()
}

// serveEach runs a server that does for each frame what a script says, up to the first error.
func serveEach(t *testing.T, script func(*peer, wire.Message) error) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveEachOn(t, l, script)
}

func serveEachOn(t *testing.T, l net.Listener, script func(*peer, wire.Message) error) *server {
	ready := make(chan *server, 1)
	s := serveOn(t, l, func(p *peer) {
		s := <-ready
		ready <- s
		for {
			m, err := p.next()
			if err != nil {
				return
			}
			s.frames.Add(1)
			if script(p, m) != nil {
				return
			}
		}
	})
	ready <- s
	return s
}

// echoEach answers requests with their content, and heartbeats.
func echoEach(p *peer, m wire.Message) error {
	switch m.Kind {
	case wire.Request:
		return p.reply(m, wire.Success, m.Content())
	case wire.Heartbeat:
		_, err := p.Write(bolt.Codec{}.AppendReply(nil, m.Tag, m.ID, wire.Success))
		return err
	default:
		return nil
	}
}

// silentEach reads and never answers.
func silentEach(*peer, wire.Message) error { return nil }

// hold is a server that answers a request only when it is told to.
type hold struct {
	*server
	open chan struct{}
	once sync.Once
}

func serveHeld(t *testing.T) *hold {
	h := &hold{open: make(chan struct{})}
	var group sync.WaitGroup
	h.server = serveEach(t, func(p *peer, m wire.Message) error {
		if m.Kind == wire.Request {
			group.Go(func() { // ends when the hold is released
				<-h.open
				_ = p.reply(m, wire.Success, m.Content())
			})
		}
		return nil
	})
	t.Cleanup(func() {
		h.release()
		h.stop() // first: what still comes in would start another one
		group.Wait()
	})
	return h
}

func (h *hold) release() { h.once.Do(func() { close(h.open) }) }

// got waits until the server has got this many frames.
func (s *server) got(t *testing.T, n int64) {
	t.Helper()
	eventually(t, func() bool { return s.frames.Load() >= n }, func() string {
		return fmt.Sprintf("%d frames at the server, it has %d", n, s.frames.Load())
	})
}

// wantEcho fails unless a message is the good reply with this content.
func wantEcho(t *testing.T, m wire.Message, content string) {
	t.Helper()
	if m.Kind != wire.Reply || m.Status != wire.Success || string(m.Content()) != content {
		t.Errorf("got a %v of status %v with %d bytes of content, want the reply SUCCESS with the %d bytes that were sent",
			m.Kind, m.Status, len(m.Content()), len(content))
	}
}

// deadAddress is one that nobody listens at.
func deadAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	return l.Addr().String()
}

var errStop = errors.New("the script ends here")

// endings are the ways in which a peer goes.
var endings = map[string]func(*peer){"end-of-file": (*peer).hangUp, "reset": (*peer).reset}
