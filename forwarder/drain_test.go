package forwarder_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// TestDrain: what is in flight ends, what is idle closes, what comes is answered CONNECTION_CLOSED.
func TestDrain(t *testing.T) {
	h := serveHeld(t)
	p := startProxy(t, spec(h.address), 512<<20)
	busy, idle := dial(t, p.address), dial(t, p.address)
	busy.send(frameOf(t, 1, "in flight"), frameOf(t, 2, "in flight"))
	idle.send(encode(t, oneway(3, "accepted")))
	h.got(t, 3)
	p.wantCount(2, "relevo_listener_connections")
	drained := make(chan error, 1)
	go func() { drained <- p.Drain(context.Background()) }() // ends when both requests have been answered
	idle.wantEnd()
	p.wantCount(1, "relevo_listener_closes_total", "reason="+forwarder.ReasonDrained)
	p.wantLocal(busy.call(request(4, "too late")), wire.ConnectionClosed, forwarder.ReasonDraining, 1)
	busy.send(encode(t, oneway(5, "too late")))
	p.wantCount(1, "relevo_listener_dropped_total", "reason="+forwarder.ReasonOneway)
	busy.send(heartbeat(t, 0, 6))
	if m := busy.receive(); m.Kind != wire.Ack {
		t.Errorf("got a %v, want the ack of the heartbeat while draining", m.Kind)
	}
	if c, err := net.Dial("tcp", p.address); err == nil {
		c.Close()
		t.Error("got a connection while draining, want none accepted")
	}
	select {
	case err := <-drained:
		t.Fatalf("Drain returned %v with requests in flight, want it to wait", err)
	default:
	}
	h.release()
	for _, m := range busy.receiveByID(2) {
		wantEcho(t, m, "in flight")
	}
	busy.wantEnd()
	if err := <-drained; err != nil {
		t.Errorf("got %v from Drain, want nil: everything has ended", err)
	}
	p.wantCount(2, "relevo_listener_closes_total", "reason="+forwarder.ReasonDrained)
}

// TestDrainUnderCalls: clients that call one time after the other are answered, SUCCESS or CONNECTION_CLOSED, and lose
// no call, until they stop calling; then Drain returns.
func TestDrainUnderCalls(t *testing.T) {
	const quiet = 100 * time.Millisecond // a client that was kept from calling for as long counts as one that stopped
	p := startProxy(t, spec(serveEach(t, echoEach).address), 512<<20)
	var group sync.WaitGroup
	var served, refused, paused atomic.Int64
	clients := make([]*peer, 8)
	for i := range clients {
		c := dial(t, p.address)
		clients[i] = c
		_ = c.SetDeadline(time.Now().Add(2 * patience))
		frame := frameOf(t, 1, "again")
		group.Go(func() { // ends with its 20th refusal
			before := time.Now()
			for told := 0; told < 20; {
				began := time.Now()
				_, err := c.Write(frame)
				var m wire.Message
				if err == nil {
					m, err = c.next()
				}
				switch {
				case err != nil && time.Since(before) >= quiet && !isTimeout(err):
					paused.Add(1)
					return
				case err != nil:
					t.Errorf("client %d: got %v after %d times CONNECTION_CLOSED, want each call answered", i, err, told)
					return
				case m.Status == wire.ConnectionClosed:
					told++
					refused.Add(1)
				case m.Status == wire.Success:
					served.Add(1)
				default:
					t.Errorf("client %d: got status %v, want SUCCESS or CONNECTION_CLOSED", i, m.Status)
					return
				}
				before = began
			}
		})
	}
	eventually(t, func() bool { return served.Load() >= 100 }, say("some calls before the drain"))
	p.wantCount(float64(len(clients)), "relevo_listener_connections") // who is not accepted by then never is
	if err := p.Drain(t.Context()); err != nil {
		t.Errorf("got %v from Drain, want nil: the clients have stopped calling", err)
	}
	group.Wait()
	for _, c := range clients {
		c.wantEnd()
	}
	t.Logf("%d served, %d refused, %d of %d clients were kept from calling", served.Load(), refused.Load(), paused.Load(), len(clients))
	p.wantCount(float64(len(clients)), "relevo_listener_closes_total", "reason="+forwarder.ReasonDrained)
	if got := p.value("relevo_listener_local_replies_total", "reason="+forwarder.ReasonDraining); got < float64(refused.Load()) {
		t.Errorf("got %v local replies counted, want at least the %d that clients got", got, refused.Load())
	}
}

