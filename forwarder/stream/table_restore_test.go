package stream

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// TestRestore: a table that was restored holds what the other one held, counts on behind it, and forgets in time.
func TestRestore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from := New[int](0)
		from.last = rapid.SampledFrom([]uint32{0, 1000, lastID - 100}).Draw(t, "last")
		for i := range rapid.IntRange(0, 300).Draw(t, "inserts") {
			id, _, _ := insert(from, i, rapid.Int64Range(1, 100).Draw(t, "deadline"))
			if rapid.IntRange(0, 3).Draw(t, "keep") > 0 {
				take(from, id)
			}
			from.last = (from.last + rapid.Uint32Range(0, 5).Draw(t, "draws")) % lastID
		}
		var entries []Entry[int]
		for e := range from.All() {
			entries = append(entries, e)
		}
		held := entriesByID(entries)
		most := rapid.IntRange(1, 400).Draw(t, "max")
		to := New[int](most)
		if err := to.Restore(from.Last(), entries); err != nil {
			t.Fatalf("got %v for what a table held, want it restored", err)
		}
		var got []Entry[int]
		for e := range to.All() {
			got = append(got, e)
		}
		if diff := cmp.Diff(held, entriesByID(got)); diff != "" || to.Len() != len(held) {
			t.Fatalf("got %d entries that differ (-want +got):\n%s", to.Len(), diff)
		}
		for _, e := range entries {
			if to.Earliest() > e.Deadline {
				t.Fatalf("got the earliest deadline %d, want none behind %d", to.Earliest(), e.Deadline)
			}
		}
		id, _, ok := insert(to, -1, 1000)
		if want := len(held) < most; ok != want {
			t.Fatalf("got inserted %v with %d of at most %d entries, want %v", ok, len(held), most, want)
		}
		want := following(from.Last())
		for mask := uint32(len(to.keys) - 1); slices.ContainsFunc(entries, func(e Entry[int]) bool { return e.ID&mask == want&mask }); {
			want = following(want)
		}
		if ok && id != want {
			t.Fatalf("got the id %d behind %d, want %d, the next one whose slot is free", id, from.Last(), want)
		}
		if ok {
			take(to, id)
		}
		for _, e := range entries {
			if e.Deadline%2 == 0 {
				if v, ok := take(to, e.ID); !ok || v != e.Value {
					t.Fatalf("got %d, %v for the id %d, want %d", v, ok, e.ID, e.Value)
				}
				delete(held, e.ID)
			}
		}
		if diff := cmp.Diff(held, entriesByID(to.Expire(100, nil))); diff != "" || to.Len() != 0 {
			t.Fatalf("got others expired, and %d left (-want +got):\n%s", to.Len(), diff)
		}
	})
}

// TestRestoreRefuses what cannot have been in a table, and does not take up memory for it.
func TestRestoreRefuses(t *testing.T) {
	of := func(ids ...uint32) (out []Entry[int]) {
		for _, id := range ids {
			out = append(out, Entry[int]{ID: id, Deadline: 1})
		}
		return out
	}
	for name, c := range map[string]struct {
		last    uint32
		entries []Entry[int]
	}{
		"an id twice": {9, of(1, 2, 1)}, "the id 0": {9, of(0)}, "no id": {9, of(lastID + 1)}, "no last id": {lastID + 1, nil},
		"ids that no table has together": {9, of(1, 1+1<<30)},
	} {
		if err := New[int](0).Restore(c.last, c.entries); err == nil {
			t.Errorf("%s: got it restored, want an error", name)
		}
	}
	used := New[int](0)
	insert(used, 1, 1)
	if used.Restore(9, nil) == nil {
		t.Error("got a table restored that is in use, want an error")
	}
}
