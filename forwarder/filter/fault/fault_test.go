package fault

import (
	"context"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/route"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// exchange is a request with these headers: key, value, key, value.
func exchange(t testing.TB, headers ...string) *filter.Exchange {
	t.Helper()
	r := bolt.Request{Version: bolt.V1, ID: 1, Class: "c", Content: []byte("content")}
	for pair := range slices.Chunk(headers, 2) {
		r.Headers = append(r.Headers, bolt.Pair{Key: pair[0], Value: pair[1]})
	}
	frame, err := r.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	x := &filter.Exchange{Message: &wire.Message{}, Codec: bolt.Codec{}}
	if _, err := x.Codec.Decode(x.Message, frame, wire.Limits{}); err != nil {
		t.Fatal(err)
	}
	return x
}

func mustNew(t testing.TB, c Config, at filter.Place) *filter.Chain {
	t.Helper()
	f, err := New(c, at)
	if err != nil {
		t.Fatal(err)
	}
	if f.Name() != "fault" {
		t.Errorf("got the name %q, want fault", f.Name())
	}
	if at == filter.AtListener {
		return filter.NewChain([]filter.Filter{f}, nil)
	}
	return filter.NewChain(nil, []filter.Filter{f})
}

// draws draws these percentages one after another.
func draws(t testing.TB, percent ...float64) func() uint64 {
	return func() uint64 {
		if len(percent) == 0 {
			t.Fatal("the filter draws more often than it should")
		}
		p := percent[0]
		percent = percent[1:]
		return uint64(p / 100 * math.MaxUint64)
	}
}

var abortBusy = filter.Stop(wire.Busy, "fault-abort")

// TestPhases: what has no delay does not block, and a filter is asked in one phase only.
func TestPhases(t *testing.T) {
	abort, delay := Abort{wire.Busy, 100}, Delay{time.Second, 1}
	for _, c := range []struct {
		name   string
		config Config
		at     filter.Place
		before bool
		blocks bool
	}{
		{"abort at a listener", Config{Abort: abort}, filter.AtListener, true, false},
		{"abort at a rule", Config{Abort: abort}, filter.AtRule, false, false},
		{"delay at a listener", Config{Delay: delay}, filter.AtListener, true, true},
		{"delay and abort at a rule", Config{Delay: delay, Abort: abort}, filter.AtRule, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			chain := mustNew(t, c.config, c.at)
			if chain.HasBeforeRoute() != c.before || chain.HasAfterRoute() == c.before || chain.HasOnReply() || chain.Blocks() != c.blocks {
				t.Errorf("got before %v, after %v, on reply %v, blocks %v, want only one phase, before %v, blocks %v",
					chain.HasBeforeRoute(), chain.HasAfterRoute(), chain.HasOnReply(), chain.Blocks(), c.before, c.blocks)
			}
		})
	}
}

func TestDraws(t *testing.T) {
	const held = 200 * time.Millisecond
	half := Delay{held, 50}
	for _, c := range []struct {
		name  string
		delay Delay
		abort Abort
		draws []float64
		want  filter.Verdict
		after time.Duration
	}{
		{"abort", Delay{}, Abort{wire.Busy, 5}, []float64{4.9}, abortBusy, 0},
		{"no abort", Delay{}, Abort{wire.Busy, 5}, []float64{5.1}, filter.Continue, 0},
		{"abort all", Delay{}, Abort{wire.Busy, 100}, []float64{100}, abortBusy, 0},
		{"abort the smallest share", Delay{}, Abort{wire.Busy, 1e-300}, []float64{0}, abortBusy, 0},
		{"delay", half, Abort{}, []float64{49}, filter.Continue, held},
		{"no delay", half, Abort{}, []float64{51}, filter.Continue, 0},
		{"neither", half, Abort{wire.Busy, 5}, []float64{51, 6}, filter.Continue, 0},
		{"delay first, then abort", half, Abort{wire.Busy, 5}, []float64{49, 4}, abortBusy, held},
		{"delay only", half, Abort{wire.Busy, 5}, []float64{49, 6}, filter.Continue, held},
		{"abort only", half, Abort{wire.Busy, 5}, []float64{51, 4}, abortBusy, 0},
	} {
		for at, name := range []string{"listener", "rule"} {
			t.Run(c.name+"/"+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					chain := mustNew(t, Config{Delay: c.delay, Abort: c.abort, Rand: draws(t, c.draws...)}, filter.Place(at))
					x, start := exchange(t), time.Now()
					v := chain.BeforeRoute(t.Context(), x)
					if !v.Stopped() {
						v = chain.AfterRoute(t.Context(), x)
					}
					if v != c.want || time.Since(start) != c.after {
						t.Errorf("got the verdict %+v after %v, want %+v after %v", v, time.Since(start), c.want, c.after)
					}
				})
			})
		}
	}
}

// TestDelayEndsWithItsContext: the deadline is the forwarder's to answer for, so no abort follows.
func TestDelayEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		chain := mustNew(t, Config{Delay: Delay{time.Hour, 100}, Abort: Abort{wire.Busy, 100}}, filter.AtRule)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if v := chain.AfterRoute(ctx, exchange(t)); v.Stopped() || time.Since(start) != time.Second {
			t.Errorf("got the verdict %+v after %v, want Continue after 1s", v, time.Since(start))
		}
	})
}

