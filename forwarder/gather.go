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
	state atomic.Int64 // lower half: how many are expected to leave; upper half: messages that have gathered, about
	since atomic.Int64 // when the first flush of dirty came; never while there is none

	// Guarded by mu.
	mu    sync.Mutex
	dirty []*conn.Conn
	spare []*conn.Conn // to be dirty next: the one before is being flushed
}

// The bounds of what is gathered.
const (
	maxGather  = 2 * maxBatch // messages
	gatherTime = int64(time.Millisecond)
)

// message is one in the upper half of gather.state.
const message = int64(1) << 32

// expect says that so many have something to do from now on, and will leave: workers, and the batch that hands it to them.
func (g *gather) expect(n int64) { g.state.Add(n) }

// active is the number of those who have not left.
func (g *gather) active() int { return int(int32(g.state.Load())) }

// leave takes over the flushes that a worker owes for so many messages at this time, and does all that have gathered if
// nobody is to come. So many of those that were expected leave with it.
func (g *gather) leave(dirty []*conn.Conn, messages, leaving, now int64) {
	if len(dirty) > 0 {
		g.mu.Lock()
		if len(g.dirty) == 0 {
			g.since.Store(now)
		}
		g.dirty = append(g.dirty, dirty...)
		g.mu.Unlock()
	}
	// Only now: whoever finds that nobody is active must find all that those before have left.
	state := g.state.Add(messages*message - leaving)
	if int32(state) == 0 || state >= maxGather*message || now-g.since.Load() >= gatherTime {
		g.flush(state / message)
	}
}

// flush does what has gathered, so many messages.
func (g *gather) flush(messages int64) {
	g.state.Add(-messages * message)
	g.mu.Lock()
	due := g.dirty
	g.dirty, g.spare = g.spare[:0], nil
	g.since.Store(never)
	g.mu.Unlock()
	flush(due)
	g.mu.Lock()
	if g.spare == nil {
		g.spare = due[:0]
	}
	g.mu.Unlock()
}
