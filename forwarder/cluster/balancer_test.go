package cluster

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func endpointsOf(weights ...int) []*Endpoint {
	out := make([]*Endpoint, len(weights))
	for i, w := range weights {
		out[i] = NewEndpoint(fmt.Sprint("10.0.0.1:", i), w)
	}
	return out
}

func seeded(seed uint64) func() uint64 { return rand.New(rand.NewPCG(seed, 0)).Uint64 }

var balancers = map[string]func([]*Endpoint, uint64) Balancer{
	"round-robin":   func(e []*Endpoint, _ uint64) Balancer { return NewRoundRobin(e) },
	"least-request": func(e []*Endpoint, seed uint64) Balancer { return NewLeastRequest(e, seeded(seed)) },
	"random":        func(e []*Endpoint, seed uint64) Balancer { return NewRandom(e, seeded(seed)) },
	"maglev":        func(e []*Endpoint, seed uint64) Balancer { return maglevOf(e, seeded(seed)) },
}

var anyWeights = rapid.SliceOfN(rapid.IntRange(1, 40), 1, 30)

// TestPick holds what every balancer promises, whatever the health of the endpoints: one that serves if there is
// one, another than avoid if there is another. In a panic those serve that can be reached.
func TestPick(t *testing.T) {
	for name, build := range balancers {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				endpoints := endpointsOf(anyWeights.Draw(t, "weights")...)
				n := len(endpoints)
				b := build(endpoints, rapid.Uint64().Draw(t, "seed"))
				now := int64(0)
				for range 30 {
					now += rapid.Int64Range(0, 300*ms).Draw(t, "passed")
					switch i := rapid.IntRange(0, n-1).Draw(t, "endpoint"); rapid.IntRange(0, 10).Draw(t, "event") {
					case 0, 1:
						endpoints[i].Failed(now)
					case 2:
						endpoints[i].Connected()
					case 3:
						for _, e := range endpoints[i:] {
							e.Failed(now)
						}
					case 4:
						endpoints[i].Acquire()
					case 5:
						endpoints[i].Drain(rapid.Bool().Draw(t, "drain"))
					case 6:
						endpoints[i].Probe(now)
					case 7:
						endpoints[i].Trust()
					case 8:
						endpoints[i].Warm(now, now+rapid.Int64Range(1, 1000*ms).Draw(t, "warm"))
					case 9:
						mark(endpoints[i], rapid.Bool().Draw(t, "unhealthy"), rapid.Bool().Draw(t, "ejected"))
					case 10:
						endpoints[i].Cool(now)
					}
					avoid := rapid.IntRange(-1, n).Draw(t, "avoid")
					ask := Ask{Avoid: avoid, Now: now, Panic: rapid.Bool().Draw(t, "panic"), Hash: rapid.Uint64().Draw(t, "hash")}
					var usable []int
					for i, e := range endpoints {
						if e.Usable() || ask.Panic && e.Reachable() {
							usable = append(usable, i)
						}
					}
					got := b.Pick(ask)
					switch {
					case len(usable) == 0:
						if got != -1 {
							t.Fatalf("picked %d, want -1: no endpoint is usable", got)
						}
					case !slices.Contains(usable, got):
						t.Fatalf("picked %d, want one of the usable %v", got, usable)
					case got == avoid && len(usable) > 1:
						t.Fatalf("picked %d, which was to be avoided, want another of %v", got, usable)
					}
				}
			})
		})
	}
}

// mark sets what is thought of an endpoint.
func mark(e *Endpoint, unhealthy, ejected bool) {
	e.update(func(t *trouble) bool {
		t.unhealthy, t.ejected = unhealthy, ejected
		return true
	})
}

func TestPickOfNone(t *testing.T) {
	for name, build := range balancers {
		if got := build(nil, 1).Pick(Ask{Avoid: -1}); got != -1 {
			t.Errorf("%s without endpoints: picked %d, want -1", name, got)
		}
	}
}

