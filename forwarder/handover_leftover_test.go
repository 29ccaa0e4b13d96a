package forwarder_test

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// renamed is the configuration with its listener under another name, at another address.
func renamed(s *forwarder.Spec) *forwarder.Spec {
	next := *s
	next.Listeners = append([]forwarder.ListenerSpec(nil), s.Listeners...)
	next.Listeners[0].Name, next.Listeners[0].Socket = "other", nil
	return &next
}

// TestLeftoverListener: its clients get what they are owed, further requests are answered CONNECTION_CLOSED, and they are closed
// when nothing is owed to them. Then nothing of it goes over any more.
func TestLeftoverListener(t *testing.T) {
	h := serveHeld(t)
	s := spec(h.address)
	p := startProxy(t, s, 512<<20)
	busy, idle, gone := dial(t, p.address), dial(t, p.address), dial(t, p.address)
	busy.send(frameOf(t, 1, "owed"))
	gone.send(frameOf(t, 1, "nobody's"))
	h.got(t, 2)
	p.wantCount(3, "relevo_listener_connections")
	gone.hangUp()
	p.wantCount(2, "relevo_listener_connections")
	next := renamed(s)
	p.handOver(next)
	idle.wantEnd()
	p.wantLocal(busy.call(request(2, "too late")), wire.ConnectionClosed, forwarder.ReasonDraining, 1)
	p.handOver(next) // leftovers go over, too
	p.wantLocal(busy.call(request(3, "too late")), wire.ConnectionClosed, forwarder.ReasonDraining, 1)
	h.release()
	wantEcho(t, busy.receive(), "owed")
	busy.wantEnd()
	p.wantCount(1, "relevo_listener_closes_total", "listener=in", "reason="+forwarder.ReasonDrained)
	if c, err := net.Dial("tcp", p.address); err == nil {
		c.Close()
		t.Error("got a connection to a listener that is not configured any more, want none")
	}
	p.pause()
	if h := p.takeOver(next); len(h.Downstreams) != 0 {
		t.Errorf("got %d client connections handed over, want none", len(h.Downstreams))
	}
	if n := len(p.Status().Listeners); n != 1 {
		t.Errorf("got %d listeners, want the one that is configured", n)
	}
}

// TestRequestOfAForgottenListener: a request whose client has left goes over, although its listener has left, too, and nothing is known of it
// any more.
func TestRequestOfAForgottenListener(t *testing.T) {
	h := serveHeld(t)
	s := spec(h.address)
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	c.send(frameOf(t, 1, "nobody's"))
	h.got(t, 1)
	c.hangUp()
	p.wantCount(0, "relevo_listener_connections")
	next := renamed(s)
	for range 2 { // with the first change the listener leaves, with the next one it is forgotten
		if err := p.Apply(next, kept); err != nil {
			t.Fatal(err)
		}
	}
	p.handOver(next)
	h.release()
	p.atRest()
	p.wantCount(1, "relevo_listener_dropped_total", "listener=in", "reason="+forwarder.ReasonDownstreamGone)
}

// TestEndpointThatIsBack: what is known of an endpoint goes over, also where the one that it was before it was out of the configuration for a
// while is still here beside it.
func TestEndpointThatIsBack(t *testing.T) {
	h, other := serveHeld(t), serveEach(t, echoEach)
	s := spec(h.address, other.address)
	p := startProxy(t, spec(h.address), 512<<20)
	owed, c := dial(t, p.address), dial(t, p.address)
	owed.send(frameOf(t, 1, "owed"))
	h.got(t, 1)
	p.handOver(spec(other.address))
	h.listener.Close() // so that it cannot be connected again
	if err := p.Apply(s, kept); err != nil {
		t.Fatal(err)
	}
	failures := func() int { return p.Status().Clusters[0].Endpoints[0].Failures }
	for id := uint32(1); failures() == 0; id++ {
		wantEcho(t, c.call(request(id, "sent elsewhere at last")), "sent elsewhere at last")
	}
	p.handOver(s)
	if failures() == 0 {
		t.Errorf("nothing is known any more of the endpoint that cannot be connected: %+v", p.Status().Clusters[0].Endpoints[0])
	}
	h.release()
	wantEcho(t, owed.receive(), "owed")
}

// TestLeftoverListenerHasItsTime: what is owed to its clients is waited for so long, and no longer.
func TestLeftoverListenerHasItsTime(t *testing.T) {
	h := serveHeld(t)
	s := spec(h.address)
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	c.send(frameOf(t, 1, "never answered"))
	h.got(t, 1)
	next := renamed(s)
	next.LeaveTimeout = 50 * time.Millisecond
	p.handOver(next)
	c.wantEnd()
	p.wantCount(1, "relevo_listener_closes_total", "listener=in", "reason="+forwarder.ReasonStopping)
	h.release()
}

// TestLeftoverListenerDetects: a client of one that detected protocols may still say which it speaks.
func TestLeftoverListenerDetects(t *testing.T) {
	s := autoSpec(t)
	p := startProxy(t, s, 512<<20)
	begun := dial(t, p.address)
	begun.send([]byte(prefix)[:2])
	p.reading(2)
	p.handOver(renamed(s))
	r := request(7, "too late")
	begun.send([]byte(prefix)[2:], encode(t, r))
	p.wantLocal(begun.receiveAs(true), wire.ConnectionClosed, forwarder.ReasonDraining, 1)
}

