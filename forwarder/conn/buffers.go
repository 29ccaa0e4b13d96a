package conn

import (
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
)

// The sizes of pooled buffers. A read takes one of readSize, or of aheadSize while the peer sends more than that at a time;
// a frame above readSize gets one to itself, which is larger than both; a write queue takes what fits.
const (
	size4K    = 4 << 10
	size16K   = 16 << 10
	size64K   = 64 << 10
	size256K  = 256 << 10
	size1M    = 1 << 20
	readSize  = size64K
	aheadSize = 192 << 10
)

// Buffers is the process-wide pool of buffers and the budget that all connections share. It counts what is
// handed out by capacity, which is the memory really held.
type Buffers struct {
	// Static after NewBuffers.
	max  int64
	high int64 // from here on Pressure tells
	full chan struct{}
	bulk chan struct{} // holds one for each piece of a large frame that is being copied; never closed

	// Atomic.
	used    atomic.Int64
	large   atomic.Int64 // the part of used that is in buffers above aheadSize
	waiting atomic.Int32 // tickets in queues

	pools [6]sync.Pool

	// Guarded by mu, under which no other lock is taken.
	mu      sync.Mutex
	queues  [numClasses][]*ticket // large reads that wait for memory, in order
	tickets uint64                // made so far
	spare   [][]byte              // buffers above size1M that nobody uses; oldest first
	spared  int64                 // bytes of them
	unused  int                   // the least number of them since the last Trim
}

// Class is what a large read is for. What is on its way out makes room, what comes in takes it: so replies may
// fill more of the budget than requests, and never stand behind them.
type Class uint8

// The classes, the one that is served first in front.
const (
	Replies Class = iota
	Requests
	numClasses
)

// share is the part of the budget, in percent, up to which large reads of a class may fill it with large
// buffers. Small ones do not count: whoever waits holds one, and enough of them would leave no memory to wait for.
// Both lie below the mark from which on connections are gated, at 80: large frames alone never gate anybody.
var share = [numClasses]int64{Replies: 78, Requests: 60}

// LeastBudget is the smallest budget with which a frame of n bytes can be read as a request, in bytes.
func LeastBudget(n int) int64 { return (int64(Capacity(n))/share[Requests] + 1) * 100 }

// ticket is a large read's place in the queue for memory.
type ticket struct {
	size  int64
	class Class
	seq   uint64        // 1 for the first ticket of all
	turn  chan struct{} // receives once when it is granted, and whenever its connection has news; never closed
	done  bool          // granted. Guarded by Buffers.mu
}

// NewBuffers returns a pool that may hand out up to limit bytes.
func NewBuffers(limit int64) *Buffers {
	b := &Buffers{max: limit, high: limit / 10 * 8, full: make(chan struct{}, 1)}
	b.bulk = make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))
	b.pools[0].New = func() any { return new([size4K]byte) }
	b.pools[1].New = func() any { return new([size16K]byte) }
	b.pools[2].New = func() any { return new([size64K]byte) }
	b.pools[3].New = func() any { return new([size256K]byte) }
	b.pools[4].New = func() any { return new([size1M]byte) }
	b.pools[5].New = func() any { return new([aheadSize]byte) }
	return b
}

// enterBulk waits for its turn to copy a piece of a large frame, and leaveBulk ends it. A piece takes a processor
// for as long as many small frames: were all large frames copied at once, small ones would queue behind every one
// of them. So large pieces take half of the processors at most, in turns. Nobody waits for a peer in a turn.
func (b *Buffers) enterBulk() { b.bulk <- struct{}{} }
func (b *Buffers) leaveBulk() { <-b.bulk }

// Used is the number of bytes handed out.
func (b *Buffers) Used() int64 { return b.used.Load() }

// Max is the budget in bytes.
func (b *Buffers) Max() int64 { return b.max }

// High is the number of bytes from which on the largest holders must stop reading.
func (b *Buffers) High() int64 { return b.high }

// Pressure tells that more than High bytes are handed out. One receiver; never closed.
func (b *Buffers) Pressure() <-chan struct{} { return b.full }

// Next is the number of the large read of a class whose turn it is to get memory, counted from 1; 0 when none
// waits.
func (b *Buffers) Next(class Class) uint64 {
	if b.waiting.Load() == 0 {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.queues[class]) == 0 {
		return 0
	}
	return b.queues[class][0].seq
}

// roomy says whether connections may read ahead: what they hold then is far from being too much.
func (b *Buffers) roomy() bool { return b.used.Load() < b.high/2 }

// Get returns a buffer of at least n bytes, its length its capacity. It never waits: what must not pass the
// budget is kept from it by gates, and by closing the largest holders.
func (b *Buffers) Get(n int) []byte {
	buf := b.alloc(n)
	b.count(int64(len(buf)))
	return buf
}

func (b *Buffers) count(n int64) {
	if n > aheadSize {
		b.large.Add(n)
	}
	b.charge(n)
}

func (b *Buffers) charge(n int64) {
	if b.used.Add(n) > b.high {
		b.press()
	}
}

// press wakes whoever relieves the pressure.
func (b *Buffers) press() {
	select {
	case b.full <- struct{}{}:
	default: // it knows already
	}
}

// Capacity is the length of what Get returns for n.
func Capacity(n int) int {
	for _, size := range [...]int{size4K, size16K, size64K, size256K, size1M} {
		if n <= size {
			return size
		}
	}
	return (n + size1M - 1) &^ (size1M - 1) // whole ones, so that the next frame about as long finds a spare one
}

