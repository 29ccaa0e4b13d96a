package stats

import (
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
	"unsafe"
)

func TestBounds(t *testing.T) {
	if got, want := Bound(0), 32*time.Microsecond; got != want {
		t.Errorf("the first bound is %v, want %v", got, want)
	}
	if got, want := Bound(Buckets-1), 16777216*time.Microsecond; got != want {
		t.Errorf("the last bound is %v, want %v", got, want)
	}
	if got, want := bounds[0], 3.2e-05; got != want {
		t.Errorf("the first bound is %v s, want %v", got, want)
	}
	if got, want := bounds[Buckets-1], 16.777216; got != want {
		t.Errorf("the last bound is %v s, want %v", got, want)
	}
}

func TestBucketBoundaries(t *testing.T) {
	for i := range Buckets {
		b := Bound(i)
		if got := bucketOf(b - 1); got != i {
			t.Errorf("%v falls into bucket %d, want %d: it is below the bound %v", b-1, got, i, b)
		}
		if got := bucketOf(b); got != i {
			t.Errorf("%v falls into bucket %d, want %d: bounds are inclusive", b, got, i)
		}
		if got := bucketOf(b + 1); got != i+1 {
			t.Errorf("%v falls into bucket %d, want %d: it is above the bound %v", b+1, got, i+1, b)
		}
	}
	for _, d := range []time.Duration{math.MinInt64, -1, 0, 1} {
		if got := bucketOf(d); got != 0 {
			t.Errorf("%v falls into bucket %d, want 0", d, got)
		}
	}
	if got := bucketOf(math.MaxInt64); got != overflow {
		t.Errorf("the longest duration falls into bucket %d, want %d", got, overflow)
	}
}

// TestBucketsAgainstSearch compares the index with a walk over the bounds.
func TestBucketsAgainstSearch(t *testing.T) {
	for range 100_000 {
		d := time.Duration(rand.Int64() >> rand.IntN(63))
		want := 0
		for want < Buckets && d > Bound(want) {
			want++
		}
		if got := bucketOf(d); got != want {
			t.Fatalf("%v falls into bucket %d, want %d", d, got, want)
		}
	}
}

func TestMergeAddsAndClears(t *testing.T) {
	var h Histogram
	var l Local
	l.Observe(time.Millisecond)
	l.ObserveN(time.Second, 3)
	l.Observe(time.Hour)
	l.Observe(-time.Second)
	h.Merge(&l)
	if l != (Local{}) {
		t.Errorf("after Merge the Local is %+v, want it empty", l)
	}
	h.Merge(&l)
	h.Observe(time.Millisecond)
	h.Observe(-time.Second)
	if got, want := h.Count(), uint64(8); got != want {
		t.Errorf("the histogram counts %d, want %d", got, want)
	}
	if got, want := h.Sum(), time.Hour+3*time.Second+2*time.Millisecond; got != want {
		t.Errorf("the histogram sums up to %v, want %v: less than nothing counts as nothing", got, want)
	}
	cumulative, count, _ := h.read()
	if got, want := cumulative[Buckets-1], count-1; got != want {
		t.Errorf("%d are not above the last bound, want %d: all but the hour", got, want)
	}
	if got, want := cumulative[bucketOf(time.Millisecond)], uint64(4); got != want {
		t.Errorf("%d are not above 1.024 ms, want %d", got, want)
	}
}

func TestHandlesFillCacheLines(t *testing.T) {
	for name, size := range map[string]uintptr{
		"Counter": unsafe.Sizeof(Counter{}), "Gauge": unsafe.Sizeof(Gauge{}), "Histogram": unsafe.Sizeof(Histogram{}),
	} {
		if size%cacheLine != 0 {
			t.Errorf("a %s has %d bytes, want a multiple of %d", name, size, cacheLine)
		}
	}
}

// TestConcurrentLoops has loops that own a Local each and share the handles, and a reader beside them.
func TestConcurrentLoops(t *testing.T) {
	const loops, batches, perBatch = 4, 500, 64
	var c Counter
	var g Gauge
	var h Histogram
	var wg sync.WaitGroup
	for range loops {
		wg.Go(func() {
			var l Local
			for range batches {
				for i := range perBatch {
					l.Observe(time.Duration(i) * time.Millisecond)
				}
				h.Merge(&l)
				c.Add(perBatch)
				g.Add(perBatch)
				g.Add(-perBatch)
			}
		})
	}
	var last uint64
	for range 1000 {
		n := h.Count()
		if n < last {
			t.Errorf("the count fell from %d to %d", last, n)
		}
		last = n
	}
	wg.Wait()
	const want = loops * batches * perBatch
	if c.Value() != want || h.Count() != want || g.Value() != 0 {
		t.Errorf("counter %d, histogram %d, gauge %d; want %d, %d, 0", c.Value(), h.Count(), g.Value(), want, want)
	}
	if got, want := h.Sum(), loops*batches*perBatch*(perBatch-1)/2*time.Millisecond; got != want {
		t.Errorf("the sum is %v, want %v", got, want)
	}
}

func TestHotPathAllocatesNothing(t *testing.T) {
	reg := NewRegistry()
	c, g, h := reg.Counter("a_total", "A."), reg.Gauge("b", "B."), reg.Histogram("c_seconds", "C.")
	th := NewThrottle[[2]string](time.Second, 8)
	k := [2]string{"route", "reason"}
	th.Allow(k, 0)
	var l Local
	now := int64(0)
	if n := testing.AllocsPerRun(100, func() {
		l.Observe(time.Millisecond)
		l.ObserveN(time.Second, 2)
		h.Merge(&l)
		h.Observe(time.Minute)
		c.Add(1)
		g.Set(1)
		now += int64(time.Second / 3)
		th.Allow(k, now)
	}); n != 0 {
		t.Errorf("one round allocates %v times, want none", n)
	}
}

func BenchmarkLocalObserve(b *testing.B) {
	b.ReportAllocs()
	var l Local
	d := time.Duration(0)
	for b.Loop() {
		d = (d + 7919) & (1<<24 - 1)
		l.Observe(d)
	}
}

func BenchmarkHistogramObserve(b *testing.B) {
	b.ReportAllocs()
	var h Histogram
	d := time.Duration(0)
	for b.Loop() {
		d = (d + 7919) & (1<<24 - 1)
		h.Observe(d)
	}
}

// BenchmarkBatch is what a loop pays for a batch of 64 requests: 64 observations, one merge, one counter.
func BenchmarkBatch(b *testing.B) {
	b.ReportAllocs()
	var l Local
	var h Histogram
	var c Counter
	d := time.Duration(0)
	for b.Loop() {
		for range 64 {
			d = (d + 7919) & (1<<20 - 1)
			l.Observe(d)
		}
		h.Merge(&l)
		c.Add(64)
	}
}

func BenchmarkMergeEmpty(b *testing.B) {
	b.ReportAllocs()
	var l Local
	var h Histogram
	for b.Loop() {
		h.Merge(&l)
	}
}

func BenchmarkCounterAddParallel(b *testing.B) {
	b.ReportAllocs()
	cs := make([]Counter, 256)
	var mu sync.Mutex
	next := 0
	b.RunParallel(func(pb *testing.PB) {
		mu.Lock()
		c := &cs[next%len(cs)]
		next++
		mu.Unlock()
		for pb.Next() {
			c.Add(1)
		}
	})
}
