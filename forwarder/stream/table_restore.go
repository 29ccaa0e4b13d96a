package stream

import (
	"fmt"
	"math/bits"
	"slices"
)

// Last is the id given out last, 0 before the first.
func (t *Table[T]) Last() uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.last
}

// Restore fills a table that nobody has used yet with the entries of another, under the same ids, and goes on counting
// behind last. There may be more of them than the table's bound: nothing is inserted until enough have left. The error
// says what cannot have been in a table, and then this one is of no use.
func (t *Table[T]) Restore(last uint32, entries []Entry[T]) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.used > 0 || t.closed || last > lastID {
		return fmt.Errorf("restoring a stream table behind the id %d: it is in use, or there is no such id", last)
	}
	t.last = last
	if len(entries) == 0 {
		return nil
	}
	n, err := slotsFor(entries)
	if err != nil {
		return fmt.Errorf("restoring a stream table: %w", err)
	}
	t.allot(n)
	t.used = len(entries)
	for i := range entries {
		e := &entries[i]
		at := int(e.ID) & (n - 1)
		t.keys[at], *t.value(at) = key{deadline: e.Deadline, id: e.ID}, e.Value
		t.next = min(t.next, e.Deadline)
	}
	t.earliest.Store(t.next)
	return nil
}

// maxSlots is the size of a table that holds maxMax entries.
const maxSlots = 2 * maxMax

// slotsFor is how many slots entries need, so that each gets its own and one in eight stays free.
func slotsFor[T any](entries []Entry[T]) (int, error) {
	// Two ids want the same of 1<<k slots when their lowest k bits are the same. Sorted from the lowest bit on, those that
	// share most are neighbours.
	ids := make([]uint32, len(entries))
	for i := range entries {
		if id := entries[i].ID; id == 0 || id > lastID {
			return 0, fmt.Errorf("there is no id %d", id)
		}
		ids[i] = bits.Reverse32(entries[i].ID)
	}
	slices.Sort(ids)
	n := minSlots
	for i := range ids[1:] {
		n = max(n, 2<<bits.LeadingZeros32(ids[i]^ids[i+1]))
	}
	for fit(n) < len(entries) {
		n *= 2
	}
	if n > maxSlots {
		return 0, fmt.Errorf("of its %d ids two are the same, or too far apart for any table", len(entries))
	}
	return n, nil
}