// TestNoRequestIsAProbe: with every endpoint down requests fail at once, behind the back-offs too, until a probe has
// succeeded.
func TestNoRequestIsAProbe(t *testing.T) {
	for name, build := range balancers {
		t.Run(name, func(t *testing.T) {
			endpoints := endpointsOf(1, 5, 1)
			b := build(endpoints, 1)
			for _, e := range endpoints {
				e.Failed(0)
			}
			if got := b.Pick(Ask{Avoid: -1}); got != -1 {
				t.Errorf("every endpoint has failed: picked %d, want -1", got)
			}
			for _, e := range endpoints {
				if !e.Probe(1000 * ms) {
					t.Errorf("endpoint %s: no probe was begun long behind the back-off, want one", e.Address())
				}
			}
			if got := b.Pick(Ask{Avoid: -1}); got != -1 {
				t.Errorf("every endpoint is being probed: picked %d, want -1", got)
			}
			endpoints[1].Connected()
			if got := b.Pick(Ask{Avoid: 1}); got != 1 {
				t.Errorf("the probe of endpoint 1 has succeeded: picked %d, want 1", got)
			}
		})
	}
}

func TestRoundRobinSharesAreExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		weights := anyWeights.Draw(t, "weights")
		common, total := int64(0), 0
		for _, w := range weights {
			common = gcd(int64(w), common)
			total += w
		}
		b := NewRoundRobin(endpointsOf(weights...))
		for range rapid.IntRange(0, total).Draw(t, "offset") {
			b.Pick(Ask{Avoid: -1})
		}
		got := make([]int, len(weights))
		for range total {
			got[b.Pick(Ask{Avoid: -1})]++
		}
		if diff := cmp.Diff(weights, got); diff != "" {
			t.Fatalf("picks in a window of the total weight %d (-want +got):\n%s", total, diff)
		}
		if len(weights) > 1 && int64(len(b.sequence)) != int64(total)/common {
			t.Fatalf("the sequence has %d turns, want %d/%d", len(b.sequence), total, common)
		}
	})
}

func TestRoundRobinIsSmooth(t *testing.T) {
	for _, c := range []struct {
		weights []int64
		want    string
	}{
		{[]int64{1, 1, 1}, "abc"},
		{[]int64{5, 1, 1}, "abaaaca"},
		{[]int64{3, 2}, "ababa"},
		{[]int64{1, 1, 1, 1, 4}, "aebecede"},
	} {
		var got []byte
		for _, i := range sequence(c.weights) {
			got = append(got, 'a'+byte(i))
		}
		if string(got) != c.want {
			t.Errorf("turns of the weights %v: got %s, want %s", c.weights, got, c.want)
		}
	}
}

// TestRoundRobinKeepsProportions: the turns of an endpoint that is down do not all go to its neighbour.
func TestRoundRobinKeepsProportions(t *testing.T) {
	endpoints := endpointsOf(1, 1, 1, 2)
	b := NewRoundRobin(endpoints)
	endpoints[1].Failed(0)
	got := make([]int, 4)
	for range 400 {
		got[b.Pick(Ask{Avoid: -1})]++
	}
	if diff := cmp.Diff([]int{100, 0, 100, 200}, got); diff != "" {
		t.Errorf("picks with one endpoint down (-want +got):\n%s", diff)
	}
}

func TestRoundRobinSequenceIsBounded(t *testing.T) {
	var weights []int64
	total := int64(0)
	for i := range 1000 {
		weights = append(weights, int64(1000+i*i))
		total += weights[i]
	}
	scaled := reduced(weights)
	sum := int64(0)
	for i, w := range scaled {
		sum += w
		if exact := float64(weights[i]) / float64(total) * maxTurns; math.Abs(float64(w)-exact) > 1 {
			t.Errorf("endpoint %d has %d turns, want %.1f within one", i, w, exact)
		}
	}
	if sum > maxTurns+int64(len(weights)) {
		t.Errorf("the sequence has %d turns, want about %d", sum, maxTurns)
	}
}

