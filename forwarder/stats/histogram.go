package stats

import (
	"math/bits"
	"sync/atomic"
	"time"
)

const (
	// Buckets is the number of buckets that have an upper bound. One more, without a bound, follows them.
	Buckets = 20
	// firstBound is the upper bound of the first bucket, in nanoseconds; each further one is twice that of the
	// bucket before it.
	firstBound = uint64(32 * time.Microsecond)
	// overflow is the index of the bucket without a bound.
	overflow = Buckets
)

// Bound returns the inclusive upper bound of bucket i, 0 <= i < Buckets: 32 µs, 64 µs and so on up to
// 16.777216 s.
func Bound(i int) time.Duration { return time.Duration(firstBound) << i }

// bucketOf returns the index of the bucket that d falls into. Less than nothing counts as nothing.
func bucketOf(d time.Duration) int {
	if d <= 0 {
		return 0
	}
	return min(bits.Len64((uint64(d)-1)/firstBound), overflow)
}

// Histogram counts durations in fixed buckets. The zero Histogram is ready; it must not be copied. A reader
// may see a batch that is being added in part: its buckets without its sum.
type Histogram struct {
	// Atomic.
	counts [Buckets + 1]atomic.Uint64
	sum    atomic.Uint64 // nanoseconds
	_      [2 * 8]byte   // fills the third cache line
}

// Observe counts d at once. It costs two atomic additions: a loop counts into a Local instead.
func (h *Histogram) Observe(d time.Duration) {
	h.counts[bucketOf(d)].Add(1)
	h.sum.Add(uint64(max(d, 0)))
}

// Merge adds what l has counted and clears l. An empty Local costs nothing.
func (h *Histogram) Merge(l *Local) {
	if l.touched == 0 {
		return
	}
	for t := l.touched; t != 0; t &= t - 1 {
		i := bits.TrailingZeros32(t)
		h.counts[i].Add(l.counts[i])
		l.counts[i] = 0
	}
	h.sum.Add(l.sum)
	l.sum, l.touched = 0, 0
}

// add adds what another histogram has counted: in each bucket, and the sum in nanoseconds.
func (h *Histogram) add(counts []uint64, sum uint64) {
	for i, n := range counts {
		h.counts[i].Add(n)
	}
	h.sum.Add(sum)
}

// Count returns the number of durations observed.
func (h *Histogram) Count() uint64 {
	_, n, _ := h.read()
	return n
}

// Sum returns the sum of the durations observed.
func (h *Histogram) Sum() time.Duration { return time.Duration(h.sum.Load()) }

// read returns the number of durations not above each bound, the number of all, and their sum in nanoseconds.
// The number of all is that of the buckets read, so that the buckets never contradict it.
func (h *Histogram) read() (cumulative [Buckets]uint64, count, sum uint64) {
	for i := range h.counts {
		count += h.counts[i].Load()
		if i < Buckets {
			cumulative[i] = count
		}
	}
	return cumulative, count, h.sum.Load()
}

// Local is what one loop has observed since it last merged. It belongs to that loop: nothing in it is
// atomic. The zero Local is ready and empty.
type Local struct {
	// Owned by the loop.
	counts  [Buckets + 1]uint64
	sum     uint64 // nanoseconds
	touched uint32 // bit i is set when counts[i] may be above zero
}

// Observe counts d once.
func (l *Local) Observe(d time.Duration) { l.ObserveN(d, 1) }

// ObserveN counts d n times: of a batch whose members took equally long.
func (l *Local) ObserveN(d time.Duration, n uint64) {
	i := bucketOf(d)
	l.counts[i] += n
	l.sum += uint64(max(d, 0)) * n
	l.touched |= 1 << i
}
