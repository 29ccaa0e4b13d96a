package forwarder

import (
	"fmt"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder/cluster"
	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// TestStates: every pair of states, and whether one may become the other.
func TestStates(t *testing.T) {
	allowed := map[[2]state]bool{
		{stateDialling, stateReady}:    true, // its pool has it
		{stateReady, stateDraining}:    true, // GoAway, max_age, drain, by hand
		{stateReady, stateFailed}:      true, // it broke, or was closed
		{stateReady, stateExported}:    true, // paused
		{stateDraining, stateFailed}:   true, // its last stream has ended, or it broke
		{stateDraining, stateExported}: true, // paused
		{stateExported, stateReady}:    true, // rolled back
		{stateExported, stateDraining}: true, // rolled back, and it was draining
		{stateExported, stateFailed}:   true, // closed meanwhile
	}
	for from := range numStates {
		for to := range numStates {
			u := new(upstream)
			u.state.Store(uint32(from))
			want := allowed[[2]state{from, to}]
			if got := u.become(to); got != want {
				t.Errorf("from %v to %v: got %v, want %v", from, to, got, want)
			}
			if got := state(u.state.Load()); want && got != to || !want && got != from {
				t.Errorf("from %v to %v: it is %v now", from, to, got)
			}
		}
	}
}

// roadTo builds a road to these endpoints, without a listener's traffic, and does not start its sweeper.
func roadTo(t *testing.T, maxConnections int, endpoints ...string) (*Forwarder, *upCluster) {
	t.Helper()
	spec := &Spec{
		MaxTimeout: time.Minute, Workers: WorkersSpec{Max: 1},
		Clusters: []ClusterSpec{{
			Name: "c", Codec: bolt.Codec{}, Limits: wire.Limits{MaxFrame: 1 << 20, MaxHeader: 32767}, Balancer: BalancerRoundRobin,
			ConnectionsPerEndpoint: 1, MaxConnections: maxConnections, MaxPending: 10, MaxPendingBytes: 1 << 20, MaxRequests: 10,
			MaxQueued: 1 << 20, ConnectTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second,
			HeartbeatInterval: time.Minute, HeartbeatMisses: 3, MaxUploads: 1,
		}},
	}
	for _, a := range endpoints {
		spec.Clusters[0].Endpoints = append(spec.Clusters[0].Endpoints, EndpointSpec{Network: "tcp", Address: a, Weight: 1})
	}
	f, err := New(spec, 64<<20, stats.NewRegistry(), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f, f.snap.Load().clusters[0]
}

// acceptor is a server that accepts, and hands out what it has accepted.
func acceptor(t *testing.T) (address string, accepted <-chan net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	out := make(chan net.Conn, 100)
	done := make(chan struct{})
	go func() { // ends when the listener is closed
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			out <- c
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
		for len(out) > 0 {
			(<-out).Close()
		}
	})
	return l.Addr().String(), out
}

// until waits for a condition.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); !cond(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited 10 s for %s", what)
		}
	}
}

// TestExportAndRollback: a paused connection takes nothing and is waited for; rolled back it is what it was, and what the
// server sent meanwhile is read.
func TestExportAndRollback(t *testing.T) {
	for _, drains := range []bool{false, true} {
		t.Run(fmt.Sprintf("drains=%v", drains), func(t *testing.T) {
			address, accepted := acceptor(t)
			f, c := roadTo(t, 10, address)
			p := c.endpoints[0].small
			p.mu.Lock()
			p.wantDial()
			p.mu.Unlock()
			server := <-accepted
			defer server.Close()
			until(t, "the connection", func() bool { return len(*p.conns.Load()) == 1 })
			u := (*p.conns.Load())[0]
			was := stateReady
			if drains {
				was = stateDraining
				id, _, _ := u.table.Insert(new(exchange), never) // it has something to wait for
				defer u.table.Take(id, new(exchange))
				u.drain(ReasonGoAway)
			}
			in := func(s state) func() bool { return func() bool { return state(u.state.Load()) == s } }
			until(t, was.String(), in(was))
			if got := u.takes(); got == drains {
				t.Errorf("a connection that is %v takes streams: %v", was, got)
			}
			if err := f.Pause(t.Context()); err != nil {
				t.Fatal(err)
			}
			if !in(stateExported)() {
				t.Errorf("got it %v behind the pause, want exported", state(u.state.Load()))
			}
			if u.takes() || !u.stays() {
				t.Errorf("an exported connection: takes %v, stays %v, want false and true", u.takes(), u.stays())
			}
			if p.staying() != 1 {
				t.Errorf("got %d connections to wait for, want the exported one", p.staying())
			}
			beat := bolt.Codec{}.AppendHeartbeat(nil, 7)
			if _, err := server.Write(beat); err != nil {
				t.Fatal(err)
			}
			f.Resume()
			if !in(was)() {
				t.Errorf("got it %v behind the rollback, want %v", state(u.state.Load()), was)
			}
			ack := make([]byte, 1)
			_ = server.SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := server.Read(ack); err != nil {
				t.Errorf("got %v, want the ack of a heartbeat that came while the connection was paused", err)
			}
			if drains {
				if es := u.table.Close(nil); len(es) != 1 {
					t.Errorf("got %d streams, want the one that was there", len(es))
				}
				u.settle()
				until(t, "the end of a draining connection without streams", u.conn.Closed)
				if got := u.conn.Reason(); got != ReasonGoAway {
					t.Errorf("got it closed for %q, want %q", got, ReasonGoAway)
				}
			}
		})
	}
}

