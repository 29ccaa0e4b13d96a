package ratelimit

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// clock is a time that tests move.
type clock struct{ ns atomic.Int64 }

func (c *clock) now() time.Duration      { return time.Duration(c.ns.Load()) }
func (c *clock) forward(d time.Duration) { c.ns.Add(int64(d)) }

// exchange is a request at the listener in, on the route rpc/echo, with these headers: key, value, key, value.
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
	return exchangeOf(t, frame)
}

func exchangeOf(t testing.TB, frame []byte) *filter.Exchange {
	t.Helper()
	x := &filter.Exchange{Message: &wire.Message{}, Codec: bolt.Codec{}, Listener: "in", Route: "rpc/echo"}
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
	if f.Name() != "rate_limit" {
		t.Errorf("got the name %q, want rate_limit", f.Name())
	}
	if at == filter.AtListener {
		return filter.NewChain([]filter.Filter{f}, nil)
	}
	return filter.NewChain(nil, []filter.Filter{f})
}

// passes asks the filter n times and says how many pass.
func passes(t testing.TB, c *filter.Chain, x *filter.Exchange, n int) int {
	t.Helper()
	if c.Blocks() || c.HasOnReply() {
		t.Fatal("the filter may block, or sees replies, want neither")
	}
	passed := 0
	for range n {
		v := c.BeforeRoute(t.Context(), x)
		if !v.Stopped() {
			v = c.AfterRoute(t.Context(), x)
		}
		switch v {
		case filter.Continue:
			passed++
		case filter.Stop(wire.Busy, "rate-limited"):
		default:
			t.Fatalf("got the verdict %+v, want Continue, or Busy for rate-limited", v)
		}
	}
	return passed
}

func TestBurstThenRate(t *testing.T) {
	var now clock
	c := mustNew(t, Config{Rate: 10, Burst: 5, MaxBuckets: 1, Now: now.now}, filter.AtListener)
	x := exchange(t)
	for _, step := range []struct {
		forward time.Duration
		want    int
		why     string
	}{
		{0, 5, "a new bucket is full"},
		{99 * time.Millisecond, 0, "no token has flown yet"},
		{time.Millisecond, 1, "a tenth of a second is one token"},
		{250 * time.Millisecond, 2, "two and a half tokens have flown"},
		{50 * time.Millisecond, 1, "the half was kept"},
		{time.Hour, 5, "it never holds more than the burst"},
	} {
		now.forward(step.forward)
		if got := passes(t, c, x, 20); got != step.want {
			t.Errorf("after %v: got %d of 20 through, want %d: %s", now.now(), got, step.want, step.why)
		}
	}
}

// TestNewTakesTheTimeOfDay: without Now the time is the process's.
func TestNewTakesTheTimeOfDay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := mustNew(t, Config{Rate: 1, Burst: 2, MaxBuckets: 1}, filter.AtListener)
		x := exchange(t)
		first := passes(t, c, x, 5)
		time.Sleep(time.Second)
		if second := passes(t, c, x, 5); first != 2 || second != 1 {
			t.Errorf("got %d of 5 through, and %d a second later, want 2 and 1", first, second)
		}
	})
}

func TestWhoSharesABucket(t *testing.T) {
	const key = "tenant"
	broken := exchange(t, key, "a").Message
	malformed := broken.Frame
	malformed[broken.ContentAt-2] = 9 // the length of the value: it passes the block's end
	elsewhere := func(listener, route string, headers ...string) *filter.Exchange {
		x := exchange(t, headers...)
		x.Listener, x.Route = listener, route
		return x
	}
	long := strings.Repeat("a", 300)
	for _, c := range []struct {
		name   string
		by     By
		header string
		at     filter.Place
		a, b   *filter.Exchange
		shared bool
	}{
		{"listener, two rules", ByListener, "", filter.AtListener, elsewhere("in", ""), elsewhere("in", ""), true},
		{"listener, two listeners", ByListener, "", filter.AtListener, elsewhere("in", ""), elsewhere("out", ""), false},
		{"listener, at a rule", ByListener, "", filter.AtRule, elsewhere("in", "t/r"), elsewhere("out", "t/r"), false},
		{"route, two listeners", ByRoute, "", filter.AtRule, elsewhere("in", "t/r"), elsewhere("out", "t/r"), true},
		{"route, two rules", ByRoute, "", filter.AtRule, elsewhere("in", "t/r"), elsewhere("in", "t/s"), false},
		{"route, at a listener", ByRoute, "", filter.AtListener, elsewhere("in", "t/r"), elsewhere("in", "t/s"), false},
		{"header, same value", ByHeader, key, filter.AtListener, exchange(t, key, "a", "x", "1"), exchange(t, key, "a"), true},
		{"header, other value", ByHeader, key, filter.AtListener, exchange(t, key, "a"), exchange(t, key, "b"), false},
		{"header, same long value", ByHeader, key, filter.AtRule, exchange(t, key, long), exchange(t, key, long), true},
		{"header, long values that end differently", ByHeader, key, filter.AtRule, exchange(t, key, long+"b"), exchange(t, key, long+"c"), false},
		{"header, both absent", ByHeader, key, filter.AtListener, exchange(t), exchange(t, "other", "a"), true},
		{"header, absent and empty", ByHeader, key, filter.AtListener, exchange(t), exchange(t, key, ""), false},
		{"header, absent and malformed", ByHeader, key, filter.AtListener, exchange(t), exchangeOf(t, malformed), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var now clock
			chain := mustNew(t, Config{Rate: 1, Burst: 1, By: c.by, Header: c.header, MaxBuckets: 1000, Now: now.now}, c.at)
			if got := passes(t, chain, c.a, 2); got != 1 {
				t.Fatalf("got %d of 2 of the first through, want 1", got)
			}
			if got, want := passes(t, chain, c.b, 2) == 0, c.shared; got != want {
				t.Errorf("the second finds the first's bucket: got %v, want %v", got, want)
			}
		})
	}
}

