package route

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func mustNew(t testing.TB, matches ...Match) *Table {
	t.Helper()
	table, err := New(matches)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	return table
}

// naive is what Match means: the first rule all of whose conditions hold.
func naive(matches []Match, headers map[string][]byte) int {
	holds := func(key, value string) bool {
		v := headers[key]
		return v != nil && string(v) == value
	}
	for i, m := range matches {
		fits := m.Service == "" || holds("service", m.Service)
		for _, h := range m.Headers {
			fits = fits && holds(h.Key, h.Value)
		}
		if fits {
			return i
		}
	}
	return -1
}

func TestMatchAgainstNaive(t *testing.T) {
	long := strings.Repeat("v", 300)
	keys := rapid.SampledFrom([]string{"service", "a", "b", "ab", "zone"})
	values := rapid.SampledFrom([]string{"", "a", "b", "ab", "aa", "\x00", "\x01\x00\x00\x00a", long, long + "w"})
	match := rapid.Custom(func(t *rapid.T) Match {
		m := Match{Service: rapid.SampledFrom([]string{"", "", "s", "t", "ab"}).Draw(t, "service")}
		asked := rapid.SliceOfNDistinct(keys, 0, 3, rapid.ID).Draw(t, "keys")
		for _, k := range asked {
			if k == "service" && m.Service != "" {
				continue
			}
			m.Headers = append(m.Headers, Header{k, values.Draw(t, "value")})
		}
		return m
	})
	rapid.Check(t, func(t *rapid.T) {
		matches := rapid.SliceOfN(match, 0, 40).Draw(t, "matches")
		table, err := New(matches)
		if err != nil {
			t.Fatalf("New: %v", err)
		}
		for range 20 {
			headers := map[string][]byte{}
			for _, k := range rapid.SliceOfDistinct(keys, rapid.ID).Draw(t, "present") {
				if k == "service" {
					headers[k] = []byte(rapid.SampledFrom([]string{"", "s", "t", "ab", "u"}).Draw(t, "value"))
				} else {
					headers[k] = []byte(values.Draw(t, "value"))
				}
			}
			shown := make([][]byte, len(table.Keys()))
			for i, k := range table.Keys() {
				shown[i] = headers[string(k)]
			}
			if got, want := table.Match(shown), naive(matches, headers); got != want {
				t.Fatalf("Match(%q): got rule %d, want %d", shown, got, want)
			}
		}
	})
}

func TestMatch(t *testing.T) {
	order := Match{Service: "order"}
	gray := Match{Service: "order", Headers: []Header{{"env", "gray"}}}
	for _, c := range []struct {
		name    string
		matches []Match
		values  [][]byte // of the keys in sorted order
		want    int
	}{
		{"no rules", nil, nil, -1},
		{"everything", []Match{{}}, nil, 0},
		{"hit", []Match{order}, [][]byte{[]byte("order")}, 0},
		{"miss", []Match{order}, [][]byte{[]byte("stock")}, -1},
		{"absent", []Match{order}, [][]byte{nil}, -1},
		{"fallback", []Match{order, {}}, [][]byte{[]byte("stock")}, 1},
		{"everything first hides the rest", []Match{{}, order}, [][]byte{[]byte("order")}, 0},
		{"duplicate", []Match{order, order}, [][]byte{[]byte("order")}, 0},
		{"the later, narrower rule does not win", []Match{order, gray}, [][]byte{[]byte("gray"), []byte("order")}, 0},
		{"the earlier, narrower rule wins", []Match{gray, order}, [][]byte{[]byte("gray"), []byte("order")}, 0},
		{"narrower and not fitting", []Match{gray, order}, [][]byte{[]byte("blue"), []byte("order")}, 1},
		{"one of two absent", []Match{gray}, [][]byte{nil, []byte("order")}, -1},
		{"empty value", []Match{{Headers: []Header{{"env", ""}}}}, [][]byte{{}}, 0},
		{"empty value, absent header", []Match{{Headers: []Header{{"env", ""}}}}, [][]byte{nil}, -1},
		{"the border between two values", []Match{{Headers: []Header{{"a", "x"}, {"b", "yz"}}}}, [][]byte{[]byte("xy"), []byte("z")}, -1},
		{"a value that looks like a border", []Match{{Headers: []Header{{"a", "x"}, {"b", "\x00\x00\x00\x00y"}}}}, [][]byte{[]byte("x\x00\x00\x00\x00"), []byte("y")}, -1},
		{"said twice", []Match{{Service: "order", Headers: []Header{{"service", "order"}}}}, [][]byte{[]byte("order")}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := mustNew(t, c.matches...).Match(c.values); got != c.want {
				t.Errorf("got rule %d, want %d", got, c.want)
			}
		})
	}
}

