package forwarder_test

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// open are all connections that the filter wants.
func (p *proxy) open(of forwarder.ConnectionFilter) []forwarder.ConnectionStatus {
	p.t.Helper()
	of.Limit = 1000
	list, more := p.OpenConnections(of)
	if more {
		p.t.Fatal("got more than 1000 connections")
	}
	return list
}

// one is the only connection that the filter wants.
func (p *proxy) one(of forwarder.ConnectionFilter) forwarder.ConnectionStatus {
	p.t.Helper()
	list := p.open(of)
	if len(list) != 1 {
		p.t.Fatalf("got %d connections of %+v, want 1: %+v", len(list), of, list)
	}
	return list[0]
}

// TestOpenConnections: each connection is described, whichever side it is on, and found by what is known of it.
func TestOpenConnections(t *testing.T) {
	h := serveHeld(t)
	p := startProxy(t, spec(h.address), 512<<20)
	busy, idle := dial(t, p.address), dial(t, p.address)
	frame := frameOf(t, 1, "in flight")
	busy.send(frame)
	h.got(t, 1)
	p.wantCount(2, "relevo_listener_connections")

	client := netip.MustParseAddrPort(busy.LocalAddr().String())
	c := p.one(forwarder.ConnectionFilter{Client: netip.PrefixFrom(client.Addr(), 32), ClientPort: client.Port()})
	if c.Side != forwarder.ClientSide || c.Listener != "in" || c.Cluster != "" || c.Local != p.address || c.Remote != client.String() ||
		c.State != "reading" || c.Protocol != "bolt" || c.RX != uint64(len(frame)) || c.TX != 0 || c.InFlight != 1 || c.Age <= 0 || c.Idle > c.Age {
		t.Errorf("got %+v, want the client connection with one request in flight", c)
	}
	s := p.one(forwarder.ConnectionFilter{Cluster: "echo", Endpoint: h.address})
	if s.Side != forwarder.ServerSide || s.Listener != "" || s.Cluster != "echo" || s.Endpoint != h.address || s.Remote != h.address || s.Local == "" ||
		s.State != "ready" || s.Protocol != "bolt" || s.TX != uint64(len(frame)) || s.RX != 0 || s.InFlight != 1 || s.Age <= 0 {
		t.Errorf("got %+v, want the server connection with one request in flight", s)
	}
	if got, err := p.Connection(s.ID); err != nil || got.ID != s.ID || got.Side != s.Side {
		t.Errorf("got %+v and %v for the id %d, want the server connection", got, err, s.ID)
	}
	for _, id := range []uint64{0, 1 << 40} {
		if _, err := p.Connection(id); !errors.Is(err, forwarder.ErrNoConnection) {
			t.Errorf("got %v for the id %d, want that there is none", err, id)
		}
	}
	for _, tc := range []struct {
		of   forwarder.ConnectionFilter
		want int
	}{
		{forwarder.ConnectionFilter{}, 3},
		{forwarder.ConnectionFilter{Side: forwarder.ClientSide}, 2},
		{forwarder.ConnectionFilter{Side: forwarder.ServerSide}, 1},
		{forwarder.ConnectionFilter{Listener: "in"}, 2},
		{forwarder.ConnectionFilter{Listener: "other"}, 0},
		{forwarder.ConnectionFilter{Cluster: "other"}, 0},
		{forwarder.ConnectionFilter{Endpoint: "127.0.0.1:1"}, 0},
		{forwarder.ConnectionFilter{Listener: "in", Cluster: "echo"}, 0},
		{forwarder.ConnectionFilter{Client: netip.MustParsePrefix("127.0.0.0/8")}, 2},
		{forwarder.ConnectionFilter{Client: netip.MustParsePrefix("10.0.0.0/8")}, 0},
	} {
		if got := p.open(tc.of); len(got) != tc.want {
			t.Errorf("got %d connections of %+v, want %d", len(got), tc.of, tc.want)
		}
	}
	p.pause()
	for _, c := range p.open(forwarder.ConnectionFilter{}) {
		if c.State != "paused" {
			t.Errorf("got the state %s of a %s connection at rest, want paused", c.State, c.Side)
		}
	}
	if _, err := p.CloseConnection(s.ID, true); !errors.Is(err, forwarder.ErrResting) {
		t.Errorf("got %v for the close of a connection at rest, want that the road rests", err)
	}
	p.Resume()
	h.release()
	wantEcho(t, busy.receive(), "in flight")
	_ = idle
}

// TestConnectionsAfterAHandOver: what a connection is goes over, its id too, which no other one gets.
func TestConnectionsAfterAHandOver(t *testing.T) {
	s := spec(serveEach(t, echoEach).address)
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	wantEcho(t, c.call(request(1, "hello")), "hello")
	before := p.open(forwarder.ConnectionFilter{})
	gone := dial(t, p.address)
	p.wantCount(2, "relevo_listener_connections")
	last := p.open(forwarder.ConnectionFilter{After: before[len(before)-1].ID})[0].ID
	gone.hangUp()
	p.wantCount(1, "relevo_listener_connections")
	<-time.After(10 * time.Millisecond) // so that an age that was forgotten shows
	p.handOver(s)
	after := p.open(forwarder.ConnectionFilter{})
	for _, was := range before {
		i := slices.IndexFunc(after, func(c forwarder.ConnectionStatus) bool { return c.Side == was.Side })
		if i < 0 || after[i].ID != was.ID || after[i].Remote != was.Remote || after[i].Local != was.Local || after[i].RX != was.RX || after[i].Age < was.Age {
			t.Errorf("got %+v behind the hand-over, want what %+v was", after, was)
		}
	}
	wantEcho(t, c.call(request(2, "hello again")), "hello again")
	dial(t, p.address)
	p.wantCount(2, "relevo_listener_connections")
	if list := p.open(forwarder.ConnectionFilter{After: last}); len(list) != 1 {
		t.Errorf("got %+v, want the new connection behind the id %d of one that is gone", list, last)
	}
}

