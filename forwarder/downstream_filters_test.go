package forwarder_test

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/filter/source"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// filtered is spec with these connection filters.
func filtered(endpoint string, filters ...filter.ConnectionFilter) *forwarder.Spec {
	s := spec(endpoint)
	s.Listeners[0].Connection = filters
	return s
}

// TestConnectionFiltersRewrite: through filters that change every byte and the number of bytes, and stop now and then,
// everything comes as it was sent, whatever its size; and they act in order on the way in and in reverse on the way out,
// or else the tunnel would not understand.
func TestConnectionFiltersRewrite(t *testing.T) {
	sizes := []int{0, 1, 100, 4096, 40_000, 65_500, 70_000, 300_000, 2 << 20}
	if raceEnabled {
		sizes = sizes[:len(sizes)-1]
	}
	for _, every := range []int{0, 1, 2, 5} {
		t.Run(fmt.Sprintf("stop=%d", every), func(t *testing.T) {
			var group sync.WaitGroup
			defer group.Wait()
			outer := &scrambler{seed: 11, every: every, group: &group}
			inner := &scrambler{seed: 5, every: every, group: &group}
			s := filtered(serveEach(t, echoEach).address, outer, inner)
			s.Routes[0].Rules[0].Timeout = patience
			if s.Listeners[0].StreamAbove = 0; every%2 == 0 {
				s.Listeners[0].StreamAbove = 128 << 10
			}
			p := startProxy(t, s, 512<<20)
			through := tunnel(t, p.address, 11, 5)
			var clients sync.WaitGroup
			for client := range 3 {
				c := dial(t, through)
				clients.Go(func() { // ends with its last reply
					want := map[uint32]string{}
					var stream []byte
					for i := range 2 * len(sizes) {
						id := uint32(client*1000 + i)
						want[id] = string(noise(uint64(id), sizes[(i+client)%len(sizes)]))
						stream = append(stream, frameOf(t, id, want[id])...)
					}
					clients.Go(func() { _, _ = c.Write(stream) }) // ends with the last byte, or the connection
					for id, m := range c.receiveByID(len(want)) {
						wantEcho(t, m, want[id])
					}
					wantEcho(t, c.call(request(9999, "once more")), "once more")
				})
			}
			clients.Wait()
			if stops := outer.stops.Load() + inner.stops.Load(); (stops > 0) != (every > 0) {
				t.Errorf("got %d stops with one at every %d calls: this test does not test", stops, every)
			}
		})
	}
}

// TestConnectionFilterCuts: where the stream is cut means nothing.
func TestConnectionFilterCuts(t *testing.T) {
	var group sync.WaitGroup
	defer group.Wait()
	f := &scrambler{seed: 9, every: 2, group: &group}
	p := startProxy(t, filtered(serveEach(t, echoEach).address, f), 512<<20)
	c := dial(t, p.address)
	in, out := &scramble{seed: 9}, &scramble{seed: 9}
	frame := frameOf(t, 7, "cut")
	read := 0
	for cut := 1; cut < len(frame); cut++ {
		first := in.seal(frame[:cut])
		c.send(first)
		read += len(first)
		p.reading(read)
		second := in.seal(frame[cut:])
		c.send(second)
		read += len(second)
		buf := make([]byte, 4096)
		for len(c.buf) == 0 || len(c.buf) < c.whole() {
			_ = c.SetReadDeadline(time.Now().Add(patience))
			n, err := c.Read(buf)
			if err != nil {
				t.Fatalf("got %v behind a frame that was cut at byte %d, want its reply", err, cut)
			}
			c.buf = append(c.buf, out.open(buf[:n])...)
		}
		m, err := c.next()
		if err != nil {
			t.Fatal(err)
		}
		wantEcho(t, m, "cut")
	}
}

// TestSourceFilter: who may not come in is closed though it says nothing, and nobody else notices.
func TestSourceFilter(t *testing.T) {
	allow := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	deny := []netip.Prefix{netip.MustParsePrefix("127.0.0.9/32")}
	p := startProxy(t, filtered(serveEach(t, echoEach).address, source.New(allow, deny)), 512<<20)
	others := startNeighbours(t, p.address, service)
	for i := range 5 {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}
		c, err := d.DialContext(t.Context(), "tcp", p.address)
		if err != nil {
			t.Fatal(err)
		}
		(&peer{TCPConn: c.(*net.TCPConn), t: t}).wantEnd()
		p.wantCount(float64(i+1), "relevo_listener_closes_total", "reason="+source.ReasonDenied)
	}
	if l := p.logged(source.ReasonDenied); len(l) != 1 {
		t.Errorf("got %d log entries for 5 denied connections, want one and the others counted", len(l))
	}
	others.goOn()
}

