package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// A rule is said to be shadowed exactly when an earlier one matches all that it does.
func TestShadowedRules(t *testing.T) {
	weaker := func(a, b Text) bool { // all that fits b fits a
		switch {
		case a == (Text{}) || a == b || a == (Text{PrefixText, ""}) && b != (Text{}):
			return true
		case a.Form == PrefixText && (b.Form == ExactText || b.Form == PrefixText):
			return strings.HasPrefix(b.Value, a.Value)
		}
		return false
	}
	covers := func(a, b Match) bool {
		if !weaker(a.Service, b.Service) || !weaker(a.Method, b.Method) {
			return false
		}
		for key, text := range maps.All(a.Header) {
			if !weaker(text, b.Header[key]) {
				return false
			}
		}
		return true
	}
	word := rapid.SampledFrom([]string{"a", "b", "c"})
	text := rapid.SampledFrom([]Text{
		Exactly("x"), Exactly("xy"), {PrefixText, ""}, {PrefixText, "x"}, {PrefixText, "xy"}, {RegexText, "x"}, {RegexText, "xy"},
	})
	maybe := rapid.OneOf(rapid.Just(Text{}), text)
	match := rapid.Custom(func(t *rapid.T) Match {
		return Match{
			Service: maybe.Draw(t, "service"),
			Method:  maybe.Draw(t, "method"),
			Header:  rapid.MapOfN(word, text, 0, 3).Draw(t, "header"),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		var rules []Rule
		var want []string
		for i, m := range rapid.SliceOfN(match, 1, 12).Draw(t, "matches") {
			for _, r := range rules {
				if covers(r.Match, m) {
					want = append(want, fmt.Sprintf("/routes/0/rules/%d", i))
					break
				}
			}
			rules = append(rules, Rule{Match: m})
		}
		c := &Config{Routes: []RouteTable{{Rules: rules}}}
		var got []string
		for _, w := range c.shadowedRules() {
			got = append(got, w.Pointer)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("the shadowed rules are %v, want %v", got, want)
		}
	})
}
