package echo

import (
	"bytes"
	"cmp"
	"container/heap"
	"errors"
	"math"
	"sync"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// DelayHeader is the key of a request's header that says how long its own reply takes, in place of Options.Delay: a
// duration with its unit, such as 5s. More than MaxDelay is MaxDelay, and what is no duration says nothing.
const (
	DelayHeader = "x-echo-delay"
	MaxDelay    = time.Minute
)

const (
	// maxDelayed bounds the bytes of replies that wait on one connection; beyond it nothing is read from it.
	maxDelayed = 16 << 20
	// batchCost is what a batch of replies counts beside its bytes.
	batchCost = 128
	// maxFree bounds the buffers kept for the next batches of one connection.
	maxFree = 16
)

// delayKey is never written to.
var delayKey = [][]byte{[]byte(DelayHeader)}

// delayOf is how long the reply to m takes, where usual is what replies take.
func delayOf(m *wire.Message, usual time.Duration) time.Duration {
	if !bytes.Contains(m.HeaderBlock(), delayKey[0]) {
		return usual
	}
	var values [1][]byte
	if err := (bolt.Codec{}).Headers(m, delayKey, values[:]); err != nil {
		return usual
	}
	d, err := time.ParseDuration(string(values[0]))
	if err != nil || d < 0 {
		return usual
	}
	return min(d, MaxDelay)
}

// delayLine holds the replies of one connection that are not due yet: a batch of replies that take equally long is one
// entry, so that a request that waits costs its reply's bytes and neither a goroutine nor a timer.
type delayLine struct {
	// Static after newDelayLine.
	c     *conn
	nudge chan struct{} // tells run that next may say otherwise now; never closed
	room  *sync.Cond    // room appeared, or the line is shut or broken; on mu

	// Owned by the read loop.
	running bool
	wg      sync.WaitGroup // run

	// Guarded by mu.
	mu     sync.Mutex
	queue  batches
	put    uint64 // batches so far
	bytes  int
	free   [][]byte
	shutBy error // why no more batches come: nil while they do
	err    error // why a write failed
}

// delayed is a batch of replies.
type delayed struct {
	delay   time.Duration
	due     time.Time
	number  uint64 // of the batch: of those due at once the first goes first
	replies []byte
}

// batches is a heap, the one that is due first on top.
type batches []delayed

func (b batches) Len() int      { return len(b) }
func (b batches) Swap(i, j int) { b[i], b[j] = b[j], b[i] }
func (b *batches) Push(x any)   { *b = append(*b, x.(delayed)) }

func (b batches) Less(i, j int) bool {
	return cmp.Or(b[i].due.Compare(b[j].due), cmp.Compare(b[i].number, b[j].number)) < 0
}

func (b *batches) Pop() any {
	last := len(*b) - 1
	d := (*b)[last]
	(*b)[last] = delayed{}
	*b = (*b)[:last]
	return d
}

func newDelayLine(c *conn) *delayLine {
	l := &delayLine{c: c, nudge: make(chan struct{}, 1)}
	l.room = sync.NewCond(&l.mu)
	return l
}

// buffer is an empty buffer for replies.
func (l *delayLine) buffer() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.free)
	if n == 0 {
		return nil
	}
	b := l.free[n-1]
	l.free = l.free[:n-1]
	return b[:0]
}

// add takes a batch, waiting for room. The error is the one that shut the line or ended writing.
func (l *delayLine) add(d delayed) error {
	if !l.running {
		l.running = true
		l.wg.Go(l.run) // ends when the line is shut or a write fails
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.bytes > maxDelayed && l.err == nil && l.shutBy == nil {
		l.room.Wait()
	}
	if l.err != nil {
		return l.err
	}
	if l.shutBy != nil {
		return l.shutBy
	}
	d.number = l.put
	l.put++
	l.bytes += len(d.replies) + batchCost
	heap.Push(&l.queue, d)
	if l.queue[0].number == d.number {
		l.poke()
	}
	return nil
}

func (l *delayLine) poke() {
	select {
	case l.nudge <- struct{}{}:
	default:
	}
}

// shut says that no batch follows, and why; with errDone those that wait are still written when due. The
// first reason to drop them stands.
func (l *delayLine) shut(reason error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shutBy != nil && !errors.Is(l.shutBy, errDone) {
		return
	}
	l.shutBy = reason
	l.room.Broadcast()
	l.poke()
}

// broken is the error of the write that failed, if one did.
func (l *delayLine) broken() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// run writes each batch when it is due, until the line is shut or a write has failed.
func (l *delayLine) run() {
	timer := time.NewTimer(math.MaxInt64)
	defer timer.Stop()
	for {
		d, wait, ok := l.next(time.Now())
		if !ok {
			return
		}
		if wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-l.nudge:
			}
			continue
		}
		err := l.c.write(d.replies)
		l.done(d, err)
		if err != nil {
			_ = l.c.nc.Close() // the read loop has nobody left to read for
			return
		}
	}
}

// next takes the batch that is due at now. Where none is, it says how long to wait for the next one, or for a nudge. It
// reports false when none will come.
func (l *delayLine) next(now time.Time) (d delayed, wait time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	dropped := l.shutBy != nil && !errors.Is(l.shutBy, errDone)
	switch {
	case dropped || len(l.queue) == 0 && l.shutBy != nil:
		return delayed{}, 0, false
	case len(l.queue) == 0:
		return delayed{}, math.MaxInt64, true
	}
	if wait := l.queue[0].due.Sub(now); wait > 0 {
		return delayed{}, wait, true
	}
	return heap.Pop(&l.queue).(delayed), 0, true
}

// done takes back the batch's buffer.
func (l *delayLine) done(d delayed, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bytes -= len(d.replies) + batchCost
	l.err = err
	if b := trim(d.replies); b != nil && len(l.free) < maxFree {
		l.free = append(l.free, b)
	}
	l.room.Broadcast()
}