// TestOnNewStops: nothing is read before it goes on, and the filters behind are asked then.
func TestOnNewStops(t *testing.T) {
	holds := make(chan *filter.Hold, 2)
	asked := make(chan string, 2)
	wait := &script{onNew: func(c *filter.Connection) filter.Next {
		if c.Listener != "in" || !c.Client.Addr().IsLoopback() {
			t.Errorf("got the listener %q and the client %v, want both told", c.Listener, c.Client)
		}
		h := c.Hold()
		holds <- h
		return filter.Wait(h)
	}}
	after := &script{onNew: func(*filter.Connection) filter.Next {
		asked <- "behind"
		return filter.Pass
	}}
	server := serveEach(t, echoEach)
	p := startProxy(t, filtered(server.address, wait, after), 512<<20)
	c := dial(t, p.address)
	c.send(frameOf(t, 1, "early"))
	h := <-holds
	p.wantCount(1, "relevo_listener_connections", "state=gated")
	if n := p.value("relevo_listener_bytes_total", "direction=read"); n != 0 || len(asked) != 0 || p.Buffered() != 0 {
		t.Errorf("got %v bytes read, %d filters behind asked and %d bytes buffered while the first one stops, want none", n, len(asked), p.Buffered())
	}
	h.Resume()
	m := c.receive()
	wantEcho(t, m, "early")
	if got := <-asked; got != "behind" || len(asked) != 0 {
		t.Errorf("got the filter behind asked %d times more, want once", len(asked))
	}
	h.Resume()
	wantEcho(t, c.call(request(2, "goes on")), "goes on")
}

// TestConnectionFilterCloses: a verdict, a panic or too many bytes on any way end that connection, for that reason, and
// no other.
func TestConnectionFilterCloses(t *testing.T) {
	flood := func(*filter.Connection, []byte) ([]byte, filter.Next) { return make([]byte, 17<<20), filter.Pass }
	for name, c := range map[string]struct {
		filter *script
		reason string
		logged string
	}{
		"verdict-new":  {ways["new"](func(*filter.Connection) filter.Next { return filter.Close("test-verdict") }), "test-verdict", "closed by a connection filter"},
		"verdict-in":   {ways["in"](func(*filter.Connection) filter.Next { return filter.Close("test-verdict") }), "test-verdict", "closed by a connection filter"},
		"verdict-out":  {ways["out"](func(*filter.Connection) filter.Next { return filter.Close("test-verdict") }), "test-verdict", "closed by a connection filter"},
		"Panic-new":    {ways["new"](func(*filter.Connection) filter.Next { panic("a defect") }), forwarder.ReasonPanic, "recovered a panic"},
		"Panic-in":     {ways["in"](func(*filter.Connection) filter.Next { panic("a defect") }), forwarder.ReasonPanic, "recovered a panic"},
		"Panic-out":    {ways["out"](func(*filter.Connection) filter.Next { panic("a defect") }), forwarder.ReasonPanic, "recovered a panic"},
		"overflow-in":  {&script{onRead: flood}, forwarder.ReasonFilterOverflow, "closed by a connection filter"},
		"overflow-out": {&script{onOut: flood}, forwarder.ReasonFilterOverflow, "closed by a connection filter"},
	} {
		t.Run(name, func(t *testing.T) {
			s := filtered(serveEach(t, echoEach).address, c.filter)
			healthy := s.Listeners[0]
			healthy.Name, healthy.Connection = "healthy", nil
			s.Listeners = append(s.Listeners, healthy)
			p := startProxy(t, s, 512<<20)
			others := startNeighbours(t, p.Addresses()["healthy"].String(), service)
			client := dial(t, p.address)
			if !strings.HasSuffix(name, "-new") { // there it is closed though it says nothing
				client.send(frameOf(t, 1, "bytes"))
			}
			client.wantEnd()
			p.wantCount(1, "relevo_listener_closes_total", "listener=in", "reason="+c.reason)
			p.wantCount(0, "relevo_listener_connections", "listener=in")
			p.wantLogged(c.reason)
			if l := p.logged(c.logged); len(l) == 0 || !strings.Contains(l[0], "filter") {
				t.Errorf("got the log %v, want the filter named", l)
			}
			if strings.HasPrefix(name, "Panic") {
				p.wantCount(1, "relevo_recovered_panics_total", "reason="+forwarder.ReasonPanic)
			}
			others.goOn()
		})
	}
}

