package cluster

// leastShare is the share of its weight with which an endpoint begins a slow start, in parts of wholeShare.
const (
	wholeShare = 1 << 32
	leastShare = wholeShare / 10
)

// Warm lets the endpoint's share grow from a tenth of its weight at since to all of it at until, evenly. A slow start that is
// under way and ends later stays; it reports false then, and when until is not behind since.
func (e *Endpoint) Warm(since, until int64) bool {
	return e.update(func(t *trouble) bool {
		if until <= since || t.warmUntil >= until {
			return false
		}
		t.warmSince, t.warmUntil = since, until
		return true
	})
}

// Cool forgets a slow start that is over at now. It reports false when there is none, or it is not over.
func (e *Endpoint) Cool(now int64) bool {
	if t := e.trouble.Load(); t == nil || t.warmUntil == 0 || now < t.warmUntil { // do not write what all cores read without need
		return false
	}
	return e.update(func(t *trouble) bool {
		if t.warmUntil == 0 || now < t.warmUntil {
			return false
		}
		t.warmSince, t.warmUntil = 0, 0
		return true
	})
}

// WarmUntil is when the endpoint's slow start ends, 0 without one.
func (e *Endpoint) WarmUntil() int64 {
	if t := e.trouble.Load(); t != nil {
		return t.warmUntil
	}
	return 0
}

// Share is the part of its weight that the endpoint gets at now: 1, or less in a slow start.
func (e *Endpoint) Share(now int64) float64 {
	return float64(e.trouble.Load().share(now)) / wholeShare
}

// share is Share in parts of wholeShare.
func (t *trouble) share(now int64) uint64 {
	switch {
	case t == nil || now >= t.warmUntil:
		return wholeShare
	case now <= t.warmSince:
		return leastShare
	}
	gone := float64(now-t.warmSince) / float64(t.warmUntil-t.warmSince)
	return leastShare + uint64(gone*(wholeShare-leastShare))
}

// fate is what a pick does with an endpoint that it has come to.
type fate uint8

const (
	taken   fate = iota
	refused      // it does not serve, or is to be avoided
	spared       // it serves, and this request is not of its share: it is in its slow start
)

// take says what becomes of endpoint i, which this is, for a request that asks so. In a slow start that follows from bits, which
// are random, or differ from one pick to the next.
func (e *Endpoint) take(i int, ask Ask, bits uint64) (f fate) {
	if i == ask.Avoid || e.trouble.Load() != nil {
		f = e.takeInTrouble(i, ask, bits)
	}
	return f
}

// takeInTrouble is apart from take so that take is short enough to be inlined.
func (e *Endpoint) takeInTrouble(i int, ask Ask, bits uint64) fate {
	t := e.trouble.Load()
	switch {
	case i == ask.Avoid || t != nil && !t.serves(ask):
		return refused
	case mix(bits^e.salt)>>32 >= t.share(ask.Now):
		return spared
	}
	return taken
}
