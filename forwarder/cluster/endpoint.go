package cluster

import (
	"fmt"
	"hash/fnv"
	"io"
	"sync/atomic"
	"time"
)

// The bounds of an endpoint's weight. What lies outside is moved to the nearer one.
const (
	MinWeight = 1
	MaxWeight = 1 << 20
)

// The back-off of an endpoint that fails: doubled with each failure in a row, then moved by up to a fifth to
// either side, so that the endpoints that fell together, and the proxies that saw it, are not all probed together.
const (
	firstBackOff = int64(100 * time.Millisecond)
	lastBackOff  = int64(2 * time.Second)
)

// Endpoint is one address of a cluster, with what is known of its load and health.
type Endpoint struct {
	// Static after NewEndpoint.
	address string
	salt    uint64 // differs between endpoints, the same in every process

	// Atomic.
	weight  atomic.Int64
	active  atomic.Int64
	trouble atomic.Pointer[trouble] // nil: nothing known against it, and no slow start; never points to a zero one

	// Endpoints are written by different cores; each fills its cache line.
	_ [16]byte
}

// trouble is what is known against an endpoint, and its slow start. Never changed.
type trouble struct {
	inARow  int   // failures
	since   int64 // the first of them, or the first behind a probe that was trusted
	until   int64 // the end of the back-off that the last of them cost
	probing bool  // a probe is under way
	trusted bool  // the last probe could connect, and nothing more is asked of it
	drained bool  // it was taken out of the balancing

	unhealthy bool // its checks say so
	ejected   bool // it is left out because of what became of its requests

	warmSince, warmUntil int64 // its slow start; 0: none (endpoint_warm.go)
}

// reachable says whether a connection to the endpoint can be had, and may.
func (t *trouble) reachable() bool { return !t.drained && (t.inARow == 0 || t.trusted) }

// usable says whether requests may go to the endpoint in spite of it.
func (t *trouble) usable() bool { return t.reachable() && !t.unhealthy && !t.ejected }

// serves says whether a request that asks so may go to the endpoint in spite of it.
func (t *trouble) serves(ask Ask) bool { return t.usable() || ask.Panic && t.reachable() }

// worked forgets the failures.
func (t *trouble) worked() { t.inARow, t.since, t.until, t.probing, t.trusted = 0, 0, 0, false, false }

// NewEndpoint returns an endpoint that nothing is known of. Its share of a cluster's requests is its weight in
// that of all endpoints.
func NewEndpoint(address string, weight int) *Endpoint {
	h := fnv.New64a()
	_, _ = io.WriteString(h, address) // a hash never refuses
	e := &Endpoint{address: address, salt: h.Sum64()}
	e.SetWeight(weight)
	return e
}

// Address is the address as the configuration or the discovery source has it.
func (e *Endpoint) Address() string { return e.address }

// Weight is the endpoint's weight, at least 1.
func (e *Endpoint) Weight() int { return int(e.weight.Load()) }

// SetWeight changes the weight. Balancers that were made before go on by the former one, or by both.
func (e *Endpoint) SetWeight(weight int) {
	e.weight.Store(int64(min(max(weight, MinWeight), MaxWeight)))
}

// Acquire counts one more request under way.
func (e *Endpoint) Acquire() { e.active.Add(1) }

// Release counts n requests as ended. More than are under way is a mistake of the program, and panics.
func (e *Endpoint) Release(n int) {
	if left := e.active.Add(-int64(n)); n < 0 || left < 0 {
		e.active.Add(int64(n))
		panic(fmt.Sprintf("cluster: release of %d requests of endpoint %s, of which %d are under way", n, e.address, left+int64(n)))
	}
}

// Active is the number of requests under way.
func (e *Endpoint) Active() int { return int(e.active.Load()) }

// Failed tells that at now a connection to the endpoint could not be made, or was of no use. The endpoint is passed
// over until a probe has succeeded. The probe is due behind a back-off: 100 ms after the first failure, twice as long
// after each further one up to 2 s, give or take a fifth. Failures within a back-off count as the one that began it:
// the connections of a dead endpoint all break at once. While a probe is under way that alone has the word.
//
// The give or take follows from the address and now alone, so that the same calls always give the same result.
func (e *Endpoint) Failed(now int64) {
	e.update(func(t *trouble) bool {
		if t.probing || t.inARow > 0 && !t.trusted && now < t.until {
			return false
		}
		e.count(t, now)
		return true
	})
}

// Probe begins a probe if one is due at now, and says whether it did. It ends with Connected, Trust or ProbeFailed.
func (e *Endpoint) Probe(now int64) bool {
	return e.update(func(t *trouble) bool {
		due := t.due() && now >= t.until
		t.probing = due
		return due
	})
}

// due says whether a probe is to begin at the end of the back-off.
func (t *trouble) due() bool { return t.inARow > 0 && !t.trusted && !t.probing && !t.drained }

// ProbeFailed ends a probe in vain: the endpoint is passed over for another back-off, twice as long. It reports false when
// no probe was under way, and then changes nothing.
func (e *Endpoint) ProbeFailed(now int64) bool {
	return e.update(func(t *trouble) bool {
		if !t.probing {
			return false
		}
		t.probing = false
		e.count(t, now)
		return true
	})
}

