package echo

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a server until the test ends, and returns it with a connection to it.
func start(t *testing.T, o Options, change ...func(*Server)) (*Server, *net.TCPConn) {
	t.Helper()
	o.Listen = "127.0.0.1:0"
	s, err := Listen(o)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range change {
		f(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Errorf("Run: got %v, want nil after its context ended", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		if n := s.Stats().Open; n != 0 {
			t.Errorf("after Run: %d connections open, want 0", n)
		}
	})
	return s, connect(t, s)
}

func connect(t *testing.T, s *Server) *net.TCPConn {
	t.Helper()
	nc, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
	return nc.(*net.TCPConn)
}

func frame(t *testing.T, r bolt.Request) []byte {
	t.Helper()
	b, err := r.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func send(t *testing.T, nc net.Conn, b []byte) {
	t.Helper()
	if _, err := nc.Write(b); err != nil {
		t.Fatal(err)
	}
}

// reader reads frames from a connection.
type reader struct {
	nc  net.Conn
	buf []byte
}

func (r *reader) next() (wire.Message, error) {
	var m wire.Message
	for {
		n, err := bolt.Codec{VerifyCRC: true}.Decode(&m, r.buf, wire.Limits{})
		if err != nil {
			return m, err
		}
		if n <= len(r.buf) {
			r.buf = r.buf[n:]
			return m, nil
		}
		b := make([]byte, 1<<20)
		n, err = r.nc.Read(b)
		if n == 0 {
			return m, err
		}
		r.buf = append(bytes.Clone(r.buf), b[:n]...)
	}
}

func (r *reader) mustNext(t *testing.T) wire.Message {
	t.Helper()
	m, err := r.next()
	if err != nil {
		t.Fatalf("reading a reply: %v", err)
	}
	return m
}

func TestReplyHasTheContentAndTheVersionOfItsRequest(t *testing.T) {
	for _, v := range []bolt.Version{bolt.V1, bolt.V2, bolt.V2CRC} {
		for _, size := range []int{0, 1, 1024, 1 << 20} {
			_, nc := start(t, Options{})
			content := bytes.Repeat([]byte{7, 1}, size)[:size]
			send(t, nc, frame(t, bolt.Request{
				Version: v, Codec: bolt.CodecProtobuf, ID: 1 << 31, Class: bolt.ClassRequest,
				Headers: []bolt.Pair{{Key: "service", Value: "s"}}, Content: content,
			}))
			m := (&reader{nc: nc}).mustNext(t)
			if m.Kind != wire.Reply || m.ID != 1<<31 || m.Status != wire.Success {
				t.Errorf("%v, %d bytes: got a %v with id %d and status %v, want a reply with 2147483648 and SUCCESS", v, size, m.Kind, m.ID, m.Status)
			}
			if got := bolt.VersionOf(&m); got != v {
				t.Errorf("%v: the reply has version %v", v, got)
			}
			if got := bolt.CodecOf(&m); got != bolt.CodecProtobuf {
				t.Errorf("%v: the reply has codec %d, want the request's, 11", v, got)
			}
			if string(m.Class()) != bolt.ClassResponse || len(m.HeaderBlock()) != 0 || !bytes.Equal(m.Content(), content) {
				t.Errorf("%v, %d bytes: class %q, %d bytes of headers, %d of content: want SofaResponse, 0 and the request's content", v, size, m.Class(), len(m.HeaderBlock()), len(m.Content()))
			}
		}
	}
}

func TestFramesInAnyPieces(t *testing.T) {
	s, nc := start(t, Options{})
	var all []byte
	for i := range uint32(20) {
		all = append(all, frame(t, bolt.Request{Version: bolt.Version(i % 3), ID: i, Content: make([]byte, i*37)})...)
	}
	for len(all) > 0 {
		n := min(len(all), 1+len(all)%61)
		send(t, nc, all[:n])
		all = all[n:]
	}
	r := &reader{nc: nc}
	for i := range uint32(20) {
		if m := r.mustNext(t); m.ID != i || len(m.Content()) != int(i*37) {
			t.Fatalf("reply %d: id %d with %d bytes, want replies in the order of the requests", i, m.ID, len(m.Content()))
		}
	}
	if got := s.Stats().Requests; got != 20 {
		t.Errorf("counted %d requests, want 20", got)
	}
}

func TestOnewayGetsNoReplyAndHeartbeatAnAck(t *testing.T) {
	s, nc := start(t, Options{Status: wire.Busy})
	send(t, nc, frame(t, bolt.Request{ID: 1, Oneway: true}))
	send(t, nc, frame(t, bolt.Request{ID: 2, Heartbeat: true}))
	send(t, nc, bolt.Codec{}.AppendReply(nil, 1<<56, 9, wire.Success))
	send(t, nc, frame(t, bolt.Request{ID: 3, Content: []byte("x")}))
	r := &reader{nc: nc}
	if m := r.mustNext(t); m.Kind != wire.Ack || m.ID != 2 || m.Status != wire.Success {
		t.Errorf("got a %v with id %d, want the ack of heartbeat 2", m.Kind, m.ID)
	}
	if m := r.mustNext(t); m.ID != 3 || m.Status != wire.Busy || len(m.Content()) != 0 {
		t.Errorf("got id %d, status %v, %d bytes: want 3, the status asked for, and nothing", m.ID, m.Status, len(m.Content()))
	}
	got := s.Stats()
	if got.Requests != 1 || got.Oneways != 1 || got.Heartbeats != 1 || got.Ignored != 1 || got.Accepted != 1 || got.Open != 1 {
		t.Errorf("got %+v, want one of each kind on one connection", got)
	}
}

func TestMalformedInputClosesOnlyItsConnection(t *testing.T) {
	var log syncBuffer
	s, nc := start(t, Options{Log: &log})
	send(t, nc, append(frame(t, bolt.Request{ID: 1}), "GET / HTTP/1.1\r\n"...))
	r := &reader{nc: nc}
	if m := r.mustNext(t); m.ID != 1 {
		t.Errorf("got id %d, want the reply to what was sent before the bad bytes", m.ID)
	}
	if _, err := r.next(); err == nil {
		t.Error("the connection lives on after bytes that are not Bolt")
	}
	other := connect(t, s)
	send(t, other, frame(t, bolt.Request{ID: 5}))
	(&reader{nc: other}).mustNext(t)
	if got := s.Stats().Malformed; got != 1 {
		t.Errorf("counted %d malformed connections, want 1", got)
	}
	if got := log.String(); !strings.Contains(got, wire.ReasonBadProtocol) || strings.Count(got, "\n") != 1 {
		t.Errorf("logged %q, want one line with the reason bad-protocol", got)
	}
}

func TestFrameAboveTheLimit(t *testing.T) {
	s, nc := start(t, Options{})
	head := frame(t, bolt.Request{ID: 1})
	copy(head[18:], []byte{0xff, 0xff, 0xff, 0xff})
	send(t, nc, head)
	if _, err := (&reader{nc: nc}).next(); err == nil {
		t.Error("a frame of 4 GiB was accepted")
	}
	if got := s.Stats().Malformed; got != 1 {
		t.Errorf("counted %d malformed connections, want 1", got)
	}
}

func TestCloseAfter(t *testing.T) {
	for _, delay := range []time.Duration{0, 20 * time.Millisecond} {
		_, nc := start(t, Options{CloseAfter: 3, Delay: delay})
		for id := range uint32(10) {
			send(t, nc, frame(t, bolt.Request{ID: id, Content: make([]byte, 100)}))
		}
		r := &reader{nc: nc}
		for id := range uint32(3) {
			if m := r.mustNext(t); m.ID != id {
				t.Fatalf("delay %v: got the reply to %d, want that to %d", delay, m.ID, id)
			}
		}
		if _, err := r.next(); !errors.Is(err, io.EOF) {
			t.Errorf("delay %v: after the last reply got %v, want the end of the stream", delay, err)
		}
	}
}

func TestNoReplyRateIsAShareAndRepeatable(t *testing.T) {
	const n = 2000
	answered := func() string {
		s, nc := start(t, Options{NoReplyRate: 0.25, Seed: 7})
		var all []byte
		for id := range uint32(n) {
			all = append(all, frame(t, bolt.Request{ID: id})...)
		}
		all = append(all, frame(t, bolt.Request{ID: n, Heartbeat: true})...)
		send(t, nc, all)
		got := bytes.Repeat([]byte{'-'}, n)
		r := &reader{nc: nc}
		for m := r.mustNext(t); m.Kind != wire.Ack; m = r.mustNext(t) {
			got[m.ID] = '+'
		}
		if st, want := s.Stats(), uint64(bytes.Count(got, []byte{'-'})); st.Unanswered != want || st.Requests != n {
			t.Errorf("counted %d of %d requests unanswered, want %d of %d", st.Unanswered, st.Requests, want, n)
		}
		return string(got)
	}
	first := answered()
	if missing := strings.Count(first, "-"); missing < n/5 || missing > n*3/10 {
		t.Errorf("%d of %d requests got no reply, want about a quarter", missing, n)
	}
	if answered() != first {
		t.Error("the same seed left other requests without a reply")
	}
}

func TestDelay(t *testing.T) {
	const delay = 60 * time.Millisecond
	_, nc := start(t, Options{Delay: delay})
	r := &reader{nc: nc}
	begin := time.Now()
	for id := range uint32(50) {
		send(t, nc, frame(t, bolt.Request{ID: id, Content: make([]byte, 1000)}))
	}
	for id := range uint32(50) {
		if m := r.mustNext(t); m.ID != id {
			t.Fatalf("got the reply to %d, want that to %d", m.ID, id)
		}
	}
	if took := time.Since(begin); took < delay || took > 40*delay {
		t.Errorf("50 requests at once took %v, want the delay of %v once, not for each", took, delay)
	}
}

func TestDelayedRepliesOfManyBytesWaitForRoom(t *testing.T) {
	_, nc := start(t, Options{Delay: 50 * time.Millisecond})
	const n, size = 160, 256 << 10 // more than maxDelayed
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		b := frame(t, bolt.Request{ID: 3, Content: make([]byte, size)})
		for range n {
			if _, err := nc.Write(b); err != nil {
				t.Errorf("writing: %v", err)
				return
			}
		}
	})
	r := &reader{nc: nc}
	for range n {
		if m := r.mustNext(t); len(m.Content()) != size {
			t.Fatalf("got %d bytes, want %d", len(m.Content()), size)
		}
	}
}

