package route

import (
	"strings"
	"testing"
)

func TestExplain(t *testing.T) {
	for _, c := range []struct {
		name    string
		match   Match
		headers map[string]string
		ok      bool
		why     string
	}{
		{"everything", Match{}, nil, true, "it takes everything"},
		{"exact", Match{Service: Exactly("order")}, map[string]string{"service": "order"}, true, `service is exactly "order"`},
		{"not exact", Match{Service: Exactly("order")}, map[string]string{"service": "stock"}, false, `service is "stock", want exactly "order"`},
		{"prefix", Match{Service: Text{Prefix, "com."}}, map[string]string{"service": "com.order"}, true, `service is "com.order", with prefix "com."`},
		{"no prefix", Match{Service: Text{Prefix, "com.example."}}, map[string]string{"service": "a"}, false, `service is "a", want prefix "com.example."`},
		{"regex", Match{Method: Text{Regex, `get\w*`}}, map[string]string{"sofa_head_method_name": "getAll"}, true, `method is "getAll", matching regex "get\w*"`},
		{"no regex", Match{Method: Text{Regex, `get\w*`}}, map[string]string{"sofa_head_method_name": "forget"}, false, `method is "forget", want regex "get\w*"`},
		{"bad regex", Match{Method: Text{Regex, "("}}, map[string]string{"sofa_head_method_name": "forget"}, false, `method is asked for regex "(": missing closing )`},
		{"no text", Match{Headers: []Header{{Key: "zone"}}}, map[string]string{"zone": "1"}, false, "header zone is asked for no text"},
		{
			"long value",
			Match{Service: Text{Regex, ".*"}},
			map[string]string{"service": strings.Repeat("x", 2000)},
			false,
			"service has 2000 bytes, and no regex matches more than 1024",
		},
		{
			"long value, not exact",
			Match{Service: Exactly("order")},
			map[string]string{"service": strings.Repeat("x", 2000)},
			false,
			`service is "` + strings.Repeat("x", 200) + `"... (2000 bytes), want exactly "order"`,
		},
		{"absent", Match{Headers: []Header{{"zone", Exactly("1")}}}, nil, false, `header zone is absent, want exactly "1"`},
		{
			"empty prefix",
			Match{Headers: []Header{{"zone", Text{Prefix, ""}}}},
			map[string]string{"zone": ""},
			true,
			`header zone is "", with prefix ""`,
		},
		{
			"all that holds",
			Match{Service: Exactly("order"), Headers: []Header{{"zone", Exactly("1")}, {"two words", Exactly("")}}},
			map[string]string{"service": "order", "zone": "1", "two words": ""},
			true, `service is exactly "order"; header zone is exactly "1"; header "two words" is exactly ""`,
		},
		{
			"only what is wanting",
			Match{Service: Exactly("order"), Method: Exactly("get"), Headers: []Header{{"zone", Text{Regex, "[12]"}}}},
			map[string]string{"service": "order", "zone": "3"},
			false, `method is absent, want exactly "get"; header zone is "3", want regex "[12]"`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			ok, why := c.match.Explain(func(key string) (string, bool) {
				v, there := c.headers[key]
				return v, there
			})
			if ok != c.ok || why != c.why {
				t.Errorf("got %v, %s\nwant %v, %s", ok, why, c.ok, c.why)
			}
		})
	}
}

func TestTextSaysItself(t *testing.T) {
	for _, c := range []struct {
		text Text
		want string
	}{
		{Text{}, "anything"},
		{Exactly(`a"b`), `exactly "a\"b"`},
		{Text{Prefix, "com."}, `prefix "com."`},
		{Text{Regex, `\d+`}, `regex "\d+"`},
		{Text{Regex, `"\d+`}, `regex "\"\\d+"`},
		{Text{Kind: 9}, "text of the unknown kind 9"},
	} {
		if got := c.text.String(); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}
}