// TestPages: while connections come and go, each that stays is on one page, once, whatever the pages' size.
func TestPages(t *testing.T) {
	p := startProxy(t, spec(serveEach(t, echoEach).address), 512<<20)
	const stay = 60
	for range stay {
		dial(t, p.address)
	}
	p.wantCount(stay, "relevo_listener_connections")
	var want []uint64
	for _, c := range p.open(forwarder.ConnectionFilter{}) {
		want = append(want, c.ID)
	}
	var stop atomic.Bool
	var group sync.WaitGroup
	group.Go(func() { // ends with stop
		for !stop.Load() {
			dial(t, p.address).hangUp()
		}
	})
	for limit := 1; limit <= stay+1; limit += 3 {
		var got []uint64
		last := uint64(0)
		for more := true; more; {
			var list []forwarder.ConnectionStatus
			list, more = p.OpenConnections(forwarder.ConnectionFilter{After: last, Limit: limit})
			if len(list) > limit || more && len(list) < limit {
				t.Fatalf("got a page of %d where %d may be, and there is more: %v", len(list), limit, more)
			}
			for _, c := range list {
				if c.ID <= last {
					t.Fatalf("got the id %d behind %d, want them to rise", c.ID, last)
				}
				if last = c.ID; slices.Contains(want, c.ID) {
					got = append(got, c.ID)
				}
			}
			if last > want[stay-1] {
				break // the others come and go
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %v in pages of %d, want each of %v once", got, limit, want)
		}
	}
	stop.Store(true)
	group.Wait()
}

// TestCloseClientConnection: its requests in flight end as when its client goes, and nobody else notices.
func TestCloseClientConnection(t *testing.T) {
	h := serveHeld(t)
	p := startProxy(t, spec(h.address), 512<<20)
	one, other := dial(t, p.address), dial(t, p.address)
	one.send(frameOf(t, 1, "mine"))
	other.send(frameOf(t, 1, "theirs"))
	h.got(t, 2)
	at := netip.MustParseAddrPort(one.LocalAddr().String())
	c := p.one(forwarder.ConnectionFilter{ClientPort: at.Port()})
	was, err := p.CloseConnection(c.ID, false)
	if err != nil || was.Remote != at.String() {
		t.Fatalf("got %+v and %v, want it closed", was, err)
	}
	one.wantEnd()
	h.release()
	wantEcho(t, other.receive(), "theirs")
	p.wantCount(1, "relevo_listener_closes_total", "reason="+forwarder.ReasonAdminClosed)
	p.wantCount(1, "relevo_listener_dropped_total", "reason="+forwarder.ReasonDownstreamGone)
	if _, err := p.CloseConnection(c.ID, false); !errors.Is(err, forwarder.ErrNoConnection) {
		t.Errorf("got %v the second time, want that there is none", err)
	}
}

// TestCloseServerConnectionGently under load: it ends behind its last reply, others take over, and nothing is lost.
func TestCloseServerConnectionGently(t *testing.T) {
	s := spec(serveEach(t, echoEach).address)
	s.Clusters[0].ConnectionsPerEndpoint = 2
	s.Routes[0].Rules[0].Attempts = 1 // no retry hides a failure
	p := startProxy(t, s, 512<<20)
	load := startLoad(t, p.address)
	load.goOn()
	const closes = 20
	for n := 0; n < closes; {
		for _, c := range p.open(forwarder.ConnectionFilter{Side: forwarder.ServerSide}) {
			if c.Draining != "" {
				continue
			}
			if _, err := p.CloseConnection(c.ID, false); err == nil {
				n++
			} else if !errors.Is(err, forwarder.ErrNoConnection) {
				t.Fatal(err)
			}
		}
	}
	load.goOn()
	load.stop()
	p.wantSome("relevo_endpoint_closes_total", "reason="+forwarder.ReasonAdminClosed)
	p.wantCount(p.value("relevo_endpoint_closes_total", "reason="+forwarder.ReasonAdminClosed), "relevo_endpoint_closes_total")
	p.wantCount(0, "relevo_listener_local_replies_total")
	p.wantCount(0, "relevo_endpoint_failures")
}

// TestCloseServerConnectionNow: what is in flight is answered, and that is no failure of the endpoint.
func TestCloseServerConnectionNow(t *testing.T) {
	h := serveHeld(t)
	p := startProxy(t, spec(h.address), 512<<20)
	c := dial(t, p.address)
	const often = 5 // more than connections in a row may end that have delivered nothing
	for id := range uint32(often) {
		c.send(frameOf(t, id, "in flight"))
		h.got(t, int64(id)+1)
		s := p.one(forwarder.ConnectionFilter{Side: forwarder.ServerSide})
		if _, err := p.CloseConnection(s.ID, true); err != nil {
			t.Fatal(err)
		}
		p.wantLocal(c.receive(), wire.ErrorComm, forwarder.ReasonUpstreamBroken, float64(id)+1)
	}
	p.wantCount(often, "relevo_endpoint_closes_total", "reason="+forwarder.ReasonAdminClosed)
	p.wantCount(0, "relevo_endpoint_failures")
}