// TestNamesBeyondTheBound share one bucket, and take none from those that have one.
func TestNamesBeyondTheBound(t *testing.T) {
	var now clock
	c := mustNew(t, Config{Rate: 1, Burst: 2, By: ByRoute, MaxBuckets: 3, Now: now.now}, filter.AtRule)
	x := exchange(t)
	var got []int
	for round := range 2 {
		for i := range 6 {
			x.Route = fmt.Sprint("t/", i)
			got = append(got, passes(t, c, x, 3-round))
		}
	}
	if want := []int{2, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0}; !slices.Equal(got, want) {
		t.Errorf("got %v through by rule, want %v: three have a bucket, the others one together", got, want)
	}
}

// TestRateIsKept: whatever the order of requests and pauses, no span of time lets more pass than the burst and what
// flows in it, and none is refused when there is a token.
func TestRateIsKept(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		rate := rapid.SampledFrom([]float64{MinRate, 0.3, 1, 7, 1000, 999_983, MaxRate}).Draw(r, "rate")
		burst := rapid.SampledFrom([]int{1, 2, 3, 100}).Draw(r, "burst")
		unit := float64(time.Second) / rate // of a token, in nanoseconds
		var now clock
		c := mustNew(t, Config{Rate: rate, Burst: burst, MaxBuckets: 1, Now: now.now}, filter.AtListener)
		x := exchange(t)
		tokens, at := float64(burst), 0.0
		for range rapid.IntRange(1, 200).Draw(r, "requests") {
			now.forward(time.Duration(unit * rapid.Float64Range(0, 3).Draw(r, "pause") * rapid.SampledFrom([]float64{0, 1, 1, 50}).Draw(r, "times")))
			tokens = min(float64(burst), tokens+(float64(now.now())-at)/unit)
			at = float64(now.now())
			slack := 0.01 // of a token: of rounding at the highest rate
			got := passes(t, c, x, 1) == 1
			if got && tokens < 1-slack || !got && tokens >= 1+slack {
				r.Fatalf("passed: got %v with %v tokens", got, tokens)
			}
			if got {
				tokens--
			}
		}
	})
}

// TestConcurrent: many goroutines together get the burst, not more and not less.
func TestConcurrent(t *testing.T) {
	const burst, goroutines = 5000, 8
	for _, c := range []Config{{By: ByListener}, {By: ByHeader, Header: "tenant"}, {By: ByHeader, Header: "absent"}} {
		var now clock
		c.Rate, c.Burst, c.MaxBuckets, c.Now = 1, burst, 10, now.now
		chain := mustNew(t, c, filter.AtListener)
		var passed atomic.Int64
		var wg sync.WaitGroup
		for range goroutines {
			x := exchange(t, "tenant", "a")
			wg.Go(func() { passed.Add(int64(passes(t, chain, x, burst/2))) })
		}
		wg.Wait()
		if got := passed.Load(); got != burst {
			t.Errorf("by %d: got %d of %d through, want the burst of %d", c.By, got, goroutines*burst/2, burst)
		}
	}
}

func TestNewErrors(t *testing.T) {
	good := Config{Rate: 1, Burst: 1, MaxBuckets: 1}
	with := func(change func(*Config)) Config { c := good; change(&c); return c }
	for _, c := range []struct {
		config Config
		want   string
	}{
		{Config{}, "a rate of 0 a second is not between 0.001 and 1e+06\na burst of 0 is not between 1 and 1000000\na number of buckets of 0 is not between 1 and 1000000"},
		{with(func(c *Config) { c.Rate = math.NaN() }), "a rate of NaN a second is not between 0.001 and 1e+06"},
		{with(func(c *Config) { c.Rate = 1e6 + 1 }), "a rate of 1.000001e+06 a second is not between 0.001 and 1e+06"},
		{with(func(c *Config) { c.Rate, c.Burst = 0.001, 2593 }), "a bucket of 2593 takes longer than 720h0m0s to fill at 0.001 a second"},
		{with(func(c *Config) { c.Burst = 1_000_001 }), "a burst of 1000001 is not between 1 and 1000000"},
		{with(func(c *Config) { c.MaxBuckets = 1_000_001 }), "a number of buckets of 1000001 is not between 1 and 1000000"},
		{with(func(c *Config) { c.By = 3 }), "there is no way 3 to choose a bucket"},
		{with(func(c *Config) { c.By = ByHeader }), "by header: the header has no name"},
		{with(func(c *Config) { c.Header = "k" }), `header "k" is named, but the limit is not by header`},
	} {
		f, err := New(c.config, filter.AtListener)
		if f != nil || err == nil || err.Error() != c.want {
			t.Errorf("%+v: got the filter %v and the error %v, want %s", c.config, f, err, c.want)
		}
	}
	for _, c := range []Config{good, with(func(c *Config) { c.Rate, c.Burst = 0.001, 2592 }), with(func(c *Config) { c.Rate, c.Burst, c.MaxBuckets = 1e6, 1e6, 1e6 })} {
		if _, err := New(c, filter.AtRule); err != nil {
			t.Errorf("%+v: got the error %v, want a filter", c, err)
		}
	}
}
