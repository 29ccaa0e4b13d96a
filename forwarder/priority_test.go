package forwarder_test

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/route"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// serveAsked is a server that answers the requests that it holds when it is asked to, the oldest first.
type asked struct {
	*server
	mu   sync.Mutex
	held []func()
}

func serveAsked(t *testing.T) *asked {
	a := &asked{}
	a.server = serveEach(t, func(p *peer, m wire.Message) error {
		if m.Kind == wire.Request {
			a.mu.Lock()
			a.held = append(a.held, func() { _ = p.reply(m, wire.Success, m.Content()) })
			a.mu.Unlock()
		}
		return nil
	})
	return a
}

// answer answers n of them.
func (a *asked) answer(n int) {
	a.mu.Lock()
	now := a.held[:n]
	a.held = a.held[n:]
	a.mu.Unlock()
	for _, reply := range now {
		reply()
	}
}

// limited is a spec with a bound for its rule, two listeners at its table, and an endpoint that cannot be connected, so that
// some requests are tried again.
func limited(t *testing.T, server, dead string, most int) *forwarder.Spec {
	s := withListener(spec(server, dead), "second", "tcp", "127.0.0.1:0")
	s.Routes[0].Rules[0].MaxRequests = most
	s.Routes[0].Rules[0].Timeout = time.Minute
	return s
}

// TestRuleLimitAgainstModel: what is in flight of a rule is counted exactly, whatever becomes of it: replies, deadlines, clients
// that go, tries that fail, listeners, other bounds, and another process.
func TestRuleLimitAgainstModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		a, dead := serveAsked(t), deadAddress(t)
		most := rapid.IntRange(1, 6).Draw(rt, "max")
		s := limited(t, a.address, dead, most)
		p := startProxy(t, s, 64<<20)
		defer p.end()
		fail := func(format string, args ...any) { rt.Helper(); rt.Fatalf(format, args...) }
		clients := make([]*peer, 3)
		client := func(i int) *peer {
			if clients[i] == nil {
				at := p.address
				if i == 1 {
					at = p.Addresses()["second"].String()
				}
				clients[i] = dial(t, at)
			}
			return clients[i]
		}
		type owed struct {
			client *peer
			id     uint32
		}
		var inFlight []owed // oldest first
		frames, busy, id := int64(0), 0.0, uint32(0)
		used := func() { // waits until what the model says is so
			rt.Helper()
			eventually(t, func() bool { return p.RuleLimits()["rpc/echo"].Used == len(inFlight) }, func() string {
				return fmt.Sprintf("%d requests of the rule in flight: %+v", len(inFlight), p.RuleLimits()["rpc/echo"])
			})
			if b := p.RuleLimits()["rpc/echo"]; b.Max != most || b.Used >= most && !b.Open {
				fail("got %+v, want a bound of %d, and it to be open where that is reached", b, most)
			}
		}
		for range rapid.IntRange(5, 25).Draw(rt, "steps") {
			id++
			switch what := rapid.SampledFrom([]string{"send", "send", "send", "oneway", "late", "answer", "go", "bound", "process"}).Draw(rt, "step"); what {
			case "send":
				c := client(rapid.IntRange(0, 2).Draw(rt, "client"))
				c.send(frameOf(t, id, "held"))
				if len(inFlight) >= most {
					busy++
					if m := c.receive(); m.Status != wire.Busy || m.ID != id {
						fail("got %v for request %d with %d of %d in flight, want busy", m.Status, id, len(inFlight), most)
					}
					p.wantCount(busy, "relevo_route_local_replies_total", "reason="+forwarder.ReasonRouteMaxRequests)
					break
				}
				frames++
				a.got(t, frames)
				inFlight = append(inFlight, owed{c, id})
			case "oneway": // takes no place
				client(0).send(encode(t, oneway(id, "nobody waits for it")))
				frames++
				a.got(t, frames)
			case "late": // only on an empty server: then it is known which one is not answered
				if len(inFlight) > 0 {
					break
				}
				r := request(id, "too late")
				r.Timeout = 5
				if m := client(0).call(r); m.Status != wire.Timeout {
					fail("got %v, want a timeout", m.Status)
				}
				frames++
				a.got(t, frames)
				a.answer(1) // to nobody
			case "answer":
				n := rapid.IntRange(0, len(inFlight)).Draw(rt, "answered")
				a.answer(n)
				for _, o := range inFlight[:n] {
					if o.client == nil {
						continue
					}
					if m := o.client.receive(); m.Status != wire.Success {
						fail("got %v for a request that was answered, want SUCCESS", m.Status)
					}
				}
				inFlight = inFlight[n:]
			case "go": // its requests keep their places
				i := rapid.IntRange(0, 2).Draw(rt, "client")
				if clients[i] != nil {
					open := p.value("relevo_listener_connections")
					clients[i].hangUp()
					p.wantCount(open-1, "relevo_listener_connections")
					for k := range inFlight {
						if inFlight[k].client == clients[i] {
							inFlight[k].client = nil
						}
					}
					clients[i] = nil
				}
			case "bound":
				most = rapid.IntRange(1, 6).Draw(rt, "max")
				s = limited(t, a.address, dead, most)
				if err := p.Apply(s, kept); err != nil {
					fail("applying a bound of %d: %v", most, err)
				}
			case "process":
				p.handOver(s)
				busy = 0 // it counts anew
			}
			used()
		}
		a.answer(len(inFlight))
		inFlight = nil
		used()
		for _, c := range clients {
			if c != nil {
				c.hangUp()
			}
		}
	})
}

