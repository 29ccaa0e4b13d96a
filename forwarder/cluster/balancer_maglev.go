package cluster

import (
	"cmp"
	"math"
	"math/bits"
	"slices"

	"github.com/cespare/xxhash/v2"
)

// Maglev sends requests of one key to one endpoint, and each endpoint as many keys as its weight says, to whole slots of its
// table. What an endpoint gets that does not serve, or is to be avoided, is spread over the others, and comes back to it when it
// serves again; nothing else moves. Where a request has no key, it is drawn at random.
//
// Which endpoint that is follows from the key, and from the addresses and weights of the endpoints, in whatever order they are,
// in every process that knows them. The load of endpoints does not matter, nor does a slow start.
type Maglev struct {
	// Static after NewMaglev.
	endpoints []*Endpoint
	table     *MaglevTable
	random    func() uint64
}

// maxSlots is how many slots a pick looks at, each found by another hash of the key, before it asks all endpoints.
const maxSlots = 32

// NewMaglev returns a balancer over these endpoints with the table of their addresses and weights. Random is as in
// NewLeastRequest.
func NewMaglev(endpoints []*Endpoint, table *MaglevTable, random func() uint64) *Maglev {
	return &Maglev{endpoints: endpoints, table: table, random: random}
}

// Hash is the hash of a request's key. It is never 0.
func Hash(key []byte) uint64 { return max(xxhash.Sum64(key), 1) }

// Pick implements Balancer.
func (b *Maglev) Pick(ask Ask) int {
	if len(b.endpoints) <= 1 {
		return pickOnly(b.endpoints, ask)
	}
	hash := ask.Hash
	if hash == 0 {
		hash = b.random()
	}
	slots := b.table.slots
	for range maxSlots {
		at, _ := bits.Mul64(hash, uint64(len(slots)))
		if i := int(slots[at]); i != ask.Avoid && b.endpoints[i].serves(ask) {
			return i
		}
		hash = mix(hash) // and not the slot beside it: who claims every third slot always has the same neighbours
	}
	return b.pickOfAll(ask, hash)
}

// pickOfAll asks all: of those that serve, and of their weights, it is as likely to be each.
// (D. G. Thaler, C. V. Ravishankar, A name-based mapping scheme for rendezvous, 1996.)
func (b *Maglev) pickOfAll(ask Ask, hash uint64) int {
	best, least := -1, math.Inf(1)
	for i, e := range b.endpoints {
		if i == ask.Avoid || !e.serves(ask) {
			continue
		}
		part := (float64(mix(hash^e.salt)>>11) + 0.5) / (1 << 53)
		if score := -math.Log(part) / float64(e.weight.Load()); score < least {
			best, least = i, score
		}
	}
	if best < 0 {
		return pickAvoided(b.endpoints, ask)
	}
	return best
}

// The sizes of tables, primes: up to fewEndpoints of them, and for more. Between the one and the other all keys move.
const (
	fewEndpoints = 2000
	fewSlots     = 65537
	manySlots    = 1048573
)

// MaglevTable says which endpoint has which slot. Never changed.
// (D. E. Eisenbud et al., Maglev: A Fast and Reliable Software Network Load Balancer, 2016, section 3.4.)
type MaglevTable struct {
	slots []int32 // none for fewer than two endpoints
}

// claimant is an endpoint that claims slots: each one the next that is free in an order of its own.
type claimant struct {
	at, step uint32
	after    uint64 // rounds between two claims, in parts of 1<<32
	due      uint64 // the round of the next one, likewise
}

// NewMaglevTable gives endpoints with these addresses and weights their slots. Each has one at least, as long as there are as
// many.
func NewMaglevTable(addresses []string, weights []int) *MaglevTable {
	n := len(addresses)
	if n < 2 {
		return &MaglevTable{}
	}
	order := make([]int32, n)
	for i := range order {
		order[i] = int32(i)
	}
	slices.SortFunc(order, func(i, j int32) int {
		return cmp.Or(cmp.Compare(addresses[i], addresses[j]), cmp.Compare(weights[i], weights[j]))
	})
	size := uint32(fewSlots)
	if n > fewEndpoints {
		size = manySlots
	}
	t := &MaglevTable{slots: make([]int32, size)}
	t.fill(order, claimants(order, addresses, weights, size))
	return t
}

// claimants are those of endpoints in this order.
func claimants(order []int32, addresses []string, weights []int, size uint32) []claimant {
	most := uint64(slices.Max(weights))
	out := make([]claimant, len(order))
	for k, i := range order {
		hash := xxhash.Sum64String(addresses[i])
		out[k] = claimant{
			at: uint32(hash % uint64(size)), step: 1 + uint32(mix(hash)%uint64(size-1)),
			after: most << 32 / uint64(max(weights[i], MinWeight)),
		}
	}
	return out
}

// fill lets them claim until no slot is free. In each round those claim whose turn it is: the heaviest in each, one of half
// its weight in each second.
func (t *MaglevTable) fill(order []int32, claimants []claimant) {
	size := uint32(len(t.slots))
	taken := make([]uint64, (size+63)/64)
	next := make([]int32, len(claimants)) // behind each in the list of its round; -1: nobody
	first := make([]int32, size)          // of each round's list, likewise
	for i := range first {
		first[i] = -1
	}
	for k := range claimants {
		next[k], first[0] = first[0], int32(k)
	}
	left := size
	for round := uint32(0); ; round++ {
		for k := first[round]; k >= 0; {
			c := &claimants[k]
			for taken[c.at/64]&(1<<(c.at%64)) != 0 {
				c.move(size)
			}
			taken[c.at/64] |= 1 << (c.at % 64)
			t.slots[c.at] = order[k]
			if left--; left == 0 {
				return
			}
			c.due += c.after
			following := next[k]
			if due := c.due >> 32; due < uint64(size) { // by then the table is full: the heaviest claims in each round
				next[k], first[due] = first[due], k
			}
			k = following
		}
	}
}

// move goes on to the next slot of its order.
func (c *claimant) move(size uint32) {
	if c.at += c.step; c.at >= size {
		c.at -= size
	}
}
