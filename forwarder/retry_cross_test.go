package forwarder_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/route"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// idempotentSpec is a road with a rule that tries again on all conditions.
func idempotentSpec(endpoints ...string) *forwarder.Spec {
	s := spec(endpoints...)
	r := &s.Routes[0].Rules[0]
	r.RetryOn |= forwarder.RetryReset | forwarder.RetryBusy | forwarder.RetryTimeout
	r.Idempotent, r.Timeout, r.PerTryTimeout = true, patience, patience
	s.Clusters[0].RetryFloor, s.Clusters[0].MaxRetryBytes = 10, 1<<20
	return s
}

// TestCrossCopyInFlight: the request is sent again by whoever has the road when its connection ends.
func TestCrossCopyInFlight(t *testing.T) {
	eachCrossing(t, func(t *testing.T, cross func(*proxy, *forwarder.Spec)) {
		breaks := make(chan struct{})
		server := serveEach(t, func(c *peer, m wire.Message) error {
			if c.number == 1 && string(m.Content()) == "sent twice" {
				<-breaks
				c.reset()
				return errStop
			}
			return echoEach(c, m)
		})
		s := idempotentSpec(server.address)
		p := startProxy(t, s, 512<<20)
		c := dial(t, p.address)
		wantEcho(t, c.call(request(1, "makes the connection")), "makes the connection")
		c.send(frameOf(t, 2, "sent twice"))
		server.got(t, 2)
		cross(p, s)
		p.wantCount(4096, "relevo_cluster_retry_bytes")
		close(breaks)
		wantEcho(t, c.receive(), "sent twice")
		if n := server.frames.Load(); n != 3 {
			t.Errorf("got %d frames at the server, want the first request once and the second one twice", n)
		}
	})
}

// TestCrossTry: a try's time does not begin anew.
func TestCrossTry(t *testing.T) {
	eachCrossing(t, func(t *testing.T, cross func(*proxy, *forwarder.Spec)) {
		var asked atomic.Int64
		server := serveEach(t, func(c *peer, m wire.Message) error {
			if string(m.Content()) == "slow at first" && asked.Add(1) == 1 {
				return nil
			}
			return echoEach(c, m)
		})
		s := idempotentSpec(server.address)
		s.Routes[0].Rules[0].PerTryTimeout = 100 * time.Millisecond
		p := startProxy(t, s, 512<<20)
		c := dial(t, p.address)
		wantEcho(t, c.call(request(1, "makes the connection")), "makes the connection")
		from := time.Now()
		c.send(frameOf(t, 2, "slow at first"))
		server.got(t, 2)
		cross(p, s)
		wantEcho(t, c.receive(), "slow at first")
		if d := time.Since(from); d < 100*time.Millisecond {
			t.Errorf("got the second try's reply %v behind the request, want it behind the 100 ms of the first", d)
		}
	})
}

// TestCrossWhileItWaits: the tries that a request has had are not forgotten while it waits for the next one.
func TestCrossWhileItWaits(t *testing.T) {
	eachCrossing(t, func(t *testing.T, cross func(*proxy, *forwarder.Spec)) {
		server := serveEach(t, func(c *peer, m wire.Message) error {
			if string(m.Content()) == "too much" {
				return c.reply(m, wire.Busy, nil)
			}
			return echoEach(c, m)
		})
		s := idempotentSpec(server.address)
		s.Routes[0].Rules[0].BackOffBase, s.Routes[0].Rules[0].BackOffMax = 50*time.Millisecond, 50*time.Millisecond
		p := startProxy(t, s, 512<<20)
		c := dial(t, p.address)
		wantEcho(t, c.call(request(1, "makes the connection")), "makes the connection")
		const n = 8 // so that some do wait
		for id := range uint32(n) {
			c.send(frameOf(t, 10+id, "too much"))
		}
		server.got(t, 1+n)
		cross(p, s)
		for _, m := range c.receiveByID(n) {
			if m.Status != wire.Busy {
				t.Errorf("got the status %v, want what the server said", m.Status)
			}
		}
		if got := server.frames.Load(); got != 1+2*n {
			t.Errorf("got %d frames at the server, want each of %d requests twice, and one before them", got, n)
		}
	})
}

