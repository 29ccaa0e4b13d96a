package forwarder

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// player plays at random on a stage, and remembers what must have come of it.
type player struct {
	*stage
	asked map[uint32]bool // those that have not been answered
	tries map[string]int  // by content
	at    map[*end][]wire.Message
	most  int // tries of a request
}

// look sees what has come to the servers and to the client.
func (p *player) look() {
	p.Helper()
	for _, e := range p.ups {
		for _, m := range p.got(e) {
			p.at[e] = append(p.at[e], m)
			if p.tries[string(m.Content())]++; p.tries[string(m.Content())] > p.most {
				p.Fatalf("got %q %d times at the servers, want %d at most", m.Content(), p.tries[string(m.Content())], p.most)
			}
		}
	}
	for _, m := range p.got(p.far) {
		if !p.asked[m.ID] {
			p.Fatalf("got a reply to request %d, which is none or was answered already", m.ID)
		}
		delete(p.asked, m.ID)
	}
}

// draw is a server that has something to answer, and that.
func (p *player) draw(t *rapid.T) (*end, wire.Message) {
	var busy []*end
	for _, e := range p.ups {
		if len(p.at[e]) > 0 {
			busy = append(busy, e)
		}
	}
	if len(busy) == 0 {
		t.Skip("no server has anything to answer")
	}
	e := rapid.SampledFrom(busy).Draw(t, "server")
	i := rapid.IntRange(0, len(p.at[e])-1).Draw(t, "request")
	m := p.at[e][i]
	p.at[e] = append(p.at[e][:i:i], p.at[e][i+1:]...)
	return e, m
}

// TestRetriesStayWithinTheirBudget: at no moment is a retry granted beyond it, whatever servers do at once; each request is answered
// once, and sent no more often than its rule says; and nothing is left of any of it. The road comes to rest in between.
func TestRetriesStayWithinTheirBudget(t *testing.T) {
	const share, floor, attempts = 20, 2, 3
	for name, forwarding := range map[string]Forwarding{"auto": ForwardAuto, "worker": ForwardWorker} {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				synctest.Test(t, func(*testing.T) {
					s := stageSpec(3)
					s.Listeners[0].Forwarding = forwarding
					s.Clusters[0].RetryShare, s.Clusters[0].RetryFloor = share*100, floor
					play(rt, &player{stage: newStage(rt, s), asked: map[uint32]bool{}, tries: map[string]int{}, at: map[*end][]wire.Message{}, most: attempts}, func(requests, before, after int) {
						if bound := max(floor, requests*share/100); after > before && after > bound {
							rt.Fatalf("got %d retries under way, of %d requests, want %d at most", after, requests, bound)
						}
					})
				})
			})
		})
	}
}

// TestWhatIsNotIdempotentIsSentOnce, whatever servers do.
func TestWhatIsNotIdempotentIsSentOnce(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		synctest.Test(t, func(*testing.T) {
			s := stageSpec(3)
			r := &s.Routes[0].Rules[0]
			r.RetryOn, r.Idempotent = RetryConnectFailure|RetryResetBeforeSend, false
			play(rt, &player{stage: newStage(rt, s), asked: map[uint32]bool{}, tries: map[string]int{}, at: map[*end][]wire.Message{}, most: 1}, func(_, _, after int) {
				if after != 0 {
					rt.Fatalf("got %d retries under way, want none", after)
				}
			})
		})
	})
}