func TestKeys(t *testing.T) {
	table := mustNew(t, Match{Service: "s"}, Match{}, Match{Headers: []Header{{"zone", "1"}, {"env", "2"}}})
	want := [][]byte{[]byte("env"), []byte("service"), []byte("zone")}
	if diff := cmp.Diff(want, table.Keys()); diff != "" {
		t.Errorf("Keys (-want +got):\n%s", diff)
	}
	if got := mustNew(t, Match{}).Keys(); len(got) != 0 {
		t.Errorf("Keys of a table that asks for nothing: got %q, want none", got)
	}
}

func TestNewErrors(t *testing.T) {
	many := func(n int) (matches []Match) {
		for i := range n {
			matches = append(matches, Match{Headers: []Header{{fmt.Sprint("k", i), "v"}}})
		}
		return matches
	}
	mustNew(t, many(MaxKeys)...)
	for _, c := range []struct {
		name    string
		matches []Match
		want    string
	}{
		{"too many keys", many(MaxKeys + 1), "the rules ask for 17 different header keys, at most 16 can be"},
		{"empty key", []Match{{}, {Headers: []Header{{"", "v"}}}}, "rule 1: a header key is empty"},
		{
			"contradictions in two rules",
			[]Match{
				{Service: "s", Headers: []Header{{"service", "r"}}},
				{Headers: []Header{{"a", "1"}, {"b", "1"}, {"a", "2"}}},
			},
			"rule 0: header \"service\" is asked to be both \"r\" and \"s\", which never holds\n" +
				"rule 1: header \"a\" is asked to be both \"1\" and \"2\", which never holds",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			table, err := New(c.matches)
			if table != nil || err == nil {
				t.Fatalf("got a table %v and error %v, want an error", table != nil, err)
			}
			if diff := cmp.Diff(c.want, err.Error()); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
}

func TestNewKeepsTheCallersOrder(t *testing.T) {
	headers := []Header{{"z", "1"}, {"a", "2"}}
	mustNew(t, Match{Headers: headers})
	if !slices.Equal(headers, []Header{{"z", "1"}, {"a", "2"}}) {
		t.Errorf("New has sorted its argument: %v", headers)
	}
}

func TestMatchDoesNotAllocate(t *testing.T) {
	long := []byte(strings.Repeat("x", 1<<20))
	table := mustNew(t,
		Match{Service: "s", Headers: []Header{{"env", "gray"}, {"zone", "1"}}},
		Match{Service: "s", Headers: []Header{{"env", "gray"}}},
		Match{Service: "s"},
	)
	for _, values := range [][][]byte{
		{[]byte("gray"), []byte("s"), []byte("2")},
		{[]byte("blue"), []byte("s"), nil},
		{long, long, long},
		{nil, nil, nil},
	} {
		if got := testing.AllocsPerRun(100, func() { table.Match(values) }); got != 0 {
			t.Errorf("Match(%.20q): got %v allocations, want 0", values, got)
		}
	}
}

func BenchmarkMatch(b *testing.B) {
	for _, rules := range []int{10, 1000, 10000} {
		var byService, byTwo []Match
		for i := range rules {
			service := fmt.Sprintf("com.example.Service%d:1.0", i)
			byService = append(byService, Match{Service: service})
			byTwo = append(byTwo, Match{Service: service, Headers: []Header{{"env", "gray"}}})
		}
		service := fmt.Appendf(nil, "com.example.Service%d:1.0", rules-1)
		for _, c := range []struct {
			name    string
			matches []Match
			values  [][]byte
			want    int
		}{
			{"service", byService, [][]byte{service}, rules - 1},
			{"two-headers", byTwo, [][]byte{[]byte("gray"), service}, rules - 1},
			{"both-groups", append(slices.Clone(byTwo), byService...), [][]byte{[]byte("blue"), service}, 2*rules - 1},
		} {
			b.Run(fmt.Sprintf("%s/rules=%d", c.name, rules), func(b *testing.B) {
				table := mustNew(b, c.matches...)
				b.ReportAllocs()
				for b.Loop() {
					if got := table.Match(c.values); got != c.want {
						b.Fatalf("got rule %d, want %d", got, c.want)
					}
				}
			})
		}
	}
}
