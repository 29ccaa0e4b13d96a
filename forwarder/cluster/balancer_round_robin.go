package cluster

import (
	"cmp"
	"math"
	"slices"
	"sync/atomic"
)

const (
	// maxTurns bounds the sequence of a round robin, give or take one turn an endpoint.
	maxTurns = 1 << 16

	// maxDraws is how many turns of unusable endpoints a pick passes over before it asks the endpoints
	// themselves.
	maxDraws = 16
)

// RoundRobin gives each endpoint its turns in a fixed order, as many as its weight, the turns of one spread
// between those of the others.
//
// Of as many picks in a row as the weights add up to, divided by what they have in common, each endpoint gets
// exactly its share. Weights that add up to more than 65,536 after that are scaled down to it and rounded, to
// at least one turn each. The turns of an unusable endpoint are passed over, so the others keep their
// proportions; only when 16 turns in a row are of no use is the next usable endpoint taken, whatever its weight. In its slow
// start an endpoint gives some of its turns away: which ones follows from their number alone.
type RoundRobin struct {
	// Static after NewRoundRobin.
	endpoints []*Endpoint
	sequence  []int32

	// The turn is written by every pick; what stands above is only read.
	_ [64]byte

	// Atomic.
	turn atomic.Uint64

	_ [56]byte
}

// NewRoundRobin returns a round robin over these endpoints.
func NewRoundRobin(endpoints []*Endpoint) *RoundRobin {
	weights := make([]int64, len(endpoints))
	for i, e := range endpoints {
		weights[i] = e.weight.Load()
	}
	return &RoundRobin{endpoints: endpoints, sequence: sequence(reduced(weights))}
}

// Pick implements Balancer.
func (b *RoundRobin) Pick(ask Ask) int {
	if len(b.endpoints) <= 1 {
		return pickOnly(b.endpoints, ask)
	}
	var turn uint64
	spare := -1
	for range maxDraws {
		turn = b.turn.Add(1) - 1
		i := int(b.sequence[turn%uint64(len(b.sequence))])
		switch b.endpoints[i].take(i, ask, turn) {
		case taken:
			return i
		case spared:
			spare = i
		case refused:
		}
	}
	if spare >= 0 {
		return spare
	}
	n := len(b.endpoints)
	for k := range n {
		i := int((turn + uint64(k)) % uint64(n))
		if i != ask.Avoid && b.endpoints[i].serves(ask) {
			return i
		}
	}
	return pickAvoided(b.endpoints, ask)
}

// pickOnly picks where there is no choice.
func pickOnly(endpoints []*Endpoint, ask Ask) int {
	if len(endpoints) == 0 || !endpoints[0].serves(ask) {
		return -1
	}
	return 0
}

// pickAvoided is the pick when no endpoint serves but the one to avoid.
func pickAvoided(endpoints []*Endpoint, ask Ask) int {
	if ask.Avoid < 0 || ask.Avoid >= len(endpoints) || !endpoints[ask.Avoid].serves(ask) {
		return -1
	}
	return ask.Avoid
}

// reduced divides the weights by what they have in common, and scales them down when they are still too large.
func reduced(weights []int64) []int64 {
	var common, total int64
	for _, w := range weights {
		common = gcd(w, common)
		total += w
	}
	out := make([]int64, len(weights))
	for i, w := range weights {
		if total/common <= maxTurns {
			out[i] = w / common
		} else {
			out[i] = max(1, int64(math.Round(float64(w)*maxTurns/float64(total))))
		}
	}
	return out
}

func gcd(a, b int64) int64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// sequence is one round of turns: weights[i] times i, spread by smooth weighted round robin. Each turn is given to
// who is owed most; a turn costs its taker the total of the weights, and earns each its weight. Endpoints of equal
// weight stand in as one of their common weight and take its turns in order: the cost is that of the
// different weights, which are few.
func sequence(weights []int64) []int32 {
	type class struct {
		weight, owed int64 // of all members
		members      []int32
		next         int
	}
	var classes []*class
	byWeight := map[int64]*class{}
	var total int64
	for i, w := range weights {
		c := byWeight[w]
		if c == nil {
			c = &class{}
			byWeight[w] = c
			classes = append(classes, c)
		}
		c.weight += w
		c.members = append(c.members, int32(i))
		total += w
	}
	out := make([]int32, 0, total)
	for range total {
		for _, c := range classes {
			c.owed += c.weight
		}
		most := slices.MaxFunc(classes, func(a, b *class) int { return cmp.Compare(a.owed, b.owed) })
		most.owed -= total
		out = append(out, most.members[most.next])
		most.next = (most.next + 1) % len(most.members)
	}
	return out
}
