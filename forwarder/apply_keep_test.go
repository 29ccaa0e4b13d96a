package forwarder_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// kept is what keeps a configuration nowhere.
func kept() error { return nil }

// withListener is s with one more listener.
func withListener(s *forwarder.Spec, name, network, address string) *forwarder.Spec {
	l := s.Listeners[0]
	l.Name, l.Network, l.Address = name, network, address
	s.Listeners = append(s.Listeners, l)
	return s
}

// TestApplyThatIsNotKept: a configuration that cannot be kept costs nothing, be it without what is in use and at addresses of
// its own.
func TestApplyThatIsNotKept(t *testing.T) {
	one, other := serveEach(t, echoEach), serveEach(t, echoEach)
	folder := t.TempDir()
	was := func() *forwarder.Spec {
		return withListener(spec(one.address), "unix", "unix", filepath.Join(folder, "s"))
	}
	p := startProxy(t, was(), 512<<20)
	c := dial(t, p.address)
	wantEcho(t, c.call(request(1, "before")), "before")
	full := errors.New("the disk is full")
	for what, next := range map[string]*forwarder.Spec{
		"no listener and another endpoint": {MaxTimeout: time.Minute, Clusters: spec(other.address).Clusters},
		"more listeners":                   withListener(withListener(was(), "tcp", "tcp", "127.0.0.1:0"), "more", "unix", filepath.Join(folder, "more")),
		"a listener by another name":       withListener(spec(one.address), "other", "unix", filepath.Join(folder, "s")),
	} {
		if err := p.Apply(next, func() error { return full }); !errors.Is(err, full) {
			t.Errorf("%s: got %v, want what keeping it came to", what, err)
		}
		wantEcho(t, c.call(request(2, what)), what)
		if len(p.Addresses()) != 2 {
			t.Errorf("%s: got the listeners %v, want those before", what, p.Addresses())
		}
		if u, err := net.Dial("unix", filepath.Join(folder, "s")); err != nil {
			t.Errorf("%s: got %v at the unix socket, want it served as before", what, err)
		} else {
			u.Close()
		}
		if u, err := net.Dial("unix", filepath.Join(folder, "more")); err == nil {
			u.Close()
			t.Errorf("%s: got a connection to a listener that was not kept", what)
		}
	}
	p.wantCount(0, "relevo_endpoint_closes_total")
	p.wantCount(1, "relevo_listener_connections", "listener=in")
	if other.frames.Load() > 0 {
		t.Error("got a request at the endpoint that was not kept")
	}
}

// TestUnixListenerIsRenamed: the socket's file stays, and goes with the listener that has it last.
func TestUnixListenerIsRenamed(t *testing.T) {
	s := serveEach(t, echoEach)
	path := filepath.Join(t.TempDir(), "s")
	p := startProxy(t, withListener(spec(s.address), "old", "unix", path), 512<<20)
	reached := func() bool {
		c, err := net.Dial("unix", path)
		if err == nil {
			c.Close()
		}
		return err == nil
	}
	for _, name := range []string{"new", "newer", "old"} {
		if err := p.Apply(withListener(spec(s.address), name, "unix", path), kept); err != nil {
			t.Fatal(err)
		}
		if !reached() {
			t.Errorf("named %s, the listener cannot be reached", name)
		}
	}
	if err := p.Apply(spec(s.address), kept); err != nil {
		t.Fatal(err)
	}
	if reached() {
		t.Error("got a connection to a listener that is gone")
	}
}

// TestApplyAsTheRoadEnds: what is kept as the road begins to end enters no more, and holds nothing up.
func TestApplyAsTheRoadEnds(t *testing.T) {
	s := serveEach(t, echoEach)
	path := filepath.Join(t.TempDir(), "s")
	p := startProxy(t, spec(s.address), 512<<20)
	err := p.Apply(withListener(spec(s.address), "more", "unix", path), func() error { return p.Drain(context.Background()) })
	if err != nil || len(p.Addresses()) != 1 {
		t.Errorf("got %v and the listeners %v, want nil and the one before", err, p.Addresses())
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		t.Error("got a connection to a listener that has not entered")
	}
	if err := p.Apply(spec(s.address), kept); !errors.Is(err, forwarder.ErrResting) {
		t.Errorf("got %v from a road that ends, want ErrResting", err)
	}
}