func TestMatch(t *testing.T) {
	match := route.Match{
		Service: route.Exactly("order"),
		Headers: []route.Header{{Key: "env", Text: route.Text{Kind: route.Prefix, Value: "gray"}}},
	}
	malformed := exchange(t, "env", "gray", "service", "order")
	malformed.Message.Frame[malformed.Message.ContentAt-2-4] = 99 // the length of the last value: it passes the block's end
	for _, c := range []struct {
		name string
		x    *filter.Exchange
		want bool
	}{
		{"both", exchange(t, "service", "order", "env", "gray-1"), true},
		{"one differs", exchange(t, "service", "order", "env", "blue"), false},
		{"one is absent", exchange(t, "service", "order"), false},
		{"malformed", malformed, false},
	} {
		for at, place := range []string{"listener", "rule"} {
			t.Run(c.name+"/"+place, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					for _, delay := range []Delay{{}, {time.Second, 100}} {
						chain := mustNew(t, Config{Match: match, Delay: delay, Abort: Abort{wire.Busy, 100}}, filter.Place(at))
						start := time.Now()
						v := chain.BeforeRoute(t.Context(), c.x)
						if !v.Stopped() {
							v = chain.AfterRoute(t.Context(), c.x)
						}
						if v.Stopped() != c.want || (time.Since(start) > 0) != (c.want && delay.Time > 0) {
							t.Errorf("got the verdict %+v after %v, want it chosen: %v", v, time.Since(start), c.want)
						}
					}
				})
			})
		}
	}
}

// TestShares: with the runtime's generator the shares are those of the configuration, and the draws are independent.
func TestShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 40_000
		chain := mustNew(t, Config{Delay: Delay{time.Second, 30}, Abort: Abort{wire.Busy, 10}}, filter.AtListener)
		x := exchange(t)
		var got [2][2]int
		for range n {
			start, delayed, aborted := time.Now(), 0, 0
			if chain.BeforeRoute(t.Context(), x).Stopped() {
				aborted = 1
			}
			if time.Since(start) > 0 {
				delayed = 1
			}
			got[delayed][aborted]++
		}
		for delayed, d := range []float64{0.7, 0.3} {
			for aborted, a := range []float64{0.9, 0.1} {
				want := n * d * a
				if off := math.Abs(float64(got[delayed][aborted]) - want); off > 6*math.Sqrt(want) {
					t.Errorf("delayed %d, aborted %d: got %d of %d, want about %v", delayed, aborted, got[delayed][aborted], n, want)
				}
			}
		}
	})
}

func TestNewErrors(t *testing.T) {
	for _, c := range []struct {
		config Config
		want   string
	}{
		{Config{}, "it neither delays nor aborts"},
		{Config{Delay: Delay{time.Second, 0}, Abort: Abort{wire.Busy, 1}}, "delay: 1s for 0 %: it needs a time and a share, both above 0"},
		{Config{Delay: Delay{0, 1}}, "delay: 0s for 1 %: it needs a time and a share, both above 0"},
		{Config{Delay: Delay{-1, 1}}, "delay: -1ns for 1 %: it needs a time and a share, both above 0"},
		{Config{Delay: Delay{time.Second, 100.1}, Abort: Abort{wire.Busy, -1}}, "delay: 100.1 % is not between 0 and 100 %\nabort: -1 % is not between 0 and 100 %"},
		{Config{Abort: Abort{wire.Busy, math.NaN()}}, "abort: NaN % is not between 0 and 100 %"},
		{Config{Abort: Abort{wire.NumStatus, 1}}, "abort: there is no status 14"},
		{Config{Abort: Abort{wire.Other, 1}}, "abort: there is no status 13"},
		{Config{Abort: Abort{wire.Busy, 1}, Match: route.Match{Headers: []route.Header{{Text: route.Exactly("v")}}}}, "match: rule 0: "},
	} {
		f, err := New(c.config, filter.AtListener)
		if f != nil || err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%+v: got the filter %v and the error %v, want %s", c.config, f, err, c.want)
		}
	}
}

func TestDoesNotAllocate(t *testing.T) {
	match := route.Match{Service: route.Exactly("order")}
	for _, share := range []float64{0.01, 100} {
		chain := mustNew(t, Config{Match: match, Abort: Abort{wire.Busy, share}}, filter.AtListener)
		x := exchange(t, "service", "order")
		if got := testing.AllocsPerRun(100, func() { chain.BeforeRoute(t.Context(), x) }); got != 0 {
			t.Errorf("%v %% aborted: got %v allocations a request, want 0", share, got)
		}
	}
}

func BenchmarkAbort(b *testing.B) {
	chain := mustNew(b, Config{Match: route.Match{Service: route.Exactly("order")}, Abort: Abort{wire.Busy, 1}}, filter.AtListener)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		x := exchange(b, "service", "order")
		for pb.Next() {
			chain.BeforeRoute(b.Context(), x)
		}
	})
}
