package stream

import (
	"maps"
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// insert and take are the table's, with values instead of places for them.
func insert[T any](t *Table[T], v T, deadline int64) (id uint32, earlier, ok bool) {
	return t.Insert(&v, deadline)
}

func take[T any](t *Table[T], id uint32) (v T, ok bool) {
	ok = t.Take(id, &v)
	return v, ok
}

type value struct {
	serial int64
	_      [7]int64 // as large as what the road keeps for a request
}

func entriesByID[T any](entries []Entry[T]) map[uint32]Entry[T] {
	m := make(map[uint32]Entry[T], len(entries))
	for _, e := range entries {
		m[e.ID] = e
	}
	return m
}

// TestTableAgainstModel runs random orders of calls against a map that does the same in the obvious way.
func TestTableAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.SampledFrom([]int{1, 7, 64, 100, 3000, DefaultMax}).Draw(t, "max")
		table := New[int](most)
		// Begin near the end of the id space often enough to see the counter go around.
		table.last = rapid.SampledFrom([]uint32{0, 1, 1000, lastID - 100, lastID - 1, lastID}).Draw(t, "last")

		live := map[uint32]Entry[int]{}
		given := map[uint32]bool{} // every id ever given out
		closed := false
		serial := 0
		now := int64(0)

		anyLive := func(t *rapid.T) (uint32, bool) {
			if len(live) == 0 {
				return 0, false
			}
			return rapid.SampledFrom(slices.Sorted(maps.Keys(live))).Draw(t, "id"), true
		}
		newID := func(t *rapid.T, id uint32) {
			if id < 1 || id > lastID {
				t.Fatalf("got id %d, want one in 1..%d", id, lastID)
			}
			if given[id] {
				t.Fatalf("id %d was given out twice", id)
			}
			given[id] = true
		}
		insert := func(t *rapid.T, n int) {
			for range n {
				serial++
				deadline := now + rapid.Int64Range(-5, 50).Draw(t, "timeout")
				before := table.Earliest()
				id, earlier, ok := insert(table, serial, deadline)
				if want := !closed && len(live) < most; ok != want {
					t.Fatalf("Insert with %d of %d entries, closed %v: got ok %v, want %v", len(live), most, closed, ok, want)
				}
				if want := ok && deadline < before; earlier != want {
					t.Fatalf("Insert(deadline %d) after earliest %d: got earlier %v, want %v", deadline, before, earlier, want)
				}
				if ok {
					newID(t, id)
					live[id] = Entry[int]{id, deadline, serial}
				}
			}
		}

		t.Repeat(map[string]func(*rapid.T){
			"insert":     func(t *rapid.T) { insert(t, 1) },
			"insertMany": func(t *rapid.T) { insert(t, rapid.IntRange(1, 200).Draw(t, "n")) },
			"draw": func(t *rapid.T) {
				id := table.Draw()
				newID(t, id)
				if v, ok := take(table, id); ok {
					t.Fatalf("Take of the drawn id %d found %d, want nothing", id, v)
				}
			},
			"take": func(t *rapid.T) {
				id, ok := anyLive(t)
				if !ok {
					return
				}
				if v, ok := take(table, id); !ok || v != live[id].Value {
					t.Fatalf("Take(%d): got %d, %v, want %d", id, v, ok, live[id].Value)
				}
				delete(live, id)
			},
			"takeStranger": func(t *rapid.T) {
				id, ok := anyLive(t)
				if !ok || rapid.Bool().Draw(t, "any") {
					id = rapid.Uint32().Draw(t, "stranger")
				} else {
					// The same slot at every size of the table, but another id.
					id ^= 1 << rapid.IntRange(17, 31).Draw(t, "bit")
				}
				if _, isLive := live[id]; isLive {
					return
				}
				if v, ok := take(table, id); ok {
					t.Fatalf("Take(%d) found %d, want nothing: no such request is under way", id, v)
				}
			},
			"takeLate": func(t *rapid.T) {
				for id := range given {
					if _, isLive := live[id]; isLive {
						continue
					}
					if v, ok := take(table, id); ok {
						t.Fatalf("Take(%d) found %d, want nothing: that request has ended", id, v)
					}
				}
			},
			"expire": func(t *rapid.T) {
				now += rapid.Int64Range(0, 30).Draw(t, "passed")
				got := entriesByID(table.Expire(now, nil))
				want := map[uint32]Entry[int]{}
				for id, e := range live {
					if e.Deadline <= now {
						want[id] = e
						delete(live, id)
					}
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Fatalf("Expire(%d) (-want +got):\n%s", now, diff)
				}
				if len(want) > 0 {
					exact := int64(math.MaxInt64)
					for _, e := range live {
						exact = min(exact, e.Deadline)
					}
					if table.Earliest() != exact {
						t.Fatalf("Earliest after a scan: got %d, want %d", table.Earliest(), exact)
					}
				}
			},
			"close": func(t *rapid.T) {
				if rapid.IntRange(0, 9).Draw(t, "dice") != 0 {
					return
				}
				got := entriesByID(table.Close(nil))
				if diff := cmp.Diff(live, got); diff != "" {
					t.Fatalf("Close (-want +got):\n%s", diff)
				}
				clear(live)
				closed = true
			},
			"": func(t *rapid.T) {
				if table.Len() != len(live) {
					t.Fatalf("Len: got %d, want %d", table.Len(), len(live))
				}
				if diff := cmp.Diff(live, entriesByID(slices.Collect(table.All()))); diff != "" {
					t.Fatalf("All (-want +got):\n%s", diff)
				}
				for id, e := range live {
					if e.Deadline < table.Earliest() {
						t.Fatalf("Earliest is %d, but the request %d ends at %d", table.Earliest(), id, e.Deadline)
					}
				}
			},
		})
	})
}