// TestLeastRequestShares: endpoints that are even get the shares of their weights.
func TestLeastRequestShares(t *testing.T) { testShares(t, balancers["least-request"]) }

func TestRandomShares(t *testing.T) { testShares(t, balancers["random"]) }

func testShares(t *testing.T, build func([]*Endpoint, uint64) Balancer) {
	t.Helper()
	rapid.Check(t, func(t *rapid.T) {
		weights := rapid.SliceOfN(rapid.IntRange(1, 100), 2, 12).Draw(t, "weights")
		endpoints := endpointsOf(weights...)
		total := 0
		for i, w := range weights {
			total += w
			for range w { // every endpoint has as much to do for its weight
				endpoints[i].Acquire()
			}
		}
		const picks = 20000
		b := build(endpoints, rapid.Uint64().Draw(t, "seed"))
		got := make([]int, len(weights))
		for range picks {
			got[b.Pick(Ask{Avoid: -1})]++
		}
		for i, w := range weights {
			p := float64(w) / float64(total)
			// Six standard deviations: by chance once in 500 million.
			if off := math.Abs(float64(got[i]) - p*picks); off > 6*math.Sqrt(picks*p*(1-p))+1 {
				t.Fatalf("endpoint %d of weight %d in %v: got %d of %d picks, want %.0f", i, w, weights, got[i], picks, p*picks)
			}
		}
	})
}

// TestLeastRequestEvensOut: requests that do not end pile up in the proportion of the weights.
func TestLeastRequestEvensOut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		weights := rapid.SliceOfN(rapid.IntRange(1, 5), 2, 10).Draw(t, "weights")
		endpoints := endpointsOf(weights...)
		b := NewLeastRequest(endpoints, seeded(rapid.Uint64().Draw(t, "seed")))
		const perWeight = 1000
		for _, w := range weights {
			for range w * perWeight {
				endpoints[b.Pick(Ask{Avoid: -1})].Acquire()
			}
		}
		for i, w := range weights {
			if got := endpoints[i].Active(); math.Abs(float64(got-w*perWeight)) > perWeight/10 {
				t.Fatalf("endpoint %d of weight %d in %v: %d under way, want %d", i, w, weights, got, w*perWeight)
			}
		}
	})
}

func TestLeastRequestSparesTheSlow(t *testing.T) {
	endpoints := endpointsOf(1, 1, 1)
	for range 10 {
		endpoints[0].Acquire()
	}
	b := NewLeastRequest(endpoints, seeded(1))
	for range 1000 {
		if got := b.Pick(Ask{Avoid: -1}); got == 0 {
			t.Fatal("picked the endpoint with ten requests under way, the others have none")
		}
	}
}

// TestRandomWithMostDown: those that are left keep the proportions of their weights.
func TestRandomWithMostDown(t *testing.T) {
	endpoints := endpointsOf(append([]int{1, 3}, slices.Repeat([]int{10}, 200)...)...)
	for _, e := range endpoints[2:] {
		e.Failed(0)
	}
	b := NewRandom(endpoints, seeded(1))
	const picks = 10000
	got := 0
	for range picks {
		got += b.Pick(Ask{Avoid: -1})
	}
	if want := 0.75 * picks; math.Abs(float64(got)-want) > 6*math.Sqrt(picks*0.75*0.25) {
		t.Errorf("got %d of %d picks at the endpoint with weight 3 of 4 that are left, want about %.0f", got, picks, want)
	}
}

func TestOneEndpointNeedsNoRandomness(t *testing.T) {
	random := func() uint64 { panic("random bits were drawn") }
	for _, b := range []Balancer{NewLeastRequest(endpointsOf(3), random), NewRandom(endpointsOf(3), random), maglevOf(endpointsOf(3), random)} {
		if got := b.Pick(Ask{Avoid: 0}); got != 0 {
			t.Errorf("%T picked %d, want 0: there is no other", b, got)
		}
	}
}

