package forwarder

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/conn"
)

// gather brings the flushes together that workers owe. Each carries a single message, and a system call a message is what
// would cost most; so a worker leaves its flushes here, and the last one that is under way does them all. They wait no
// longer than the others need to come as far: who is about to block says so, and in a crowd that never ends whoever
// leaves behind maxGather messages or gatherTime does them.
type gather struct {
	// Atomic.
	active atomic.Int64 // workers that were given something to do, and batches that give it to them, which have not left
	frames atomic.Int64 // that have gathered, about
	since  atomic.Int64 // when the first flush of dirty came; never while there is none

	// Guarded by mu.
	mu    sync.Mutex
	dirty []*conn.Conn
	spare []*conn.Conn // to be dirty next: the one before is being flushed
}

// The bounds of what is gathered.
const (
	maxGather  = 8 * maxBatch // messages
	gatherTime = int64(time.Millisecond)
)

// expect says that so many have something to do from now on, and will leave.
func (g *gather) expect(n int64) { g.active.Add(n) }

// leave takes over the flushes that a worker owes for so many messages at this time, and does all that have gathered if
// nobody is to come.
func (g *gather) leave(dirty []*conn.Conn, frames, now int64) {
	if len(dirty) > 0 {
		g.mu.Lock()
		if len(g.dirty) == 0 {
			g.since.Store(now)
		}
		g.dirty = append(g.dirty, dirty...)
		g.mu.Unlock()
	}
	// Only now: whoever finds that nobody is active must find all that those before have left.
	gathered := g.frames.Add(frames)
	if g.active.Add(-1) == 0 || gathered >= maxGather || now-g.since.Load() >= gatherTime {
		g.flush()
	}
}

// flush does what has gathered.
func (g *gather) flush() {
	g.mu.Lock()
	due := g.dirty
	g.dirty, g.spare = g.spare[:0], nil
	g.since.Store(never)
	g.frames.Store(0)
	g.mu.Unlock()
	flush(due)
	g.mu.Lock()
	if g.spare == nil {
		g.spare = due[:0]
	}
	g.mu.Unlock()
}
