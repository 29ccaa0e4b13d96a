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
	max  atomic.Int64
	used atomic.Int64

	// Limits are made together and written by different cores; each fills its cache line.
	_ [48]byte
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
			return 0
		}
		if l.used.CompareAndSwap(used, used+granted) {
			return int(granted)
		}
	}
}

// TryAcquireAll takes n, or nothing if there is less, and says whether it did.
func (l *Limit) TryAcquireAll(n int) bool {
	got := l.TryAcquire(n)
	if got > 0 && got < n {
		l.Release(got)
	}
	return got == n
}

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
