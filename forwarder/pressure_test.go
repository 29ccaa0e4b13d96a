package forwarder_test

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// flood is a client that sends n requests of 32 KiB and reads nothing. Where done is set it tells how many have been
// served, and only some are sent ahead of that, so that few are in flight when the gate shuts.
func flood(t *testing.T, address string, n int, done func() int64) (c *peer, content string) {
	t.Helper()
	c = dial(t, address)
	if err := c.SetReadBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	content = strings.Repeat("x", 32<<10)
	var group sync.WaitGroup
	var ended atomic.Bool
	group.Go(func() { // ends with the last byte, or the connection
		frame := frameOf(t, 0, content)
		tick := time.NewTicker(200 * time.Microsecond)
		defer tick.Stop()
		for i := range n {
			for done != nil && done() < int64(i-32) && !ended.Load() {
				<-tick.C
			}
			copy(frame[5:], []byte{0, 0, byte(i >> 8), byte(i)})
			if _, err := c.Write(frame); err != nil {
				return
			}
		}
	})
	t.Cleanup(func() { ended.Store(true); c.hangUp(); group.Wait() })
	return c, content
}

// TestClientNeverReads: its own read gate shuts, then nothing grows; once it reads, it gets everything.
func TestClientNeverReads(t *testing.T) {
	server := serveEach(t, echoEach)
	s := withSteady(t, spec(server.address))
	l := &s.Listeners[0]
	l.QueueHigh, l.QueueLow, l.WriteTimeout = 64<<10, 16<<10, time.Minute
	s.Routes[0].Rules[0].Timeout = time.Minute
	p := startProxy(t, s, 64<<20)
	others := startNeighbours(t, p.address, steadyService)
	const n = 500
	c, content := flood(t, p.address, n, server.frames.Load)
	// The gate opens and shuts until the kernel's buffers are full, too.
	eventually(t, func() bool {
		before := server.frames.Load()
		for range 5 {
			others.goOn()
		}
		return server.frames.Load() == before && p.value("relevo_listener_connections", "state=gated") == 1
	}, say("the client's gate to shut for good"))
	p.wantCount(0, "relevo_cluster_in_flight", "cluster=echo")
	served, held := server.frames.Load(), p.Buffered()
	for range 10 {
		others.goOn()
		if got := server.frames.Load(); got != served || served == n {
			t.Fatalf("got %d requests forwarded while their client does not read, want the %d from before its gate was shut", got, served)
		}
		if got := p.Buffered(); got > held+1<<20 { // the neighbours have some
			t.Fatalf("got %d bytes buffered for a client that does not read, want no more than the %d of before", got, held)
		}
	}
	if err := c.SetReadBuffer(4 << 20); err != nil { // through a small window it would take minutes
		t.Fatal(err)
	}
	for id, m := range c.receiveByID(n) {
		if id >= n {
			t.Errorf("got id %d, want 0 to %d", id, n-1)
		}
		wantEcho(t, m, content)
	}
	p.wantCount(0, "relevo_listener_connections", "state=gated")
}

// TestClientThatNeverReadsIsClosed after write_timeout.
func TestClientThatNeverReadsIsClosed(t *testing.T) {
	s := spec(serveEach(t, echoEach).address)
	s.Listeners[0].WriteTimeout = 500 * time.Millisecond
	p := startProxy(t, s, 512<<20)
	others := startNeighbours(t, p.address, service)
	flood(t, p.address, 500, nil)
	p.wantCount(1, "relevo_listener_closes_total", "reason="+conn.ReasonWriteTimeout)
	others.goOn()
}

// TestHardCap: replies under way may still come when the gate is shut; above max_queued the connection is closed.
func TestHardCap(t *testing.T) {
	h := serveHeld(t)
	s := withSteady(t, spec(h.address))
	s.Listeners[0].MaxQueued = 1 << 20
	p := startProxy(t, s, 512<<20)
	others := startNeighbours(t, p.address, steadyService)
	flood(t, p.address, 400, nil)
	h.got(t, 400)
	h.release()
	p.wantCount(1, "relevo_listener_closes_total", "reason="+conn.ReasonQueueFull)
	p.wantCount(0, "relevo_cluster_in_flight", "cluster=echo")
	if n := p.value("relevo_listener_dropped_total", "reason="+forwarder.ReasonDownstreamGone) + p.value("relevo_listener_replies_total"); n < 400 {
		t.Errorf("got %v of the 400 replies counted as sent or dropped, want all of them", n)
	}
	others.goOn()
}