// play plays; check is told of each step how many requests there were at most, and how many retries before and behind it.
func play(t *rapid.T, p *player, check func(requests, before, after int)) {
	defer p.end()
	step := func(act func(*rapid.T)) func(*rapid.T) {
		return func(t *rapid.T) {
			requests, before := p.c.limits.Requests.Used(), p.c.limits.Retries.Used()
			act(t)
			p.look()
			check(max(requests, p.c.limits.Requests.Used()), before, p.c.limits.Retries.Used())
		}
	}
	t.Repeat(map[string]func(*rapid.T){
		"ask": step(func(t *rapid.T) {
			for range rapid.IntRange(1, 10).Draw(t, "requests") {
				p.asked[p.ask(rapid.SampledFrom([]int32{50, 1500, 9000}).Draw(t, "timeout"))] = true
			}
		}),
		"answer": step(func(t *rapid.T) {
			e, m := p.draw(t)
			p.reply(e, m, wire.Success)
		}),
		"busy": step(func(t *rapid.T) {
			e, m := p.draw(t)
			p.reply(e, m, wire.Busy)
		}),
		"twice": step(func(t *rapid.T) { // a server that answers what it has answered
			e, m := p.draw(t)
			p.reply(e, m, wire.Busy)
			p.reply(e, m, wire.Busy)
		}),
		"break": step(func(t *rapid.T) {
			e := rapid.SampledFrom(p.ups).Draw(t, "server")
			delete(p.at, e)
			p.breaks(e)
		}),
		"time": step(func(t *rapid.T) {
			p.wait(time.Duration(rapid.IntRange(1, 1200).Draw(t, "ms")) * time.Millisecond)
		}),
		"rest": step(func(t *rapid.T) {
			if err := p.f.Pause(context.Background()); err != nil {
				t.Fatalf("pausing: %v", err)
			}
			waiting := p.c.retryWaits.Used()
			p.wait(time.Duration(rapid.IntRange(1, 500).Draw(t, "ms")) * time.Millisecond)
			if n := p.c.retryWaits.Used(); n != waiting {
				t.Fatalf("got %d requests that wait to be tried again at rest, there were %d", n, waiting)
			}
			p.f.Resume()
			synctest.Wait()
		}),
	})
	p.wait(20 * time.Second) // behind all deadlines
	p.look()
	if len(p.asked) != 0 {
		t.Fatalf("got %d requests that were never answered", len(p.asked))
	}
	p.idle()
}

// TestBusyStorm: one of two endpoints answers busy. What the other one gets beside its own share is never more than the budget, and
// what is beyond it is told the client at once.
func TestBusyStorm(t *testing.T) {
	const perTick, work, share, floor = 10, 5, 20, 3 // a request takes so many ticks
	storm := func() *Spec {
		s := stageSpec(2)
		s.Routes[0].Rules[0].PerTryTimeout = 5 * time.Second
		s.Routes[0].Rules[0].BackOffBase = 10 * time.Millisecond
		return s
	}
	onStage(t, storm, func(t *testing.T, s *stage) {
		bad, good := s.ups[0], s.ups[1]
		refused := map[string]bool{} // contents that the bad one was too busy for
		type job struct {
			m     wire.Message
			until int
			again bool
		}
		var jobs []job
		own, others, peak := 0, 0, 0 // of requests in flight
		for tick := range 100 {
			for range perTick {
				s.ask(9000)
			}
			s.got(s.far) // it reads
			peak = max(peak, s.c.limits.Requests.Used())
			for _, m := range s.got(bad) {
				refused[string(m.Content())] = true
				s.reply(bad, m, wire.Busy)
			}
			s.wait(5 * time.Millisecond)
			for _, m := range s.got(good) {
				again := refused[string(m.Content())]
				jobs = append(jobs, job{m, tick + work, again})
				if again {
					others++
				} else {
					own++
				}
			}
			again := 0
			for _, j := range jobs {
				if j.again {
					again++
				}
			}
			if most := max(floor, peak*share/100); again > most {
				t.Fatalf("got %d requests of the other at the good server, of %d in flight, want %d at most", again, peak, most)
			}
			rest := jobs[:0]
			for _, j := range jobs {
				if j.until <= tick {
					s.reply(good, j.m, wire.Success)
				} else {
					rest = append(rest, j)
				}
			}
			jobs = rest
		}
		if others == 0 || s.value("relevo_cluster_retry_refusals_total", ReasonRetryBudget) == 0 {
			t.Errorf("got %d retries and none refused, want some of both", others)
		}
		if float64(others) > float64(own)*share/100*1.5 {
			t.Errorf("got %d requests of the other beside %d of its own, want about %d %% of them at most", others, own, share)
		}
	})
}

// TestRestsWhileItWaits: what waits to be tried again when the road comes to rest is as it was, is told to whoever goes on with the
// road, and goes on where nobody does.
func TestRestsWhileItWaits(t *testing.T) {
	onStage(t, twoEndpoints, func(t *testing.T, s *stage) {
		id := s.ask(5000)
		e, m := s.one()
		s.reply(e, m, wire.Busy)
		if s.c.retryWaits.Used() == 0 {
			t.Skip("its time had come")
		}
		if err := s.f.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.wait(300 * time.Millisecond)
		s.none()
		var out *ExchangeState
		for i := range s.f.Export().Exchanges {
			out = &s.f.Export().Exchanges[i]
		}
		if out == nil || out.Attempts != 1 || !out.Retry || len(out.Frame) == 0 || out.Deadline == 0 {
			t.Errorf("got %+v told to whoever goes on, want the request with the try that it has had", out)
		}
		s.f.Resume()
		s.wait(2 * time.Millisecond)
		e, m = s.one()
		s.reply(e, m, wire.Success)
		s.answered(id, wire.Success)
		s.idle()
	})
}
