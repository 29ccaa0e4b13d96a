package ratelimit

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/relevo-proxy/relevo/forwarder/filter"
)

var benchConfigs = []struct {
	name string
	Config
}{
	{"listener", Config{By: ByListener}},
	{"header", Config{By: ByHeader, Header: "tenant"}},
	{"absent", Config{By: ByHeader, Header: "absent"}},
}

func TestDoesNotAllocate(t *testing.T) {
	for _, c := range benchConfigs {
		for _, r := range []float64{MaxRate, MinRate} { // passed, refused
			c.Rate, c.Burst, c.MaxBuckets = r, 1, 10_000
			chain, x := mustNew(t, c.Config, filter.AtListener), exchange(t, "tenant", "a", "service", "s")
			if got := testing.AllocsPerRun(100, func() { chain.BeforeRoute(t.Context(), x) }); got != 0 {
				t.Errorf("by %s, rate %v: got %v allocations a request, want 0", c.name, r, got)
			}
		}
	}
}

// BenchmarkOneBucket is all processors at one bucket, with the walk for the header and the look at the clock. The
// limiter of x/time stands beside it, with none of the two for choosing a bucket.
func BenchmarkOneBucket(b *testing.B) {
	for _, passed := range []bool{true, false} {
		r := MinRate
		if passed {
			r = MaxRate
		}
		for _, c := range benchConfigs {
			c.Rate, c.Burst, c.MaxBuckets = r, 1, 10_000
			if passed { // whatever the speed, there is a token
				begin := time.Now()
				c.Now = func() time.Duration { return 10_000 * time.Since(begin) }
			}
			b.Run(fmt.Sprintf("%s/passed=%v", c.name, passed), func(b *testing.B) {
				chain := mustNew(b, c.Config, filter.AtListener)
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					x := exchange(b, "tenant", "a", "service", "com.example.Echo:1.0")
					for pb.Next() {
						chain.BeforeRoute(b.Context(), x)
					}
				})
			})
		}
		b.Run(fmt.Sprintf("x-time/passed=%v", passed), func(b *testing.B) {
			l := rate.NewLimiter(rate.Limit(r), 1)
			if passed {
				l = rate.NewLimiter(1e12, 1)
			}
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					l.Allow()
				}
			})
		})
	}
}

// BenchmarkNewValues is the flood: a value that is new each time.
func BenchmarkNewValues(b *testing.B) {
	table, l := newTable(10_000), newLimit(1000, 1)
	b.ReportAllocs()
	i := 0
	v := value(0)
	for b.Loop() {
		i++
		v[0], v[1], v[2], v[3] = byte(i), byte(i>>8), byte(i>>16), byte(i>>24)
		table.take(v, l, instant(i)*fine*10)
	}
}
