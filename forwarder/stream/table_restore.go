package stream

import "fmt"

// Last is the id given out last, 0 before the first.
func (t *Table[T]) Last() uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.last
}

// Restore fills a table that nobody has used yet with the entries of another, under the same ids, and goes on counting
// behind last. There may be more of them than the table's bound: nothing is inserted until enough have left. The error
// says which entry cannot be, and then the table is of no use.
func (t *Table[T]) Restore(last uint32, entries []Entry[T]) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.used > 0 || t.closed || last > lastID {
		return fmt.Errorf("restoring a stream table behind the id %d: it is in use, or there is no such id", last)
	}
	seen := make(map[uint32]struct{}, len(entries))
	for i := range entries {
		id := entries[i].ID
		if _, twice := seen[id]; twice || id == 0 || id > lastID {
			return fmt.Errorf("restoring a stream table: there is no id %d, or it is there twice", id)
		}
		seen[id] = struct{}{}
	}
	t.last = last
	if len(entries) == 0 {
		return nil
	}
	n := minSlots
	for n/4*3 < len(entries) {
		n *= 2
	}
	for !t.place(n, entries) { // ends: all ids differ modulo the size of the table that they come from
		n *= 2
	}
	return nil
}

// place puts entries into so many new slots, and reports false where two want the same. Called with mu held.
func (t *Table[T]) place(n int, entries []Entry[T]) bool {
	keys, values := make([]key, n), make([]T, n)
	for i := range keys {
		keys[i].deadline = never
	}
	next := int64(never)
	for i := range entries {
		e := &entries[i]
		at := int(e.ID) & (n - 1)
		if keys[at].id != 0 {
			return false
		}
		keys[at], values[at] = key{deadline: e.Deadline, id: e.ID}, e.Value
		next = min(next, e.Deadline)
	}
	t.keys, t.values, t.used = keys, values, len(entries)
	t.room = min(t.max, n/4*3)
	t.next = next
	t.earliest.Store(next)
	return true
}
