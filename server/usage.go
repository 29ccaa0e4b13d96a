package server

import (
	"math"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/relevo-proxy/relevo/forwarder"
)

// meter reads what the process uses of what it is granted.
//
// Memory is what the runtime holds and needs: without what it has free, and without the garbage of the time since the last
// collection. The resident size would say when the kernel kills, but not that there is a need: between two collections garbage
// grows up to the runtime's own limit, which is nine tenths of ours, and with little live data that is nobody's trouble. What is
// live is known from the last collection; the closer to the limit, the shorter ago that was. Only where memory has become less
// since, nobody would collect for minutes, because forwarding makes hardly any garbage: so while something is done about memory,
// the meter collects.
type meter struct {
	// Static after newMeter.
	limit int64 // of memory; 0: it is not known
	busy  func() bool

	collecting atomic.Bool
	group      sync.WaitGroup

	// Guarded by mu.
	mu        sync.Mutex
	samples   []metrics.Sample
	collected time.Time     // when the last collection that was made here ended
	took      time.Duration // how long it took
	counted   time.Time     // when descriptors were counted last, where that takes a list of them
	rest      int           // those that were no connection's
}

// How often the meter collects garbage, and for which share of the time at most; and how often it counts descriptors where the
// kernel does not say how many there are.
const (
	collectPause = 2 * time.Second
	collectShare = 10 // one part in so many
	countPause   = 5 * time.Second
)

// leastLimit is the memory that a limit must grant to be one: with less, what any process needs is near it.
const leastLimit = 64 << 20

// The samples of a meter, in order.
const (
	sampleTotal = iota
	sampleReleased
	sampleFree
	sampleObjects
	sampleLive
)

// newMeter is a meter that collects nothing while busy says so.
func newMeter(busy func() bool) *meter {
	m := &meter{busy: busy, samples: []metrics.Sample{
		{Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/released:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/gc/heap/live:bytes"},
	}}
	if limit, from := memoryLimit(); from != fromMachine && limit >= leastLimit {
		m.limit = limit
	}
	return m
}

// usage is forwarder.OverloadSpec.Usage.
func (m *meter) usage(connections int, pressed bool) forwarder.Usage {
	m.mu.Lock()
	defer m.mu.Unlock()
	metrics.Read(m.samples)
	at := func(sample int) uint64 { return m.samples[sample].Value.Uint64() }
	u := forwarder.Usage{
		Memory:      neededMemory(at(sampleTotal), at(sampleReleased), at(sampleFree), at(sampleObjects), at(sampleLive)),
		MemoryLimit: m.limit,
	}
	u.Descriptors, u.DescriptorLimit = m.descriptors(connections)
	if pressed {
		m.collect()
	}
	return u
}

// neededMemory is what a process holds, without what is free, and without objects that were not live at the last collection.
func neededMemory(total, released, free, objects, live uint64) int64 {
	garbage := uint64(0)
	if live > 0 && objects > live { // before the first one nobody knows
		garbage = objects - live
	}
	return int64(total) - int64(released) - int64(free) - int64(garbage)
}

// collect begins a collection, if the last one is long enough ago. Called with mu held.
func (m *meter) collect() {
	if time.Since(m.collected) < max(collectPause, (collectShare-1)*m.took) || m.busy() || m.collecting.Swap(true) {
		return
	}
	m.group.Go(func() { // ends with the collection; end waits for it
		began := time.Now()
		debug.FreeOSMemory()
		m.mu.Lock()
		m.collected, m.took = time.Now(), time.Since(began)
		m.mu.Unlock()
		m.collecting.Store(false)
	})
}

// end waits for what the meter has begun.
func (m *meter) end() { m.group.Wait() }

// ownDescriptors has an entry for each descriptor of the process.
const ownDescriptors = "/proc/self/fd"

// descriptors are how many are open, and how many there may be; nothing where one of these is not known. Since Linux 6.2 the
// kernel knows the number. Before, a list of a hundred thousand would take long: so they are listed now and then, and connections,
// which are what changes, counted. Called with mu held.
func (m *meter) descriptors(connections int) (n, limit int) {
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) != nil || r.Cur > math.MaxInt32 {
		return 0, 0
	}
	limit = int(r.Cur)
	if info, err := os.Stat(ownDescriptors); err == nil && info.Size() > 0 {
		return int(info.Size()), limit
	}
	if now := time.Now(); m.counted.IsZero() || now.Sub(m.counted) >= countPause {
		list, err := os.ReadDir(ownDescriptors)
		if err != nil {
			return 0, 0
		}
		m.counted, m.rest = now, max(len(list)-1-connections, 0) // without the one that lists them
	}
	return m.rest + connections, limit
}
