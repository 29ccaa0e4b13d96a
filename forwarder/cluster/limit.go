package cluster

import (
	"fmt"
	"math"
	"sync/atomic"
)

// Unlimited is the bound of a limit that only counts.
const Unlimited = math.MaxInt

// Limit counts what is taken of a bound. At no moment is less taken than nothing, or, but for what was adopted, more than
// the bound.
type Limit struct {
	// Atomic.
	max        atomic.Int64
	used       atomic.Int64
	refused    atomic.Uint64 // how often nothing, or not enough, was to be had
	refusedLow atomic.Uint64 // likewise, of the share of what has low priority

	// Limits are made together and written by different cores; each fills its cache line.
	_ [32]byte
}

// NewLimit returns a limit of which nothing is taken. A negative max grants nothing, like 0.
func NewLimit(max int) *Limit {
	l := &Limit{}
	l.SetMax(max)
	return l
}

// SetMax changes the bound. What is taken beyond a lower one stays taken.
func (l *Limit) SetMax(n int) { l.max.Store(int64(max(n, 0))) }

// TryAcquire takes n, or what there is of n, and returns how much that was: 0 if the limit is reached.
func (l *Limit) TryAcquire(n int) int {
	for {
		used := l.used.Load()
		granted := min(int64(n), l.max.Load()-used)
		if granted <= 0 {
			l.Refuse()
			return 0
		}
		if l.used.CompareAndSwap(used, used+granted) {
			return int(granted)
		}
	}
}

// lowKept is the part of a bound that what has low priority leaves to the others: one in so many, rounded down, so that
// nothing is kept of a bound below it.
const lowKept = 5

// TryAcquireLow takes one for what has low priority, which gets none once four fifths are taken, by whomever. It returns how
// much that was.
func (l *Limit) TryAcquireLow() int {
	for {
		used := l.used.Load()
		if used >= int64(l.MaxLow()) {
			l.refusedLow.Add(1)
			return 0
		}
		if l.used.CompareAndSwap(used, used+1) {
			return 1
		}
	}
}

// Refuse counts a refusal: of who was granted less than he needs, and gives it back.
func (l *Limit) Refuse() { l.refused.Add(1) }

// Refused is how often somebody was refused so far, and RefusedLow how often by TryAcquireLow.
func (l *Limit) Refused() uint64 { return l.refused.Load() }

// RefusedLow is explained at Refused.
func (l *Limit) RefusedLow() uint64 { return l.refusedLow.Load() }

// Adopt takes n whatever the bound is: what another process has begun is there, and counts.
func (l *Limit) Adopt(n int) { l.used.Add(int64(n)) }

// Release gives n back. More than is taken is a mistake of the program, and panics: the count would admit too
// much from then on.
func (l *Limit) Release(n int) {
	for {
		used := l.used.Load()
		if n < 0 || int64(n) > used {
			panic(fmt.Sprintf("cluster: release of %d from a limit of which %d are taken", n, used))
		}
		if l.used.CompareAndSwap(used, used-int64(n)) {
			return
		}
	}
}

// Used is how much is taken.
func (l *Limit) Used() int { return int(l.used.Load()) }

// Left is how much may still be taken.
func (l *Limit) Left() int { return int(l.max.Load() - l.used.Load()) }

// Max is the bound.
func (l *Limit) Max() int { return int(l.max.Load()) }

// MaxLow is the bound for what has low priority.
func (l *Limit) MaxLow() int { return l.Max() - l.Max()/lowKept }
