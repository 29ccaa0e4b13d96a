package stats

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

func TestThrottle(t *testing.T) {
	th := NewThrottle[string](10*time.Second, 4)
	for i, step := range []struct {
		key        string
		at         time.Duration
		ok         bool
		suppressed uint64
	}{
		{"a", 0, true, 0},
		{"a", 1, false, 0},
		{"b", 1, true, 0},
		{"a", 10*time.Second - 1, false, 0},
		{"a", 10 * time.Second, true, 2},
		{"a", 11 * time.Second, false, 0},
		{"b", 11 * time.Second, true, 0},
		{"a", 5 * time.Second, false, 0}, // a reading of the clock from before the last one let through
		{"a", time.Hour, true, 2},
	} {
		suppressed, ok := th.Allow(step.key, int64(step.at))
		if suppressed != step.suppressed || ok != step.ok {
			t.Errorf("step %d, %s at %v: got %d, %v; want %d, %v",
				i, step.key, step.at, suppressed, ok, step.suppressed, step.ok)
		}
	}
}

func TestThrottleEvictsTheOldest(t *testing.T) {
	th := NewThrottle[int](10, 3)
	th.Allow(1, 0)
	th.Allow(2, 1)
	th.Allow(3, 2)
	th.Allow(1, 10) // now 2 is the oldest
	th.Allow(2, 10) // held back, and still the oldest
	th.Allow(4, 10)
	for _, step := range []struct {
		key int
		ok  bool
	}{{1, false}, {3, false}, {4, false}, {2, true}} {
		if _, ok := th.Allow(step.key, 11); ok != step.ok {
			t.Errorf("key %d at 11: allowed is %v, want %v", step.key, ok, step.ok)
		}
	}
	if _, ok := th.Allow(3, 11); !ok {
		t.Error("key 3 is still known, want it to have made room for key 2")
	}
}

// TestThrottleAgainstModel compares with a map that is searched for the oldest.
func TestThrottleAgainstModel(t *testing.T) {
	type entry struct {
		last       int64
		suppressed uint64
		order      int
	}
	const interval, maxKeys = 20, 5
	th := NewThrottle[int](interval, maxKeys)
	model := map[int]*entry{}
	now := int64(0)
	for step := range 20_000 {
		now += rand.Int64N(3)
		k := rand.IntN(8)
		var wantN uint64
		wantOK := true
		if e := model[k]; e == nil {
			if len(model) == maxKeys {
				oldest := -1
				for key, e := range model {
					if oldest < 0 || e.order < model[oldest].order {
						oldest = key
					}
				}
				delete(model, oldest)
			}
			model[k] = &entry{last: now, order: step}
		} else if now-e.last < interval {
			e.suppressed++
			wantOK = false
		} else {
			wantN = e.suppressed
			*e = entry{last: now, order: step}
		}
		if n, ok := th.Allow(k, now); n != wantN || ok != wantOK {
			t.Fatalf("step %d, key %d at %d: got %d, %v; want %d, %v", step, k, now, n, ok, wantN, wantOK)
		}
		if len(th.index) != len(model) || len(th.slots) > maxKeys {
			t.Fatalf("step %d: %d keys in %d slots, want %d keys", step, len(th.index), len(th.slots), len(model))
		}
	}
}

func TestThrottleConcurrent(t *testing.T) {
	th := NewThrottle[int](time.Hour, 16)
	var passed, held Counter
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 1000 {
				if _, ok := th.Allow(i%8, int64(i)); ok {
					passed.Add(1)
				} else {
					held.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if passed.Value() != 8 || held.Value() != 3992 {
		t.Errorf("%d passed and %d were held back, want 8 and 3992", passed.Value(), held.Value())
	}
}

func BenchmarkThrottleHeldBack(b *testing.B) {
	b.ReportAllocs()
	th := NewThrottle[[2]string](time.Hour, 1024)
	k := [2]string{"route", "no-usable-endpoint"}
	for b.Loop() {
		th.Allow(k, 1)
	}
}