func TestClusterTiesTogether(t *testing.T) {
	endpoints := endpointsOf(1, 1)
	requests := NewLimit(3)
	c := New("order", endpoints, NewRoundRobin(endpoints), Limits{Requests: requests})
	if c.Name() != "order" || len(c.Endpoints()) != 2 || c.Limits().Requests != requests {
		t.Errorf("got %q, %d endpoints, want what it was made of", c.Name(), len(c.Endpoints()))
	}
	if got := c.Limits().Pending.TryAcquire(1000); got != 1000 {
		t.Errorf("a limit that was not given granted %d of 1000", got)
	}
	if !c.Limits().Retries.TryAcquire() {
		t.Error("a budget that was not given refused the first retry")
	}
	if a, b := c.Pick(Ask{Avoid: -1}), c.Pick(Ask{Avoid: -1}); a != 0 || b != 1 {
		t.Errorf("picked %d and %d, want 0 and 1", a, b)
	}
	if got := c.Pick(Ask{Avoid: 0}); got != 1 {
		t.Errorf("picked %d, want 1: 0 was to be avoided", got)
	}
}

func TestHotPathDoesNotAllocate(t *testing.T) {
	l := NewLimit(100)
	for _, n := range []int{1, 3, 1000} {
		for name, build := range balancers {
			endpoints := endpointsOf(slices.Repeat([]int{2, 1, 1}, n)[:n]...)
			b := build(endpoints, 1)
			for i := range n / 2 {
				endpoints[i].Failed(0)
			}
			got := testing.AllocsPerRun(1000, func() {
				i := b.Pick(Ask{Avoid: n - 1})
				endpoints[i].Acquire()
				endpoints[i].Release(1)
				endpoints[i].Connected()
				l.Release(l.TryAcquire(3))
			})
			if got != 0 {
				t.Errorf("%s of %d: got %v allocations, want 0", name, n, got)
			}
		}
	}
}

func BenchmarkPick(b *testing.B) {
	for _, n := range []int{1, 3, 1000} {
		endpoints := endpointsOf(slices.Repeat([]int{100, 50, 20}, n)[:n]...)
		for _, c := range []struct {
			name     string
			balancer Balancer
		}{
			{"round-robin", NewRoundRobin(endpoints)},
			{"least-request", NewLeastRequest(endpoints, rand.Uint64)},
			{"random", NewRandom(endpoints, rand.Uint64)},
			{"maglev", maglevOf(endpoints, rand.Uint64)},
		} {
			b.Run(fmt.Sprintf("%s/endpoints=%d", c.name, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					c.balancer.Pick(Ask{Avoid: -1})
				}
			})
			b.Run(fmt.Sprintf("%s/endpoints=%d/parallel", c.name, n), func(b *testing.B) {
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						c.balancer.Pick(Ask{Avoid: -1})
					}
				})
			})
		}
	}
}

// BenchmarkPickMostDown is the costly case: of 1000 endpoints one is usable.
func BenchmarkPickMostDown(b *testing.B) {
	endpoints := endpointsOf(slices.Repeat([]int{1}, 1000)...)
	for _, e := range endpoints[1:] {
		e.Failed(0)
	}
	for name, build := range balancers {
		b.Run(name, func(b *testing.B) {
			balancer := build(endpoints, 1)
			for b.Loop() {
				balancer.Pick(Ask{Avoid: -1})
			}
		})
	}
}

func BenchmarkLimit(b *testing.B) {
	l := NewLimit(10000)
	b.ReportAllocs()
	for b.Loop() {
		l.Release(l.TryAcquire(1))
	}
}

func BenchmarkNewRoundRobin(b *testing.B) {
	weights := make([]int, 1000)
	for i := range weights {
		weights[i] = 1000 + i
	}
	endpoints := endpointsOf(weights...)
	for b.Loop() {
		NewRoundRobin(endpoints)
	}
}
