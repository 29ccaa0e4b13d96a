// Package stats holds the counters, gauges and histograms of the process, and the registry that names them.
//
// It is a leaf: it imports nothing of ours, starts no goroutine, reads no clock and opens no door. Who serves
// the numbers is decided elsewhere; a [Registry] is a prometheus.Collector and can be read as a list of samples.
//
// Handles are resolved when a snapshot of the configuration is built, never on the road of a request. A
// loop counts into plain fields of its own (an integer, a [Local]) and adds them to the shared handle once a
// batch. Nothing on that way allocates, locks or looks anything up.
package stats

import "sync/atomic"

// cacheLine is the unit in which cores take memory away from each other, in bytes.
const cacheLine = 64

// Counter is a number that only grows. The zero Counter is ready; it must not be copied. It fills a cache
// line, so that loops which add to neighbouring counters do not slow each other down.
type Counter struct {
	// Atomic.
	n atomic.Uint64
	_ [cacheLine - 8]byte
}

// Add adds n, which a loop has counted since it last did so.
func (c *Counter) Add(n uint64) { c.n.Add(n) }

// Value returns the sum of all that was added, modulo 2^64.
func (c *Counter) Value() uint64 { return c.n.Load() }

// Gauge is a number that goes up and down. The zero Gauge is ready; it must not be copied. It fills a cache
// line, like a Counter.
type Gauge struct {
	// Atomic.
	n atomic.Int64
	_ [cacheLine - 8]byte
}

// Add adds n, which may be negative.
func (g *Gauge) Add(n int64) { g.n.Add(n) }

// Set replaces the value.
func (g *Gauge) Set(n int64) { g.n.Store(n) }

// Value returns the number as it stands.
func (g *Gauge) Value() int64 { return g.n.Load() }
