package cluster

// maxRandomDraws is how often a pick draws before it asks all endpoints.
const maxRandomDraws = 8

// Random draws an endpoint, each as likely as its weight says, whatever the others do and have to do. When eight draws in
// a row are of no use, it is drawn among those that serve.
type Random struct {
	// Static after NewRandom.
	endpoints []*Endpoint
	table     aliasTable
	random    func() uint64
}

// NewRandom returns a balancer over these endpoints. Random is as in NewLeastRequest.
func NewRandom(endpoints []*Endpoint, random func() uint64) *Random {
	return &Random{endpoints: endpoints, table: newAliasTable(endpoints), random: random}
}

// Pick implements Balancer.
func (b *Random) Pick(ask Ask) int {
	if len(b.endpoints) <= 1 {
		return pickOnly(b.endpoints, ask)
	}
	spare := -1
	for range maxRandomDraws {
		bits := b.random()
		i := b.table.draw(uint32(bits >> 32))
		switch b.endpoints[i].take(i, ask, bits) {
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
	return b.pickOfAll(ask)
}

// pickOfAll draws among those that serve.
func (b *Random) pickOfAll(ask Ask) int {
	var total, passed uint64
	for i, e := range b.endpoints {
		if i != ask.Avoid && e.serves(ask) {
			total += uint64(e.weight.Load())
		}
	}
	last, at := -1, uint64(0)
	if total > 0 {
		at = b.random() % total
	}
	for i, e := range b.endpoints {
		if i == ask.Avoid || !e.serves(ask) {
			continue
		}
		last = i
		if passed += uint64(e.weight.Load()); passed > at {
			return i
		}
	}
	if last < 0 {
		return pickAvoided(b.endpoints, ask)
	}
	return last // some do not serve any more, or have another weight
}
