package ratelimit

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"
)

func second(n float64) instant { return instant(n*float64(time.Second)) * fine }

// value is one of many different ones.
func value(i int) []byte { return binary.LittleEndian.AppendUint64(nil, uint64(i)) }

// drain takes all the tokens that the value has, and says how many they were.
func drain(t *table, v []byte, l limit, now instant) (n int) {
	for t.take(v, l, now) {
		n++
	}
	return n
}

// TestTableIsBounded: at most as many buckets as were asked for, none of them grown later.
func TestTableIsBounded(t *testing.T) {
	for _, c := range []struct{ most, want int }{
		{1, 1}, {3, 3}, {15, 15}, {16, 16}, {17, 16}, {31, 16}, {32, 32}, {10_000, 10_000}, {9_999, 9984},
	} {
		table := newTable(c.most)
		l := newLimit(1, 10)
		distinct := map[uint64]bool{}
		for i := range 20 * c.most {
			table.take(value(i), l, 0)
		}
		for i := range table.sets {
			for w := range ways {
				if table.sets[i].full[w] != 0 {
					distinct[table.sets[i].hash[w]] = true
				}
			}
		}
		if got := len(distinct); got != c.want {
			t.Errorf("at most %d: got %d buckets after %d values, want %d", c.most, got, 20*c.most, c.want)
		}
	}
}

// TestTableForgetsTheFullFirst, where the value of each step is new to the only set that there is.
func TestTableForgetsTheFullFirst(t *testing.T) {
	table, l := newTable(3), newLimit(1, 10)
	a, b, c, d, e := value(1), value(2), value(3), value(4), value(5)
	take := func(v []byte, now float64, n int) {
		for range n {
			if !table.take(v, l, second(now)) {
				t.Fatalf("at %v s value %d finds no token, want one", now, v[0])
			}
		}
	}
	knows := func(now float64, v []byte, want bool) {
		t.Helper()
		set := &table.sets[0]
		hash, full := set.hash, set.full // to be put back: asking makes a bucket
		at := set.find(table.ways, hashOf(table, v))
		if got := set.full[at] != 0; got != want {
			t.Errorf("at %v s value %d has its bucket: got %v, want %v", now, v[0], got, want)
		}
		set.hash, set.full = hash, full
	}
	take(a, 0, 10) // full again at 10 s
	take(b, 0, 5)  // at 5 s
	take(c, 0, 1)  // at 1 s
	take(d, 2, 1)  // at 3 s, in the place of c, which is full again
	knows(2, a, true)
	knows(2, b, true)
	knows(2, c, false)
	take(e, 2, 7) // at 9 s, in the place of d: none is full again, d will be soonest
	knows(2, d, false)
	knows(2, b, true)
	take(c, 4, 1) // at 5 s, in the place of b, which lacks one token
	knows(4, b, false)
	knows(4, a, true)
	knows(4, e, true)
}

func hashOf(t *table, v []byte) uint64 {
	probe := &table{seed: t.seed, ways: 1, sets: make([]set, 1)}
	probe.take(v, newLimit(1, 1), 0)
	return probe.sets[0].hash[0]
}

// TestFloodOfValues: a client that never repeats a value does not give tokens back to one that has used up its own.
func TestFloodOfValues(t *testing.T) {
	for _, c := range []struct {
		burst int
		flood int // new values per second
		most  int // that may pass in four seconds
	}{
		{10, 100_000, 10 + 4},  // ten times what 10,000 buckets give in a second: no token lost
		{1, 2_000, 1 + 4},      // a fifth of it: none lost, even of the smallest bucket
		{1, 100_000, 1 + 4*30}, // ten times: the smallest bucket is forgotten early, but not with each new value
	} {
		t.Run(fmt.Sprintf("burst=%d/flood=%d", c.burst, c.flood), func(t *testing.T) {
			table, l := newTable(10_000), newLimit(1, c.burst)
			limited, passed, next := []byte("limited"), 0, 0
			const steps = 400 // the limited one asks 100 times a second
			for step := range steps {
				now := second(float64(step) / 100)
				passed += drain(table, limited, l, now)
				for range c.flood / 100 {
					table.take(value(next), l, now)
					next++
				}
			}
			if passed > c.most {
				t.Errorf("got %d requests of the limited value through in 4 s, want at most %d", passed, c.most)
			}
			if want := c.burst + 3; passed < want {
				t.Errorf("got %d requests of the limited value through in 4 s, want at least %d", passed, want)
			}
		})
	}
}

// TestTableHoldsAThird: as many values as a third of the buckets keep theirs, but for hardly any.
func TestTableHoldsAThird(t *testing.T) {
	const buckets = 30_000
	table, l := newTable(buckets), newLimit(1, 3)
	for i := range buckets / 3 {
		drain(table, value(i), l, 0)
	}
	given := 0
	for i := range buckets / 3 {
		given += drain(table, value(i), l, 0)
	}
	if limit := 30; given > limit { // a set in 10,000 is asked for more than it has, on average
		t.Errorf("got %d tokens given a second time to %d values, want at most %d", given, buckets/3, limit)
	}
}
