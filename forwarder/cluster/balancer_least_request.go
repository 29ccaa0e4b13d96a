package cluster

// maxPairs is how many pairs a pick draws before it asks all endpoints.
const maxPairs = 4

// LeastRequest draws two endpoints at random, by weight, and picks the one with fewer requests under way for its
// weight; the first of the two if they are even. So idle endpoints get the shares of their weights, and a slow
// one gets less. When four pairs in a row are of no use, the least loaded of all usable endpoints is picked.
type LeastRequest struct {
	// Static after NewLeastRequest.
	endpoints []*Endpoint
	table     aliasTable
	random    func() uint64
}

// NewLeastRequest returns a balancer over these endpoints. Random gives 64 random bits and may be called by any
// number of goroutines at once, as rand.Uint64 may.
func NewLeastRequest(endpoints []*Endpoint, random func() uint64) *LeastRequest {
	return &LeastRequest{endpoints: endpoints, table: newAliasTable(endpoints), random: random}
}

// Pick implements Balancer.
func (b *LeastRequest) Pick(ask Ask) int {
	if len(b.endpoints) <= 1 {
		return pickOnly(b.endpoints, ask)
	}
	spare := -1
	for range maxPairs {
		bits := b.random()
		i, j := b.table.draw(uint32(bits>>32)), b.table.draw(uint32(bits))
		if i == j {
			j = b.another(i)
		}
		first, second := b.endpoints[i].take(i, ask, bits), b.endpoints[j].take(j, ask, bits)
		switch {
		case first == taken && second == taken:
			return b.lessLoaded(i, j)
		case first == taken:
			return i
		case second == taken:
			return j
		case first == spared:
			spare = i
		case second == spared:
			spare = j
		}
	}
	if spare >= 0 {
		return spare
	}
	return b.pickOfAll(ask)
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