func TestRunEndsWhileRepliesWait(t *testing.T) {
	_, nc := start(t, Options{Delay: time.Hour})
	send(t, nc, frame(t, bolt.Request{ID: 1})) // the cleanup fails if Run waits for the hour
	_, other := start(t, Options{Delay: time.Hour})
	_ = other
}

func TestClientThatDoesNotReadIsClosed(t *testing.T) {
	for _, delay := range []time.Duration{0, time.Millisecond} {
		var log syncBuffer
		s, nc := start(t, Options{Log: &log, Delay: delay}, func(s *Server) { s.patience = 50 * time.Millisecond })
		b := frame(t, bolt.Request{ID: 1, Content: make([]byte, 1<<20)})
		var err error
		for err == nil {
			_, err = nc.Write(b)
		}
		var ne net.Error
		if errors.As(err, &ne) && ne.Timeout() {
			t.Fatal("the server kept a client that does not read")
		}
		for s.Stats().Open > 0 {
			time.Sleep(time.Millisecond)
		}
		if got := s.Stats(); got.Stalled != 1 {
			t.Errorf("delay %v: counted %d stalled connections, want 1 (%+v)", delay, got.Stalled, got)
		}
		if got := log.String(); !strings.Contains(got, "does not read") {
			t.Errorf("logged %q, want the reason", got)
		}
	}
}

func TestOptionsSayAllThatIsWrong(t *testing.T) {
	_, err := Listen(Options{Listen: "127.0.0.1:0", Delay: -1, CloseAfter: -1, NoReplyRate: 2, Status: wire.Other})
	for _, want := range []string{"delay", "close after", "no-reply", "status"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want it to name %q", err, want)
		}
	}
	if _, err := Listen(Options{Listen: "256.0.0.1:0"}); err == nil {
		t.Error("listening on no address succeeded")
	}
}

func BenchmarkAnswer(b *testing.B) {
	var in []byte
	for id := range uint32(64) {
		r := bolt.Request{ID: id, Class: bolt.ClassRequest, Headers: []bolt.Pair{{Key: "service", Value: "com.relevo.Echo:1.0"}}, Content: make([]byte, 1024)}
		in, _ = r.Append(in)
	}
	c := &conn{s: &Server{}, in: in}
	b.ReportAllocs()
	b.SetBytes(int64(len(in) / 64))
	for range b.N/64 + 1 {
		c.start, c.end, c.out = 0, len(in), c.out[:0]
		if _, err := c.answer(); err != nil {
			b.Fatal(err)
		}
		c.countBatch()
	}
}

// syncBuffer is a buffer for two goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
