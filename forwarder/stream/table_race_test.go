package stream

import (
	"math"
	"sync"
	"sync/atomic"
	"testing"
)

// TestEachEntryLeavesOnce has inserters, takers and sweepers work on one table until it is closed under them.
func TestEachEntryLeavesOnce(t *testing.T) {
	const inserters, each = 4, 20000
	table := New[int](10000)
	left := make([]atomic.Int32, inserters*each)
	var accepted, taken, expired, clock atomic.Int64
	ids := make(chan uint32, 4096) // closed by the test when the inserters have ended
	leave := func(entries []Entry[int]) {
		for _, e := range entries {
			left[e.Value].Add(1)
		}
	}

	var inserting, working sync.WaitGroup
	for g := range inserters {
		inserting.Go(func() {
			for i := range each {
				deadline := clock.Add(1) + int64(i%3000)
				id, _, ok := insert(table, g*each+i, deadline)
				if !ok {
					continue
				}
				accepted.Add(1)
				if i%4 != 0 { // the others are left to their deadline
					ids <- id
				}
			}
		})
	}
	for range 2 {
		working.Go(func() {
			for id := range ids {
				for range 2 { // the second finds nothing
					if v, ok := take(table, id); ok {
						left[v].Add(1)
						taken.Add(1)
					}
				}
			}
		})
	}
	stop := make(chan struct{}) // closed by the test
	for range 2 {
		working.Go(func() {
			var out []Entry[int]
			for {
				now := clock.Load()
				out = table.Expire(now, out[:0])
				for _, e := range out {
					if e.Deadline > now {
						t.Errorf("at %d the request %d with deadline %d expired", now, e.ID, e.Deadline)
					}
				}
				leave(out)
				expired.Add(int64(len(out)))
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	inserting.Wait()
	close(ids)
	close(stop)
	working.Wait()

	first := int64(math.MaxInt64)
	for e := range table.All() {
		first = min(first, e.Deadline)
	}
	if table.Earliest() > first {
		t.Errorf("Earliest is %d, but a request ends at %d: it would never expire", table.Earliest(), first)
	}
	rest := table.Close(nil)
	leave(rest)
	if got := taken.Load() + expired.Load() + int64(len(rest)); got != accepted.Load() {
		t.Errorf("%d entries went in, %d came out", accepted.Load(), got)
	}
	for i := range left {
		if n := left[i].Load(); n > 1 {
			t.Fatalf("value %d came out %d times", i, n)
		}
	}
	if taken.Load() == 0 || expired.Load() == 0 {
		t.Errorf("%d taken, %d expired: the test proves nothing", taken.Load(), expired.Load())
	}
}

// TestCloseWhileInserting: what an insert was told is stored comes out of Close or is never stored.
func TestCloseWhileInserting(t *testing.T) {
	for range 50 {
		table := New[int](0)
		var accepted atomic.Int64
		var wg sync.WaitGroup
		started := make(chan struct{}, 2) // never closed
		for range 2 {
			wg.Go(func() {
				for i := range 20000 {
					if _, _, ok := insert(table, i, int64(i)); !ok {
						return
					}
					accepted.Add(1)
					if i == 500 {
						started <- struct{}{}
					}
				}
			})
		}
		<-started
		out := table.Close(nil)
		wg.Wait()
		if int64(len(out)) != accepted.Load() || table.Len() != 0 {
			t.Fatalf("%d inserts were accepted, Close gave %d, %d are left", accepted.Load(), len(out), table.Len())
		}
	}
}
