package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// What is said of edits, for people and for programs.
func TestChanges(t *testing.T) {
	const valid = order + "log: {level: warn, format: text}\naccess_log: {fields: [time, service], sample: 5%}\n"
	var transcript strings.Builder
	for _, tt := range []struct{ name, from, to string }{
		{"nothing", "", ""},
		{"a number, a word, a field more and one less", "", `{"clusters":[
			{"name":"order","protocol":"bolt","endpoints":[{"address":"127.0.0.1:12200","weight":6},{"address":"unix:/run/order","weight":1}]},
			{"name":"spare","protocol":"bolt","endpoints":[{"address":"127.0.0.1:12201"}]}],"log":{"level":"debug","format":null}}`},
		{"items more and less", "", `{"clusters":[
			{"name":"spare","protocol":"bolt","endpoints":[{"address":"127.0.0.1:12202"}]},
			{"name":"third","protocol":"bolt","endpoints":[{"address":"127.0.0.1:12203"}]}]}`},
		{"another order", "", `{"clusters":[
			{"name":"spare","protocol":"bolt","endpoints":[{"address":"127.0.0.1:12201"}]},
			{"name":"order","protocol":"bolt","endpoints":[{"address":"127.0.0.1:12200","weight":5},{"address":"unix:/run/order"}]}]}`},
		{"a rule in front, behind which one without a name has another", "", `{"routes":[{"name":"rpc","rules":[
			{"name":"first","reply":{"status":"ERROR"}},
			{"name":"orders","match":{"service":{"prefix":"x."},"header":{"a/b":"2"}},"cluster":"order"},
			{"clusters":[{"cluster":"order","weight":1},{"cluster":"spare","weight":2}]}]}]}`},
		{"lists without keys", "", `{"access_log":{"fields":["service","time"]},
			"listeners":[{"name":"in","address":":1","protocol":"bolt","filters":[{"rate_limit":{"rate":9}}]}]}`},
		{"sections", `{"log":null}`, `{"access_log":null,"admin":{"address":"unix:/run/<admin>"},"stop_timeout":"1s"}`},
		{"other kinds", "", `{"log":"warn","access_log":[],"routes":{"a b":1}}`},
		{"long values", "", `{"state_dir":"/` + strings.Repeat("x", 300) + `","runtime_dir":"/` + strings.Repeat("y", 5000) + `"}`},
	} {
		from, to := document(t, valid), document(t, valid)
		var err error
		if tt.from != "" {
			if from, err = from.Patch("", []byte(tt.from)); err != nil {
				t.Fatal(err)
			}
		}
		if tt.to != "" {
			if to, err = to.Patch("", []byte(tt.to)); err != nil {
				t.Fatal(err)
			}
		}
		c := from.Changes(to)
		var buf bytes.Buffer
		e := json.NewEncoder(&buf)
		e.SetEscapeHTML(false)
		if err := e.Encode(c); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&transcript, "# %s\n%v\n%s\n", tt.name, c, &buf)
		checkChanges(t, from, to)
		checkChanges(t, to, from)
	}
	expect(t, "testdata/changes.txt", transcript.String())
}

func TestChangesAreBounded(t *testing.T) {
	many := func(prefix string) *Document {
		var b strings.Builder
		b.WriteString("clusters: [")
		for i := range 2000 {
			fmt.Fprintf(&b, "{name: %s%d}, ", prefix, i)
		}
		return document(t, b.String()+"]")
	}
	c := many("a").Changes(many("b"))
	if len(c.List) != maxChanges || c.More != 3000 {
		t.Errorf("of 4000 changes %d are listed and %d counted, want %d and 3000", len(c.List), c.More, maxChanges)
	}
	if !strings.HasSuffix(c.String(), "\nand 3000 more changes") {
		t.Errorf("the text ends in %q", c.String()[len(c.String())-50:])
	}
}
