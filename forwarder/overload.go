package forwarder

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/stats"
)

// Usage is what the process uses of what it is granted. A limit of 0 is not known: then nothing is done about it.
type Usage struct {
	Memory, MemoryLimit          int64 // bytes
	Descriptors, DescriptorLimit int
}

// OverloadSpec says what is done while the process uses nearly all that it is granted. Marks are shares of the memory limit, in
// ascending order.
type OverloadSpec struct {
	// Usage says what is used now, of which so many descriptors are the connections'. While it is pressed something is done about
	// memory, and what it says should not lag behind. It is called by any goroutine, some times a second, so it must not wait. Nil:
	// nothing is known.
	Usage func(connections int, pressed bool) Usage
	// MemoryLimit stands in the place of Usage's; 0: that one holds, below 0: there is none.
	MemoryLimit                                         int64
	StopReading, StopAccepting, RefuseLow, RefuseNormal float64
	// Reserve is the number of descriptors that clients do not get; 0: what suits the limit, below 0: accepting does not stop.
	Reserve int
}

// What is done, and about what.
const (
	actStopReading = iota
	actStopAccepting
	actRefuseLow
	actRefuseNormal
	actStopDescriptors // it stops accepting
	actStopDialling
	numActs
)

var actNames = [numActs]struct{ action, resource string }{
	{"stop-reading", "memory"},
	{"stop-accepting", "memory"},
	{"refuse-low", "memory"},
	{"refuse-normal", "memory"},
	{"stop-accepting", "descriptors"},
	{"stop-dialling", "descriptors"},
}

// overload is what is done while the process uses nearly all that it is granted. The sweeper decides (sweep_overload.go).
type overload struct {
	// Static after newOverload.
	f       *Forwarder
	usage   func(connections int, pressed bool) Usage
	began   [numActs]*stats.Counter
	refused [len(priorities)]*stats.Counter

	// Atomic.
	spec   atomic.Pointer[OverloadSpec]
	since  [numActs]atomic.Int64 // when it began; 0: it is not done
	refuse atomic.Int32          // a Priority: requests of less are refused
	dials  atomic.Int64          // how many server connections may be made before the sweeper has looked how many descriptors there are
	gate   acceptGate
}

func newOverload(f *Forwarder, spec *OverloadSpec) *overload {
	o := &overload{f: f, usage: spec.Usage}
	for i, name := range actNames {
		o.began[i] = f.reg.Counter("relevo_overload_actions_total", "How often something was begun because the process used nearly all that it is granted.",
			stats.Label{Name: "action", Value: name.action}, stats.Label{Name: "resource", Value: name.resource})
	}
	for i, p := range priorities {
		o.refused[i] = f.reg.Counter("relevo_overload_refused_total", "Requests refused for want of memory, by priority.",
			stats.Label{Name: "priority", Value: p.String()})
	}
	o.configure(spec)
	o.refuse.Store(int32(PriorityLow))
	o.gate.places.Store(math.MaxInt64)
	o.dials.Store(math.MaxInt64)
	o.gate.news = make(chan struct{})
	return o
}

// configure puts another configuration into force, from the sweeper's next look on.
func (o *overload) configure(spec *OverloadSpec) { o.spec.Store(new(*spec)) }

// refusing is the priority below which requests are refused.
func (o *overload) refusing() Priority { return Priority(o.refuse.Load()) }

// look is the usage as it is now, with the limits that hold.
func (o *overload) look(pressed bool) Usage {
	if o.usage == nil {
		return Usage{}
	}
	u, spec := o.usage(o.f.known(), pressed), o.spec.Load()
	switch {
	case spec.MemoryLimit < 0:
		u.MemoryLimit = 0
	case spec.MemoryLimit > 0:
		u.MemoryLimit = spec.MemoryLimit
	}
	return u
}

// known is the number of connections of either side, those included that are being dialled.
func (f *Forwarder) known() int {
	n := f.Connections()
	for _, c := range f.snap.Load().clusters {
		n += c.policy.Limits().Connections.Used()
	}
	return n
}

// The reserve of descriptors where none is configured: a part of the limit, within bounds. It is never more than half.
const (
	reservePart  = 8
	leastReserve = 64
	mostReserve  = 4096
)