// TestIdleClientIsClosed, and one that waits for its reply is not.
func TestIdleClientIsClosed(t *testing.T) {
	h := serveHeld(t)
	s := spec(h.address)
	s.Listeners[0].IdleTimeout = 60 * time.Millisecond
	s.Routes[0].Rules[0].Timeout = patience
	p := startProxy(t, s, 512<<20)
	busy := dial(t, p.address)
	busy.send(frameOf(t, 1, "waits"))
	h.got(t, 1)
	dial(t, p.address).wantEnd()
	p.wantCount(1, "relevo_listener_closes_total", "reason="+conn.ReasonIdle)
	h.release()
	wantEcho(t, busy.receive(), "waits")
	busy.wantEnd()
	p.wantCount(2, "relevo_listener_closes_total", "reason="+conn.ReasonIdle)
}

// TestHalfAFrame: a peer that begins a frame and does not go on is closed after read_timeout.
func TestHalfAFrame(t *testing.T) {
	server := serveEach(t, func(c *peer, m wire.Message) error {
		if string(m.Content()) == "hello" {
			return echoEach(c, m)
		}
		_, err := c.Write([]byte{1, 0})
		return err
	})
	s := withSteady(t, spec(server.address))
	s.Listeners[0].ReadTimeout, s.Clusters[0].ReadTimeout = 80*time.Millisecond, 80*time.Millisecond
	s.Routes[0].Rules[0].Timeout = time.Minute
	p := startProxy(t, s, 512<<20)
	others := startNeighbours(t, p.address, steadyService)
	c := dial(t, p.address)
	c.send(frameOf(t, 1, "x")[:30])
	c.wantEnd()
	p.wantCount(1, "relevo_listener_closes_total", "reason="+conn.ReasonReadTimeout)
	c = dial(t, p.address)
	wantEcho(t, c.call(request(1, "hello")), "hello")
	p.wantLocal(c.call(request(2, "half a reply")), wire.ErrorComm, forwarder.ReasonUpstreamBroken, 1)
	p.wantCount(1, "relevo_endpoint_closes_total", "reason="+conn.ReasonReadTimeout)
	others.goOn()
}

// TestServerNeverReads: its queue fills to the high mark, then exchanges wait, then they are refused; write_timeout
// closes the connection and the endpoint is passed over: what was not sent, and what comes, goes to the other one.
func TestServerNeverReads(t *testing.T) {
	ended := make(chan struct{})
	bad := serveOn(t, narrow(t), func(*peer) { <-ended })
	defer close(ended)
	good := serveEach(t, echoEach)
	s := spec(bad.address, good.address)
	s.Clusters[0].Balancer = forwarder.BalancerRoundRobin
	s.Clusters[0].WriteTimeout, s.Clusters[0].MaxPending = 500*time.Millisecond, 3
	s.Routes[0].Rules[0].Timeout = time.Minute
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	c.send(encode(t, oneway(1, "makes a connection")), encode(t, oneway(2, "makes the other")))
	p.wantCount(2, "relevo_endpoint_connections", "state=ready") // so that none waits for one that is dialled slowly
	content := strings.Repeat("x", 60<<10)
	n := 0
	replies := make(map[uint32]wire.Message)
	for ; p.value("relevo_cluster_rejections_total", "reason="+forwarder.ReasonMaxPending) == 0; n += 2 {
		c.send(frameOf(t, uint32(n), content), frameOf(t, uint32(n+1), content))
		m := c.receive() // from the good one, or the refusal
		replies[m.ID] = m
	}
	p.wantCount(1, "relevo_endpoint_closes_total", "reason="+conn.ReasonWriteTimeout)
	for len(replies) < n {
		m := c.receive()
		if _, twice := replies[m.ID]; twice {
			t.Fatalf("got id %d twice, want each request answered once", m.ID)
		}
		replies[m.ID] = m
	}
	statuses := map[wire.Status]int{}
	for _, m := range replies {
		statuses[m.Status]++
	}
	if statuses[wire.Success] < n/2+3 || statuses[wire.Busy] == 0 || statuses[wire.ErrorComm] == 0 ||
		statuses[wire.Success]+statuses[wire.Busy]+statuses[wire.ErrorComm] != n {
		t.Errorf("got %v of %d requests, want SUCCESS for the good endpoint's half and for all that were not sent, BUSY for those refused, ERROR_COMM for those sent", statuses, n)
	}
	p.wantCount(float64(statuses[wire.ErrorComm]), "relevo_listener_local_replies_total", "reason="+forwarder.ReasonUpstreamBroken)
	// Once it is known it is passed over; only probes connect to it, of which one may not have ended.
	probes := int64(p.value("relevo_endpoint_probes_total", "endpoint="+bad.address)) + 1
	if got := int64(bad.accepted.Load()); got < 1 || got > 1+probes {
		t.Errorf("got %d connections to the server that does not read, want 1 and at most %d for probes", got, probes)
	}
}

