//go:build !race

package route

import (
	"strings"
	"testing"
)

// With the race detector on, the pools in regexp lose things on purpose.
func TestMatchRegexDoesNotAllocate(t *testing.T) {
	table := mustNew(t,
		Match{Service: Text{Regex, "com[.].*Order:1[.]0"}},
		Match{Service: Text{Prefix, "com."}, Method: Text{Regex, "(get|list|find).*"}},
		Match{Service: Text{Regex, ".*(a|b|c)+.*d"}},
	)
	for _, c := range []struct {
		values [][]byte
		want   int
	}{
		{[][]byte{[]byte("com.example.Order:1.0"), []byte("get")}, 0},
		{[][]byte{[]byte("com.example.Stock:1.0"), []byte("getAll")}, 1},
		{[][]byte{[]byte("org.aabbccd"), nil}, 2},
		{[][]byte{[]byte(strings.Repeat("a", MaxRegexValue)), nil}, -1},
	} {
		if got := table.Match(c.values); got != c.want {
			t.Errorf("Match(%.30q): got rule %d, want %d", c.values, got, c.want)
		}
		if got := testing.AllocsPerRun(100, func() { table.Match(c.values) }); got != 0 {
			t.Errorf("Match(%.30q): got %v allocations, want 0", c.values, got)
		}
	}
}
