package cluster

import (
	"strings"
	"testing"
)

// TestPanics: each endpoint is a letter: usable, unhealthy, ejected, failed, drained.
func TestPanics(t *testing.T) {
	const half, never = 50_00, 0
	for _, c := range []struct {
		endpoints string
		threshold int
		want      bool
	}{
		{"", half, false},
		{"u", half, false},
		{"x", half, true},
		{"x", never, false},
		{"ux", half, false},      // half of them is not less than half
		{"uxx", half, true},      // a third is
		{"uxe", half, true},      // it does not matter why
		{"uee", never, false},    //
		{"uffx", half, true},     // what has failed counts, and one can be won
		{"uff", half, false},     // nothing can be won: to those that have failed there is no connection
		{"ff", half, false},      //
		{"uxd", half, false},     // what is drained does not count
		{"uxxddd", half, true},   //
		{"ddd", half, false},     //
		{"dx", half, true},       //
		{"uuux", 75_00, false},   //
		{"uuux", 75_01, true},    // hundredths of a percent count
		{"uuux", 100_00, true},   //
		{"uuuuu", 100_00, false}, //
		{strings.Repeat("u", 49) + strings.Repeat("x", 51), half, true},
		{strings.Repeat("u", 50) + strings.Repeat("x", 50), half, false},
	} {
		endpoints := endpointsOf(make([]int, len(c.endpoints))...)
		for i, letter := range c.endpoints {
			switch letter {
			case 'x':
				mark(endpoints[i], true, false)
			case 'e':
				mark(endpoints[i], false, true)
			case 'f':
				endpoints[i].Failed(0)
			case 'd':
				endpoints[i].Drain(true)
				mark(endpoints[i], true, false)
			default: // usable, some in their slow start
				endpoints[i].Warm(0, 1000)
			}
		}
		if got := New("order", endpoints, NewRoundRobin(nil), Limits{}).Panics(c.threshold); got != c.want {
			t.Errorf("%q below %d hundredths of a percent: got %v, want %v", c.endpoints, c.threshold, got, c.want)
		}
	}
}

// TestPanicUsesWhatIsThoughtToBeBad, and not what is known to be.
func TestPanicUsesWhatIsThoughtToBeBad(t *testing.T) {
	for name, build := range balancers {
		t.Run(name, func(t *testing.T) {
			endpoints := endpointsOf(1, 1, 1, 1)
			b := build(endpoints, 1)
			mark(endpoints[0], true, false)
			mark(endpoints[1], false, true)
			endpoints[2].Failed(0)
			endpoints[3].Drain(true)
			seen := make([]int, 4)
			for k := range 1000 {
				ask := Ask{Avoid: -1, Hash: mix(uint64(k))}
				if got := b.Pick(ask); got != -1 {
					t.Fatalf("picked %d without a panic, want none", got)
				}
				ask.Panic = true
				seen[b.Pick(ask)]++
			}
			if seen[0] < 300 || seen[1] < 300 || seen[2]+seen[3] > 0 {
				t.Errorf("picks in a panic: got %v, want half at each of the first two: one has failed, one is drained", seen)
			}
		})
	}
}
