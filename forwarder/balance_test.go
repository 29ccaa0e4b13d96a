package forwarder_test

import (
	"fmt"
	"math"
	"sync/atomic"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/cluster"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// TestBalance sends one request after the other to three servers of weights 1, 2 and 3.
func TestBalance(t *testing.T) {
	for _, balancer := range []string{forwarder.BalancerRoundRobin, forwarder.BalancerLeastRequest, forwarder.BalancerRandom} {
		t.Run(balancer, func(t *testing.T) {
			servers := []*server{serveEach(t, echoEach), serveEach(t, echoEach), serveEach(t, echoEach)}
			s := spec(servers[0].address, servers[1].address, servers[2].address)
			s.Clusters[0].Balancer = balancer
			for i := range servers {
				s.Clusters[0].Endpoints[i].Weight = i + 1
			}
			p := startProxy(t, s, 512<<20)
			c := dial(t, p.address)
			const n = 3000
			for i := range n {
				wantEcho(t, c.call(request(uint32(i), "one")), "one")
			}
			for i, server := range servers {
				share := float64(i+1) / 6
				slack := 0.0 // round robin is exact
				if balancer != forwarder.BalancerRoundRobin {
					slack = 6 * math.Sqrt(n*share*(1-share)) // six times the standard deviation
				}
				if got := float64(server.frames.Load()); math.Abs(got-n*share) > slack {
					t.Errorf("got %v of %d requests at the server of weight %d, want %v give or take %.0f", got, n, i+1, n*share, slack)
				}
			}
		})
	}
}

// TestLeastRequestsAvoidsTheBusy: who has requests under way gets no more while others have none.
func TestLeastRequestsAvoidsTheBusy(t *testing.T) {
	h := serveHeld(t)
	good := serveEach(t, echoEach)
	p := startProxy(t, spec(h.address, good.address), 512<<20)
	c := dial(t, p.address)
	for id := uint32(1); h.frames.Load() == 0; id++ {
		c.send(frameOf(t, id, "which one?"))
		p.wantCount(float64(id), "relevo_endpoint_requests_total")
		eventually(t, func() bool { return h.frames.Load()+good.frames.Load() >= int64(id) }, say("request %d at a server", id))
		if h.frames.Load() == 0 {
			c.receive()
		}
	}
	for i := range uint32(100) {
		wantEcho(t, c.call(request(1000+i, "the other")), "the other")
	}
	h.release()
	wantEcho(t, c.receive(), "which one?")
	if got := h.frames.Load(); got != 1 {
		t.Errorf("got %d requests at the busy server, want 1: the other one was always idle", got)
	}
}

// TestConnectionsPerEndpoint are opened by need: none before the first request, one while one is enough, and never more
// than may be.
func TestConnectionsPerEndpoint(t *testing.T) {
	h := serveHeld(t)
	s := spec(h.address)
	s.Clusters[0].ConnectionsPerEndpoint = 4
	s.Routes[0].Rules[0].Timeout = time.Minute
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	c.send(heartbeat(t, 0, 0))
	c.receive()
	if got := h.accepted.Load(); got != 0 {
		t.Fatalf("got %d connections to the server before the first request, want none", got)
	}
	c.send(frameOf(t, 1, "held"))
	h.got(t, 1)
	p.wantCount(1, "relevo_cluster_connections")
	sent := 1
	for p.value("relevo_endpoint_connections", "state=ready") < 4 { // each dial is asked for by a request that finds all busy
		if sent++; sent > 1000 {
			t.Fatalf("got %v connections after %d requests in flight, want 4", p.value("relevo_endpoint_connections", "state=ready"), sent)
		}
		c.send(frameOf(t, uint32(sent), "held"))
		h.got(t, int64(sent))
		p.wantCount(0, "relevo_endpoint_connections", "state=dialling")
	}
	for range 20 {
		sent++
		c.send(frameOf(t, uint32(sent), "held"))
	}
	h.got(t, int64(sent))
	p.wantCount(4, "relevo_cluster_connections")
	h.release()
	for _, m := range c.receiveByID(sent) {
		wantEcho(t, m, "held")
	}
	if got := h.accepted.Load(); got != 4 {
		t.Errorf("got %d connections to the server, want the 4 that may be", got)
	}
}

// TestLoadSpreads: requests in flight are spread evenly over the connections that they have opened.
func TestLoadSpreads(t *testing.T) {
	const most, n = 3, 300
	var on [most]atomic.Int64
	server := serveEach(t, func(c *peer, m wire.Message) error {
		if m.Kind == wire.Request {
			on[min(c.number, most)-1].Add(1)
		}
		return nil
	})
	s := spec(server.address)
	s.Clusters[0].ConnectionsPerEndpoint = most
	s.Routes[0].Rules[0].Timeout = patience
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	sent := int64(0)
	for sent < n { // one after the other: workers that choose at once see the same counts
		sent++
		c.send(frameOf(t, uint32(sent), "held"))
		server.got(t, sent)
		p.wantCount(0, "relevo_endpoint_connections", "state=dialling")
	}
	for i := range on {
		if got := on[i].Load(); got < n/most-1 || got > n/most+1 {
			t.Errorf("got %d of %d requests in flight on connection %d, want %d, give or take 1", got, n, i+1, n/most)
		}
	}
	if got := server.accepted.Load(); got != most {
		t.Errorf("got %d connections under load, want the %d that may be", got, most)
	}
	server.stop() // and with it the requests
	c.receiveByID(n)
}

// TestOneConnectionIsEnough: one request at a time needs one connection, however many may be.
func TestOneConnectionIsEnough(t *testing.T) {
	server := serveEach(t, echoEach)
	s := spec(server.address)
	s.Clusters[0].ConnectionsPerEndpoint = 4
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	for i := range 200 {
		wantEcho(t, c.call(request(uint32(i), "one")), "one")
	}
	if got := server.accepted.Load(); got != 1 {
		t.Errorf("got %d connections for a client that sends one request at a time, want 1", got)
	}
}

// TestOneDialAtATime, however many wait for it.
func TestOneDialAtATime(t *testing.T) {
	s := spec(blackhole(t))
	s.Clusters[0].ConnectionsPerEndpoint, s.Clusters[0].ConnectTimeout = 4, 300*time.Millisecond
	p := startProxy(t, s, 512<<20)
	const n = 50
	var clients []*peer
	for i := range n {
		c := dial(t, p.address)
		c.send(frameOf(t, uint32(i), fmt.Sprint("waits ", i)))
		clients = append(clients, c)
	}
	p.wantCount(n, "relevo_cluster_pending")
	p.wantCount(1, "relevo_endpoint_connections", "state=dialling")
	p.wantCount(1, "relevo_cluster_connections")
	for _, c := range clients {
		if m := c.receive(); m.Status != wire.ErrorComm {
			t.Errorf("got status %v, want ERROR_COMM: the endpoint cannot be connected", m.Status)
		}
	}
	p.wantCount(1, "relevo_endpoint_connect_failures_total")
}

// TestPanicOnTheRoad: requests go to endpoints that are thought to be bad where too few others are left, and only there.
func TestPanicOnTheRoad(t *testing.T) {
	bad, drained := serveEach(t, echoEach), serveEach(t, echoEach)
	s := spec(bad.address, drained.address)
	s.Clusters[0].Endpoints[1].Drain = true
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	wantEcho(t, c.call(request(1, "all is well")), "all is well")
	p.Know(0, cluster.Health{Unhealthy: true})
	p.wantLocal(c.call(request(2, "nobody")), wire.ErrorComm, forwarder.ReasonNoEndpoint, 1)

	next := *s
	next.Clusters = []forwarder.ClusterSpec{s.Clusters[0]}
	next.Clusters[0].PanicThreshold = 50_00
	if err := p.Apply(&next, kept); err != nil {
		t.Fatal(err)
	}
	p.wantCount(1, "relevo_cluster_panic")
	wantEcho(t, c.call(request(3, "better than nobody")), "better than nobody")
	p.Know(0, cluster.Health{})
	p.wantCount(0, "relevo_cluster_panic")
	if got := drained.frames.Load(); got != 0 {
		t.Errorf("got %d requests at the endpoint that is drained, want none", got)
	}
}

// TestSlowStartOnTheRoad: half of the time of a slow start has passed, so that the endpoint gets 55 turns where the other gets 100.
func TestSlowStartOnTheRoad(t *testing.T) {
	slow, other := serveEach(t, echoEach), serveEach(t, echoEach)
	s := spec(slow.address, other.address)
	s.Clusters[0].Balancer = forwarder.BalancerRoundRobin
	p := startProxy(t, s, 512<<20)
	p.Know(0, cluster.Health{WarmSince: 1, WarmUntil: 2 * p.Now()})
	c := dial(t, p.address)
	const n = 400
	for i := range uint32(n) {
		wantEcho(t, c.call(request(i, "one")), "one")
	}
	if got := slow.frames.Load(); got < n*25/100 || got > n*45/100 {
		t.Errorf("got %d of %d requests at the endpoint in its slow start, want about %d", got, n, n*55/155)
	}
}
