package forwarder_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// load sends and verifies requests, many at once, until it is stopped; it fails the test when one of them fails.
type load struct {
	t     *testing.T
	group sync.WaitGroup
	ended atomic.Bool
	sent  atomic.Uint64
}

// startLoad runs a load until the test ends.
func startLoad(t *testing.T, address string) *load {
	l := &load{t: t}
	l.group.Go(func() { // ends when the load is stopped, or with a run that went wrong
		for !l.ended.Load() {
			r, err := bench.Run(t.Context(), bench.Options{
				Addr: address, Connections: 4, InFlight: 16, Size: 200, Count: 500, Service: service, Timeout: patience,
			})
			if err != nil || r.Failed() || r.OK != 500 {
				t.Errorf("got %d of 500 requests back right and %v, want all: %+v", r.OK, err, r)
				return
			}
			l.sent.Add(500)
		}
	})
	t.Cleanup(l.stop)
	return l
}

func (l *load) stop() {
	l.ended.Store(true)
	l.group.Wait()
}

// goOn waits until a whole round has been sent and served.
func (l *load) goOn() {
	l.t.Helper()
	from := l.sent.Load()
	eventually(l.t, func() bool { return l.sent.Load() >= from+1000 || l.t.Failed() }, say("the load to go on"))
}

// TestMaxAge: old connections are replaced under load, and no request notices, one-way ones included.
func TestMaxAge(t *testing.T) {
	var oneways atomic.Int64
	server := serveEach(t, func(c *peer, m wire.Message) error {
		if m.Kind == wire.Oneway {
			oneways.Add(1)
		}
		return echoEach(c, m)
	})
	s := spec(server.address)
	s.Clusters[0].MaxAge, s.Clusters[0].ConnectionsPerEndpoint = 200*time.Millisecond, 2
	s.Routes[0].Rules[0].Attempts = 1 // no retry hides a failure
	p := startProxy(t, s, 512<<20)
	load := startLoad(t, p.address)
	c := dial(t, p.address)
	sent := int64(0)
	for p.value("relevo_endpoint_closes_total", "reason="+forwarder.ReasonMaxAge) < 6 && !t.Failed() {
		c.send(encode(t, oneway(1, "one-way")))
		wantEcho(t, c.call(request(2, "a call")), "a call")
		sent++
	}
	load.goOn()
	load.stop()
	p.wantCount(p.value("relevo_endpoint_closes_total", "reason="+forwarder.ReasonMaxAge), "relevo_endpoint_closes_total")
	p.wantCount(0, "relevo_listener_local_replies_total")
	p.wantCount(0, "relevo_endpoint_failures")
	eventually(t, func() bool { return oneways.Load() == sent }, func() string {
		return fmt.Sprintf("all of %d one-way requests at the server, it has %d", sent, oneways.Load())
	})
}

// TestMaxAgeOfIdleConnections: nobody sends anything, and the endpoint stays in good standing.
func TestMaxAgeOfIdleConnections(t *testing.T) {
	server := serveEach(t, echoEach)
	s := spec(server.address)
	s.Clusters[0].MaxAge = 40 * time.Millisecond
	p := startProxy(t, s, 512<<20)
	wantEcho(t, dial(t, p.address).call(request(1, "hello")), "hello")
	eventually(t, func() bool { return p.value("relevo_endpoint_closes_total", "reason="+forwarder.ReasonMaxAge) >= 6 }, say("6 old connections replaced"))
	p.wantCount(0, "relevo_endpoint_failures")
	p.wantCount(0, "relevo_endpoint_probes_total")
}

// TestMaxAgeWithoutRoom: where no connection may be made beside it, the old one stays.
func TestMaxAgeWithoutRoom(t *testing.T) {
	server := serveEach(t, echoEach)
	s := spec(server.address)
	s.Clusters[0].MaxAge, s.Clusters[0].MaxConnections = 20*time.Millisecond, 1
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	began := time.Now()
	for i := uint32(0); time.Since(began) < 300*time.Millisecond; i++ { // it is asked again every 10 ms
		wantEcho(t, c.call(request(i, "on the old one")), "on the old one")
	}
	if got := server.accepted.Load(); got != 1 {
		t.Errorf("got %d connections where one may be, want the old one to stay", got)
	}
	p.wantCount(1, "relevo_endpoint_connections", "state=ready")
}

