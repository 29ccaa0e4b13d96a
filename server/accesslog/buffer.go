package accesslog

import (
	"math"
	"sync"

	"github.com/relevo-proxy/relevo/forwarder/stats"
)

const (
	chunkRecords = 64  // records of a chunk, which is what is written at once
	maxFree      = 128 // chunks that are kept to be used again: 8192 records
)

// chunk is a part of the buffer: records in the order in which they came.
type chunk struct {
	records []stats.Record
	next    *chunk
}

// buffer is the records that wait to be written. Its memory grows with them and up to its bound, in chunks, so that
// neither an empty one costs much nor a growing one copies. Any number of goroutines put, one takes.
type buffer struct {
	// Static after New.
	places int
	wake   chan struct{} // holds one; never closed

	// Guarded by mu.
	mu          sync.Mutex
	first, last *chunk
	n           int // records in them
	free        *chunk
	frees       int // chunks in it
	wakeAt      int // the number of records at which who takes is woken; never while it does not sleep
}

// never is a number of records that is not reached.
const never = math.MaxInt

func newBuffer(places int) *buffer {
	return &buffer{places: places, wake: make(chan struct{}, 1), wakeAt: never}
}

// put copies a record to the end, unless the buffer is full.
func (b *buffer) put(r *stats.Record) bool {
	b.mu.Lock()
	if b.n >= b.places {
		b.mu.Unlock()
		return false
	}
	if b.last == nil || len(b.last.records) == cap(b.last.records) {
		b.extend()
	}
	b.last.records = append(b.last.records, *r)
	b.n++
	wake := b.n >= b.wakeAt
	if wake {
		b.wakeAt = never
	}
	b.mu.Unlock()
	if wake {
		select {
		case b.wake <- struct{}{}:
		default:
		}
	}
	return true
}

// extend makes an empty chunk the last one. The caller holds mu.
func (b *buffer) extend() {
	c := b.free
	if c != nil {
		b.free, c.next = c.next, nil
		b.frees--
	} else {
		c = &chunk{records: make([]stats.Record, 0, min(chunkRecords, b.places))}
	}
	if b.last == nil {
		b.first = c
	} else {
		b.last.next = c
	}
	b.last = c
}

// take takes the oldest chunk out, nil if nothing waits. Who takes it gives it back.
func (b *buffer) take() *chunk {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wakeAt = never
	c := b.first
	if c == nil {
		return nil
	}
	b.first, c.next = c.next, nil
	if b.first == nil {
		b.last = nil
	}
	b.n -= len(c.records)
	return c
}

// give takes a chunk back, whose records nobody needs any more.
func (b *buffer) give(c *chunk) {
	clear(c.records) // they hold strings
	c.records = c.records[:0]
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.frees < maxFree {
		b.free, c.next = c, b.free
		b.frees++
	}
}

// arm lets wake be sent to when n records wait. If they do already, it says so and nothing is sent.
func (b *buffer) arm(n int) (already bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.n >= n {
		return true
	}
	b.wakeAt = n
	return false
}

// waiting is the number of records that wait.
func (b *buffer) waiting() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.n
}
