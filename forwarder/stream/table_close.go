package stream

import "iter"

// Close refuses every later insert, removes all entries and appends them to out: for a connection that is
// gone. Like Expire it holds the lock for 1024 slots at a time; who takes an entry in between has it. Closing
// again finds nothing.
func (t *Table[T]) Close(out []Entry[T]) []Entry[T] {
	t.mu.Lock()
	t.closed = true
	t.room = 0
	t.mu.Unlock()
	for p, done := 0, false; ; {
		if p, out, done = t.scan(p, never, out); done {
			break
		}
		out = roomier(out)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.release()
	t.next = never
	t.earliest.Store(never)
	return out
}

// Seal refuses every later insert if the table is empty, and says whether it is: for a connection that is to close
// without anybody noticing. Who finds it sealed has not begun.
func (t *Table[T]) Seal() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.used > 0 {
		return false
	}
	t.closed = true
	t.room = 0
	return true
}

// All walks copies of the entries, in no order, and leaves them in the table. The lock is not held while the
// loop's body runs. On a table at rest the walk is exact; on one that is used meanwhile it may miss what comes
// and show what has just gone, or an entry twice.
func (t *Table[T]) All() iter.Seq[Entry[T]] {
	return func(yield func(Entry[T]) bool) {
		var seen []Entry[T]
		for p, done := 0, false; !done; {
			p, seen, done = t.look(p, seen[:0])
			for _, e := range seen {
				if !yield(e) {
					return
				}
			}
		}
	}
}

// look copies the entries of one chunk of slots from p on to out, and returns where to go on.
func (t *Table[T]) look(p int, out []Entry[T]) (int, []Entry[T], bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for end := min(p+chunk, len(t.keys)); p < end; p++ {
		if k := t.keys[p]; k.id != 0 {
			out = append(out, Entry[T]{ID: k.id, Deadline: k.deadline, Value: *t.value(p)})
		}
	}
	return p, out, p >= len(t.keys)
}
