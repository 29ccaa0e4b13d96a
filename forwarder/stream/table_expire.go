package stream

import "slices"

// Earliest is the time at which Expire should be called next, math.MaxInt64 if there is none. It is at or
// before every deadline in the table: Take does not move it, so it may be that of a request that is gone.
func (t *Table[T]) Earliest() int64 { return t.earliest.Load() }

// Expire removes the entries whose deadline is not after now and appends them to out. It looks at the slots
// only if Earliest has passed, and then remembers the earliest deadline of those that stay. It holds the lock
// for at most 1024 slots at a time and never while out grows; others insert and take in between. A call that
// finds another at work leaves the table to it.
//
// An empty table gives its memory back here, when it has grown over 1024 slots.
func (t *Table[T]) Expire(now int64, out []Entry[T]) []Entry[T] {
	if t.earliest.Load() > now || !t.beginScan() {
		return out
	}
	for p, done := 0, false; ; {
		if p, out, done = t.scan(p, now, out); done {
			break
		}
		out = roomier(out)
	}
	t.endScan()
	return out
}

func (t *Table[T]) beginScan() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.scanning {
		return false
	}
	t.scanning = true
	t.next = never
	return true
}

// scan moves what has expired in the slots from p on to out, for one chunk of slots or until out has no room
// left, and returns where to go on. Between two scans the table may double: an entry then keeps its slot or
// moves up, so it may be visited again but is never missed.
func (t *Table[T]) scan(p int, now int64, out []Entry[T]) (int, []Entry[T], bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.used == 0 {
		return p, out, true
	}
	next := t.next
	for end := min(p+chunk, len(t.keys)); p < end; p++ {
		k := t.keys[p]
		if k.deadline > now {
			next = min(next, k.deadline)
			continue
		}
		if k.id == 0 { // now is the end of time
			continue
		}
		if len(out) == cap(out) {
			break
		}
		out = append(out, Entry[T]{ID: k.id, Deadline: k.deadline})
		t.free(p, &out[len(out)-1].Value)
	}
	t.next = next
	return p, out, p >= len(t.keys)
}

func (t *Table[T]) endScan() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.scanning = false
	if t.used == 0 {
		t.next = never
		if len(t.keys) > keepSlots {
			t.release()
		}
	}
	t.earliest.Store(t.next)
}

// roomier is out with room for at least one more, so that no allocation happens under the lock.
func roomier[T any](out []Entry[T]) []Entry[T] {
	if len(out) == cap(out) {
		return slices.Grow(out, max(minSlots, len(out)))
	}
	return out
}
