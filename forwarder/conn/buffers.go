package conn

import (
	"sync"
	"sync/atomic"
)

// The sizes of pooled buffers. A read takes one of readSize; a write queue takes what fits.
const (
	size4K   = 4 << 10
	size16K  = 16 << 10
	size64K  = 64 << 10
	size256K = 256 << 10
	size1M   = 1 << 20
	readSize = size64K
)

// Buffers is the process-wide pool of buffers and the budget that all connections share. It counts what is
// handed out by capacity, which is the memory really held.
type Buffers struct {
	// Static after NewBuffers.
	max  int64
	high int64 // from here on Pressure tells
	full chan struct{}

	// Atomic.
	used    atomic.Int64
	large   atomic.Int64 // the part of used that is in buffers above readSize
	waiting atomic.Int32 // length of queue

	pools [5]sync.Pool

	// Guarded by mu.
	mu    sync.Mutex
	queue []*ticket // reads that wait for memory, in order
}

// ticket is a large read's place in the queue for memory.
type ticket struct {
	size    int64
	limit   int64 // granted when large stays at or below it
	granted atomic.Bool
	look    chan struct{} // capacity 1: it was granted, or its connection's gate changed; never closed
}

// wake lets the read loop that waits look again. It takes no lock: a connection that gives a buffer back holds
// its own lock, and another one may be waiting.
func (t *ticket) wake() {
	select {
	case t.look <- struct{}{}:
	default:
	}
}

// NewBuffers returns a pool that may hand out up to limit bytes.
func NewBuffers(limit int64) *Buffers {
	b := &Buffers{max: limit, high: limit / 10 * 8, full: make(chan struct{}, 1)}
	b.pools[0].New = func() any { return new([size4K]byte) }
	b.pools[1].New = func() any { return new([size16K]byte) }
	b.pools[2].New = func() any { return new([size64K]byte) }
	b.pools[3].New = func() any { return new([size256K]byte) }
	b.pools[4].New = func() any { return new([size1M]byte) }
	return b
}

// Used is the number of bytes handed out, Max the most that may be.
func (b *Buffers) Used() int64 { return b.used.Load() }

// Max is the budget in bytes.
func (b *Buffers) Max() int64 { return b.max }

// High is the number of bytes from which on the largest holders must stop reading.
func (b *Buffers) High() int64 { return b.high }

// Pressure tells that more than High bytes are handed out. One receiver; never closed.
func (b *Buffers) Pressure() <-chan struct{} { return b.full }

// Get returns a buffer of at least n bytes, its length its capacity. It never waits: what must not pass the
// budget is kept from it by gates, and by closing the largest holders.
func (b *Buffers) Get(n int) []byte {
	buf := b.alloc(n)
	b.count(int64(len(buf)))
	return buf
}

func (b *Buffers) count(n int64) {
	if n > readSize {
		b.large.Add(n)
	}
	b.charge(n)
}

func (b *Buffers) charge(n int64) {
	if used := b.used.Add(n); used > b.high {
		select {
		case b.full <- struct{}{}:
		default:
		}
	}
}

// capacity is the length of what alloc returns for n.
func capacity(n int) int {
	for _, size := range [...]int{size4K, size16K, size64K, size256K, size1M} {
		if n <= size {
			return size
		}
	}
	return n
}

func (b *Buffers) alloc(n int) []byte {
	switch {
	case n <= size4K:
		return b.pools[0].Get().(*[size4K]byte)[:]
	case n <= size16K:
		return b.pools[1].Get().(*[size16K]byte)[:]
	case n <= size64K:
		return b.pools[2].Get().(*[size64K]byte)[:]
	case n <= size256K:
		return b.pools[3].Get().(*[size256K]byte)[:]
	case n <= size1M:
		return b.pools[4].Get().(*[size1M]byte)[:]
	default:
		return make([]byte, n)
	}
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
	}
	b.used.Add(-int64(len(buf)))
	if len(buf) > readSize {
		b.large.Add(-int64(len(buf)))
		if b.waiting.Load() > 0 {
			b.grant()
		}
	}
}

// reserve asks for n bytes within the share, in percent of the budget, that large buffers have to themselves.
// Small ones do not count: whoever waits holds one, and enough of them would leave no memory to wait for. It
// returns a ticket, which may be granted already, or nil when the share can never hold that much. Every ticket
// must be collected.
func (b *Buffers) reserve(n, share int) *ticket {
	t := &ticket{
		size:  int64(capacity(n)),
		limit: b.max / 100 * int64(share),
		look:  make(chan struct{}, 1),
	}
	if t.size > t.limit {
		return nil
	}
	b.mu.Lock()
	b.queue = append(b.queue, t)
	b.waiting.Add(1)
	b.mu.Unlock()
	b.grant()
	return t
}

// grant hands memory to those in front of the queue, as far as there is some. The bytes are counted here, so
// that no two tickets get the same ones.
func (b *Buffers) grant() {
	for {
		b.mu.Lock()
		if len(b.queue) == 0 {
			b.mu.Unlock()
			return
		}
		t := b.queue[0]
		for {
			large := b.large.Load()
			if large+t.size > t.limit {
				b.mu.Unlock()
				return
			}
			if b.large.CompareAndSwap(large, large+t.size) {
				break
			}
		}
		b.queue = b.queue[1:]
		b.waiting.Add(-1)
		b.mu.Unlock()
		b.charge(t.size)
		t.granted.Store(true)
		t.wake()
	}
}

// collect returns a ticket's memory, or nil when it was not granted; then the ticket leaves the queue.
func (b *Buffers) collect(t *ticket) []byte {
	b.mu.Lock()
	for i, q := range b.queue {
		if q == t {
			b.queue = append(b.queue[:i], b.queue[i+1:]...)
			b.waiting.Add(-1)
			b.mu.Unlock()
			b.grant() // the next one may fit where this one did not
			return nil
		}
	}
	b.mu.Unlock()
	return b.alloc(int(t.size))
}
