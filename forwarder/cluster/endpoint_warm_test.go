package cluster

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

// TestShareGrows from a tenth to all, evenly, and never shrinks.
func TestShareGrows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		since := rapid.Int64Range(0, 1<<40).Draw(t, "since")
		d := rapid.Int64Range(1, 1<<50).Draw(t, "d")
		e := NewEndpoint("a", 1)
		if got := e.Share(since); got != 1 {
			t.Fatalf("without a slow start: got a share of %v, want 1", got)
		}
		if !e.Warm(since, since+d) || !e.Usable() {
			t.Fatal("got no slow start, or an endpoint that is not usable in it")
		}
		last := 0.0
		for range 50 {
			at := since + rapid.Int64Range(-d/10-1, d+d/10+1).Draw(t, "at")
			got := e.Share(at)
			want := min(max(0.1+0.9*float64(at-since)/float64(d), 0.1), 1)
			if math.Abs(got-want) > 1e-6 {
				t.Fatalf("at %d of %d: got a share of %v, want %v", at-since, d, got, want)
			}
		}
		for k := range int64(20) {
			got := e.Share(since + d/20*k)
			if got < last {
				t.Fatalf("a twentieth of the time later the share is %v, before it was %v", got, last)
			}
			last = got
		}
		if e.Cool(since+d-1) || e.Share(since) == 1 {
			t.Fatal("a slow start was forgotten before its end")
		}
		if !e.Cool(since+d) || e.Cool(since+d) || e.Health() != (Health{}) || e.Share(since) != 1 {
			t.Fatalf("behind its end: got %+v, want it forgotten, once", e.Health())
		}
	})
}

// TestWarmKeepsTheLonger: who asks for less than what is under way changes nothing.
func TestWarmKeepsTheLonger(t *testing.T) {
	e := NewEndpoint("a", 1)
	if e.Warm(5, 5) || e.Warm(5, 4) || e.Health() != (Health{}) {
		t.Error("got a slow start that takes no time")
	}
	e.Warm(0, 1000)
	if e.Warm(10, 1000) || e.Warm(500, 900) {
		t.Error("got a shorter slow start in the place of a longer one")
	}
	if !e.Warm(500, 1001) || e.Health().WarmSince != 500 || e.Health().WarmUntil != 1001 {
		t.Errorf("got %+v, want the longer one", e.Health())
	}
}

// TestWarmGoesOver, with what is known against the endpoint.
func TestWarmGoesOver(t *testing.T) {
	old := NewEndpoint("a", 1)
	old.Warm(5, 1000)
	old.Failed(7)
	e := NewEndpoint("a", 1)
	e.Restore(old.Health())
	if e.Health() != old.Health() || e.Share(100) != old.Share(100) || e.Share(100) == 1 {
		t.Errorf("got %+v, want %+v", e.Health(), old.Health())
	}
	e.Restore(Health{WarmSince: 7, WarmUntil: 3})
	if e.Health() != (Health{}) {
		t.Errorf("got %+v of what cannot be, want nothing known", e.Health())
	}
}

// TestSlowStart: an endpoint in its slow start gets about its share of its weight, which grows with time.
func TestSlowStart(t *testing.T) {
	for name, build := range balancers {
		if name == "maglev" {
			continue // whose keys do not come one after the other
		}
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				weights := rapid.SliceOfN(rapid.IntRange(1, 4), 4, 12).Draw(t, "weights")
				weights[0] = min(weights[0], 2)
				endpoints := endpointsOf(weights...)
				total := 0
				for i, w := range weights {
					total += w
					for range w { // all have as much to do for their weights
						endpoints[i].Acquire()
					}
				}
				b := build(endpoints, rapid.Uint64().Draw(t, "seed"))
				endpoints[0].Warm(0, 1000)
				const picks = 8000
				last := 0
				for _, now := range []int64{0, 250, 500, 750, 1000} {
					got := 0
					for range picks {
						if b.Pick(Ask{Avoid: -1, Now: now}) == 0 {
							got++
						}
					}
					share := endpoints[0].Share(now) * float64(weights[0])
					// What it does not take goes to one of the others, or, in a pair, to the other one.
					least, most := share/float64(total), share/(float64(total-weights[0])+share)
					slack := 6*math.Sqrt(picks*most*(1-most)) + 0.01*picks
					if float64(got) < picks*least-slack || float64(got) > picks*most+slack {
						t.Fatalf("at %d of 1000, weight %d in %v: got %d of %d picks, want %.0f to %.0f give or take %.0f",
							now, weights[0], weights, got, picks, picks*least, picks*most, slack)
					}
					if float64(got) < float64(last)-6*math.Sqrt(picks*most) {
						t.Fatalf("at %d of 1000: got %d picks, before it were %d", now, got, last)
					}
					last = got
				}
			})
		})
	}
}

// TestSlowStartOfAll: where all are in their slow start they share as their weights say, and a pick looks at a few.
func TestSlowStartOfAll(t *testing.T) {
	for name, build := range balancers {
		t.Run(name, func(t *testing.T) {
			endpoints := endpointsOf(1, 1, 2)
			for _, e := range endpoints {
				e.Warm(0, 1000)
			}
			b := build(endpoints, 1)
			const picks = 8000
			got := make([]int, 3)
			for k := range picks {
				i := b.Pick(Ask{Avoid: -1, Hash: mix(uint64(k))})
				got[i]++
				endpoints[i].Acquire()
			}
			for i, want := range []float64{0.25, 0.25, 0.5} {
				if math.Abs(float64(got[i])-picks*want) > 0.06*picks {
					t.Errorf("endpoint %d: got %d of %d picks, want about %.0f", i, got[i], picks, picks*want)
				}
			}
		})
	}
}

// TestSlowStartSparesNobody: the only endpoint that serves gets all, however cold it is.
func TestSlowStartSparesNobody(t *testing.T) {
	for name, build := range balancers {
		endpoints := endpointsOf(1, 1, 1)
		endpoints[1].Warm(0, 1000)
		endpoints[0].Failed(0)
		mark(endpoints[2], true, false)
		b := build(endpoints, 1)
		for range 100 {
			if got := b.Pick(Ask{Avoid: -1}); got != 1 {
				t.Fatalf("%s: picked %d, want 1, which is the only one that serves", name, got)
			}
			if got := b.Pick(Ask{Avoid: 1}); got != 1 {
				t.Fatalf("%s: picked %d, want 1, which is to be avoided and the only one that serves", name, got)
			}
		}
	}
}