// TestDrainEndpoint under load: the drained one gets nothing more, ends what it has, and closes; then it is let in again.
func TestDrainEndpoint(t *testing.T) {
	first, second := serveEach(t, echoEach), serveEach(t, echoEach)
	s := spec(first.address, second.address)
	s.Clusters[0].Balancer, s.Clusters[0].ConnectionsPerEndpoint = forwarder.BalancerRoundRobin, 2
	s.Routes[0].Rules[0].Attempts = 1 // no retry hides a failure
	p := startProxy(t, s, 512<<20)
	load := startLoad(t, p.address)
	for range 3 {
		from := first.frames.Load()
		eventually(t, func() bool { return first.frames.Load() > from || t.Failed() }, say("requests at the endpoint that is let in"))
		p.drainEndpoint(s, 0, true)
		if st := p.Status().Clusters[0].Endpoints[0]; !st.Draining || st.Usable || st.Failures != 0 {
			t.Errorf("got the status %+v, want it to drain and not to have failed", st)
		}
		p.wantCount(1, "relevo_endpoint_drained", "endpoint="+first.address)
		p.wantCount(0, "relevo_endpoint_connections", "endpoint="+first.address)
		got := first.frames.Load()
		load.goOn()
		if now := first.frames.Load(); now != got {
			t.Errorf("got %d requests at the drained endpoint once its connections had closed, want none", now-got)
		}
		p.drainEndpoint(s, 0, false)
	}
	load.stop()
	p.wantCount(p.value("relevo_endpoint_closes_total", "reason="+forwarder.ReasonEndpointDrained), "relevo_endpoint_closes_total")
	p.wantSome("relevo_endpoint_closes_total", "reason="+forwarder.ReasonEndpointDrained)
	p.wantCount(0, "relevo_listener_local_replies_total")
	p.wantCount(0, "relevo_endpoint_drained")
}

// TestDrainEndpointWaitsForReplies: the connection stays until its last reply has come.
func TestDrainEndpointWaitsForReplies(t *testing.T) {
	h := serveHeld(t)
	s := spec(h.address)
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	c.send(frameOf(t, 1, "in flight"))
	h.got(t, 1)
	p.drainEndpoint(s, 0, true)
	p.wantCount(1, "relevo_endpoint_connections", "state=draining")
	p.wantLocal(c.call(request(2, "nowhere to go")), wire.ErrorComm, forwarder.ReasonNoEndpoint, 1)
	h.release()
	wantEcho(t, c.receive(), "in flight")
	p.wantCount(1, "relevo_endpoint_closes_total", "reason="+forwarder.ReasonEndpointDrained)
	p.wantCount(0, "relevo_cluster_connections")
}

// TestDrainEndpointWithWaiters: who waits for a connection to it goes elsewhere, and that counts as no try.
func TestDrainEndpointWithWaiters(t *testing.T) {
	dead, good := blackhole(t), serveEach(t, echoEach)
	s := spec(dead, good.address)
	s.Clusters[0].Balancer, s.Clusters[0].ConnectTimeout = forwarder.BalancerRoundRobin, time.Minute
	s.Routes[0].Rules[0].Timeout, s.Routes[0].Rules[0].Attempts = time.Minute, 1
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	const n = 20
	for id := range uint32(n) {
		c.send(frameOf(t, id, "anywhere"))
	}
	p.wantCount(n/2, "relevo_cluster_pending")
	p.drainEndpoint(s, 0, true)
	for _, m := range c.receiveByID(n) {
		wantEcho(t, m, "anywhere")
	}
	p.wantCount(0, "relevo_route_retries_total")
	p.wantCount(0, "relevo_listener_local_replies_total")
}