func (b *Buffers) alloc(n int) []byte {
	switch {
	case n <= size4K:
		return b.pools[0].Get().(*[size4K]byte)[:]
	case n <= size16K:
		return b.pools[1].Get().(*[size16K]byte)[:]
	case n <= size64K:
		return b.pools[2].Get().(*[size64K]byte)[:]
	case n == aheadSize:
		return b.pools[5].Get().(*[aheadSize]byte)[:]
	case n <= size256K:
		return b.pools[3].Get().(*[size256K]byte)[:]
	case n <= size1M:
		return b.pools[4].Get().(*[size1M]byte)[:]
	default:
		return b.allocSpare(Capacity(n))
	}
}

// maxSpare is the number of buffers above size1M that are kept for reuse.
const maxSpare = 64

// allocSpare returns a spare buffer of n bytes, or makes one. To make one for each large frame costs more than
// to carry the frame: its memory must be zeroed, and comes back by the garbage collector only.
func (b *Buffers) allocSpare(n int) []byte {
	b.mu.Lock()
	for i, buf := range slices.Backward(b.spare) {
		if len(buf) == n {
			b.dropSpare(i)
			b.mu.Unlock()
			return buf
		}
	}
	b.mu.Unlock()
	return make([]byte, n)
}

// putSpare keeps a buffer for reuse, within the budget. Called with mu held.
func (b *Buffers) putSpare(buf []byte) {
	if len(b.spare) < maxSpare && b.used.Load()+b.spared+int64(len(buf)) <= b.max {
		b.spare = append(b.spare, buf)
		b.spared += int64(len(buf))
	}
}

// dropSpare forgets a spare buffer. Called with mu held.
func (b *Buffers) dropSpare(i int) {
	b.spared -= int64(len(b.spare[i]))
	b.spare = slices.Delete(b.spare, i, i+1)
	b.unused = min(b.unused, len(b.spare))
}

// Trim gives the garbage collector the spare buffers that were not needed since the last Trim; all of them when
// nobody will need any.
func (b *Buffers) Trim(all bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	drop := b.unused
	if all {
		drop = len(b.spare)
	}
	for range drop {
		b.dropSpare(0)
	}
	b.unused = len(b.spare)
}

// Put takes back a buffer that came from Get or from a read, at whatever length it is now.
func (b *Buffers) Put(buf []byte) {
	if buf == nil {
		return
	}
	buf = buf[:cap(buf)]
	switch len(buf) {
	case size4K:
		b.pools[0].Put((*[size4K]byte)(buf))
	case size16K:
		b.pools[1].Put((*[size16K]byte)(buf))
	case size64K:
		b.pools[2].Put((*[size64K]byte)(buf))
	case size256K:
		b.pools[3].Put((*[size256K]byte)(buf))
	case size1M:
		b.pools[4].Put((*[size1M]byte)(buf))
	case aheadSize:
		b.pools[5].Put((*[aheadSize]byte)(buf))
	}
	b.used.Add(-int64(len(buf)))
	if len(buf) <= aheadSize {
		return
	}
	b.large.Add(-int64(len(buf)))
	if len(buf) <= size1M && b.waiting.Load() == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(buf) > size1M {
		b.putSpare(buf)
	}
	b.grant()
}

// reserve asks for n bytes. It returns a ticket, which may be granted already, or nil when the class can never
// have that much. Every ticket must be collected.
func (b *Buffers) reserve(n int, class Class) *ticket {
	t := &ticket{size: int64(Capacity(n)), class: class, turn: make(chan struct{}, 1)}
	if t.size > b.limit(class) {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tickets++
	t.seq = b.tickets
	b.queues[class] = append(b.queues[class], t)
	b.waiting.Add(1)
	b.grant()
	if !t.done {
		b.press()
	}
	return t
}

func (b *Buffers) limit(class Class) int64 { return b.max / 100 * share[class] }

// grant hands memory to those in front of the queues, as far as there is some; while one of a class waits, those
// behind it get none, nor do the classes behind. The bytes are counted here, so that no two tickets get the same
// ones. Called with mu held.
func (b *Buffers) grant() {
	for class := range b.queues {
		for len(b.queues[class]) > 0 {
			t := b.queues[class][0]
			if !b.take(t.size, b.limit(Class(class))) {
				return
			}
			b.charge(t.size)
			b.queues[class] = b.queues[class][1:]
			b.waiting.Add(-1)
			t.done = true
			t.call()
		}
	}
}

// take counts n bytes of large buffers, if there are no more than limit then.
func (b *Buffers) take(n, limit int64) bool {
	for {
		large := b.large.Load()
		if large+n > limit {
			return false
		}
		if b.large.CompareAndSwap(large, large+n) {
			return true
		}
	}
}

// call lets the ticket's owner look.
func (t *ticket) call() {
	select {
	case t.turn <- struct{}{}:
	default: // a call is waiting for it already
	}
}

// granted says whether the ticket's memory is its owner's.
func (b *Buffers) granted(t *ticket) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return t.done
}

// collect ends a ticket: it returns its memory, or nil when it was not granted; then it leaves the queue.
func (b *Buffers) collect(t *ticket) []byte {
	b.mu.Lock()
	if !t.done {
		q := &b.queues[t.class]
		*q = slices.DeleteFunc(*q, func(o *ticket) bool { return o == t })
		b.waiting.Add(-1)
		b.grant() // the next one may fit where this one did not
		b.mu.Unlock()
		return nil
	}
	b.mu.Unlock()
	return b.alloc(int(t.size))
}
