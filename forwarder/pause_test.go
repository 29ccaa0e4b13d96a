package forwarder_test

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/filter"
)

// TestPauseThatIsStuck: a filter that does not heed its context keeps the road from resting. Pause says so when its time is over,
// and everything goes on.
func TestPauseThatIsStuck(t *testing.T) {
	for name, c := range map[string]struct {
		content, says string
	}{
		"on a worker":    {"small", "1 in filters that block"},
		"in a read loop": {string(noise(1, uploadSize)), "the read loops"},
	} {
		t.Run(name, func(t *testing.T) {
			server, _ := counting(t)
			s := uploadSpec(server.address)
			let, entered := make(chan struct{}), make(chan struct{}, 10)
			s.Listeners[0].Filters = blockingIn("after", func(_ context.Context, x *filter.Exchange) filter.Verdict {
				if string(x.Header([]byte("slow"))) == "1" {
					entered <- struct{}{}
					<-let
				}
				return filter.Continue
			})
			p := startProxy(t, s, 64<<20)
			others := startNeighbours(t, p.address, service)
			c1 := dial(t, p.address)
			sent := make(chan struct{})
			go func() { defer close(sent); c1.send(encode(t, slowRequest(1, c.content))) }() // ends when all is taken
			<-entered
			for range 3 {
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
				err := p.Pause(ctx)
				cancel()
				if err == nil || !strings.Contains(err.Error(), c.says) {
					t.Errorf("got %v, want an error that tells of %q", err, c.says)
				}
				others.goOn()
			}
			close(let)
			wantEcho(t, c1.receive(), c.content)
			<-sent
			others.stop()
			p.pause()
			p.Resume()
			wantEcho(t, c1.call(request(2, "as if there had been none")), "as if there had been none")
		})
	}
}

// TestPauseAtEveryMoment: whichever step a pause is given up in, nobody notices.
func TestPauseAtEveryMoment(t *testing.T) {
	s := spec(serveEach(t, echoEach).address)
	s.Clusters[0].ConnectionsPerEndpoint, s.Clusters[0].MaxAge = 3, 20*time.Millisecond // so that there are dials, too
	s.Routes[0].Rules[0].Attempts = 1
	p := startProxy(t, s, 64<<20)
	load := startLoad(t, p.address)
	load.goOn()
	rested := 0
	for i := range 150 {
		within := time.Duration(rand.IntN(1500)) * time.Microsecond
		switch i % 10 { // however fast or slow the machine is
		case 0:
			within = 0
		case 1:
			within = patience
		}
		ctx, cancel := context.WithTimeout(t.Context(), within)
		if p.Pause(ctx) == nil {
			rested++
			p.Resume()
		}
		cancel()
	}
	load.goOn()
	load.stop()
	if rested == 0 || rested == 150 {
		t.Errorf("got %d of 150 pauses at rest, want some and not all: this tests too little", rested)
	}
	p.wantCount(0, "relevo_endpoint_connect_failures_total")
	p.wantCount(0, "relevo_listener_local_replies_total")
}

// TestPauseTwice: a road at rest stays at rest, and one Resume is enough. How long it was is known of each connection.
func TestPauseTwice(t *testing.T) {
	p := startProxy(t, spec(serveEach(t, echoEach).address), 64<<20)
	c := dial(t, p.address)
	c.send(frameOf(t, 1, "before"))
	wantEcho(t, c.receive(), "before")
	for range 3 {
		p.pause()
		p.pause()
		c.send(frameOf(t, 2, "meanwhile"))
		p.Resume()
		p.Resume()
		wantEcho(t, c.receive(), "meanwhile")
		if list := p.Pauses(); len(list) != 2 || slices.Min(list) <= 0 {
			t.Errorf("the pauses are %v, want those of the client's connection and the server's", list)
		}
	}
}

// TestCloseAtRest ends the road for good, whether it rests, is about to, or is about to go on; who is held in a filter ends,
// too. Behind it there is no pause.
func TestCloseAtRest(t *testing.T) {
	for _, when := range []string{"at rest", "at once with a pause", "before it"} {
		t.Run(when, func(t *testing.T) {
			s := spec(serveEach(t, echoEach).address)
			entered := new(atomic.Int64)
			s.Listeners[0].Filters = blockingIn("after", func(ctx context.Context, _ *filter.Exchange) filter.Verdict {
				entered.Add(1)
				<-ctx.Done()
				return filter.Continue
			})
			p := startProxy(t, s, 64<<20)
			c := dial(t, p.address)
			for id := range uint32(5) {
				c.send(frameOf(t, id, "held"))
			}
			eventually(t, func() bool { return entered.Load() == 5 }, say("all requests to be held"))
			var group sync.WaitGroup
			switch when {
			case "at rest":
				p.pause()
			case "at once with a pause":
				for range 4 {
					group.Go(func() { _ = p.Pause(context.Background()) }) // ends with the pause, or with Close
					group.Go(p.Resume)                                     // ends at once, or behind a pause
				}
			}
			p.Close()
			group.Wait()
			if err := p.Pause(t.Context()); err == nil {
				t.Error("got a closed road to rest, want an error")
			}
			p.Resume()
			if n := p.UnderWay(); n != 0 {
				t.Errorf("got %d workers under way behind Close, want none", n)
			}
		})
	}
}

// TestCloseAtAnyMoment: pauses, and what undoes them, meet the end of the road under load.
func TestCloseAtAnyMoment(t *testing.T) {
	for range 10 {
		p := startProxy(t, spec(serveEach(t, echoEach).address), 64<<20)
		var group sync.WaitGroup
		for range 4 {
			c := dial(t, p.address)
			group.Go(func() { // ends with the road
				for id := uint32(0); ; id++ {
					if verified(c, request(id, "as long as there is a road")) != nil {
						return
					}
				}
			})
			group.Go(func() { // ends with the road
				for {
					ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
					err := p.Pause(ctx)
					cancel()
					if err != nil && strings.Contains(err.Error(), "closed") {
						return
					}
					p.Resume()
				}
			})
		}
		<-time.After(time.Duration(rand.IntN(20)) * time.Millisecond)
		p.Close()
		group.Wait()
	}
}

// TestOldest names the requests that have waited longest, and where.
func TestOldest(t *testing.T) {
	h := serveHeld(t)
	p := startProxy(t, spec(h.address), 64<<20)
	c := dial(t, p.address)
	for id := range uint32(3) {
		c.send(encode(t, traced(id, "held")))
		h.got(t, int64(id)+1)
	}
	if got := p.Oldest(0); len(got) != 0 {
		t.Errorf("got %q, want none of them", got)
	}
	got := p.Oldest(2)
	if len(got) != 2 {
		t.Fatalf("got %q, want two", got)
	}
	for i, want := range []string{"method0", "method1"} {
		for _, part := range []string{"s old: " + service + " " + want + " from " + c.LocalAddr().String() + " on listener in", "to endpoint " + h.address + " of cluster echo"} {
			if !strings.Contains(got[i], part) {
				t.Errorf("got %q, want it to tell %q", got[i], part)
			}
		}
	}
	h.release()
	c.receiveByID(3)
	if got := p.Oldest(2); len(got) != 0 {
		t.Errorf("got %q behind the replies, want none", got)
	}
}