// TestNoDetectionAnyMore: where the listener speaks one protocol now, a client that was about to tell its own has all the time.
func TestNoDetectionAnyMore(t *testing.T) {
	s := autoSpec(t)
	s.Listeners[0].WriteTimeout = 40 * time.Millisecond // so that the sweeper looks often
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	frame := frameOf(t, 1, "told")
	frame[0] = 2 // v2 begins as the second protocol does
	c.send(frame[:1])
	p.reading(1)
	next := *s
	next.Listeners = append([]forwarder.ListenerSpec(nil), s.Listeners...)
	next.Listeners[0].Codecs, next.Listeners[0].DetectTimeout = s.Listeners[0].Codecs[:1], 0
	rule := s.Routes[0]
	rule.Rules = rule.Rules[:1]
	next.Routes = []forwarder.RouteSpec{rule}
	p.handOver(&next)
	<-time.After(100 * time.Millisecond)
	p.wantCount(0, "relevo_listener_closes_total")
}

// TestLeftovers: replies come from what the configuration lacks or has changed, further requests go where it says, and what is
// left over closes when nothing is due from it.
func TestLeftovers(t *testing.T) {
	for name, c := range map[string]struct {
		change func(next *forwarder.Spec, other string)
		status wire.Status // of a further request
		keeps  bool        // its server connection is one that is configured
	}{
		"route": {func(next *forwarder.Spec, _ string) { next.Routes[0].Rules[0].Name = "renamed" }, wire.Success, true},
		"no route": {func(next *forwarder.Spec, _ string) {
			next.Routes[0].Rules = nil
		}, wire.NoProcessor, true},
		"cluster": {func(next *forwarder.Spec, other string) {
			next.Clusters[0].Name, next.Routes[0].Rules[0].Clusters = "renamed", []forwarder.Share{{Cluster: "renamed", Weight: 1}}
			next.Clusters[0].Endpoints[0].Address = other
		}, wire.Success, false},
		"endpoint": {func(next *forwarder.Spec, other string) { next.Clusters[0].Endpoints[0].Address = other }, wire.Success, false},
		"protocol of the cluster": {func(next *forwarder.Spec, _ string) {
			next.Clusters[0].Codec = prefixed{}
			next.Listeners[0].Codecs = []wire.Codec{prefixed{}}
		}, wire.NoProcessor, false},
		"filters": {func(next *forwarder.Spec, _ string) {
			next.Listeners[0].Filters = []filter.Filter{before(func(*filter.Exchange) filter.Verdict {
				return filter.Stop(wire.Busy, "test")
			})}
		}, wire.Busy, true},
		"limits": {func(next *forwarder.Spec, _ string) {
			next.Listeners[0].MaxConnections, next.Listeners[0].MaxStreams = 1, 1
			next.Clusters[0].MaxRequests, next.Clusters[0].MaxConnections, next.Clusters[0].MaxPending = 1, 1, 1
			next.Workers = forwarder.WorkersSpec{Max: 1}
		}, wire.Busy, true},
	} {
		t.Run(name, func(t *testing.T) {
			h, other := serveHeld(t), serveEach(t, echoEach)
			s := spec(h.address)
			p := startProxy(t, s, 512<<20)
			client, second := dial(t, p.address), dial(t, p.address)
			const n = 5
			for id := range uint32(n) {
				client.send(frameOf(t, id, strings.Repeat("owed", 10)))
			}
			h.got(t, n)
			p.wantCount(2, "relevo_listener_connections")
			next := *s
			next.Listeners = append([]forwarder.ListenerSpec(nil), s.Listeners...)
			next.Clusters = append([]forwarder.ClusterSpec(nil), s.Clusters...)
			next.Clusters[0].Endpoints = append([]forwarder.EndpointSpec(nil), s.Clusters[0].Endpoints...)
			next.Routes = []forwarder.RouteSpec{{Name: "rpc", Rules: append([]forwarder.RuleSpec(nil), s.Routes[0].Rules...)}}
			c.change(&next, other.address)
			p.handOver(&next)
			shown := float64(n)
			if name == "protocol of the cluster" { // of two at this address in clusters of this name the one that is configured is shown
				shown = 0
			}
			if got := p.value("relevo_endpoint_in_flight", "endpoint="+h.address); got != shown {
				t.Errorf("%v requests are shown in flight to the endpoint, want %v", got, shown)
			}
			if c.status != wire.Success || !c.keeps {
				if m := second.call(request(100, "further")); m.Status != c.status {
					t.Errorf("got status %v for a further request, want %v", m.Status, c.status)
				}
			}
			h.release()
			for _, m := range client.receiveByID(n) {
				wantEcho(t, m, strings.Repeat("owed", 10))
			}
			if c.keeps {
				p.wantCount(1, "relevo_cluster_connections")
			} else {
				p.wantCount(1, "relevo_endpoint_closes_total", "endpoint="+h.address, "reason="+forwarder.ReasonEndpointDrained)
			}
		})
	}
}