// TestCrossWithLowPriority: what was admitted once, and waits to be tried again, is not refused because others have taken by then what
// low priority leaves to them.
func TestCrossWithLowPriority(t *testing.T) {
	var tries atomic.Int64
	var replies sync.WaitGroup
	release := make(chan struct{})
	server := serveEach(t, func(c *peer, m wire.Message) error {
		switch {
		case string(m.Content()) == "held":
			replies.Go(func() { // ends with release
				<-release
				_ = c.reply(m, wire.Success, m.Content())
			})
			return nil
		case tries.Add(1) == 1:
			return c.reply(m, wire.Busy, nil)
		}
		return echoEach(c, m)
	})
	s := idempotentSpec(server.address)
	low := &s.Routes[0].Rules[0]
	low.Timeout, low.BackOffBase, low.BackOffMax = time.Minute, 50*time.Second, 50*time.Second // of which the test takes a small part
	others := *low
	others.Name, others.Match, low.Priority = "others", route.Match{}, forwarder.PriorityLow
	s.Routes[0].Rules = append(s.Routes[0].Rules, others)
	s.Clusters[0].MaxRequests = 5
	p := startProxy(t, s, 512<<20)
	c, other := dial(t, p.address), dial(t, p.address)
	c.send(frameOf(t, 1, "low"))
	eventually(t, func() bool { return tries.Load() > 0 && p.value("relevo_cluster_retries_waiting") == 1 }, say("the request to wait for its next try"))
	const n = 4
	for id := range uint32(n) {
		r := request(id, "held")
		r.Headers[0].Value = "com.example.Other:1.0"
		other.send(encode(t, r))
	}
	server.got(t, 1+n)
	p.handOver(s)
	wantEcho(t, c.receive(), "low")
	close(release)
	for _, m := range other.receiveByID(n) {
		wantEcho(t, m, "held")
	}
	replies.Wait()
}

// TestCrossForNobody: what waits to be sent again is not, when its client has left meanwhile.
func TestCrossForNobody(t *testing.T) {
	server := serveEach(t, func(c *peer, m wire.Message) error { return c.reply(m, wire.Busy, nil) })
	s := idempotentSpec(server.address)
	r := &s.Routes[0].Rules[0]
	r.Timeout, r.BackOffBase, r.BackOffMax = time.Minute, 50*time.Second, 50*time.Second // of which the test takes a small part
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	const n = 8
	for id := range uint32(n) {
		c.send(frameOf(t, 1+id, "too much"))
	}
	server.got(t, n)
	eventually(t, func() bool { return p.value("relevo_cluster_retries_waiting") > n/2 }, say("requests that wait to be sent again"))
	c.hangUp()
	eventually(t, func() bool { return p.value("relevo_listener_connections") == 0 }, say("the client to be gone"))
	before := server.frames.Load()
	p.handOver(s)
	p.atRest()
	if got := server.frames.Load() - before; got > n/4 {
		t.Errorf("got %d requests of a client that has left sent again, want none but those whose time came", got)
	}
}

// TestCrossToARuleThatIsNotIdempotent: what another process has sent is not sent again where the rule does not want that any more.
func TestCrossToARuleThatIsNotIdempotent(t *testing.T) {
	breaks := make(chan struct{})
	server := serveEach(t, func(c *peer, m wire.Message) error {
		if string(m.Content()) == "sent once" {
			<-breaks
			c.reset()
			return errStop
		}
		return echoEach(c, m)
	})
	p := startProxy(t, idempotentSpec(server.address), 512<<20)
	c := dial(t, p.address)
	c.send(frameOf(t, 1, "sent once"))
	server.got(t, 1)
	p.handOver(spec(server.address))
	p.wantCount(0, "relevo_cluster_retry_bytes")
	close(breaks)
	p.wantLocal(c.receive(), wire.ErrorComm, forwarder.ReasonUpstreamClosed, 1)
}
