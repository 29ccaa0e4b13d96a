package cluster

import (
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"
)

// TestBudget: whatever is taken, given back and changed, no retry is granted beyond the larger of floor and share, and one that
// there is room for is granted.
func TestBudget(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		requests := NewLimit(Unlimited)
		share, floor := rapid.IntRange(0, 100_00).Draw(t, "share"), rapid.IntRange(0, 5).Draw(t, "floor")
		b := NewBudget(requests, share, floor)
		taken, retries := 0, 0
		t.Repeat(map[string]func(*rapid.T){
			"request": func(*rapid.T) { taken += requests.TryAcquire(1) },
			"end": func(t *rapid.T) {
				if taken == 0 {
					t.Skip("none is under way")
				}
				requests.Release(1)
				taken--
			},
			"retry": func(t *rapid.T) {
				most := max(floor, taken*share/100_00)
				if got, want := b.TryAcquire(), retries < most; got != want {
					t.Fatalf("with %d of %d retries under way, granted is %v, want %v", retries, most, got, want)
				} else if got {
					retries++
				}
			},
			"adopt": func(*rapid.T) { b.Adopt(); retries++ },
			"give back": func(t *rapid.T) {
				if retries == 0 {
					t.Skip("none is under way")
				}
				b.Release()
				retries--
			},
			"configure": func(t *rapid.T) {
				share, floor = rapid.IntRange(0, 100_00).Draw(t, "share"), rapid.IntRange(0, 5).Draw(t, "floor")
				b.SetMax(share, floor)
			},
			"": func(t *rapid.T) {
				if b.Used() != retries || b.Max() != max(floor, taken*share/100_00) {
					t.Fatalf("got %d of %d retries, want %d of %d", b.Used(), b.Max(), retries, max(floor, taken*share/100_00))
				}
			},
		})
	})
}

// TestBudgetIsExact while many ask at once.
func TestBudgetIsExact(t *testing.T) {
	requests := NewLimit(Unlimited)
	requests.TryAcquire(100)
	b := NewBudget(requests, 10_00, 3) // 10
	var underWay, most, granted atomic.Int64
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() { // ends by itself
			for range 5000 {
				if !b.TryAcquire() {
					continue
				}
				granted.Add(1)
				n := underWay.Add(1)
				for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
				}
				underWay.Add(-1)
				b.Release()
			}
		})
	}
	group.Wait()
	if b.Used() != 0 || most.Load() > 10 || granted.Load() == 0 {
		t.Errorf("got %d granted, %d at once, %d in the end, want some, no more than 10, and none", granted.Load(), most.Load(), b.Used())
	}
}

// TestBudgetGivenBackTwice is a mistake of the program.
func TestBudgetGivenBackTwice(t *testing.T) {
	b := NewBudget(NewLimit(1), 0, 1)
	b.TryAcquire()
	b.Release()
	defer func() {
		if recover() == nil || b.Used() != 0 {
			t.Errorf("got no panic, and %d retries under way, want a panic, and none", b.Used())
		}
	}()
	b.Release()
}