// TestDrainedFromTheStart: an endpoint that is to drain from the start, or as soon as it is configured, gets nothing.
func TestDrainedFromTheStart(t *testing.T) {
	first, second, third := serveEach(t, echoEach), serveEach(t, echoEach), serveEach(t, echoEach)
	s := spec(first.address, second.address)
	s.Clusters[0].Balancer = forwarder.BalancerRoundRobin
	s.Clusters[0].Endpoints[0].Drain = true
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	for id := range uint32(6) {
		wantEcho(t, c.call(request(id, "not to the first")), "not to the first")
	}
	s.Clusters[0].Endpoints = append(s.Clusters[0].Endpoints, forwarder.EndpointSpec{Network: "tcp", Address: third.address, Weight: 100, Drain: true})
	if err := p.Apply(s, kept); err != nil {
		t.Fatal(err)
	}
	for id := range uint32(6) {
		wantEcho(t, c.call(request(id, "nor to the third")), "nor to the third")
	}
	if a, b, c := first.frames.Load(), second.frames.Load(), third.frames.Load(); a != 0 || b != 12 || c != 0 {
		t.Errorf("got %d, %d and %d requests at the endpoints, want all 12 at the second: the others drain", a, b, c)
	}
	p.wantCount(2, "relevo_endpoint_drained")
	p.wantCount(0, "relevo_listener_local_replies_total")
}

// TestDrainForAnother under load: the endpoint that comes in the place of one that drains is known in time, so that no request
// finds none.
func TestDrainForAnother(t *testing.T) {
	a, b := serveEach(t, echoEach), serveEach(t, echoEach)
	s := spec(a.address)
	s.Routes[0].Rules[0].Attempts = 1 // no retry hides a failure
	p := startProxy(t, s, 512<<20)
	load := startLoad(t, p.address)
	for i := range 30 {
		next := spec(a.address, b.address)
		next.Routes[0].Rules[0].Attempts = 1
		next.Clusters[0].Endpoints[i%2].Drain = true
		if i%3 == 0 {
			next.Clusters[0].Endpoints = next.Clusters[0].Endpoints[1-i%2:][:1] // the other one is new in the next round
			next.Clusters[0].Endpoints[0].Drain = false
		}
		if err := p.Apply(next, kept); err != nil {
			t.Fatal(err)
		}
		if i%10 == 9 {
			load.goOn()
		}
	}
	load.stop()
	p.wantCount(0, "relevo_listener_local_replies_total")
}

// drainEndpoint has an endpoint of the first cluster drain, or not.
func (p *proxy) drainEndpoint(s *forwarder.Spec, endpoint int, drain bool) {
	p.t.Helper()
	s.Clusters[0].Endpoints[endpoint].Drain = drain
	if err := p.Apply(s, kept); err != nil {
		p.t.Fatal(err)
	}
}

// TestDrainFollowsTheConfiguration over a hand-over: what the old process had drain serves again where the new one's configuration
// says nothing of it, and what that has drain delivers its replies and closes.
func TestDrainFollowsTheConfiguration(t *testing.T) {
	served, held := serveEach(t, echoEach), serveHeld(t)
	s := spec(served.address, held.address)
	s.Clusters[0].Endpoints[0].Drain = true
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	c.send(frameOf(t, 1, "in flight"))
	held.got(t, 1)
	next := spec(served.address, held.address)
	next.Clusters[0].Endpoints[1].Drain = true
	crossings["handed over"](p, next)
	wantEcho(t, c.call(request(2, "serves again")), "serves again")
	p.wantCount(1, "relevo_endpoint_connections", "state=draining", "endpoint="+held.address)
	p.wantCount(1, "relevo_endpoint_drained")
	held.release()
	wantEcho(t, c.receive(), "in flight")
	p.wantCount(1, "relevo_endpoint_closes_total", "reason="+forwarder.ReasonEndpointDrained)
}
