package forwarder

import (
	"fmt"
	"sync/atomic"
	"time"
)

// busy is since when a read loop carries the batch that it carries now; 0: it waits for its peer. It is set once a batch, and
// a batch never waits for anybody.
type busy struct{ since atomic.Int64 }

func (b *busy) begin(now int64) { b.since.Store(now) }
func (b *busy) end()            { b.since.Store(0) }

// Watch finds out whether the road moves. One goroutine uses it.
type Watch struct {
	f      *Forwarder
	rounds uint64
	poked  bool
	closed bool            // the road was, at the look before
	seen   map[*busy]int64 // the batches that were under way at the look before
}

// NewWatch is a Watch over f.
func NewWatch(f *Forwarder) *Watch { return &Watch{f: f} }

// Stuck says what has not moved since the call before: read loops that carry the same batch still, and the sweeper if it has
// not come round although it was asked to. It may be called every few seconds: no batch and no round takes that long. An idle
// road moves when it is asked to, and one that rests need not. On a road that is closed it also says whether workers are left.
//
// It takes the locks of the road. When one of them is held for ever, it does not return; the sweeper takes them all, too.
func (w *Watch) Stuck() []string {
	f := w.f
	if !f.begun.Load() || f.resting.Load() {
		w.poked, w.seen = false, nil
		return nil
	}
	var stuck []string
	rounds := f.sweep.rounds.Load()
	if w.poked && rounds == w.rounds && f.sweeping.Len() > 0 { // else it has ended, as the road has
		stuck = append(stuck, "the sweeper")
	}
	w.rounds, w.poked = rounds, true
	f.sweep.rouse()

	now, seen := f.now(), make(map[*busy]int64)
	look := func(b *busy, name func() string) {
		since := b.since.Load()
		if since == 0 {
			return
		}
		seen[b] = since
		if w.seen[b] == since && len(stuck) < maxStuck {
			stuck = append(stuck, fmt.Sprintf("%s, for %v", name(), time.Duration(now-since).Round(time.Millisecond)))
		}
	}
	snap := f.snap.Load()
	for _, l := range snap.listeners {
		l.each(func(d *downstream) {
			look(&d.busy, func() string { return "the read loop of client " + d.name() + " of listener " + l.name })
		})
	}
	snap.upstreams(func(u *upstream) {
		look(&u.busy, func() string {
			return "the read loop of endpoint " + u.endpoint.address + " of cluster " + u.endpoint.cluster().policy.Name()
		})
	})
	w.seen = seen

	closed := f.ctx.Err() != nil // what filters wait for has ended, too
	if n := f.busyWorkers(); n > 0 && closed && w.closed {
		stuck = append(stuck, fmt.Sprintf("workers, %d of them", n))
	}
	w.closed = closed
	return stuck
}

// maxStuck bounds how many are named.
const maxStuck = 10
