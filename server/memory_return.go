package server

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// What memory is given back when.
const (
	returnLook  = 30 * time.Second
	returnLeast = 16 << 20 // bytes that are worth it
	returnPause = 15       // looks at most that a return is followed by, while what is given back is always taken again
)

// returns decides when memory is given back to the system.
type returns struct {
	left  uint64 // bytes that the last return has left, or what was held at a look since, if that was less
	pause int    // looks without a return behind the last one
	skip  int    // of these, those to come
}

// due says whether to give back memory of which the process holds so many bytes: there are more by half, and by returnLeast, than
// were needed once.
func (r *returns) due(held uint64) bool {
	if held < r.left+max(returnLeast, r.left/2) {
		r.left, r.pause, r.skip = min(r.left, held), 0, 0
		return false
	}
	if r.skip > 0 {
		r.skip--
		return false
	}
	return true
}

// done notes a return that has left so many bytes.
func (r *returns) done(held uint64) {
	r.left = held
	r.pause = min(2*r.pause+1, returnPause)
	r.skip = r.pause
}

// returnMemory gives memory back to the system after a peak, until ctx ends. The runtime does that with what a collection has
// freed; but forwarding makes no garbage, so collections are minutes apart, and until then the stacks and buffers of the busiest
// moment stay.
//
// Not while busy says so.
func returnMemory(ctx context.Context, busy func() bool) {
	tick := time.NewTicker(returnLook)
	defer tick.Stop()
	r := returns{left: heldMemory()}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !busy() && r.due(heldMemory()) {
			runtime.GC() // of what pools hold, a second collection frees what a first one has set aside
			debug.FreeOSMemory()
			r.done(heldMemory())
		}
	}
}

// heldMemory is the memory that the runtime has from the system, in bytes.
func heldMemory() uint64 {
	s := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64() - s[1].Value.Uint64()
}
