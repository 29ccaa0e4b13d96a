// Package stream is the request-id table of one upstream connection: it gives each request an id of that
// connection, keeps what must be known when the reply comes back, and finds what has passed its deadline.
//
// It is pure: it opens no socket, reads no clock and starts no goroutine. Times are nanoseconds of whatever
// monotonic clock the caller uses. It knows no connection, no exchange and no frame: what it stores is its
// caller's, by value. It wakes nobody: the sweeper asks it when to come back.
//
// A value in the table belongs to the table. Reply, deadline, reset and cancellation all take it out; one of
// them gets it, the others find nothing.
package stream

import (
	"math"
	"sync"
	"sync/atomic"
)

const (
	// DefaultMax is the number of entries that a table holds at most when New is given none.
	DefaultMax = 65536

	// maxMax keeps every table small against the id space, so that an id returns late.
	maxMax = 1 << 24

	// lastID is the greatest id; ids begin at 1. Peers read ids as signed, so the sign bit stays clear.
	lastID = math.MaxInt32

	minSlots  = 64   // the size of a table at its first insert
	keepSlots = 1024 // an empty table larger than this gives its memory back
	chunk     = 1024 // the slots that a walk visits while it holds the lock, and whose values lie together

	never = math.MaxInt64
)

// Entry is one request as it comes out of the table.
type Entry[T any] struct {
	ID       uint32
	Deadline int64
	Value    T
}

// key is what decides whose slot it is. Keys lie apart from the values, so that a scan for deadlines reads 16
// bytes a slot whatever T is. A free slot has id 0 and the deadline never.
type key struct {
	deadline int64
	id       uint32
}

// Table is the request-id table of one upstream connection. Its methods may be called by any number of
// goroutines at once.
//
// The id of a request is a counter, its slot the counter modulo the number of slots, a power of two. A slot
// keeps the whole id, and only the whole id finds it, so a late reply cannot reach a newer request before the
// counter has gone around once, nearly 2^31 requests later. An occupied slot is skipped; as at most seven
// slots in eight are taken, that costs eight looks an insert, averaged over a turn of the table.
type Table[T any] struct {
	// Static after New.
	max int

	mu sync.Mutex

	// Guarded by mu.
	keys     []key
	values   [][]T  // in chunks, so that a table that grows leaves most of itself where it is; see value
	used     int    // entries
	room     int    // entries that fit before Insert must grow the table or refuse
	last     uint32 // the id given out last
	next     int64  // at or before the deadline of every entry seen or inserted since the scan began
	scanning bool
	closed   bool

	// Atomic; stored under mu only. At or before every deadline in the table.
	earliest atomic.Int64
}

// New returns an empty table that holds at most max entries; DefaultMax if max is not positive. The bound is
// exact and counts entries; the slots are as many as keep one in eight free. Nothing is allocated before the
// first insert.
func New[T any](max int) *Table[T] {
	if max <= 0 {
		max = DefaultMax
	}
	t := &Table[T]{max: min(max, maxMax), next: never}
	t.earliest.Store(never)
	return t
}

// Insert stores what v points to until deadline and returns its id. Earlier says that no deadline that the table remembers is
// before this one, so that the sweeper, if it sleeps until Earliest, must be woken. Not ok means that the
// table is full or closed, and that nothing was stored.
func (t *Table[T]) Insert(v *T, deadline int64) (id uint32, earlier, ok bool) {
	t.mu.Lock()
	if t.used >= t.room && !t.grow() {
		t.mu.Unlock()
		return 0, false, false
	}
	mask := uint32(len(t.keys) - 1)
	id = following(t.last)
	for t.keys[id&mask].id != 0 {
		id = following(id)
	}
	t.last = id
	t.keys[id&mask] = key{deadline: deadline, id: id}
	*t.value(int(id & mask)) = *v
	t.used++
	// A scan under way may be past this slot already; what it will remember must not be later than this.
	t.next = min(t.next, deadline)
	if deadline < t.earliest.Load() {
		t.earliest.Store(deadline)
		earlier = true
	}
	t.mu.Unlock()
	return id, earlier, true
}

// Draw returns an id that no request in the table has and that none will get before the counter has gone
// around: for one-way requests and heartbeats, which need no slot. Take finds nothing under it. It works on a
// closed table too.
func (t *Table[T]) Draw() uint32 {
	t.mu.Lock()
	id := following(t.last)
	for len(t.keys) > 0 && t.keys[int(id)&(len(t.keys)-1)].id == id {
		id = following(id)
	}
	t.last = id
	t.mu.Unlock()
	return id
}

// Take removes the entry with this id and puts its value where to points, which is left as it is where there is none. Of several
// calls one gets it.
func (t *Table[T]) Take(id uint32, to *T) (ok bool) {
	t.mu.Lock()
	// Without slots the mask has every bit set, and no id is below a length of 0. A peer may well send the
	// id 0, which is that of a free slot.
	if i := uint(id) & uint(len(t.keys)-1); i < uint(len(t.keys)) && t.keys[i].id == id && id != 0 {
		t.free(int(i), to)
		ok = true
	}
	t.mu.Unlock()
	return ok
}

// Len is the number of entries.
func (t *Table[T]) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.used
}

// free empties slot i, whose value goes to where to points. It is cleared here, so that what it points to can be collected.
func (t *Table[T]) free(i int, to *T) {
	var zero T
	at := t.value(i)
	*to, *at = *at, zero
	t.keys[i] = key{deadline: never}
	t.used--
}

// grow makes room for one more entry, or reports that there is none to be had.
func (t *Table[T]) grow() bool {
	if t.closed || t.used >= t.max {
		return false
	}
	old := t.keys
	t.allot(max(minSlots, 2*len(old)))
	// Ids that differ modulo the old size differ modulo its double: an entry keeps its slot or moves up, and no slot is asked for
	// twice.
	for i, k := range old {
		if k.id == 0 {
			continue
		}
		to := int(k.id) & (len(t.keys) - 1)
		t.keys[to] = k
		if to != i {
			var zero T
			*t.value(to), *t.value(i) = *t.value(i), zero
		}
	}
	return true
}

// allot makes the table's slots n, a power of two and no fewer than they were. The keys are free; the values stay in their
// slots.
func (t *Table[T]) allot(n int) {
	t.keys = make([]key, n)
	for i := range t.keys {
		t.keys[i].deadline = never
	}
	t.room = min(t.max, fit(n))
	if n <= chunk {
		only := make([]T, n)
		if len(t.values) > 0 {
			copy(only, t.values[0])
		}
		t.values = [][]T{only}
		return
	}
	for len(t.values) < n/chunk {
		t.values = append(t.values, make([]T, chunk))
	}
}

// value is the value in slot i.
func (t *Table[T]) value(i int) *T { return &t.values[uint(i)/chunk][uint(i)%chunk] }

// fit is how many entries are put into n slots. The counter passes over slots that are taken: fuller, the way to the next free one
// would become long; emptier, an exchange would cost more than 256 bytes.
func fit(n int) int { return n / 8 * 7 }

// release gives the memory of an empty table back.
func (t *Table[T]) release() {
	t.keys, t.values, t.room = nil, nil, 0
}

// following is the id after id.
func following(id uint32) uint32 {
	if id >= lastID {
		return 1
	}
	return id + 1
}
