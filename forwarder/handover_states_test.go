package forwarder_test

import (
	"context"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// TestCrossInFlight: requests that wait for their replies get them, once, under the ids that their client gave; further ones
// get ids of the same connection that none of them has.
func TestCrossInFlight(t *testing.T) {
	eachCrossing(t, func(t *testing.T, cross func(*proxy, *forwarder.Spec)) {
		ids := make(chan uint32, 100)
		held := make(chan struct{})
		var asked []wire.Message
		server := serveEach(t, func(p *peer, m wire.Message) error {
			if m.Kind != wire.Request {
				return echoEach(p, m)
			}
			ids <- m.ID
			asked = append(asked, m)
			select {
			case <-held:
			default:
				return nil
			}
			for ; len(asked) > 0; asked = asked[1:] {
				if err := echoEach(p, asked[0]); err != nil {
					return err
				}
			}
			return nil
		})
		s := spec(server.address)
		p := startProxy(t, s, 512<<20)
		c := dial(t, p.address)
		for id := range uint32(5) {
			c.send(frameOf(t, id, "before"))
		}
		server.got(t, 5)
		cross(p, s)
		last := uint32(0)
		for range 5 {
			last = max(last, <-ids)
		}
		close(held)
		c.send(frameOf(t, 5, "behind"), frameOf(t, 6, "behind"))
		replies := c.receiveByID(7)
		for id, want := range []string{"before", "before", "before", "before", "before", "behind", "behind"} {
			wantEcho(t, replies[uint32(id)], want)
		}
		if one, two := <-ids, <-ids; one <= last || two <= last || one == two {
			t.Errorf("got the ids %d and %d behind ids up to %d at the server, want them to go on counting", one, two, last)
		}
		if n := server.accepted.Load(); n != 1 {
			t.Errorf("got %d connections at the server, want one", n)
		}
	})
}

// TestCrossInFilter: an exchange that is inside a filter that blocks, on the way there or back, is inside it again and ends as
// usual; those that wait for a worker meanwhile wait on. Each reaches its server once.
func TestCrossInFilter(t *testing.T) {
	for _, phase := range filterPhases {
		t.Run(phase, func(t *testing.T) {
			eachCrossing(t, func(t *testing.T, cross func(*proxy, *forwarder.Spec)) {
				server := serveEach(t, echoEach)
				s := spec(server.address)
				s.Workers = forwarder.WorkersSpec{Max: 2, Queue: 20}
				let := make(chan struct{})
				entered := new(atomic.Int64)
				var again atomic.Int64
				s.Listeners[0].Filters = blockingIn(phase, func(ctx context.Context, x *filter.Exchange) filter.Verdict {
					entered.Add(1)
					if x.Elapsed > 0 {
						again.Add(1)
					}
					select {
					case <-let:
					case <-ctx.Done():
					}
					return filter.Continue
				})
				s.Routes[0].Rules[0].Timeout = patience
				p := startProxy(t, s, 512<<20)
				c := dial(t, p.address)
				const n = 6
				for id := range uint32(n) {
					c.send(frameOf(t, id, "held"))
				}
				c.send(encode(t, oneway(100, "nobody waits")))
				eventually(t, func() bool { return entered.Load() >= 2 }, say("two exchanges inside the filter"))
				cross(p, s)
				eventually(t, func() bool { return again.Load() >= 1 }, say("the filter to be asked again, and to be told for how long it has been asked"))
				close(let)
				for _, m := range c.receiveByID(n) {
					wantEcho(t, m, "held")
				}
				server.got(t, n+1)
				p.wantNoWork()
				if got := server.frames.Load(); got != n+1 {
					t.Errorf("got %d frames at the server, want each of %d requests once", got, n+1)
				}
			})
		})
	}
}

// TestCrossWhileItIsDialled: who waits for a connection waits for the next one. That the pause ended the dial is no failure of
// the endpoint, nor a try.
func TestCrossWhileItIsDialled(t *testing.T) {
	eachCrossing(t, func(t *testing.T, cross func(*proxy, *forwarder.Spec)) {
		address, accept := slowToAccept(t)
		s := spec(address)
		s.Clusters[0].ConnectTimeout = patience
		s.Routes[0].Rules[0].Timeout, s.Routes[0].Rules[0].Attempts = patience, 2
		p := startProxy(t, s, 512<<20)
		c := dial(t, p.address)
		c.send(frameOf(t, 1, "waits"), encode(t, oneway(2, "waits, too")))
		p.wantCount(2, "relevo_cluster_pending")
		cross(p, s)
		p.wantCount(2, "relevo_cluster_pending")
		server := accept()
		wantEcho(t, c.receive(), "waits")
		server.got(t, 2)
		p.wantCount(0, "relevo_endpoint_connect_failures_total")
		p.wantCount(0, "relevo_route_retries_total")
	})
}

// TestCrossDraining: a connection that drains goes on draining: it takes no further request, delivers what is due and closes for
// the reason that it began with.
func TestCrossDraining(t *testing.T) {
	for _, reason := range []string{forwarder.ReasonGoAway, forwarder.ReasonEndpointDrained} {
		t.Run(reason, func(t *testing.T) {
			eachCrossing(t, func(t *testing.T, cross func(*proxy, *forwarder.Spec)) {
				let := make(chan struct{})
				server := serve(t, func(c *peer) {
					for m, err := c.next(); err == nil; m, err = c.next() {
						if c.number == 1 {
							if reason == forwarder.ReasonGoAway {
								c.send(goAway())
							}
							<-let
						}
						if echoEach(c, m) != nil {
							return
						}
					}
				})
				other := serveEach(t, echoEach)
				s := spec(server.address, other.address)
				s.Clusters[0].Balancer = forwarder.BalancerRoundRobin
				p := startProxy(t, s, 512<<20)
				c := dial(t, p.address)
				id := uint32(0)
				for ; server.accepted.Load() == 0; id++ {
					c.send(frameOf(t, id, "before"))
					<-time.After(5 * time.Millisecond)
				}
				if reason == forwarder.ReasonEndpointDrained {
					p.drainEndpoint(s, 0, true)
				}
				p.wantCount(1, "relevo_endpoint_connections", "state=draining")
				cross(p, s)
				p.wantCount(1, "relevo_endpoint_connections", "state=draining")
				c.send(frameOf(t, id, "behind"))
				close(let)
				c.receiveByID(int(id) + 1)
				p.wantCount(1, "relevo_endpoint_closes_total", "reason="+reason)
				p.wantCount(1, "relevo_endpoint_closes_total")
			})
		})
	}
}

// TestCrossDetecting: a client whose first bytes do not tell its protocol yet tells it later.
func TestCrossDetecting(t *testing.T) {
	eachCrossing(t, func(t *testing.T, cross func(*proxy, *forwarder.Spec)) {
		s := autoSpec(t)
		p := startProxy(t, s, 512<<20)
		frame := frameOf(t, 1, "detected")
		silent, one, two := dial(t, p.address), dial(t, p.address), dial(t, p.address)
		r := request(1, "detected")
		r.Version, r.Headers[0].Value = bolt.V2, prefixedService
		prefixed := append([]byte(prefix), encode(t, r)...)
		v2 := encode(t, bolt.Request{Version: bolt.V2, Codec: bolt.CodecHessian2, ID: 1, Timeout: 60_000, Headers: request(1, "").Headers, Content: []byte("detected")})
		one.send(v2[:1])
		two.send(prefixed[:1])
		p.wantCount(3, "relevo_listener_connections")
		p.reading(2)
		cross(p, s)
		one.send(v2[1:])
		two.send(prefixed[1:])
		silent.send(frame)
		wantEcho(t, one.receive(), "detected")
		wantEcho(t, two.receiveAs(true), "detected")
		wantEcho(t, silent.receive(), "detected")
		p.wantCount(0, "relevo_listener_closes_total")
	})
}

// TestCrossClientsGone: a client that has left loses its replies, and only them; its one-way requests arrive.
func TestCrossClientsGone(t *testing.T) {
	eachCrossing(t, func(t *testing.T, cross func(*proxy, *forwarder.Spec)) {
		h := serveHeld(t)
		s := autoSpec(t)
		s.Clusters[0].Endpoints[0].Address = h.address
		s.Workers = forwarder.WorkersSpec{Max: 2, Queue: 20}
		let := make(chan struct{})
		s.Listeners[0].Filters = blockingIn("before", func(ctx context.Context, x *filter.Exchange) filter.Verdict {
			if x.Message.Kind == wire.Oneway {
				select {
				case <-let:
				case <-ctx.Done():
				}
			}
			return filter.Continue
		})
		p := startProxy(t, s, 512<<20)
		stays, goes := dial(t, p.address), dial(t, p.address)
		stays.send(frameOf(t, 1, "stays"))
		h.got(t, 1)
		r := oneway(2, "in the second protocol")
		r.Headers[0].Value = prefixedService
		goes.send([]byte(prefix), encode(t, r), []byte(prefix), encode(t, r))
		eventually(t, func() bool { return p.UnderWay()+int(p.value("relevo_worker_queue")) > 0 }, say("the one-way requests to be held"))
		goes.hangUp()
		p.wantCount(1, "relevo_listener_closes_total")
		cross(p, s)
		close(let)
		h.release()
		wantEcho(t, stays.receive(), "stays")
		p.wantCount(2, "relevo_endpoint_requests_total", "kind=oneway")
		p.wantCount(0, "relevo_recovered_panics_total")
	})
}

// slowToAccept is the address of an echo server that can be connected only once accept was called.
func slowToAccept(t *testing.T) (address string, accept func() *server) {
	t.Helper()
	fd, address := fullBacklog(t)
	return address, func() *server {
		t.Helper()
		own, err := syscall.Dup(fd)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(own), "listens")
		defer f.Close()
		l, err := net.FileListener(f)
		if err != nil {
			t.Fatal(err)
		}
		return serveEachOn(t, l, echoEach)
	}
}