func TestIDsGoAround(t *testing.T) {
	table := New[int](0)
	table.last = lastID - 3
	var got []uint32
	for i := range 6 {
		id, _, ok := insert(table, i, never)
		if !ok {
			t.Fatalf("Insert %d was refused, want an id", i)
		}
		got = append(got, id)
	}
	got = append(got, table.Draw())
	want := []uint32{lastID - 2, lastID - 1, lastID, 1, 2, 3, 4}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("ids around the end of the id space (-want +got):\n%s", diff)
	}
	for i, id := range want[:6] {
		if v, ok := take(table, id); !ok || v != i {
			t.Errorf("Take(%d): got %d, %v, want %d", id, v, ok, i)
		}
	}
}

func TestIDInUseIsSkipped(t *testing.T) {
	table := New[string](0)
	long, _, _ := insert(table, "long", never)

	table.last = long - 1 // as after one turn of the counter
	if id := table.Draw(); id == long {
		t.Errorf("Draw gave out %d, the id of a request under way", id)
	}
	table.last = long - 1
	if id, _, _ := insert(table, "new", never); id == long {
		t.Errorf("Insert gave out %d, the id of a request under way", id)
	}
	table.last = long + minSlots - 1 // the next id wants the slot of the long one
	if id, _, _ := insert(table, "other", never); id&(minSlots-1) == long&(minSlots-1) {
		t.Errorf("Insert gave out %d, whose slot is taken by %d", id, long)
	}
	if v, ok := take(table, long); !ok || v != "long" {
		t.Errorf("Take(%d): got %q, %v, want the value inserted first", long, v, ok)
	}
}

func TestTakeOfIDZero(t *testing.T) {
	table := New[int](0)
	if _, ok := take(table, 0); ok {
		t.Error("Take(0) found something in a table without slots")
	}
	insert(table, 1, never)
	if _, ok := take(table, 0); ok {
		t.Error("Take(0) found something: the free slot 0 is no request")
	}
}

func TestMaxCountsEntries(t *testing.T) {
	for _, most := range []int{1, 56, 57, 64, 1000, DefaultMax} {
		table := New[int](most)
		for i := range most {
			if _, _, ok := insert(table, i, never); !ok {
				t.Fatalf("max %d: entry %d was refused", most, i)
			}
		}
		if _, _, ok := insert(table, 0, never); ok {
			t.Errorf("max %d: one more was taken", most)
		}
		if used, slots := table.Len(), len(table.keys); used*8 > slots*7 {
			t.Errorf("max %d: %d of %d slots are taken, want at most seven in eight", most, used, slots)
		}
	}
}