// TestDrainOfWhoNeverPauses: a client that goes on calling is answered for a while, and does not hold the process up.
func TestDrainOfWhoNeverPauses(t *testing.T) {
	p := startProxy(t, spec(serveEach(t, echoEach).address), 512<<20)
	var group sync.WaitGroup
	c := dial(t, p.address)
	frame := frameOf(t, 1, "again")
	var refused atomic.Int64
	group.Go(func() { // ends with the connection
		for {
			if _, err := c.Write(frame); err != nil {
				return
			}
			m, err := c.next()
			if err != nil {
				return
			}
			if m.Status == wire.ConnectionClosed {
				refused.Add(1)
			}
			<-time.After(10 * time.Millisecond)
		}
	})
	_ = c.SetDeadline(time.Now().Add(2 * patience))
	p.wantSome("relevo_listener_replies_total")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := p.Drain(ctx); err != nil {
		t.Errorf("got %v from Drain, want the client closed between two of its calls", err)
	}
	group.Wait()
	if refused.Load() == 0 {
		t.Error("got no call answered CONNECTION_CLOSED, want the client told for a while")
	}
	p.wantCount(1, "relevo_listener_closes_total", "reason="+forwarder.ReasonDrained)
}

// TestDrainIsCutShort: with its context's end it returns an error, and Close cuts what is left.
func TestDrainIsCutShort(t *testing.T) {
	h := serveHeld(t)
	s := spec(h.address)
	s.Routes[0].Rules[0].Timeout = time.Minute
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	c.send(frameOf(t, 1, "never answered"))
	h.got(t, 1)
	ctx, cancel := context.WithCancel(context.Background())
	drained := make(chan error, 1)
	go func() { drained <- p.Drain(ctx) }() // ends with ctx
	eventually(t, func() bool { return !p.Status().Listeners[0].Accepting }, say("the listener to accept no more"))
	p.wantLocal(c.call(request(2, "x")), wire.ConnectionClosed, forwarder.ReasonDraining, 1)
	cancel()
	if err := <-drained; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "1 connections") {
		t.Errorf("got %v from Drain, want the context's error and what it waited for", err)
	}
	p.Close()
	c.wantEnd()
	p.wantCount(1, "relevo_listener_closes_total", "reason="+forwarder.ReasonStopping)
	p.wantCount(0, "relevo_cluster_in_flight")
}

// TestDrainOfNothing returns at once.
func TestDrainOfNothing(t *testing.T) {
	p := startProxy(t, spec(deadAddress(t)), 512<<20)
	if err := p.Drain(t.Context()); err != nil {
		t.Errorf("got %v, want nil", err)
	}
}

// TestCloseUnderLoad at any moment leaves nothing behind, not even of the exchanges that wait for a connection that
// takes nothing.
func TestCloseUnderLoad(t *testing.T) {
	rounds := 40
	if testing.Short() {
		rounds = 10
	}
	ended := make(chan struct{})
	stuck := serveOn(t, narrow(t), func(*peer) { <-ended })
	defer close(ended)
	good := serveEach(t, echoEach)
	for round := range rounds {
		s := spec(stuck.address, good.address)
		s.Clusters[0].Balancer = forwarder.BalancerRoundRobin
		p := startProxy(t, s, 512<<20)
		var group sync.WaitGroup
		for range 3 {
			c := dial(t, p.address)
			frame := frameOf(t, 1, strings.Repeat("x", 40<<10))
			group.Go(func() { // ends with the connection
				for {
					if _, err := c.Write(frame); err != nil {
						return
					}
				}
			})
			group.Go(func() { // ends with the connection
				for _, err := c.next(); err == nil; _, err = c.next() {
					continue
				}
			})
		}
		p.wantCount(3, "relevo_listener_connections")
		eventually(t, func() bool { return p.value("relevo_listener_requests_total") > float64(round*10) }, say("some load"))
		p.Close()
		group.Wait()
		for _, gauge := range append(underWay, "relevo_cluster_connections", "relevo_buffered_bytes") {
			if n := p.value(gauge); n != 0 {
				t.Fatalf("round %d: got %s = %v after Close, want 0", round, gauge, n)
			}
		}
		closes := p.value("relevo_listener_closes_total", "reason="+forwarder.ReasonStopping) + p.value("relevo_listener_closes_total", "reason="+conn.ReasonReset)
		if closes != 3 {
			t.Fatalf("round %d: got %v, want the 3 connections closed because the process stops", round, p.series("relevo_listener_closes_total"))
		}
	}
}