// TestConnectionFilterClosesGently: what the client has sent before is answered.
func TestConnectionFilterClosesGently(t *testing.T) {
	server := serveEach(t, echoEach)
	last := &script{onRead: func(_ *filter.Connection, p []byte) ([]byte, filter.Next) {
		if strings.Contains(string(p), "enough") {
			return nil, filter.Close("test-verdict")
		}
		return p, filter.Pass
	}}
	p := startProxy(t, filtered(server.address, last), 512<<20)
	c := dial(t, p.address)
	content := strings.Repeat("much ", 100_000)
	for i := range uint32(4) {
		c.send(frameOf(t, i, content))
	}
	p.wantCount(4, "relevo_listener_replies_total")
	c.send([]byte("enough"))
	for _, m := range c.receiveByID(4) {
		wantEcho(t, m, content)
	}
	c.wantEnd()
	p.wantCount(1, "relevo_listener_closes_total", "reason=test-verdict")
}

// TestFilteredSlowReader: the write queue behind a chain shuts the read gate as ever, and nothing is lost.
func TestFilteredSlowReader(t *testing.T) {
	var group sync.WaitGroup
	defer group.Wait()
	s := filtered(serveEach(t, echoEach).address, &scrambler{seed: 1, group: &group, every: 3})
	s.Listeners[0].QueueHigh, s.Listeners[0].QueueLow = 64<<10, 32<<10
	s.Routes[0].Rules[0].Timeout = time.Minute
	p := startProxy(t, s, 512<<20)
	others := dial(t, tunnel(t, p.address, 1))
	c := dial(t, p.address)
	_ = c.SetReadBuffer(64 << 10)
	const n = 40 // more than the kernel holds
	content := strings.Repeat("x", 200_000)
	in, out := &scramble{seed: 1}, &scramble{seed: 1}
	var stream []byte
	for i := range uint32(n) {
		stream = append(stream, frameOf(t, i, content)...)
	}
	group.Go(func() { _, _ = c.Write(in.seal(stream)) }) // ends with the last byte, or the connection
	p.wantCount(1, "relevo_listener_connections", "state=gated")
	wantEcho(t, others.call(request(1, "beside it")), "beside it")
	buf := make([]byte, 64<<10)
	for got := 0; got < n; {
		_ = c.SetReadDeadline(time.Now().Add(patience))
		k, err := c.Read(buf)
		if err != nil {
			t.Fatalf("got %v behind %d replies, want %d", err, got, n)
		}
		c.buf = append(c.buf, out.open(buf[:k])...)
		for len(c.buf) > 0 && c.whole() <= len(c.buf) {
			m, err := c.next()
			if err != nil {
				t.Fatal(err)
			}
			wantEcho(t, m, content)
			got++
		}
	}
	p.wantCount(0, "relevo_listener_connections", "state=gated")
}

// TestFilteredLargeFrames: large frames take memory in turns behind a chain, too, and are not copied where it leaves them
// as they are: a budget of a few of them holds.
func TestFilteredLargeFrames(t *testing.T) {
	const size, budget = 2 << 20, 32 << 20
	same := &script{}
	s := filtered(serve(t, streamEcho).address, same)
	s.Listeners[0].StreamAbove = 0
	s.Routes[0].Rules[0].Timeout = time.Minute
	s.Clusters[0].MaxPendingBytes = 1 << 30
	p := startProxy(t, s, budget)
	most := watch(p)
	content := noise(1, size)
	frame := frameOf(t, 1, string(content))
	var group sync.WaitGroup
	var lock sync.Mutex
	good := 0
	for range 24 {
		c := dial(t, p.address)
		group.Go(func() { // ends with its one call
			if status, cut := sendLarge(t, c, frame, content); !cut && status == 0 {
				lock.Lock()
				good++
				lock.Unlock()
			}
		})
	}
	group.Wait()
	if good < 12 {
		t.Errorf("got %d of 24 large requests echoed, want at least half of them: %v", good, p.series("relevo_listener_closes_total"))
	}
	if got := most(); got > budget {
		t.Errorf("got %d bytes buffered at a time, want at most the budget of %d", got, budget)
	}
}

// whole is the length of the frame in front of the peer's buffer, or more than there is while that is not known.
func (p *peer) whole() int {
	var m wire.Message
	n, err := bolt.Codec{}.Decode(&m, p.buf, wire.Limits{})
	if err != nil {
		p.t.Fatalf("got %v in front of %d bytes, want a frame", err, len(p.buf))
	}
	return n
}