// TestListenerLeaves: who is quiet is closed, who waits for a reply gets it first, and who waits too long does not.
func TestListenerLeaves(t *testing.T) {
	h := serveHeld(t)
	more := func() *forwarder.Spec { return withListener(spec(h.address), "more", "tcp", "127.0.0.1:0") }
	for _, bounded := range []bool{false, true} {
		s := more()
		if bounded {
			h = serveHeld(t)
			s = more()
			s.LeaveTimeout = 200 * time.Millisecond
		}
		p := startProxy(t, s, 512<<20)
		at := p.Addresses()["more"].String()
		idle, busy, stays := dial(t, at), dial(t, at), dial(t, p.address)
		busy.send(frameOf(t, 1, "in flight"))
		stays.send(frameOf(t, 2, "in flight"))
		h.got(t, 2)
		next := spec(h.address)
		next.LeaveTimeout = s.LeaveTimeout
		if err := p.Apply(next, kept); err != nil {
			t.Fatal(err)
		}
		if c, err := net.Dial("tcp", at); err == nil {
			c.Close()
			t.Error("got a connection to a listener that is gone")
		}
		idle.wantEnd()
		if !bounded {
			p.wantLocal(busy.call(request(3, "too late")), wire.ConnectionClosed, forwarder.ReasonDraining, 1)
			h.release()
			wantEcho(t, busy.receive(), "in flight")
		}
		busy.wantEnd()
		h.release()
		wantEcho(t, stays.receive(), "in flight")
		wantEcho(t, stays.call(request(4, "still here")), "still here")
	}
}

// TestLimitsChange: those that are lowered close nothing and hold for what comes, those that are raised are there at once.
func TestLimitsChange(t *testing.T) {
	s := serveEach(t, echoEach)
	p := startProxy(t, spec(s.address), 512<<20)
	var clients []*peer
	for i := range uint32(3) {
		clients = append(clients, dial(t, p.address))
		wantEcho(t, clients[i].call(request(1, "before")), "before")
	}
	low := spec(s.address)
	low.Listeners[0].MaxConnections, low.Listeners[0].MaxQueued, low.Listeners[0].MaxStreams = 1, 2<<20, 1
	low.Clusters[0].MaxConnections, low.Clusters[0].MaxRequests, low.Clusters[0].MaxPending, low.Clusters[0].MaxQueued = 1, 1, 1, 2<<20
	if err := p.Apply(low, kept); err != nil {
		t.Fatal(err)
	}
	for _, c := range clients {
		wantEcho(t, c.call(request(2, "behind")), "behind")
	}
	dial(t, p.address).wantEnd()
	p.wantCount(1, "relevo_listener_rejections_total")
	if err := p.Apply(spec(s.address), kept); err != nil {
		t.Fatal(err)
	}
	clients = append(clients, dial(t, p.address))
	for _, c := range clients {
		wantEcho(t, c.call(request(3, "raised")), "raised")
	}
	p.wantCount(0, "relevo_endpoint_closes_total")
	p.wantCount(4, "relevo_listener_connections", "listener=in")
}

// TestMaxRequestsIsRaised: it holds also for the connections that are there.
func TestMaxRequestsIsRaised(t *testing.T) {
	h := serveHeld(t)
	low := spec(h.address)
	low.Clusters[0].MaxRequests = 1
	p := startProxy(t, low, 512<<20)
	c := dial(t, p.address)
	c.send(frameOf(t, 1, "before"))
	h.got(t, 1)
	if err := p.Apply(spec(h.address), kept); err != nil {
		t.Fatal(err)
	}
	const more = 100
	for id := range uint32(more) {
		c.send(frameOf(t, 2+id, "behind"))
	}
	h.got(t, 1+more)
	h.release()
	for _, m := range c.receiveByID(1 + more) {
		if m.Status != wire.Success {
			t.Errorf("got the status %v, want SUCCESS", m.Status)
		}
	}
}

