package bench

import (
	"sync"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// The timeline: steps of 100 ms, of which there are at most maxSteps; a longer run doubles their width.
const (
	stepWidth = int64(100 * time.Millisecond)
	maxSteps  = 6000
)

// counts are outcomes and volumes. Every request that was sent ends in exactly one of ok, a status, timeouts,
// lost, unfinished and mismatched (without stray); the rest is counted besides.
type counts struct {
	sent       uint64
	ok         uint64
	status     [wire.NumStatus]uint64 // by Status; Success is never counted here
	timeouts   uint64
	lost       uint64
	unfinished uint64
	overrun    uint64 // due, and never sent

	late       uint64
	mismatched uint64
	stray      uint64 // of those, the ones that ended no request
	duplicated uint64
	malformed  uint64

	bytesIn, bytesOut uint64
}

func (c *counts) add(o *counts) {
	c.sent += o.sent
	c.ok += o.ok
	for i, n := range o.status {
		c.status[i] += n
	}
	c.timeouts += o.timeouts
	c.lost += o.lost
	c.unfinished += o.unfinished
	c.overrun += o.overrun
	c.late += o.late
	c.mismatched += o.mismatched
	c.stray += o.stray
	c.duplicated += o.duplicated
	c.malformed += o.malformed
	c.bytesIn += o.bytesIn
	c.bytesOut += o.bytesOut
}

// straying counts a frame that should not have come.
func (c *counts) straying() {
	c.mismatched++
	c.stray++
}

// statuses is the number of replies with another status than success.
func (c *counts) statuses() (n uint64) {
	for _, k := range c.status {
		n += k
	}
	return n
}

// errors is the number of all that a point of the timeline calls an error.
func (c *counts) errors() uint64 {
	return c.statuses() + c.timeouts + c.lost + c.mismatched + c.duplicated + c.malformed
}

// batch is what one read, or one write, of a connection did: it is folded into a tally once, so that a
// request costs no lock of its own.
type batch struct {
	counts
	latencies []run64 // of ok replies
}

// run64 is a value that occurred n times in a row: the replies of one read were mostly sent by one write.
type run64 struct {
	value int64
	n     int64
}

func (b *batch) latency(v int64) {
	if k := len(b.latencies) - 1; k >= 0 && b.latencies[k].value == v {
		b.latencies[k].n++
		return
	}
	b.latencies = append(b.latencies, run64{v, 1})
}

func (b *batch) reset() {
	b.counts = counts{}
	b.latencies = b.latencies[:0]
}

// step is one point of the timeline; latency in nanoseconds.
type step struct {
	sent, ok, errors uint64
	maxLatency       int64
}

// tally collects the batches of some connections: few tallies, so that thousands of connections need no
// histogram each, and more than one, so that cores do not meet in it.
type tally struct {
	// Static after newTally.
	from int64 // when counting begins, nanoseconds since the run began: the timeline's zero

	// Guarded by mu.
	mu     sync.Mutex
	total  counts
	hist   histogram
	width  int64 // of a step
	steps  []step
	lastOK int64 // when the last ok reply came, nanoseconds since the run began
}

func newTally(from int64) *tally {
	return &tally{from: from, hist: newHistogram(), width: stepWidth}
}

// fold adds b, which happened at now, and empties it.
func (t *tally) fold(b *batch, now int64) {
	if b.counts == (counts{}) {
		return
	}
	if now < t.from {
		b.bytesIn, b.bytesOut = 0, 0
	}
	t.mu.Lock()
	t.total.add(&b.counts)
	s := t.step(now)
	s.sent += b.sent
	s.ok += b.ok
	s.errors += b.counts.errors()
	for _, l := range b.latencies {
		t.hist.record(l.value, l.n)
		s.maxLatency = max(s.maxLatency, l.value)
	}
	if b.ok > 0 {
		t.lastOK = max(t.lastOK, now)
	}
	t.mu.Unlock()
	b.reset()
}

func (t *tally) step(now int64) *step {
	i := max(0, now-t.from) / t.width
	for i >= maxSteps {
		t.coarsen()
		i = (now - t.from) / t.width
	}
	for int64(len(t.steps)) <= i {
		t.steps = append(t.steps, step{})
	}
	return &t.steps[i]
}

// coarsen joins each two steps.
func (t *tally) coarsen() {
	t.width *= 2
	for i, s := range t.steps {
		if i%2 == 0 {
			t.steps[i/2] = s
			continue
		}
		t.steps[i/2].join(s)
	}
	t.steps = t.steps[:(len(t.steps)+1)/2]
}

func (s *step) join(o step) {
	s.sent += o.sent
	s.ok += o.ok
	s.errors += o.errors
	s.maxLatency = max(s.maxLatency, o.maxLatency)
}

// merge adds all that o has.
func (t *tally) merge(o *tally) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.width < t.width {
		o.coarsen()
	}
	for t.width < o.width {
		t.coarsen()
	}
	t.total.add(&o.total)
	t.hist.merge(o.hist)
	t.lastOK = max(t.lastOK, o.lastOK)
	for i, s := range o.steps {
		if i == len(t.steps) {
			t.steps = append(t.steps, step{})
		}
		t.steps[i].join(s)
	}
}
