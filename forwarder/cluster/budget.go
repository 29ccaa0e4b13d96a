package cluster

import (
	"fmt"
	"sync/atomic"
)

// Budget bounds the retries under way by a share of the requests under way, of which they are a part: when all servers fail,
// their load grows by that share and not by the number of tries. A few are let pass whatever the share is, because that of few
// requests is nothing.
type Budget struct {
	// Static after NewBudget.
	requests *Limit

	// Atomic.
	share atomic.Int64 // hundredths of a percent
	floor atomic.Int64
	used  atomic.Int64

	// As those of Limit.
	_ [32]byte
}

// NewBudget returns a budget of which nothing is taken, for what is taken of requests. The share is in hundredths of a percent.
func NewBudget(requests *Limit, share, floor int) *Budget {
	b := &Budget{requests: requests}
	b.SetMax(share, floor)
	return b
}

// SetMax changes the bound. What is taken beyond a lower one stays taken.
func (b *Budget) SetMax(share, floor int) {
	b.share.Store(int64(max(share, 0)))
	b.floor.Store(int64(max(floor, 0)))
}

// TryAcquire takes one, if there is one left.
func (b *Budget) TryAcquire() bool {
	for {
		used := b.used.Load()
		if used >= int64(b.Max()) {
			return false
		}
		if b.used.CompareAndSwap(used, used+1) {
			return true
		}
	}
}

// Adopt takes one whatever the bound is, as Limit's does.
func (b *Budget) Adopt() { b.used.Add(1) }

// Release gives one back. More than are taken is a mistake of the program, and panics.
func (b *Budget) Release() {
	if left := b.used.Add(-1); left < 0 {
		b.used.Add(1)
		panic(fmt.Sprintf("cluster: release of a retry of which %d are under way", left+1))
	}
}

// Used is how many retries are under way.
func (b *Budget) Used() int { return int(b.used.Load()) }

// Max is how many there may be now.
func (b *Budget) Max() int {
	return int(max(b.floor.Load(), int64(b.requests.Used())*b.share.Load()/100_00))
}