// TestRuleLimitIsNeverExceeded: whoever comes at once, and however many.
func TestRuleLimitIsNeverExceeded(t *testing.T) {
	const most = 7
	var now, worst atomic.Int64
	server := serveEach(t, func(p *peer, m wire.Message) error {
		n := now.Add(1)
		for w := worst.Load(); n > w && !worst.CompareAndSwap(w, n); w = worst.Load() {
		}
		now.Add(-1) // before the reply, with which the place is free
		return echoEach(p, m)
	})
	s := limited(t, server.address, deadAddress(t), most)
	s.Clusters[0].ConnectionsPerEndpoint = 8
	p := startProxy(t, s, 512<<20)
	var group sync.WaitGroup
	for _, at := range p.Addresses() {
		group.Go(func() {
			_, err := bench.Run(t.Context(), bench.Options{
				Addr: at.String(), Connections: 4, InFlight: 16, Size: 64, Count: 5000, Service: service, Version: bolt.V1, Timeout: 5 * time.Second,
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if got := worst.Load(); got > most || got == 0 {
		t.Errorf("got %d requests at the server at once, want at most %d", got, most)
	}
	if got := p.RuleLimits()["rpc/echo"].Used; got != 0 {
		t.Errorf("got %d places taken at the end, want none", got)
	}
	p.wantSome("relevo_route_local_replies_total", "reason="+forwarder.ReasonRouteMaxRequests)
}

// TestRuleLimitComesAndGoes: a rule that has no bound any more, or is gone, and has one again, counts those that it had counted.
func TestRuleLimitComesAndGoes(t *testing.T) {
	a := serveAsked(t)
	s := limited(t, a.address, deadAddress(t), 2)
	p := startProxy(t, s, 64<<20)
	c := dial(t, p.address)
	for id := range uint32(2) {
		c.send(frameOf(t, id, "held"))
	}
	a.got(t, 2)
	without := *s
	without.Routes = []forwarder.RouteSpec{{Name: "rpc"}}
	unbounded := *s
	unbounded.Routes = []forwarder.RouteSpec{{Name: "rpc", Rules: slices.Clone(s.Routes[0].Rules)}}
	unbounded.Routes[0].Rules[0].MaxRequests = 0
	for _, between := range []*forwarder.Spec{&without, &unbounded} {
		if err := p.Apply(between, kept); err != nil {
			t.Fatal(err)
		}
		if got := p.RuleLimits(); len(got) != 0 || len(p.series("relevo_route_breaker_open")) != 0 {
			t.Errorf("got %v and %v for rules without a bound, want nothing", got, p.series("relevo_route_breaker_open"))
		}
		if err := p.Apply(s, kept); err != nil {
			t.Fatal(err)
		}
		if got := p.RuleLimits()["rpc/echo"]; got != (forwarder.Use{Used: 2, Max: 2, Open: true}) {
			t.Errorf("got %+v, want the two that are in flight still", got)
		}
		p.wantCount(2, "relevo_route_breaker_used", "route=rpc/echo", "limit=max_requests")
		if m := c.call(request(7, "over")); m.Status != wire.Busy {
			t.Errorf("got %v for one more, want busy", m.Status)
		}
	}
	a.answer(2)
	for range 2 {
		wantEcho(t, c.receive(), "held")
	}
	p.wantCount(0, "relevo_route_breaker_used")
}

// classes has a rule of each priority, for services that are called as it is, and a cluster for all.
func classes(server string) *forwarder.Spec {
	s := spec(server)
	s.Routes[0].Rules = nil
	for _, class := range []forwarder.Priority{forwarder.PriorityLow, forwarder.PriorityNormal, forwarder.PriorityHigh} {
		rule := spec().Routes[0].Rules[0]
		rule.Name, rule.Match, rule.Priority = class.String(), route.Match{Service: route.Exactly(class.String())}, class
		s.Routes[0].Rules = append(s.Routes[0].Rules, rule)
	}
	return s
}

// of is a request of a class.
func of(class string, id uint32) bolt.Request {
	r := request(id, class)
	r.Headers[0].Value = class
	return r
}

// TestLowPriorityLeavesRoom: what has low priority gets four fifths of the cluster, and has a reason of its own.
func TestLowPriorityLeavesRoom(t *testing.T) {
	h := serveHeld(t)
	s := classes(h.address)
	s.Clusters[0].MaxRequests = 5
	p := startProxy(t, s, 64<<20)
	c := dial(t, p.address)
	for id := range uint32(4) {
		c.send(encode(t, of("low", id)))
	}
	h.got(t, 4)
	p.wantLocal(c.call(of("low", 10)), wire.Busy, forwarder.ReasonLowMaxRequests, 1)
	c.send(encode(t, of("normal", 4)))
	h.got(t, 5)
	p.wantLocal(c.call(of("high", 11)), wire.Busy, forwarder.ReasonMaxRequests, 1)
	p.wantLocal(c.call(of("low", 12)), wire.Busy, forwarder.ReasonLowMaxRequests, 2)
	h.release()
	c.receiveByID(5)
}
