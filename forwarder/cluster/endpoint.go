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
// either side, so that the endpoints that fell together, and the proxies that saw it, do not all probe together.
const (
	firstBackOff = int64(100 * time.Millisecond)
	lastBackOff  = int64(2 * time.Second)
)

// Endpoint is one address of a cluster, with what is known of its load and health.
type Endpoint struct {
	// Static after NewEndpoint.
	address string
	weight  int64
	salt    uint64 // differs between endpoints, the same in every process

	// Atomic.
	active atomic.Int64
	health atomic.Pointer[failure] // nil: nothing known against it

	// Endpoints are written by different cores; each fills its cache line.
	_ [16]byte
}

// failure is an endpoint's failures in a row and the end of the back-off that they cost. Never changed.
type failure struct {
	inARow int
	until  int64
}

// NewEndpoint returns an endpoint that nothing is known of. Its share of a cluster's requests is its weight in
// that of all endpoints.
func NewEndpoint(address string, weight int) *Endpoint {
	h := fnv.New64a()
	_, _ = io.WriteString(h, address) // a hash never refuses
	return &Endpoint{address: address, weight: int64(min(max(weight, MinWeight), MaxWeight)), salt: h.Sum64()}
}

// Address is the address as the configuration or the discovery source has it.
func (e *Endpoint) Address() string { return e.address }

// Weight is the endpoint's weight, at least 1.
func (e *Endpoint) Weight() int { return int(e.weight) }

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
// over for a back-off: 100 ms after the first failure, twice as long after each further one up to 2 s, give or take
// a fifth. Failures within a back-off count as the one that began it: the connections of a dead endpoint
// all break at once.
//
// The give or take follows from the address and now alone, so that the same calls always give the same result.
func (e *Endpoint) Failed(now int64) {
	for {
		old := e.health.Load()
		next := &failure{inARow: 1}
		if old != nil {
			if now < old.until {
				return
			}
			next.inARow = old.inARow + 1
		}
		next.until = now + e.backOff(now, next.inARow)
		if e.health.CompareAndSwap(old, next) {
			return
		}
	}
}

// backOff is how long the endpoint is passed over after so many failures in a row.
func (e *Endpoint) backOff(now int64, inARow int) int64 {
	d := firstBackOff
	for i := 1; i < inARow && d < lastBackOff; i++ {
		d *= 2
	}
	d = min(d, lastBackOff)
	fifth := uint64(d / 5)
	return d - int64(fifth) + int64(mix(e.salt^uint64(now))%(2*fifth+1))
}

// mix spreads x over all 64 bits (the output step of splitmix64).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Connected tells that a connection to the endpoint works: what was known against it is forgotten.
func (e *Endpoint) Connected() {
	if e.health.Load() != nil { // do not write what all cores read without need
		e.health.Store(nil)
	}
}

// Usable says whether requests may go to the endpoint: it has not failed, or its back-off is over.
func (e *Endpoint) Usable(now int64) bool {
	f := e.health.Load()
	return f == nil || now >= f.until
}

// Failures is the number of failures in a row, 0 once it has worked.
func (e *Endpoint) Failures() int {
	if f := e.health.Load(); f != nil {
		return f.inARow
	}
	return 0
}

// PassedOverUntil is the end of the back-off that the endpoint's last failure cost, 0 if it has connected since.
func (e *Endpoint) PassedOverUntil() int64 {
	if f := e.health.Load(); f != nil {
		return f.until
	}
	return 0
}
