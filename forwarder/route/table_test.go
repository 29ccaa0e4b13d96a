package route

import (
	"fmt"
	"regexp"
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

// naive is what Match means: the first rule all of whose conditions hold. It is written without anything of the table.
func naive(matches []Match, headers map[string][]byte) int {
	holds := func(key string, want Text) bool {
		v, there := headers[key]
		switch want.Kind {
		case Any:
			return true
		case Exact:
			return there && string(v) == want.Value
		case Prefix:
			return there && len(v) >= len(want.Value) && string(v[:len(want.Value)]) == want.Value
		case Regex:
		}
		if !there || len(v) > MaxRegexValue {
			return false
		}
		// If any match is the whole value, the leftmost and longest one is.
		re := regexp.MustCompile(want.Value)
		re.Longest()
		at := re.FindIndex(v)
		return at != nil && at[0] == 0 && at[1] == len(v)
	}
	return slices.IndexFunc(matches, func(m Match) bool {
		return holds("service", m.Service) && holds("sofa_head_method_name", m.Method) &&
			!slices.ContainsFunc(m.Headers, func(h Header) bool { return !holds(h.Key, h.Text) })
	})
}

// possible says whether some request fits m, of one whose texts are exact ones and prefixes.
func possible(m Match) bool {
	narrowest := map[string]Text{}
	for _, h := range slices.Concat([]Header{{ServiceKey, m.Service}, {MethodKey, m.Method}}, m.Headers) {
		if h.Kind == Prefix || h.Kind == Exact {
			if len(h.Value) >= len(narrowest[h.Key].Value) {
				narrowest[h.Key] = Text{Exact, h.Value}
			}
		}
	}
	headers := map[string][]byte{}
	for k, t := range narrowest {
		headers[k] = []byte(t.Value)
	}
	return naive([]Match{m}, headers) == 0
}

func TestMatchAgainstNaive(t *testing.T) {
	long := strings.Repeat("v", 300)
	huge := strings.Repeat("a", MaxRegexValue)
	keys := rapid.SampledFrom([]string{"service", "a", "b", "ab", "zone", "sofa_head_method_name"})
	values := rapid.SampledFrom([]string{"", "a", "b", "ab", "aa", "abc", "\x00", "\x01\x00\x00\x00a", "\xff", "a\n", long, long + "w", huge, huge + "a"})
	patterns := rapid.SampledFrom([]string{"", "a", "a|ab", "ab|a", ".*", "(?s).*", "a*", "a*?", "[^b]+", "(?i)A(B|bc)?", "^a$", "(?m)^a$", `\Qab`, `\x00`, ".{2,400}", "v*w?"})
	text := rapid.Custom(func(t *rapid.T) Text {
		switch kind := rapid.SampledFrom([]Kind{Exact, Exact, Prefix, Regex}).Draw(t, "kind"); kind {
		case Regex:
			return Text{kind, patterns.Draw(t, "pattern")}
		default:
			return Text{kind, values.Draw(t, "text")}
		}
	})
	match := rapid.Custom(func(t *rapid.T) (m Match) {
		if rapid.Bool().Draw(t, "with service") {
			m.Service = text.Draw(t, "service")
		}
		if rapid.IntRange(0, 3).Draw(t, "with method") == 0 {
			m.Method = text.Draw(t, "method")
		}
		for _, k := range rapid.SliceOfN(keys, 0, 3).Draw(t, "keys") {
			m.Headers = append(m.Headers, Header{k, text.Draw(t, "value")})
		}
		return m
	})
	rapid.Check(t, func(t *rapid.T) {
		// Matches that no request fits are an error: New has to be right about which they are.
		var matches []Match
		for _, m := range rapid.SliceOfN(match, 0, 40).Draw(t, "matches") {
			_, err := New([]Match{m})
			if err != nil && possible(m) {
				t.Fatalf("New(%+v): got %v, but some request fits", m, err)
			}
			if err == nil {
				matches = append(matches, m)
			} else if !strings.Contains(err.Error(), "never hold both") {
				t.Fatalf("New(%+v): %v", m, err)
			}
		}
		table, err := New(matches)
		if err != nil {
			t.Fatalf("New: %v", err)
		}
		for range 20 {
			headers := map[string][]byte{}
			for _, k := range rapid.SliceOfDistinct(keys, rapid.ID).Draw(t, "present") {
				headers[k] = []byte(values.Draw(t, "value"))
			}
			shown := make([][]byte, len(table.Keys()))
			for i, k := range table.Keys() {
				shown[i] = headers[string(k)]
			}
			want := naive(matches, headers)
			if got := table.Match(shown); got != want {
				t.Fatalf("Match(%.20q): got rule %d, want %d", shown, got, want)
			}
			for i, m := range matches {
				ok, why := m.Explain(func(key string) (string, bool) {
					v, there := headers[key]
					return string(v), there
				})
				if ok != (naive(matches[i:i+1], headers) == 0) || why == "" {
					t.Fatalf("Explain of %+v with %.20q says %v, because %s", m, headers, ok, why)
				}
			}
		}
	})
}

func TestMatch(t *testing.T) {
	order := Match{Service: Exactly("order")}
	gray := Match{Service: Exactly("order"), Headers: []Header{{"env", Exactly("gray")}}}
	service := func(kind Kind, value string) Match { return Match{Service: Text{kind, value}} }
	one := func(value string) [][]byte { return [][]byte{[]byte(value)} }
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
		{"empty value", []Match{{Headers: []Header{{"env", Exactly("")}}}}, [][]byte{{}}, 0},
		{"empty value, absent header", []Match{{Headers: []Header{{"env", Exactly("")}}}}, [][]byte{nil}, -1},
		{"the border between two values", []Match{{Headers: []Header{{"a", Exactly("x")}, {"b", Exactly("yz")}}}}, [][]byte{[]byte("xy"), []byte("z")}, -1},
		{"a value that looks like a border", []Match{{Headers: []Header{{"a", Exactly("x")}, {"b", Exactly("\x00\x00\x00\x00y")}}}}, [][]byte{[]byte("x\x00\x00\x00\x00"), []byte("y")}, -1},
		{"said twice", []Match{{Service: Exactly("order"), Headers: []Header{{"service", Exactly("order")}}}}, one("order"), 0},
		{"prefix", []Match{service(Prefix, "com.")}, one("com.order"), 0},
		{"prefix, the value no longer", []Match{service(Prefix, "com.")}, one("com."), 0},
		{"prefix, the value shorter", []Match{service(Prefix, "com.")}, one("com"), -1},
		{"empty prefix", []Match{service(Prefix, "")}, one("x"), 0},
		{"empty prefix, empty value", []Match{service(Prefix, "")}, one(""), 0},
		{"empty prefix, absent header", []Match{service(Prefix, "")}, [][]byte{nil}, -1},
		{"the earlier, shorter prefix wins", []Match{service(Prefix, "co"), service(Prefix, "com.")}, one("com.order"), 0},
		{"the earlier, longer prefix wins", []Match{service(Prefix, "com."), service(Prefix, "co")}, one("com.order"), 0},
		{"prefix before exact", []Match{service(Prefix, "or"), order}, one("order"), 0},
		{"exact before prefix", []Match{order, service(Prefix, "or")}, one("order"), 0},
		{"prefix and exact of one length", []Match{service(Exact, "com"), service(Prefix, "com")}, one("coma"), 1},
		{"two prefixes of one value", []Match{{Service: Text{Prefix, "o"}, Headers: []Header{{"service", Text{Prefix, "or"}}}}}, one("oh"), -1},
		{"regex", []Match{service(Regex, "or.*r")}, one("order"), 0},
		{"regex is anchored in front", []Match{service(Regex, "order")}, one("my order"), -1},
		{"regex is anchored behind", []Match{service(Regex, "order")}, one("orders"), -1},
		{"regex is anchored around alternatives", []Match{service(Regex, "order|stock")}, one("orderly stock"), -1},
		{"regex, a newline behind", []Match{service(Regex, "order$")}, one("order\n"), -1},
		{"regex by lines is anchored too", []Match{service(Regex, "(?m)^order$")}, one("order\nstock"), -1},
		{"regex with an open quote", []Match{service(Regex, `\Qor.er`)}, one("or.er"), 0},
		{"regex with an open quote, no match", []Match{service(Regex, `\Qor.er`)}, one("order"), -1},
		{"regex, absent header", []Match{service(Regex, ".*")}, [][]byte{nil}, -1},
		{"regex, empty value", []Match{service(Regex, ".*")}, one(""), 0},
		{"regex, longest value", []Match{service(Regex, "x*")}, one(strings.Repeat("x", MaxRegexValue)), 0},
		{"regex, too long a value", []Match{service(Regex, "x*")}, one(strings.Repeat("x", MaxRegexValue+1)), -1},
		{"regex and exact of one value", []Match{{Service: Exactly("order"), Headers: []Header{{"service", Text{Regex, "o.*"}}}}}, one("order"), 0},
		{"the earlier regex wins", []Match{service(Regex, "o.*"), service(Regex, ".*r"), order}, one("order"), 0},
		{"the later regex holds alone", []Match{service(Regex, "s.*"), service(Regex, ".*r")}, one("order"), 1},
		{"exact before regex", []Match{order, service(Regex, ".*")}, one("order"), 0},
		{"a regex behind everything", []Match{{}, service(Regex, ".*")}, one("order"), 0},
		{"method", []Match{{Service: Exactly("order"), Method: Text{Prefix, "get"}}}, [][]byte{[]byte("order"), []byte("getAll")}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := mustNew(t, c.matches...).Match(c.values); got != c.want {
				t.Errorf("got rule %d, want %d", got, c.want)
			}
		})
	}
}