// TestCrossClosing: a connection that closes when all is sent gets all of it, and closes for the reason that it began with.
func TestCrossClosing(t *testing.T) {
	eachCrossing(t, func(t *testing.T, cross func(*proxy, *forwarder.Spec)) {
		s := spec(serveEach(t, echoEach).address)
		s.Listeners[0].QueueHigh, s.Listeners[0].QueueLow, s.Listeners[0].MaxQueued = 32<<20, 16<<20, 64<<20 // it is read from still
		s.Routes[0].Rules[0].Timeout = patience
		p := startProxy(t, s, 512<<20)
		c := dial(t, p.address)
		const n = 60
		content := strings.Repeat("x", 200_000)
		for id := range uint32(n) {
			c.send(frameOf(t, id, content))
		}
		p.wantCount(n, "relevo_listener_requests_total")
		p.atRest() // all replies are queued
		c.send([]byte("this is no frame"))
		p.wantLogged(wire.ReasonBadProtocol)
		p.wantCount(1, "relevo_listener_connections") // the client has not taken all
		cross(p, s)
		for _, m := range c.receiveByID(n) {
			wantEcho(t, m, content)
		}
		c.wantEnd()
		p.wantCount(1, "relevo_listener_closes_total", "reason="+wire.ReasonBadProtocol)
	})
}

// letIn is a connection filter that is asked about new connections only, and counts how often.
type letIn struct{ asked atomic.Int64 }

func (*letIn) Name() string                 { return "let-in" }
func (f *letIn) New(*filter.Connection) any { return f }
func (f *letIn) OnNew() filter.Next         { f.asked.Add(1); return filter.Pass }

// TestCrossLetIn: a client that was let in is not asked about again; one that comes behind the crossing is.
func TestCrossLetIn(t *testing.T) {
	eachCrossing(t, func(t *testing.T, cross func(*proxy, *forwarder.Spec)) {
		f := new(letIn)
		s := filtered(serveEach(t, echoEach).address, f)
		p := startProxy(t, s, 512<<20)
		c := dial(t, p.address)
		wantEcho(t, c.call(request(1, "let in")), "let in")
		cross(p, s)
		wantEcho(t, c.call(request(2, "still")), "still")
		if n := f.asked.Load(); n != 1 {
			t.Errorf("got the filter asked %d times about one connection, want once", n)
		}
		wantEcho(t, dial(t, p.address).call(request(1, "another")), "another")
		if n := f.asked.Load(); n != 2 {
			t.Errorf("got the filter asked %d times about two connections, want twice", n)
		}
	})
}
