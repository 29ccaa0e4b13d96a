package route

import (
	"math"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// weightLists draws the weights that people write: percentages, large and odd ones, all alike, one against many.
func weightLists() *rapid.Generator[[]int] {
	return rapid.Custom(func(t *rapid.T) []int {
		weight := rapid.OneOf(rapid.IntRange(1, 3), rapid.IntRange(1, 100), rapid.IntRange(9900, 10000), rapid.IntRange(1, 10000))
		return rapid.SliceOfN(weight, 1, 12).Draw(t, "weights")
	})
}

// In any window of n picks each index is taken its exact share of times, within n/10,000 and two picks.
func TestPickIsFairInAnyWindow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		weights := weightLists().Draw(t, "weights")
		sum := 0
		for _, w := range weights {
			sum += w
		}
		s := NewShares(weights)
		counts := make([][]int, len(weights)) // after each pick
		const picks = 20_000
		taken := make([]int, len(weights))
		for range rapid.IntRange(0, 3*maxTurns).Draw(t, "picks before") {
			s.Pick()
		}
		for range picks {
			taken[s.Pick()]++
			for i, n := range taken {
				counts[i] = append(counts[i], n)
			}
		}
		for range 2000 {
			from := rapid.IntRange(0, picks-1).Draw(t, "from")
			to := rapid.IntRange(from, picks-1).Draw(t, "to")
			n := float64(to - from)
			for i, w := range weights {
				got, want := float64(counts[i][to]-counts[i][from]), n*float64(w)/float64(sum)
				if math.Abs(got-want) > n/10_000+2 {
					t.Fatalf("weights %v: in a window of %v picks index %d is taken %v times, want %v", weights, n, i, got, want)
				}
			}
		}
	})
}

func TestPickSpreadsTheLightOnes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		weights := weightLists().Draw(t, "weights")
		sum := 0
		for _, w := range weights {
			sum += w
		}
		s := NewShares(weights)
		last, run := -1, 0
		for range 20_000 {
			i := s.Pick()
			if i != last {
				last, run = i, 0
			}
			run++
			// A run of n in a row takes n(1-share) more than the share of n, which is less than two picks.
			if others := sum - weights[i]; others > 0 && run > 2*sum/others+1 {
				t.Fatalf("weights %v: index %d is taken %d times in a row", weights, i, run)
			}
		}
	})
}

// Shares of very many and very different weights are rounded by no more than is promised.
func TestTurnsKeepTheShares(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		weights := rapid.SliceOfN(rapid.OneOf(rapid.IntRange(1, 3), rapid.IntRange(9000, 10000)), 1, 64).Draw(t, "weights")
		sum, total := 0, 0
		got := turns(weights)
		for i, w := range weights {
			sum += w
			total += got[i]
		}
		if total > maxTurns {
			t.Fatalf("turns(%v): got %d in all, want at most %d", weights, total, maxTurns)
		}
		for i, w := range weights {
			share, want := float64(got[i])/float64(total), float64(w)/float64(sum)
			if got[i] < 1 || math.Abs(share-want) > 1e-4 {
				t.Fatalf("turns(%v): index %d has %d of %d, a share of %v, want %v", weights, i, got[i], total, share, want)
			}
		}
	})
}

func TestPickInOrder(t *testing.T) {
	for _, c := range []struct{ weights, want []int }{
		{[]int{7}, []int{0, 0, 0}},
		{[]int{0, -5}, []int{0, 1, 0, 1}},
		{[]int{1, 1, 1}, []int{0, 1, 2, 0, 1, 2}},
		{[]int{500, 500}, []int{0, 1, 0, 1}},
		{[]int{4, 1}, []int{0, 0, 1, 0, 0, 0, 0, 1, 0, 0}},
		{[]int{1, 3, 2}, []int{1, 2, 1, 0, 2, 1, 1, 2, 1, 0, 2, 1}},
	} {
		s := NewShares(c.weights)
		var got []int
		for range c.want {
			got = append(got, s.Pick())
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("weights %v: got %v, want %v", c.weights, got, c.want)
		}
	}
}

// Whoever picks, together they get what one would have got alone.
func TestPickFromManyGoroutines(t *testing.T) {
	weights := []int{61, 25, 13, 1}
	s, alone := NewShares(weights), NewShares(weights)
	const goroutines, picks = 8, 2503
	var counts [goroutines][4]int
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() { // ends after its picks
			for range picks {
				counts[g][s.Pick()]++
			}
		})
	}
	wg.Wait()
	var got, want [4]int
	for g := range goroutines {
		for i, n := range counts[g] {
			got[i] += n
		}
		for range picks {
			want[alone.Pick()]++
		}
	}
	if got != want {
		t.Errorf("%d goroutines were given %v, want %v", goroutines, got, want)
	}
}

func TestPickDoesNotAllocate(t *testing.T) {
	s := NewShares([]int{90, 10})
	if got := testing.AllocsPerRun(100, func() { s.Pick() }); got != 0 {
		t.Errorf("Pick: got %v allocations, want 0", got)
	}
}