// count adds a failure.
func (e *Endpoint) count(t *trouble, now int64) {
	if t.inARow == 0 || t.trusted {
		t.since = now
	}
	t.inARow++
	t.trusted = false
	t.until = now + e.backOff(now, t.inARow)
}

// Trust ends a probe that could connect where nothing else can be asked of the endpoint: it is usable, but its failures
// are remembered, so that the next one costs the longer back-off. It reports false when no probe was under way.
func (e *Endpoint) Trust() bool {
	return e.update(func(t *trouble) bool {
		if !t.probing {
			return false
		}
		t.probing, t.trusted = false, true
		return true
	})
}

// Connected tells that a connection to the endpoint works: its failures are forgotten. It says whether that ends a probe.
func (e *Endpoint) Connected() (probed bool) {
	if t := e.trouble.Load(); t == nil || t.inARow == 0 { // do not write what all cores read without need
		return false
	}
	e.update(func(t *trouble) bool {
		probed = t.probing
		t.worked()
		return true
	})
	return probed
}

// Drain takes the endpoint out of the balancing, or lets it in again. It reports false when that is so already.
func (e *Endpoint) Drain(drained bool) bool {
	return e.update(func(t *trouble) bool {
		if t.drained == drained {
			return false
		}
		t.drained = drained
		return true
	})
}

// update changes what is known against the endpoint, if change says that there is a change. It may be called again when
// somebody else was faster.
func (e *Endpoint) update(change func(*trouble) bool) bool {
	for {
		old := e.trouble.Load()
		next := new(trouble)
		if old != nil {
			*next = *old
		}
		if !change(next) {
			return false
		}
		if *next == (trouble{}) {
			next = nil
		}
		if e.trouble.CompareAndSwap(old, next) {
			return true
		}
	}
}

// backOff is how long the endpoint is passed over after so many failures in a row.
func (e *Endpoint) backOff(now int64, inARow int) int64 {
	d := firstBackOff
	for i := 1; i < inARow && d < lastBackOff; i++ {
		d *= 2
	}
	return e.Spread(min(d, lastBackOff), 5, now)
}

// Spread moves d by up to a part of it, a fifth where part is 5, to either side. How far follows from the endpoint's
// address and at alone.
func (e *Endpoint) Spread(d, part, at int64) int64 {
	most := uint64(d / part)
	return d - int64(most) + int64(mix(e.salt^uint64(at))%(2*most+1))
}

// mix spreads x over all 64 bits (the output step of splitmix64).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Usable says whether requests may go to the endpoint: it is Reachable, and nothing else is known against it.
func (e *Endpoint) Usable() bool {
	t := e.trouble.Load()
	return t == nil || t.usable()
}

// Reachable says whether the endpoint may be connected: it has not failed, or a probe has succeeded since, and it is not
// drained.
func (e *Endpoint) Reachable() bool {
	t := e.trouble.Load()
	return t == nil || t.reachable()
}

// serves says whether a request that asks so may go to the endpoint.
func (e *Endpoint) serves(ask Ask) bool {
	t := e.trouble.Load()
	return t == nil || t.serves(ask)
}

// Health is what is known of an endpoint beside its load.
type Health struct {
	Failures int   // in a row; 0 once it has worked
	Since    int64 // the first of them, from which on it is passed over
	Until    int64 // the end of the back-off that the last of them cost; 0 without one
	Probing  bool  // a probe is under way
	Trusted  bool  // the last probe could connect, and nothing more is asked of it
	Drained  bool  // it was taken out of the balancing

	Unhealthy bool // its checks say so
	Ejected   bool // it is left out because of what became of its requests

	WarmSince, WarmUntil int64 // its slow start; 0: none
}

// Restore makes h what is known of an endpoint that nothing is known of yet but whether it drains, which stays. A probe that was
// under way is due again.
func (e *Endpoint) Restore(h Health) {
	e.update(func(t *trouble) bool {
		*t = trouble{
			inARow: max(h.Failures, 0), since: h.Since, until: h.Until, trusted: h.Trusted && h.Failures > 0, drained: t.drained,
			unhealthy: h.Unhealthy, ejected: h.Ejected,
		}
		if h.WarmUntil > h.WarmSince {
			t.warmSince, t.warmUntil = h.WarmSince, h.WarmUntil
		}
		return true
	})
}

// Postpone ends a probe that came to nothing through no fault of the endpoint: it is due again at once. It reports false
// when no probe was under way.
func (e *Endpoint) Postpone() bool {
	return e.update(func(t *trouble) bool {
		probing := t.probing
		t.probing = false
		return probing
	})
}

// Health reports what is known of the endpoint.
func (e *Endpoint) Health() Health {
	t := e.trouble.Load()
	if t == nil {
		return Health{}
	}
	return Health{t.inARow, t.since, t.until, t.probing, t.trusted, t.drained, t.unhealthy, t.ejected, t.warmSince, t.warmUntil}
}

// ProbeDue is when the next probe is due; never, if that is not for a time to say: the endpoint has not failed, is being
// probed or is drained.
func (e *Endpoint) ProbeDue() (at int64, ok bool) {
	t := e.trouble.Load()
	if t == nil || !t.due() {
		return 0, false
	}
	return t.until, true
}