// TestSettleLosesNothing: streams that are begun while a connection ends are either refused at once, or it stays.
func TestSettleLosesNothing(t *testing.T) {
	address, accepted := acceptor(t)
	_, c := roadTo(t, 100, address)
	p := c.endpoints[0].small
	for range 50 {
		p.mu.Lock()
		p.wantDial()
		p.mu.Unlock()
		server := <-accepted
		gone := make(chan struct{})
		go func() { // ends with the connection, which it closes when the other side does
			defer close(gone)
			_, _ = io.Copy(io.Discard, server)
			server.Close()
		}()
		until(t, "the connection", func() bool { return len(*p.conns.Load()) == 1 })
		u := (*p.conns.Load())[0]
		var id uint32
		var ok bool
		done := make(chan struct{})
		go func() { // ends with its insert
			defer close(done)
			id, _, ok = u.table.Insert(new(exchange), never)
		}()
		u.drain(ReasonMaxAge)
		<-done
		if ok {
			if u.settle(); u.conn.Closed() {
				t.Fatal("the connection closed with a stream on it")
			}
			u.table.Take(id, new(exchange))
			u.settle()
		}
		until(t, "the end of the connection", func() bool { return len(*p.conns.Load()) == 0 })
		if got := u.conn.Reason(); got != ReasonMaxAge {
			t.Errorf("got it closed for %q, want %q", got, ReasonMaxAge)
		}
		<-gone
	}
}

// TestProbesAreBounded: however many endpoints are down, few are probed at once, and each gets its turn.
func TestProbesAreBounded(t *testing.T) {
	const n = 100
	address, accepted := acceptor(t)
	f, c := roadTo(t, n, slices.Repeat([]string{address}, n)...)
	now := f.now()
	for _, e := range c.endpoints {
		e.policy.Failed(now)
	}
	now += 150 * int64(time.Millisecond) // every back-off is over, and no probe's time
	probing := func() (m int) {
		for _, e := range c.endpoints {
			if e.policy.Health().Probing {
				m++
			}
		}
		return m
	}
	probed := map[*cluster.Endpoint]bool{}
	for len(probed) < n {
		c.probe(now)
		c.probe(now) // there is no room for more
		if got := probing(); got > probesAtOnce || c.probesLeft.Used() != got {
			t.Fatalf("got %d probes at once, %d counted, want at most %d", got, c.probesLeft.Used(), probesAtOnce)
		}
		for range probing() {
			server := <-accepted // which says nothing
			defer server.Close()
		}
		before := len(probed)
		for _, e := range c.endpoints {
			if !e.policy.Health().Probing {
				continue
			}
			until(t, "the probe's connection", func() bool { return e.probe.Load() != nil })
			probed[e.policy] = true
			e.unanswered(e.probe.Load(), now) // and so it goes to the end of the line
		}
		if len(probed) == before {
			t.Fatalf("got probes of the same endpoints again, want each of %d to have its turn: %d had", n, before)
		}
	}
	if got := c.probesLeft.Used(); got != 0 {
		t.Errorf("got %d probes counted as under way when none is", got)
	}
}

// TestProbeNeedsRoom: without a place in max_connections no probe begins, and none is lost.
func TestProbeNeedsRoom(t *testing.T) {
	address, accepted := acceptor(t)
	f, c := roadTo(t, 1, address)
	e, limits := c.endpoints[0], c.policy.Limits()
	e.policy.Failed(f.now())
	at, _ := e.policy.ProbeDue()
	limits.Connections.TryAcquire(1)
	if next := c.probe(at); next != at || e.policy.Health().Probing || c.probesLeft.Used() != 0 {
		t.Errorf("got a probe %v, next at %d, want none and another look soon", e.policy.Health().Probing, next)
	}
	limits.Connections.Release(1)
	c.probe(at)
	if !e.policy.Health().Probing {
		t.Error("got no probe with a place left, want one")
	}
	(<-accepted).Close() // unanswered: that ends it
	until(t, "the end of the probe", func() bool { return !e.policy.Health().Probing && limits.Connections.Used() == 0 })
	if h := e.policy.Health(); h.Failures != 2 {
		t.Errorf("got %d failures, want 2: the one that was probed for and the probe's", h.Failures)
	}
}

// TestUploadsLeaveADrainedEndpoint: who waits for a connection to lease is told at once.
func TestUploadsLeaveADrainedEndpoint(t *testing.T) {
	address, accepted := acceptor(t)
	f, c := roadTo(t, 10, address)
	e := c.endpoints[0]
	u, reason := e.uploads.lease(f.now() + int64(time.Minute))
	if u == nil {
		t.Fatalf("got no connection to lease: %s", reason)
	}
	defer (<-accepted).Close()
	var told atomic.Pointer[string]
	done := make(chan struct{})
	for range 2 {
		go func() { // ends when it is told
			defer func() { done <- struct{}{} }()
			if _, reason := e.uploads.lease(f.now() + int64(time.Minute)); reason != ReasonEndpointDrained {
				told.Store(&reason)
			}
		}()
	}
	until(t, "two that wait", func() bool {
		e.uploads.mu.Lock()
		defer e.uploads.mu.Unlock()
		return len(e.uploads.leases.waiting) == 2
	})
	e.drain(true)
	<-done
	<-done
	if r := told.Load(); r != nil {
		t.Errorf("got the reason %q, want %q", *r, ReasonEndpointDrained)
	}
	if u.conn.Closed() {
		t.Error("the connection closed in the middle of a lease")
	}
	e.uploads.release(u)
	u.settle()
	until(t, "the end of the connection", u.conn.Closed)
	if got := u.conn.Reason(); got != ReasonEndpointDrained && got != conn.ReasonPeerClosed {
		t.Errorf("got it closed for %q, want %q", got, ReasonEndpointDrained)
	}
}
