package cluster

import (
	"math"
	"math/rand/v2"
)

// maxPairs is how many pairs a pick draws before it asks all endpoints.
const maxPairs = 4

// LeastRequest draws two endpoints at random, by weight, and picks the one with fewer requests under way for its
// weight; the first of the two if they are even. So idle endpoints get the shares of their weights, and a slow
// one gets less. When four pairs in a row are of no use, the least loaded of all usable endpoints is picked.
type LeastRequest struct {
	// Static after NewLeastRequest.
	endpoints []*Endpoint
	columns   []column
	random    func() uint64
}

// column is one column of the alias table: its endpoint up to the threshold, the other one above. Every column
// is as likely as the next, so a draw costs one look whatever the number of endpoints.
// (M. D. Vose, A linear algorithm for generating random numbers with a given distribution, 1991.)
type column struct {
	threshold uint32
	other     int32
}

// NewLeastRequest returns a balancer over these endpoints. Random gives 64 random bits and may be called by any
// number of goroutines at once; nil is the runtime's own source.
func NewLeastRequest(endpoints []*Endpoint, random func() uint64) *LeastRequest {
	if random == nil {
		random = rand.Uint64
	}
	return &LeastRequest{endpoints: endpoints, columns: aliasTable(endpoints), random: random}
}

// Pick implements Balancer.
func (b *LeastRequest) Pick(ask Ask) int {
	if len(b.endpoints) <= 1 {
		return pickOnly(b.endpoints, ask)
	}
	for range maxPairs {
		bits := b.random()
		i, j := b.draw(uint32(bits>>32)), b.draw(uint32(bits))
		if i == j {
			j = b.another(i)
		}
		first := i != ask.Avoid && b.endpoints[i].serves(ask)
		second := j != ask.Avoid && b.endpoints[j].serves(ask)
		switch {
		case first && second:
			return b.lessLoaded(i, j)
		case first:
			return i
		case second:
			return j
		}
	}
	return b.pickOfAll(ask)
}

// draw turns 32 random bits into an endpoint: the high bits of the product choose the column, the low ones the
// side of its threshold.
func (b *LeastRequest) draw(bits uint32) int {
	x := uint64(bits) * uint64(len(b.columns))
	i := x >> 32
	if c := &b.columns[i]; uint32(x) >= c.threshold {
		return int(c.other)
	}
	return int(i)
}

// another is any endpoint but i.
func (b *LeastRequest) another(i int) int {
	n := len(b.endpoints)
	if n > 2 {
		skip := (b.random() >> 32) * uint64(n-1) >> 32
		return (i + 1 + int(skip)) % n
	}
	return 1 - i
}

// lessLoaded compares active/weight without dividing.
func (b *LeastRequest) lessLoaded(i, j int) int {
	x, y := b.endpoints[i], b.endpoints[j]
	if y.active.Load()*x.weight.Load() < x.active.Load()*y.weight.Load() {
		return j
	}
	return i
}

// pickOfAll begins anywhere, so that endpoints that are even take turns.
func (b *LeastRequest) pickOfAll(ask Ask) int {
	n := len(b.endpoints)
	best, start := -1, int(b.random()>>32*uint64(n)>>32)
	for k := range n {
		i := (start + k) % n
		switch {
		case i == ask.Avoid || !b.endpoints[i].serves(ask):
		case best < 0:
			best = i
		default:
			best = b.lessLoaded(best, i)
		}
	}
	if best < 0 {
		return pickAvoided(b.endpoints, ask)
	}
	return best
}

// aliasTable fills the columns: each column that is too short for an average one is topped up by one that is
// too tall.
func aliasTable(endpoints []*Endpoint) []column {
	n := len(endpoints)
	var total int64
	for _, e := range endpoints {
		total += e.weight.Load()
	}
	columns := make([]column, n)
	height := make([]int64, n) // in units of which an average column has total
	var short, tall []int
	for i, e := range endpoints {
		columns[i] = column{threshold: math.MaxUint32, other: int32(i)} // full
		height[i] = e.weight.Load() * int64(n)
		switch {
		case height[i] < total:
			short = append(short, i)
		case height[i] > total:
			tall = append(tall, i)
		}
	}
	for len(short) > 0 && len(tall) > 0 {
		s, t := short[len(short)-1], tall[len(tall)-1]
		short = short[:len(short)-1]
		columns[s] = column{
			threshold: uint32(float64(height[s]) / float64(total) * (1 << 32)),
			other:     int32(t),
		}
		height[t] -= total - height[s]
		if height[t] <= total {
			tall = tall[:len(tall)-1]
		}
		if height[t] < total {
			short = append(short, t)
		}
	}
	return columns
}