// TestRecordsWithoutAnAccessLog: what was sampled for an access log that is not configured any more ends as usual.
func TestRecordsWithoutAnAccessLog(t *testing.T) {
	h := serveHeld(t)
	s, book := spec(h.address), new(logbook)
	s.Access = book
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	c.send(encode(t, traced(1, "sampled")))
	h.got(t, 1)
	p.handOver(s)
	p.pause()
	next := *s
	next.Access = nil
	p.takeOver(&next)
	h.release()
	wantEcho(t, c.receive(), "sampled")
	if n := len(book.all()); n != 0 {
		t.Errorf("got %d records of a request that is handed over, want none", n)
	}
}

// TestRecordsGoOver: a request that was sampled is recorded once, by the process in which it ends, with all that is known of it.
func TestRecordsGoOver(t *testing.T) {
	eachCrossing(t, func(t *testing.T, cross func(*proxy, *forwarder.Spec)) {
		h := serveHeld(t)
		s, book := spec(h.address), new(logbook)
		s.Access = book
		p := startProxy(t, s, 512<<20)
		c := dial(t, p.address)
		c.send(encode(t, traced(1, "sampled")))
		h.got(t, 1)
		cross(p, s)
		h.release()
		wantEcho(t, c.receive(), "sampled")
		eventually(t, func() bool { return len(book.all()) > 0 }, say("the record of the request"))
		got := book.all()
		if r := got[0]; len(got) != 1 || r.Trace != "trace1" || r.Service != service || r.Endpoint != h.address || r.Server <= 0 || book.sampled != 1 {
			t.Errorf("got %d records and %d samples, the first %+v; want one that tells all", len(got), book.sampled, r)
		}
	})
}

// TestHeartbeatsAreCountedOn: a server that answers nothing is found however often the road is handed over meanwhile.
func TestHeartbeatsAreCountedOn(t *testing.T) {
	server := serveEach(t, silentEach)
	s := spec(server.address)
	s.Clusters[0].HeartbeatInterval, s.Clusters[0].HeartbeatMisses = 40*time.Millisecond, 3
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	c.send(encode(t, oneway(1, "makes the connection")))
	server.got(t, 1)
	closed := func() bool {
		return p.value("relevo_endpoint_closes_total", "reason="+forwarder.ReasonHeartbeatTimeout) > 0
	}
	for i := 0; !closed() && i < 30; i++ {
		beats := server.frames.Load()
		eventually(t, func() bool { return server.frames.Load() > beats || closed() }, say("a heartbeat, or the end"))
		if !closed() {
			p.handOver(s)
		}
	}
	if !closed() {
		t.Errorf("got %d heartbeats that were not answered, want the server to be given up behind 3", server.frames.Load()-1)
	}
}

// TestLeftBehind: a connection whose filters keep a state of their own stays behind, with its upload; what it has leased is
// closed at once, and others go on.
func TestLeftBehind(t *testing.T) {
	server, got := counting(t)
	s := uploadSpec(server.address)
	s.Listeners[0].Connection = []filter.ConnectionFilter{&script{}}
	p := startProxy(t, s, 64<<20)
	c := dial(t, p.address)
	frame := frameOf(t, 1, string(noise(1, uploadSize)))
	c.send(frame[:uploadSize/2])
	eventually(t, func() bool { return got.Load() >= uploadSize/2 }, say("the upload to have the lease"))
	p.pause()
	reg := p.reg
	h := p.takeOver(s)
	if len(h.Left) != 1 || len(h.Downstreams) != 0 {
		t.Errorf("got %d connections handed over and %d left, want the one to be left", len(h.Downstreams), len(h.Left))
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("got %v from a connection that was left behind, want its end", err)
	}
	p.wantCount(1, "relevo_endpoint_closes_total", "reason="+forwarder.ReasonUploadBroken)
	old := &proxy{t: t, reg: reg}
	old.wantCount(1, "relevo_listener_closes_total", "reason="+forwarder.ReasonHandedOver)
}

// TestSettle waits for what cannot be handed over to have nothing under way, closes it, and waits no longer than it may.
func TestSettle(t *testing.T) {
	h := serveHeld(t)
	s := filtered(h.address, &script{})
	p := startProxy(t, s, 512<<20)
	busy, idle := dial(t, p.address), dial(t, p.address)
	wantHeartbeat := func(c *peer) { c.send(heartbeat(t, 0, 1)); c.receive() }
	wantHeartbeat(idle)
	busy.send(frameOf(t, 1, "under way"))
	h.got(t, 1)
	ctx, cancel := t.Context(), func() {}
	settled := make(chan struct{})
	go func() { defer close(settled); p.Settle(ctx) }() // ends when the request has
	defer cancel()
	idle.wantEnd()
	select {
	case <-settled:
		t.Error("got Settle back while a request is under way, want it to wait")
	case <-time.After(20 * time.Millisecond):
	}
	h.release()
	wantEcho(t, busy.receive(), "under way")
	busy.wantEnd()
	<-settled
}
