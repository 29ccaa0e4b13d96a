package bench

// maxID is the number of ids that a connection has: 1 to 2^30-1, then 1 again, as real clients count.
const maxID = 1<<30 - 1

// maxExpired bounds the ids remembered of requests that timed out, a connection.
const maxExpired = 1 << 16

// slot is one request in flight. Times are nanoseconds since the run began.
type slot struct {
	id     uint32 // 0 marks a free slot
	sent   int64
	due    int64  // what latency counts from; sent, except in an open loop
	number uint64 // which request of its connection, from 0: the second half of the stamp
}

// verdict is what an id that came back says about its request.
type verdict uint8

const (
	answered   verdict = iota // it was in flight, and is no more
	late                      // it had timed out before
	duplicated                // it had been answered before
	unknown                   // it was never sent
)

// flight is the requests of one connection that wait for their reply. It tells an answer from a duplicate,
// a late one and an unknown one however long ago the request was sent, in memory that is bounded by the
// requests in flight and those that timed out.
type flight struct {
	slots   []slot // a power of two of them; an id lives at id & mask, or, if that is taken, in spill
	mask    uint32
	spill   map[uint32]slot
	n       int    // in flight, spilled ones included
	issued  uint64 // requests ever issued
	expired map[uint32]struct{}
	forgot  bool // expired overflowed: an old id can be late as well as duplicated
}

// newFlight makes a table that holds window requests without growing; it grows by itself beyond 1,024.
func newFlight(window int) *flight {
	size := 16
	for size < 2*window && size < 1024 {
		size *= 2
	}
	return &flight{slots: make([]slot, size), mask: uint32(size - 1)}
}

// issue assigns the next id to a request and puts it in flight.
func (f *flight) issue(sent, due int64) (id uint32, number uint64) {
	number = f.issued
	f.issued++
	id = uint32(number%maxID) + 1
	if len(f.expired) > 0 {
		delete(f.expired, id)
	}
	f.put(slot{id: id, sent: sent, due: due, number: number})
	f.n++
	return id, number
}

func (f *flight) put(s slot) {
	if p := &f.slots[s.id&f.mask]; p.id == 0 {
		*p = s
		return
	}
	if 2*f.n >= len(f.slots) {
		f.grow()
		if p := &f.slots[s.id&f.mask]; p.id == 0 {
			*p = s
			return
		}
	}
	if f.spill == nil {
		f.spill = make(map[uint32]slot)
	}
	f.spill[s.id] = s
}

func (f *flight) grow() {
	old, spilled := f.slots, f.spill
	f.slots, f.spill = make([]slot, 2*len(old)), nil
	f.mask = uint32(len(f.slots) - 1)
	for _, s := range old {
		if s.id != 0 {
			f.slots[s.id&f.mask] = s // two ids that differed in fewer bits differ in more
		}
	}
	for _, s := range spilled {
		f.put(s)
	}
}

// take ends the request with this id if it is in flight; the slot is valid for answered only.
func (f *flight) take(id uint32) (slot, verdict) {
	if p := &f.slots[id&f.mask]; p.id == id && id != 0 {
		s := *p
		p.id = 0
		f.n--
		return s, answered
	}
	return f.takeSlow(id)
}

func (f *flight) takeSlow(id uint32) (slot, verdict) {
	if s, ok := f.spill[id]; ok {
		delete(f.spill, id)
		f.n--
		return s, answered
	}
	if id == 0 || id > maxID || uint64(id) > f.issued {
		return slot{}, unknown
	}
	if _, ok := f.expired[id]; ok {
		delete(f.expired, id)
		return slot{}, late
	}
	if f.forgot {
		return slot{}, late
	}
	return slot{}, duplicated
}

// expire ends every request that was sent before the given time, and remembers its id.
func (f *flight) expire(before int64, each func(slot)) {
	if f.n == 0 {
		return
	}
	for i := range f.slots {
		if s := f.slots[i]; s.id != 0 && s.sent < before {
			f.slots[i].id = 0
			f.timedOut(s)
			each(s)
		}
	}
	for id, s := range f.spill {
		if s.sent < before {
			delete(f.spill, id)
			f.timedOut(s)
			each(s)
		}
	}
}

func (f *flight) timedOut(s slot) {
	f.n--
	if f.expired == nil {
		f.expired = make(map[uint32]struct{})
	}
	if len(f.expired) >= maxExpired {
		f.forgot = true
		return
	}
	f.expired[s.id] = struct{}{}
}

// clear ends every request: the connection is gone, or the run is.
func (f *flight) clear(each func(slot)) {
	for i := range f.slots {
		if s := f.slots[i]; s.id != 0 {
			f.slots[i].id = 0
			each(s)
		}
	}
	for _, s := range f.spill {
		each(s)
	}
	f.spill = nil
	f.n = 0
}
