package config

import (
	"strings"
	"testing"

	"github.com/relevo-proxy/relevo/forwarder/route"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

func TestTexts(t *testing.T) {
	for _, tt := range []struct {
		yaml string
		want Text
	}{
		{`com.example.Order:1.0`, Exactly("com.example.Order:1.0")},
		{`{exact: "1.0"}`, Text{ExactText, "1.0"}},
		{`{prefix: com.}`, Text{PrefixText, "com."}},
		{`{prefix: ""}`, Text{PrefixText, ""}},
		{`{regex: 'com[.].*'}`, Text{RegexText, "com[.].*"}},
	} {
		n, err := parseNode([]byte("a: " + tt.yaml))
		if err != nil {
			t.Fatal(err)
		}
		var got Text
		if err := got.set(n.fields["a"]); err != nil || got != tt.want {
			t.Errorf("the text %s is %v, %v; want %v", tt.yaml, got, err, tt.want)
		}
	}
	for _, tt := range []struct{ yaml, want string }{
		{`1.0`, `must be text, not a number: put it in quotes: "1.0"`},
		{`[a]`, `must be text, not a list`},
		{`{}`, `has not exactly one key: write text, or a mapping with one of exact, prefix, regex`},
		{`{exact: a, prefix: b}`, `has not exactly one key: write text, or a mapping with one of exact, prefix, regex`},
		{`{prefix: a, prefix: a}`, `has not exactly one key: write text, or a mapping with one of exact, prefix, regex`},
		{`{regx: a}`, `there is no "regx" (did you mean regex?): write text, or a mapping with one of exact, prefix, regex`},
		{`{prefix: 1}`, `prefix must be text, not a number: put it in quotes: "1"`},
		{`{prefix: }`, `prefix has no value: give one, or leave it out`},
	} {
		n, err := parseNode([]byte("a: " + tt.yaml))
		if err != nil {
			t.Fatal(err)
		}
		var got Text
		if err := got.set(n.fields["a"]); err == nil || err.Error() != tt.want {
			t.Errorf("the text %s: %v, want %s", tt.yaml, err, tt.want)
		}
	}
}

// A regex that the configuration takes is one that the routes take, and so it is with those that it refuses, but that it
// asks for something and for no novel.
func TestRegexesAgree(t *testing.T) {
	for _, pattern := range []string{
		"a", "com[.].*", `\Qa+`, "(?i)x|y", "^a$", "a{1000}", "(a{10}){10}", "(", "a{1001}", "a**", `\x`, "[b-a]", "(?P<n>a)",
		"(a{100}){99}", "(a{100}){101}", "(?:a{500}b{500}){9}c{900}", "(?:a{500}b{500}){10}", strings.Repeat("x", maxRegex),
		strings.Repeat("a{999}", 10), strings.Repeat("a{1000}", 11),
	} {
		_, want := route.New([]route.Match{{Service: route.Text{Kind: route.Regex, Value: pattern}}})
		if got := checkRegex(pattern); (got == nil) != (want == nil) {
			t.Errorf("of the regex %.50s the configuration says %v, and the routes %v", pattern, got, want)
		}
	}
	for _, tt := range []struct{ pattern, want string }{
		{"", "the regex must not be empty"},
		{strings.Repeat("x", maxRegex+1), "the regex has 4097 bytes; it may have 4096"},
		{strings.Repeat("a{1000}", 11), `the regex "a{1000}a{1000}a{1000}a{1000}a{1000}a{1000}a{1000}a{1000}a{1000}a"... takes 11002 instructions; it may take 10000`},
		{"a(b", `"a(b" is not a regex: missing closing ): a(b`},
	} {
		if err := checkRegex(tt.pattern); err == nil || err.Error() != tt.want {
			t.Errorf("the regex %.50q: %v, want %s", tt.pattern, err, tt.want)
		}
	}
	if maxRegexSize != route.MaxRegexSize || maxTableKeys != route.MaxKeys || ServiceKey != route.ServiceKey || MethodKey != route.MethodKey {
		t.Error("the configuration's bounds and keys of matches are not those of the routes")
	}
}

// The statuses that can be named are those that the road knows, but for the one that stands for the rest.
func TestStatusesAgree(t *testing.T) {
	var want []string
	for s := range wire.NumStatus {
		if s != wire.Other {
			want = append(want, s.String())
		}
	}
	found := 0
	for typ, fields := range tree() {
		for _, f := range fields {
			if f.name != "status" {
				continue
			}
			found++
			if got := strings.Join(f.oneOf, " "); got != strings.Join(want, " ") {
				t.Errorf("%v takes the statuses %s, want %s", typ, got, want)
			}
		}
	}
	if found != 2 {
		t.Errorf("%d fields hold a status, want 2", found)
	}
}