// TestAddedServesAtOnce: the first connection to a listener, and the first request to an endpoint, that was just added.
func TestAddedServesAtOnce(t *testing.T) {
	one, other := serveEach(t, echoEach), serveEach(t, echoEach)
	p := startProxy(t, spec(one.address), 512<<20)
	c := dial(t, p.address)
	wantEcho(t, c.call(request(1, "before")), "before")
	next := withListener(spec(other.address), "more", "tcp", "127.0.0.1:0")
	if err := p.Apply(next, kept); err != nil {
		t.Fatal(err)
	}
	wantEcho(t, dial(t, p.Addresses()["more"].String()).call(request(1, "the new listener")), "the new listener")
	wantEcho(t, c.call(request(2, "the new endpoint")), "the new endpoint")
	if other.frames.Load() != 2 {
		t.Errorf("got %d requests at the new endpoint, want 2", other.frames.Load())
	}
}

// TestMetricsOfWhatIsGone: names that come and go, in force or refused, leave no series behind.
func TestMetricsOfWhatIsGone(t *testing.T) {
	s := serveEach(t, echoEach)
	p := startProxy(t, spec(s.address), 512<<20)
	c := dial(t, p.address)
	wantEcho(t, c.call(request(1, "before")), "before")
	names := func() []string {
		var out []string
		for _, s := range p.reg.Snapshot() {
			out = append(out, fmt.Sprint(s.Name, s.Labels))
		}
		return out
	}
	for _, of := range []string{"listener", "route", "endpoint"} {
		p.wantCount(1, "relevo_"+of+"_replies_total")
	}
	before := names()
	for i := range 20 {
		next := withListener(spec(s.address), fmt.Sprint("listener-", i), "tcp", "127.0.0.1:0")
		more := next.Clusters[0]
		more.Name, more.Endpoints = fmt.Sprint("cluster-", i), []forwarder.EndpointSpec{{Network: "tcp", Address: fmt.Sprintf("127.0.0.1:%d", 1+i), Weight: 1}}
		next.Clusters = append(next.Clusters, more)
		next.Routes[0].Rules = append(next.Routes[0].Rules, forwarder.RuleSpec{Name: fmt.Sprint("rule-", i), Clusters: []forwarder.Share{{Cluster: more.Name, Weight: 1}}, Timeout: time.Second})
		full := errors.New("the disk is full")
		if err := p.Apply(next, func() error { return full }); !errors.Is(err, full) {
			t.Fatal(err)
		}
		if err := p.Apply(next, kept); err != nil {
			t.Fatal(err)
		}
		wantEcho(t, c.call(request(2, "between")), "between")
	}
	if err := p.Apply(spec(s.address), kept); err != nil {
		t.Fatal(err)
	}
	more := func() []string {
		if err := p.Apply(spec(s.address), kept); err != nil { // what has left is forgotten with the next change
			t.Fatal(err)
		}
		return slices.DeleteFunc(names(), func(n string) bool { return slices.Contains(before, n) })
	}
	eventually(t, func() bool { return len(more()) == 0 }, func() string { return fmt.Sprintf("no more series than before, there are %v", more()) })
	wantEcho(t, c.call(request(3, "behind")), "behind")
	p.wantCount(22, "relevo_route_requests_total", "route=rpc/echo")
}

// 10,000 endpoints come and go.
func BenchmarkApplyManyEndpoints(b *testing.B) {
	many := spec("127.0.0.1:1")
	for i := range 10000 {
		many.Clusters[0].Endpoints = append(many.Clusters[0].Endpoints, forwarder.EndpointSpec{Network: "tcp", Address: fmt.Sprintf("127.1.%d.%d:1", i/256, i%256), Weight: 1})
	}
	few := spec("127.0.0.1:1")
	f, err := forwarder.New(few, 64<<20, stats.NewRegistry(), zap.NewNop())
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	f.Start()
	for b.Loop() {
		if err := errors.Join(f.Apply(many, kept), f.Apply(few, kept)); err != nil {
			b.Fatal(err)
		}
	}
}
