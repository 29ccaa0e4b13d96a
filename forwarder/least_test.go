package forwarder

import (
	"cmp"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestLeast: whatever it is shown in whatever order, it keeps the n least, in order and in bounded memory.
func TestLeast(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 20).Draw(t, "n")
		all := rapid.SliceOf(rapid.IntRange(0, 100)).Draw(t, "all")
		l := least[int]{n: n, compare: cmp.Compare[int]}
		for _, v := range all {
			l.add(v)
			if len(l.list) > max(2*n, 1) {
				t.Fatalf("it holds %d values, want at most %d", len(l.list), 2*n)
			}
		}
		got := l.sorted()
		slices.Sort(all)
		if want := all[:min(n, len(all))]; !slices.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
	})
}
