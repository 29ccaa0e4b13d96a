package forwarder_test

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/filter"
)

// TestFilterStopped: a stop that nobody ends, ends by read_timeout, on every way; resuming it afterwards does nothing.
func TestFilterStopped(t *testing.T) {
	for way, of := range ways {
		t.Run(way, func(t *testing.T) {
			holds := make(chan *filter.Hold, 8)
			s := filtered(serveEach(t, echoEach).address, of(func(c *filter.Connection) filter.Next {
				h := c.Hold()
				holds <- h
				return filter.Wait(h)
			}))
			s.Listeners[0].ReadTimeout = 50 * time.Millisecond
			p := startProxy(t, s, 512<<20)
			c := dial(t, p.address)
			c.send(frameOf(t, 1, "held"))
			h := <-holds
			p.wantCount(1, "relevo_listener_closes_total", "reason="+forwarder.ReasonFilterStopped)
			p.wantCount(0, "relevo_listener_connections")
			c.wantEnd()
			h.Resume()
			h.Resume()
		})
	}
}

// TestCloseWhileStopped: the end of the road does not wait for a stopped filter, and leaves nothing behind.
func TestCloseWhileStopped(t *testing.T) {
	for way, of := range ways {
		t.Run(way, func(t *testing.T) {
			holds := make(chan *filter.Hold, 8)
			p := startProxy(t, filtered(serveEach(t, echoEach).address, of(func(c *filter.Connection) filter.Next {
				h := c.Hold()
				holds <- h
				return filter.Wait(h)
			})), 512<<20)
			c := dial(t, p.address)
			c.send(frameOf(t, 1, strings.Repeat("held", 50_000)))
			h := <-holds
			var group sync.WaitGroup
			group.Go(h.Resume) // ends at once, while the road ends
			p.Close()
			group.Wait()
			h.Resume()
			_ = c.SetReadDeadline(time.Now().Add(patience))
			if _, err := io.Copy(io.Discard, c); isTimeout(err) { // maybe the chain went on before the end
				t.Errorf("got %v from a client's connection behind Close, want its end", err)
			}
		})
	}
}

// TestClientGoneWhileStopped: its end is seen once the chain goes on.
func TestClientGoneWhileStopped(t *testing.T) {
	for how, end := range endings {
		t.Run(how, func(t *testing.T) {
			holds := make(chan *filter.Hold, 8)
			p := startProxy(t, filtered(serveEach(t, echoEach).address, ways["out"](func(c *filter.Connection) filter.Next {
				h := c.Hold()
				holds <- h
				return filter.Wait(h)
			})), 512<<20)
			c := dial(t, p.address)
			c.send(frameOf(t, 1, "held"))
			h := <-holds
			end(c)
			p.wantCount(0, "relevo_listener_connections") // only the way out is stopped
			h.Resume()
			p.wantCount(1, "relevo_listener_closes_total")
		})
	}
}

// holdFirst is a script that stops the way out at its first call, and hands over the hold.
func holdFirst() (*script, <-chan *filter.Hold) {
	holds := make(chan *filter.Hold, 1)
	var once sync.Once
	return ways["out"](func(c *filter.Connection) filter.Next {
		next := filter.Pass
		once.Do(func() {
			h := c.Hold()
			next = filter.Wait(h)
			holds <- h
		})
		return next
	}), holds
}

// TestHeldReplies: what comes while the way out is stopped waits in order. Above queue_high the client is not read from;
// when the chain goes on everything comes.
func TestHeldReplies(t *testing.T) {
	for _, size := range []int{100, 20_000, 200_000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			first, holds := holdFirst()
			var group sync.WaitGroup
			defer group.Wait()
			s := filtered(serveEach(t, echoEach).address, &scrambler{seed: 1, group: &group, every: 5}, first)
			s.Listeners[0].QueueHigh, s.Listeners[0].QueueLow = 16<<10, 8<<10
			s.Routes[0].Rules[0].Timeout = patience
			p := startProxy(t, s, 512<<20)
			c := dial(t, tunnel(t, p.address, 1))
			n := min(60, 4_000_000/size)
			content := strings.Repeat("x", size)
			var stream []byte
			for i := range n {
				stream = append(stream, frameOf(t, uint32(i), content)...)
			}
			group.Go(func() { _, _ = c.Write(stream) }) // ends with the last byte, or the connection
			h := <-holds
			if size > 1000 {
				p.wantCount(1, "relevo_listener_connections", "state=gated")
			}
			h.Resume()
			for _, m := range c.receiveByID(n) {
				wantEcho(t, m, content)
			}
			p.wantCount(0, "relevo_listener_connections", "state=gated")
		})
	}
}

// TestHeldRepliesAreBounded: they count against max_queued.
func TestHeldRepliesAreBounded(t *testing.T) {
	first, holds := holdFirst()
	s := filtered(serveEach(t, echoEach).address, first)
	s.Listeners[0].MaxQueued = 100_000
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	for i := range uint32(20) {
		_, _ = c.Write(frameOf(t, i, strings.Repeat("x", 10_000))) // it may be closed already
	}
	h := <-holds
	p.wantCount(1, "relevo_listener_closes_total", "reason=queue-full")
	c.wantEnd()
	h.Resume()
}

// TestDrainWhileStopped: a connection whose bytes a filter holds is not idle: draining waits for it.
func TestDrainWhileStopped(t *testing.T) {
	for _, way := range []string{"in", "out"} {
		t.Run(way, func(t *testing.T) {
			holds := make(chan *filter.Hold, 1)
			var once sync.Once
			p := startProxy(t, filtered(serveEach(t, echoEach).address, ways[way](func(c *filter.Connection) filter.Next {
				next := filter.Pass
				once.Do(func() {
					h := c.Hold()
					holds <- h
					next = filter.Wait(h)
				})
				return next
			})), 512<<20)
			c, idle := dial(t, p.address), dial(t, p.address)
			p.wantCount(2, "relevo_listener_connections")
			c.send(frameOf(t, 1, "held"))
			h := <-holds
			drained := make(chan error, 1)
			go func() { drained <- p.Drain(t.Context()) }() // ends when the held bytes have passed
			idle.wantEnd()                                  // Drain has looked at all of them
			select {
			case err := <-drained:
				t.Fatalf("Drain returned %v while a filter held bytes, want it to wait", err)
			default:
			}
			h.Resume()
			if m := c.receive(); m.ID != 1 {
				t.Errorf("got a reply with id %d, want the held one", m.ID)
			}
			c.wantEnd()
			if err := <-drained; err != nil {
				t.Errorf("got %v from Drain, want nil once the filter went on", err)
			}
		})
	}
}

// TestLastReplyWaitsForFilter: a connection that is closed for bad bytes still gets what a filter holds.
func TestLastReplyWaitsForFilter(t *testing.T) {
	first, holds := holdFirst()
	p := startProxy(t, filtered(serveEach(t, echoEach).address, first), 512<<20)
	c := dial(t, p.address)
	c.send(frameOf(t, 1, "held"))
	h := <-holds
	c.send([]byte("this is no frame"))
	p.wantLogged("bad-protocol")
	p.wantCount(1, "relevo_listener_connections", "state=gated") // it waits for the end
	h.Resume()
	wantEcho(t, c.receive(), "held")
	c.wantEnd()
	p.wantCount(1, "relevo_listener_closes_total", "reason=bad-protocol")
}