// TestManyHalfFrames: clients that each pin a read's buffer, more of them than the budget holds, are closed until it is
// enough, and those beside them do not notice.
func TestManyHalfFrames(t *testing.T) {
	const (
		n, held = 600, 64 << 10 // what 60 KB of a frame hold
		limit   = 32 << 20
		least   = n - limit/held // to be closed
	)
	s := spec(serveEach(t, echoEach).address)
	s.Listeners[0].ReadTimeout = 10 * time.Minute
	p := startProxy(t, s, limit)
	others := startNeighbours(t, p.address, service)
	half := frameOf(t, 1, strings.Repeat("x", 62_000))[:60_000]
	clients := make([]*peer, n)
	for i := range clients {
		clients[i] = dial(t, p.address)
		_, _ = clients[i].Write(half) // it may be closed already
	}
	closed := func() float64 { return p.value("relevo_listener_closes_total") }
	eventually(t, func() bool { return closed() >= least && p.Buffered() < limit }, func() string {
		return fmt.Sprintf("at least %d of %d clients closed and less than %d bytes buffered, it is %v and %d", least, n, limit, closed(), p.Buffered())
	})
	for range 10 {
		others.goOn()
		if got := p.Buffered(); got > limit+1<<20 { // a read of each neighbour, on both sides
			t.Fatalf("got %d bytes buffered, want it to stay at the %d of the budget", got, limit)
		}
	}
	if got := closed(); got > 2*least {
		t.Errorf("got %v of %d clients closed, want hardly more than the %d that are too many", got, n, least)
	}
	p.wantCount(closed(), "relevo_listener_closes_total", "reason="+forwarder.ReasonBufferPressure)
	if len(p.logged("closed connections to make room")) == 0 {
		t.Error("got nothing logged of the closes, want the operator to know")
	}
	others.stop()
	for _, c := range clients {
		c.reset()
	}
	eventually(t, func() bool { return p.Buffered() < limit/10 }, say("the memory of those that are gone to be back"))
	startNeighbours(t, p.address, service).goOn()
}

// watch samples the buffered bytes until it is asked for the most that it saw.
func watch(p *proxy) (most func() int64) {
	var group sync.WaitGroup
	var seen atomic.Int64
	ended := make(chan struct{})
	group.Go(func() { // ends when the result is asked for
		tick := time.NewTicker(200 * time.Microsecond)
		defer tick.Stop()
		for {
			select {
			case <-ended:
				return
			case <-tick.C:
				seen.Store(max(seen.Load(), p.Buffered()))
			}
		}
	})
	end := sync.OnceFunc(func() { close(ended); group.Wait() })
	p.t.Cleanup(end)
	return func() int64 { end(); return seen.Load() }
}

// TestOneOfManyNeverReads, and one endpoint of three never answers: nobody else fails, but for the TIMEOUTs of those
// that met the silent endpoint.
func TestOneOfManyNeverReads(t *testing.T) {
	silent := serveEach(t, silentEach)
	s := spec(silent.address, serveEach(t, echoEach).address, serveEach(t, echoEach).address)
	s.Routes[0].Rules[0].Timeout = time.Second
	s.Listeners[0].WriteTimeout = time.Minute
	s.Clusters[0].WriteTimeout = time.Minute
	const limit = 64 << 20
	p := startProxy(t, s, limit)
	most := watch(p)
	replies := func() int64 { return int64(p.value("relevo_listener_replies_total")) }
	flood(t, p.address, 5000, replies) // more than any kernel takes; it ends when the gate shuts
	p.wantCount(1, "relevo_listener_connections", "state=gated")
	var group sync.WaitGroup
	for i := range 63 {
		c := dial(t, p.address)
		group.Go(func() { // ends with its last request
			for k := range uint32(30) {
				r := request(k, fmt.Sprintf("client %d request %d", i, k))
				r.Timeout = 0
				frame, err := r.Append(nil)
				if err == nil {
					_, err = c.Write(frame)
				}
				if err != nil {
					t.Errorf("client %d: %v", i, err)
					return
				}
				m, err := c.next()
				switch {
				case err != nil:
					t.Errorf("client %d: got %v, want a reply", i, err)
					return
				case m.ID == k && m.Status == wire.Timeout:
				case m.ID != k || m.Status != wire.Success || string(m.Content()) != string(r.Content):
					t.Errorf("client %d: got status %v with id %d for request %d, want its echo", i, m.Status, m.ID, k)
				}
			}
		})
	}
	group.Wait()
	p.atRest()
	p.wantCount(float64(silent.frames.Load()), "relevo_listener_local_replies_total", "reason="+forwarder.ReasonTimeout)
	p.wantCount(float64(silent.frames.Load()), "relevo_listener_local_replies_total")
	p.wantCount(0, "relevo_listener_closes_total")
	if got := most(); got > limit {
		t.Errorf("got %d bytes buffered at a time, want at most the limit of %d", got, limit)
	}
}