// reserve is how many descriptors of so many clients do not get; below 0 where they get all.
func (o *overload) reserve(limit int) int {
	n := o.spec.Load().Reserve
	if n == 0 {
		n = min(max(limit/reservePart, leastReserve), mostReserve)
	}
	return min(n, limit/2)
}

// dialReserve is the part of the reserve that server connections do not get either, one in so many: the admin door's, and what
// little else the process opens.
const dialReserve = 4

// mayDial says whether there is a descriptor for one more server connection, and counts on its being taken.
func (o *overload) mayDial() bool {
	may := o.dials.Add(-1) >= 0
	if !may && o.since[actStopDialling].Load() == 0 { // most that were counted may have failed, or be closed again
		o.ask()
	}
	return may
}

// ask has the sweeper look now.
func (o *overload) ask() {
	if !o.gate.asked.Swap(true) {
		o.f.sweep.rouse()
	}
}

// acceptGate is where accept loops wait while nobody may come.
type acceptGate struct {
	// Atomic.
	shut   atomic.Bool  // changed by the sweeper alone
	places atomic.Int64 // how many may come before the sweeper has looked how many descriptors there are
	asked  atomic.Bool  // to look now

	mu   sync.Mutex
	news chan struct{} // guarded by mu: closed, and another one made, by tell
}

// tell has all who wait look again.
func (g *acceptGate) tell() {
	g.mu.Lock()
	close(g.news)
	g.news = make(chan struct{})
	g.mu.Unlock()
}

// mayAccept says whether one more client may come, or is to wait in the kernel's queue.
func (o *overload) mayAccept() bool {
	return !o.gate.shut.Load() && o.gate.places.Load() > 0
}

// awaitPlace waits until it is worth asking again, at the longest until ctx ends.
func (o *overload) awaitPlace(ctx context.Context) {
	g := &o.gate
	g.mu.Lock()
	news := g.news
	g.mu.Unlock()
	if o.mayAccept() {
		return // meanwhile
	}
	if !g.shut.Load() {
		o.ask()
	}
	select {
	case <-news:
	case <-ctx.Done():
	}
}

// OverloadStatus is what the process uses of what it is granted, and what is done about it.
type OverloadStatus struct {
	Usage
	Reserve int // of descriptors; below 0: none
	Actions []OverloadAction
}

// OverloadAction is something that is done now.
type OverloadAction struct {
	Action, Resource string
	For              time.Duration
}

// Accepting says whether it is about accepting clients.
func (a OverloadAction) Accepting() bool { return a.Action == actNames[actStopAccepting].action }

// Overload says what the process uses, and what is done about it.
func (f *Forwarder) Overload() OverloadStatus {
	o, now := f.overload, f.now()
	s := OverloadStatus{Usage: o.look(false)}
	s.Reserve = o.reserve(s.DescriptorLimit)
	for i, name := range actNames {
		if since := o.since[i].Load(); since != 0 {
			s.Actions = append(s.Actions, OverloadAction{name.action, name.resource, time.Duration(max(now-since, 0))})
		}
	}
	return s
}

func (f *Forwarder) exportOverload() {
	o := f.overload
	gauge := func(name, help string, fn func(Usage) float64) {
		f.reg.GaugeFunc(name, help, func() float64 { return fn(o.look(false)) })
	}
	gauge("relevo_overload_memory_bytes", "Memory that the process needs: that of the runtime, without what a collection would free.",
		func(u Usage) float64 { return float64(u.Memory) })
	gauge("relevo_overload_memory_limit_bytes", "What it may be; 0: that is not known, and nothing is done about it.",
		func(u Usage) float64 { return float64(u.MemoryLimit) })
	gauge("relevo_overload_descriptors", "Descriptors that are open.", func(u Usage) float64 { return float64(u.Descriptors) })
	gauge("relevo_overload_descriptor_limit", "How many there may be; 0: that is not known, and nothing is done about it.",
		func(u Usage) float64 { return float64(u.DescriptorLimit) })
	for i, name := range actNames {
		f.reg.FlagFunc("relevo_overload_active", "1 while something is done because the process uses nearly all that it is granted.",
			func() bool { return o.since[i].Load() != 0 }, stats.Label{Name: "action", Value: name.action}, stats.Label{Name: "resource", Value: name.resource})
	}
}
