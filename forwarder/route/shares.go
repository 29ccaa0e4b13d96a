package route

import (
	"math"
	"sync/atomic"
)

// maxTurns bounds the sequence of turns of a Shares: 128 KiB.
const maxTurns = 1 << 16

// Shares hands out the indexes of a list of weights, each as often as its weight says, in a fixed order that is
// spread as evenly as can be. It is safe for concurrent use.
//
// Of any n picks in a row each index gets its exact share of n, give or take less than two picks. Weights that add up
// to more than 65,536, once what they have in common is divided out, are scaled down to it and rounded, to at least one
// each: that moves a share by no more than n/10,000 as long as there are at most 64 weights up to 10,000.
type Shares struct {
	// Static after NewShares.
	sequence []uint16

	// The turn is written by every pick; what stands above is only read.
	_ [64]byte

	// Atomic.
	turn atomic.Uint64

	_ [56]byte
}

// NewShares returns the shares of these weights: 1 to 65,536 of them, each 1 to 1,000,000. A weight below that counts
// as 1.
func NewShares(weights []int) *Shares {
	return &Shares{sequence: sequence(turns(weights))}
}

// Pick returns the next index.
func (s *Shares) Pick() int {
	turn := s.turn.Add(1) - 1
	return int(s.sequence[turn%uint64(len(s.sequence))])
}

// turns is how often each index stands in the sequence.
func turns(weights []int) []int {
	out := make([]int, len(weights))
	common, total := 0, 0
	for i, w := range weights {
		out[i] = max(w, 1)
		common = gcd(out[i], common)
		total += out[i]
	}
	if total/common <= maxTurns {
		for i := range out {
			out[i] /= common
		}
		return out
	}
	exact := make([]float64, len(out))
	left := maxTurns
	for i, w := range out {
		exact[i] = float64(w) * maxTurns / float64(total)
		out[i] = max(1, int(math.Round(exact[i])))
		left -= out[i]
	}
	for ; left > 0; left-- { // to whom rounding took most from
		out[furthest(out, exact, -1)]++
	}
	for ; left < 0; left++ { // from whom rounding gave most to
		out[furthest(out, exact, 1)]--
	}
	return out
}

// furthest is the index that has most above its exact turns (sign 1) or most below them (-1). One that would have none
// left is not taken from.
func furthest(turns []int, exact []float64, sign float64) int {
	at, most := 0, math.Inf(-1)
	for i, n := range turns {
		if off := sign * (float64(n) - exact[i]); off > most && (sign < 0 || n > 1) {
			at, most = i, off
		}
	}
	return at
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// sequence is one round in which each index stands as often as turns says, and after any number n of its places has
// stood there n times its share, give or take less than one. It is the chairman assignment (R. Tijdeman, 1980): of those
// that are owed enough to be next, the next is the one that would be owed too much first.
func sequence(turns []int) []uint16 {
	total := 0
	for _, t := range turns {
		total += t
	}
	out := make([]uint16, 0, total)
	if len(turns) == 1 {
		return append(out, 0)
	}
	scale := 2*len(turns) - 2
	owed := make([]int, len(turns)) // in places, times total
	for range total {
		next := -1
		for i, t := range turns {
			owed[i] += t
			if owed[i]*scale >= total && (next < 0 || sooner(owed[i], t, owed[next], turns[next], total, scale)) {
				next = i
			}
		}
		owed[next] -= total
		out = append(out, uint16(next))
	}
	return out
}

// sooner says whether an index that is owed a and earns t each place will be owed 1-1/scale places before one that is
// owed b and earns u. What is owed counts total for a place.
func sooner(a, t, b, u, total, scale int) bool {
	limit := total * (scale - 1)
	return (limit-a*scale)*u < (limit-b*scale)*t
}