func TestKeys(t *testing.T) {
	table := mustNew(t, Match{Service: Exactly("s")}, Match{}, Match{Method: Text{Prefix, "get"}},
		Match{Headers: []Header{{"zone", Exactly("1")}, {"env", Text{Regex, "2"}}}})
	want := [][]byte{[]byte("env"), []byte("service"), []byte("sofa_head_method_name"), []byte("zone")}
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
			matches = append(matches, Match{Headers: []Header{{fmt.Sprint("k", i), Exactly("v")}}})
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
		{"empty key", []Match{{}, {Headers: []Header{{"", Exactly("v")}}}}, "rule 1: a header key is empty"},
		{"no text", []Match{{Headers: []Header{{Key: "zone"}}}}, "rule 0: header zone is asked for no text"},
		{"a text without a kind", []Match{{Service: Text{Value: "s"}}}, "rule 0: service is asked for no text"},
		{
			"contradictions in two rules",
			[]Match{
				{Service: Exactly("s"), Headers: []Header{{"service", Exactly("r")}}},
				{Headers: []Header{{"a", Exactly("1")}, {"b", Exactly("1")}, {"a", Exactly("2")}, {"", Exactly("3")}}},
			},
			"rule 0: service is asked for exactly \"s\" and exactly \"r\", which never hold both\n" +
				"rule 1: a header key is empty\n" +
				"rule 1: header a is asked for exactly \"1\" and exactly \"2\", which never hold both",
		},
		{
			"contradictions with prefixes and regexes",
			[]Match{
				{Service: Exactly("com"), Headers: []Header{{"service", Text{Prefix, "com."}}}},
				{Service: Text{Prefix, "com."}, Headers: []Header{{"service", Text{Prefix, "org."}}}},
				{Method: Text{Regex, "get.*"}, Headers: []Header{{MethodKey, Exactly("set")}}},
			},
			"rule 0: service is asked for exactly \"com\" and prefix \"com.\", which never hold both\n" +
				"rule 1: service is asked for prefix \"com.\" and prefix \"org.\", which never hold both\n" +
				"rule 2: method is asked for exactly \"set\" and a regex that does not match it, which never hold both",
		},
		{
			"bad regexes",
			[]Match{
				{Service: Text{Regex, "com.(order"}, Headers: []Header{{"odd key", Text{Regex, `a**`}}}},
				{Method: Text{Regex, "a)|(b"}},
				{Method: Text{Regex, `(?:abcdefghijkl){1000}`}},
				{Method: Text{Regex, strings.Repeat("(", 999) + strings.Repeat(")", 999)}},
			},
			"rule 0: header \"odd key\" is asked for regex \"a**\": invalid nested repetition operator: \"**\"\n" +
				"rule 0: service is asked for regex \"com.(order\": missing closing )\n" +
				"rule 1: method is asked for regex \"a)|(b\": unexpected )\n" +
				"rule 2: method is asked for regex \"(?:abcdefghijkl){1000}\": it takes 12002 instructions, at most 10000 can be\n" +
				"rule 3: method is asked for regex \"" + strings.Repeat("(", 200) + "\"... (1998 bytes): expression nests too deeply",
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
	headers := []Header{{"z", Exactly("1")}, {"a", Exactly("2")}}
	mustNew(t, Match{Headers: headers})
	if !slices.Equal(headers, []Header{{"z", Exactly("1")}, {"a", Exactly("2")}}) {
		t.Errorf("New has sorted its argument: %v", headers)
	}
}

func TestMatchDoesNotAllocate(t *testing.T) {
	long := []byte(strings.Repeat("x", 1<<20))
	table := mustNew(t,
		Match{Service: Exactly("s"), Headers: []Header{{"env", Exactly("gray")}, {"zone", Exactly("1")}}},
		Match{Service: Exactly("s"), Headers: []Header{{"env", Exactly("gray")}}},
		Match{Service: Text{Prefix, "x"}, Headers: []Header{{"env", Text{Prefix, "xx"}}}},
		Match{Service: Exactly("s")},
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