func TestNothingIsAllocatedBeforeTheFirstInsert(t *testing.T) {
	table := New[value](0)
	table.Draw()
	take(table, 1)
	table.Expire(math.MaxInt64, nil)
	if table.keys != nil || table.values != nil {
		t.Errorf("got %d slots, want none", len(table.keys))
	}
	insert(table, value{}, 1)
	if len(table.keys) != minSlots {
		t.Errorf("got %d slots after the first insert, want %d", len(table.keys), minSlots)
	}
}

func TestEmptyTableShrinks(t *testing.T) {
	for _, c := range []struct {
		entries int
		shrinks bool
	}{{keepSlots / 2, false}, {keepSlots * 2, true}} {
		table := New[int](0)
		for i := range c.entries {
			insert(table, i, int64(i))
		}
		last := table.last
		slots := len(table.keys)
		out := table.Expire(int64(c.entries), nil)
		if len(out) != c.entries {
			t.Fatalf("Expire: got %d entries, want %d", len(out), c.entries)
		}
		if got := len(table.keys) == 0; got != c.shrinks {
			t.Errorf("after a peak of %d slots: got %d slots, want shrunk %v", slots, len(table.keys), c.shrinks)
		}
		if id, earlier, ok := insert(table, 7, 7); !ok || !earlier || id != last+1 {
			t.Errorf("Insert after the peak: got %d, %v, %v, want %d, true, true", id, earlier, ok, last+1)
		}
	}
}

// TestTakenTableShrinks is the common end of a peak: every request is answered, none expires.
func TestTakenTableShrinks(t *testing.T) {
	table := New[int](0)
	for i := range 10 * keepSlots {
		insert(table, i, int64(1000+i))
	}
	for id := range uint32(10 * keepSlots) {
		take(table, id+1)
	}
	if out := table.Expire(1000, nil); len(out) != 0 || table.keys != nil || table.Earliest() != math.MaxInt64 {
		t.Errorf("got %d expired, %d slots, earliest %d, want none of them", len(out), len(table.keys), table.Earliest())
	}
}

// TestInsertDuringScan walks through the gaps between the chunks of one scan.
func TestInsertDuringScan(t *testing.T) {
	fill := func() *Table[int] {
		table := New[int](0)
		for range 2 * chunk {
			insert(table, 0, 1000)
		}
		insert(table, 0, 10)
		return table
	}
	t.Run("a slot already passed", func(t *testing.T) {
		table := fill()
		table.last = lastID // the next id is 1: go back to the first slots
		for id := range uint32(chunk / 2) {
			take(table, id+1)
		}
		table.beginScan()
		p, out, _ := table.scan(0, 10, make([]Entry[int], 0, 8))
		id, _, _ := insert(table, 1, 500)
		if int(id) >= p {
			t.Fatalf("the id %d is not behind the scan at %d: the test proves nothing", id, p)
		}
		for done := false; !done; {
			p, out, done = table.scan(p, 10, out)
		}
		table.endScan()
		if len(out) != 1 || table.Earliest() != 500 {
			t.Errorf("got %d expired and earliest %d, want 1 and 500", len(out), table.Earliest())
		}
	})
	t.Run("the table doubles", func(t *testing.T) {
		table := fill()
		table.beginScan()
		p, out, _ := table.scan(0, 10, make([]Entry[int], 0, 8))
		slots := len(table.keys)
		for len(table.keys) == slots {
			insert(table, 1, 2000)
		}
		for done := false; !done; {
			p, out, done = table.scan(p, 10, out)
		}
		table.endScan()
		if len(out) != 1 || table.Earliest() != 1000 {
			t.Errorf("got %d expired and earliest %d, want 1 and 1000", len(out), table.Earliest())
		}
	})
	t.Run("another scan", func(t *testing.T) {
		table := fill()
		table.beginScan()
		if out := table.Expire(10, nil); len(out) != 0 {
			t.Errorf("a second scan took %d entries, want it to leave them to the first", len(out))
		}
	})
	t.Run("the table is closed", func(t *testing.T) {
		table := fill()
		table.beginScan()
		p, out, _ := table.scan(0, 10, make([]Entry[int], 0, 8))
		closed := table.Close(nil)
		_, out, done := table.scan(p, 10, out)
		table.endScan()
		if got := len(closed) + len(out); got != 2*chunk+1 || !done || table.Earliest() != math.MaxInt64 {
			t.Errorf("got %d entries, done %v, earliest %d, want %d, true and none", got, done, table.Earliest(), 2*chunk+1)
		}
	})
}

