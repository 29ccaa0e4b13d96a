package cluster

import (
	"math"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func TestLimitAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.SampledFrom([]int{0, 1, 2, 10, 1000, Unlimited}).Draw(t, "max")
		l := NewLimit(most)
		held := 0
		for range rapid.IntRange(1, 50).Draw(t, "calls") {
			if rapid.Bool().Draw(t, "acquire") {
				n := rapid.IntRange(-1, 20).Draw(t, "n")
				want := max(0, min(n, most-held))
				if got := l.TryAcquire(n); got != want {
					t.Fatalf("TryAcquire(%d) with %d of %d taken: got %d, want %d", n, held, most, got, want)
				}
				held += want
			} else {
				n := rapid.IntRange(0, held).Draw(t, "n")
				l.Release(n)
				held -= n
			}
			if l.Used() != held || l.Max() != most {
				t.Fatalf("got %d of %d used, want %d of %d", l.Used(), l.Max(), held, most)
			}
		}
	})
}

// TestLowPriority: four fifths are for what has low priority, whoever has taken them, and all of a bound below five.
func TestLowPriority(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.SampledFrom([]int{0, 1, 4, 5, 9, 10, 100, 1001, Unlimited}).Draw(t, "max")
		l := NewLimit(most)
		if low := l.MaxLow(); low > most || float64(low) < 0.8*float64(most) || most < 5 && low != most || most >= 5 && low == most {
			t.Fatalf("got %d of %d for what has low priority, want four fifths", low, most)
		}
		held, refused, refusedLow := 0, uint64(0), uint64(0)
		for range rapid.IntRange(1, 50).Draw(t, "calls") {
			take, bound, count := l.TryAcquireLow, l.MaxLow(), &refusedLow
			if rapid.Bool().Draw(t, "normal") {
				take, bound, count = func() int { return l.TryAcquire(1) }, most, &refused
			}
			want := 1
			if held >= bound {
				want = 0
				*count++
			}
			if got := take(); got != want {
				t.Fatalf("with %d of %d taken: got %d, want %d", held, bound, got, want)
			}
			held += want
			if l.Used() != held || l.Refused() != refused || l.RefusedLow() != refusedLow {
				t.Fatalf("got %d used, %d and %d refused, want %d, %d and %d", l.Used(), l.Refused(), l.RefusedLow(), held, refused, refusedLow)
			}
		}
	})
}

func TestLimitUnderConcurrentUse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.IntRange(1, 20).Draw(t, "max")
		batch := rapid.IntRange(1, 8).Draw(t, "batch")
		l := NewLimit(most)
		var mu sync.Mutex
		held, worst := 0, 0
		var workers, observer sync.WaitGroup
		stop := make(chan struct{}) // closed below, when the workers have ended
		observer.Go(func() {
			for {
				if used := l.Used(); used < 0 || used > most {
					t.Errorf("%d of %d are taken", used, most)
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
		for range 4 {
			workers.Go(func() {
				for i := range 200 {
					// The count here rises after the limit has granted and falls before it is
					// given back, so it never shows more than is taken.
					granted := l.TryAcquire(1 + (i % batch))
					mu.Lock()
					held += granted
					worst = max(worst, held)
					mu.Unlock()
					mu.Lock()
					held -= granted
					mu.Unlock()
					l.Release(granted)
				}
			})
		}
		workers.Wait()
		close(stop)
		observer.Wait()
		if worst > most {
			t.Fatalf("%d were granted at once, the limit is %d", worst, most)
		}
		if l.Used() != 0 {
			t.Fatalf("%d are taken at the end, want 0", l.Used())
		}
		if got := l.TryAcquire(math.MaxInt); got != most {
			t.Fatalf("at the end %d are to be had, want %d", got, most)
		}
	})
}

func TestLimitRefusesToGoBelowZero(t *testing.T) {
	l := NewLimit(5)
	l.TryAcquire(2)
	mustPanic(t, "Release of more than is taken", func() { l.Release(3) })
	mustPanic(t, "Release of less than nothing", func() { l.Release(-1) })
	if l.Used() != 2 {
		t.Errorf("Used after a refused Release: got %d, want 2", l.Used())
	}
	if got := NewLimit(-1).TryAcquire(1); got != 0 {
		t.Errorf("a negative limit granted %d, want 0", got)
	}
}

// TestAdopt: what is adopted counts, whatever the bound; nothing more is granted before there is room again.
func TestAdopt(t *testing.T) {
	l := NewLimit(3)
	l.TryAcquire(2)
	l.Adopt(4)
	if l.Used() != 6 || l.Left() != -3 || l.TryAcquire(1) != 0 {
		t.Errorf("got %d used and %d left, want 6 and 3 too many, and none granted", l.Used(), l.Left())
	}
	l.Release(3)
	if got := l.TryAcquire(1); got != 0 {
		t.Errorf("got %d granted at the bound, want none", got)
	}
	l.Release(1)
	if got := l.TryAcquire(2); got != 1 {
		t.Errorf("got %d granted below the bound, want 1", got)
	}
	l.Release(3)
	mustPanic(t, "Release of more than was taken and adopted", func() { l.Release(1) })
}