func TestClosedTableRefuses(t *testing.T) {
	table := New[int](0)
	insert(table, 1, 5)
	if out := table.Close(nil); len(out) != 1 {
		t.Fatalf("Close: got %d entries, want 1", len(out))
	}
	if _, _, ok := insert(table, 2, 5); ok {
		t.Error("Insert into a closed table was taken")
	}
	if out := table.Close(nil); len(out) != 0 {
		t.Errorf("the second Close: got %d entries, want none", len(out))
	}
	if table.Draw() != 2 {
		t.Error("Draw on a closed table gave no fresh id")
	}
}

func TestAllStopsEarly(t *testing.T) {
	table := New[int](0)
	for i := range 3000 {
		insert(table, i, never)
	}
	n := 0
	for range table.All() {
		if n++; n == 5 {
			break
		}
	}
	if table.Len() != 3000 {
		t.Errorf("Len after a walk: got %d, want 3000", table.Len())
	}
}

func TestTakeClearsTheValue(t *testing.T) {
	table := New[*int](0)
	id, _, _ := insert(table, new(5), never)
	take(table, id)
	for i, v := range slices.Concat(table.values...) {
		if v != nil {
			t.Errorf("slot %d still points to a value that was taken", i)
		}
	}
}

// A table that grows moves what must move, and leaves no value behind where it was.
func TestGrowthLeavesNothingBehind(t *testing.T) {
	table := New[*uint32](0)
	taken := map[uint32]bool{}
	for i := range uint32(5000) {
		v := new(uint32)
		*v, _, _ = insert(table, v, never)
		if taken[*v] = i%3 == 0; taken[*v] {
			take(table, *v)
		}
	}
	left := 0
	for i, v := range slices.Concat(table.values...) {
		switch {
		case v == nil:
		case taken[*v]:
			t.Errorf("slot %d still points to the value with the id %d, which was taken", i, *v)
		case int(*v)&(len(table.keys)-1) != i || table.keys[i].id != *v:
			t.Errorf("slot %d holds the value with the id %d, whose slot it is not", i, *v)
		default:
			left++
		}
	}
	if left != table.Len() {
		t.Errorf("got %d values in their slots, want %d", left, table.Len())
	}
}

func TestNoAllocationAtSteadyState(t *testing.T) {
	table := New[value](0)
	out := make([]Entry[value], 0, 16)
	now := int64(0)
	for range 1000 { // reach the size that 1000 in flight need
		insert(table, value{}, never)
	}
	got := testing.AllocsPerRun(1000, func() {
		now++
		id, _, _ := insert(table, value{serial: now}, now+5)
		insert(table, value{}, now)
		table.Draw()
		take(table, id)
		out = table.Expire(now, out[:0])
	})
	if got != 0 {
		t.Errorf("got %v allocations a request, want 0", got)
	}
}

// TestSeal: only an empty table can be sealed, and then nothing gets in.
func TestSeal(t *testing.T) {
	tab := New[int](10)
	insert(tab, 1, 100)
	if tab.Seal() {
		t.Error("a table with an entry was sealed")
	}
	if _, _, ok := insert(tab, 2, 100); !ok {
		t.Error("a table that could not be sealed takes nothing, want it to go on")
	}
	tab = New[int](10)
	id, _, _ := insert(tab, 1, 100)
	take(tab, id)
	for range 2 {
		if !tab.Seal() {
			t.Error("an empty table was not sealed")
		}
	}
	if _, _, ok := insert(tab, 3, 100); ok || tab.Len() != 0 {
		t.Errorf("got %d entries in a sealed table, want none", tab.Len())
	}
	if tab.Draw() == 0 {
		t.Error("got no id for a one-way request from a sealed table")
	}
}
