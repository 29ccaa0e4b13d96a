package config

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

const order = `
listeners: [{name: in, address: ":1", protocol: bolt, filters: [{rate_limit: {rate: 7}}, {rate_limit: {rate: 8}}]}]
routes:
- name: rpc
  rules:
  - {name: orders, match: {service: {prefix: x.}, header: {a/b: "1"}}, cluster: order}
  - {clusters: [{cluster: order, weight: 1}, {cluster: spare, weight: 2}]}
clusters:
- {protocol: bolt, name: order, endpoints: [{address: "127.0.0.1:12200", weight: 5}, {address: "unix:/run/order"}]}
- {name: spare, protocol: bolt, endpoints: [{address: "127.0.0.1:12201"}]}
`

func document(t fatal, text string) *Document {
	t.Helper()
	d, err := ParseDocument([]byte(text))
	if err != nil {
		t.Fatalf("a document does not parse: %v\n%s", err, text)
	}
	return d
}

func TestGet(t *testing.T) {
	d := document(t, order)
	for path, want := range map[string]string{
		"clusters/spare":                               `{"name":"spare","protocol":"bolt","endpoints":[{"address":"127.0.0.1:12201"}]}`,
		"/clusters/spare/":                             `{"name":"spare","protocol":"bolt","endpoints":[{"address":"127.0.0.1:12201"}]}`,
		"clusters/order/protocol":                      `"bolt"`,
		"clusters/order/endpoints/127.0.0.1:12200":     `{"address":"127.0.0.1:12200","weight":5}`,
		"clusters/order/endpoints/127.0.0.1%3A12200":   `{"address":"127.0.0.1:12200","weight":5}`,
		"clusters/order/endpoints/unix:%2Frun%2Forder": `{"address":"unix:/run/order"}`,
		"routes/rpc/rules/orders/match/service":        `{"prefix":"x."}`,
		"routes/rpc/rules/orders/match/service/prefix": `"x."`,
		"routes/rpc/rules/orders/match/header/a%2Fb":   `"1"`,
		"routes/rpc/rules/rule-2/clusters/spare":       `{"cluster":"spare","weight":2}`,
		"listeners/in/filters/1/rate_limit/rate":       `8`,
		"listeners/in/filters":                         `[{"rate_limit":{"rate":7}},{"rate_limit":{"rate":8}}]`,
		"":                                             string(d.JSON()),
	} {
		got, err := d.Get(path)
		if err != nil || string(got.JSON()) != want {
			t.Errorf("%s is %s, %v; want %s", path, got.JSON(), err, want)
		}
	}
	for path, want := range map[string]string{
		"clusters/order": "/clusters/0",
		"clusters/order/endpoints/unix:%2Frun%2Forder/address": "/clusters/0/endpoints/1/address",
		"routes/rpc/rules/orders/match/header/a%2Fb":           "/routes/0/rules/0/match/header/a~1b",
		"": "",
	} {
		if got, err := d.Pointer(path); err != nil || got != want {
			t.Errorf("the pointer of %s is %q, %v; want %q", path, got, err, want)
		}
	}
}

func TestPathErrors(t *testing.T) {
	const twice = `{"clusters":[{"name":"a"},{"name":"a"}],"routes":[{"name":"r","rules":[{"name":"rule-2"},{}]}]}`
	get := func(d *Document, path, _ string) error { _, err := d.Get(path); return err }
	put := func(d *Document, path, value string) error { _, err := d.Put(path, []byte(value)); return err }
	patch := func(d *Document, path, value string) error { _, err := d.Patch(path, []byte(value)); return err }
	del := func(d *Document, path, _ string) error { _, err := d.Delete(path); return err }
	for _, tt := range []struct {
		do                func(*Document, string, string) error
		file, path, value string
		reason            PathReason
		want              string
	}{
		{get, order, "cluster", "", NoSuchPath, "cluster: there is no such field (did you mean clusters?): there is " +
			"listeners, routes, clusters, admin, metrics, stop_timeout, max_timeout, max_buffered, workers, overload, upgrade, runtime_dir, state_dir, log, access_log"},
		{get, order, "clusters/ordre", "", NoSuchPath, "clusters/ordre: there is no such item (did you mean order?): there is order, spare"},
		{get, order, "clusters/0", "", NoSuchPath, "clusters/0: there is no such item: there is order, spare"},
		{get, order, "clusters/new/endpoints/x", "", NoSuchPath, "clusters/new: there is no such item: there is order, spare"},
		{put, order, "clusters/new/endpoints/x", "{}", NoSuchPath, "clusters/new: there is no such item: there is order, spare"},
		{get, order, "routes/rpc/rules/rule-1", "", NoSuchPath, "routes/rpc/rules/rule-1: there is no such item (did you mean rule-2?): there is orders, rule-2"},
		{get, order, "log/level", "", NoSuchPath, "log/level: is not set: there is none"},
		{get, order, "clusters/order/max_age", "", NoSuchPath, "clusters/order/max_age: is not set: there is name, protocol, endpoints"},
		{get, order, "log/level/x", "", NotAContainer, `log/level: is not a mapping or a list, so there is no "x" in it`},
		{get, order, "clusters/order/protocol/x", "", NotAContainer, `clusters/order/protocol: is text, so there is no "x" in it`},
		{get, order, "listeners/in/filters/x", "", NoSuchPath, "listeners/in/filters/x: is no number: the items of this list are counted from 0"},
		{get, order, "listeners/in/filters/01", "", NoSuchPath, "listeners/in/filters/01: is no number: the items of this list are counted from 0"},
		{put, order, "listeners/in/filters/3", "{}", NoSuchPath, "listeners/in/filters/3: there is no such item: the list has 2"},
		{get, order, "listeners/in/filters/2", "", NoSuchPath, "listeners/in/filters/2: there is no such item: there is none"},
		{get, order, "clusters//order", "", MalformedPath, "clusters: the next segment is empty"},
		{get, order, "clusters/%zz", "", MalformedPath, `clusters: the next segment, "%zz", is not escaped as in a URL`},
		{get, order, strings.Repeat("x", 9000), "", MalformedPath, "the path has 9000 bytes; it may have 8192"},
		{get, twice, "clusters/a", "", Ambiguous, "clusters/a: 2 items of the list are called that"},
		{put, twice, "clusters/a", "{}", Ambiguous, "clusters/a: 2 items of the list are called that"},
		{get, twice, "routes/r/rules/rule-2", "", Ambiguous, "routes/r/rules/rule-2: 2 items of the list are called that"},
		{put, order, "clusters/order", "{name: other}", KeyDiffers, "clusters/order: the name in the value is other: it must be that of the path"},
		{put, order, "clusters/order", "[]", KeyDiffers, "clusters/order: must be a mapping of fields to values, not a list"},
		{put, order, "clusters/order/endpoints/a:1", "{address: 'a:2'}", KeyDiffers, "clusters/order/endpoints/a:1: the address in the value is a:2: it must be that of the path"},
		{patch, order, "clusters/order", `{"name": "x"}`, KeyDiffers, "clusters/order: the name in the value is x: it must be that of the path"},
		{patch, order, "clusters/order", `{"name": null}`, KeyDiffers, "clusters/order: the name in the value is none: it must be that of the path"},
		{patch, order, "clusters/new", `{}`, NoSuchPath, "clusters/new: there is no such item: there is order, spare"},
		{patch, order, "clusters/order", `null`, NotEditable, "clusters/order: the patch is null, which deletes: delete it instead"},
		{put, order, "log/level", "~", NotEditable, "log/level: null is no value: delete it instead"},
		{put, order, "log/level", "", NotEditable, "log/level: null is no value: delete it instead"},
		{del, order, "", "", NotEditable, "the whole configuration cannot be deleted"},
		{del, order, "log", "", NoSuchPath, "log: is not set: there is listeners, routes, clusters"},
		{put, order, "clusters/order/max_reqests", "1", NoSuchPath, "clusters/order/max_reqests: there is no such field (did you mean max_requests?): there is name, protocol, " +
			"endpoints, balancer, hash_header, slow_start, panic_threshold, connections_per_endpoint, max_connections, max_pending, max_pending_bytes, max_requests, " +
			"retry_budget, max_retry_bytes, connect_timeout, heartbeat_interval, heartbeat_misses, read_timeout, write_timeout, max_queued and 6 more"},
	} {
		err := tt.do(document(t, tt.file), tt.path, tt.value)
		e, ok := errors.AsType[*PathError](err)
		if !ok || e.Error() != tt.want || e.Reason != tt.reason {
			t.Errorf("%.80s with %q gives\n%v, want\n%s (%s)", tt.path, tt.value, err, tt.want, tt.reason)
		}
	}
	for value, want := range map[string]string{
		"{": "reading YAML", "a: 1\n---\nb: 1": "more than one YAML document", strings.Repeat(" ", maxFile+1): "larger than 16MiB",
	} {
		_, err := document(t, order).Put("log", []byte(value))
		if faults, ok := errors.AsType[*Errors](err); !ok || !strings.Contains(faults.Error(), want) {
			t.Errorf("putting %.20q gives %v, want an *Errors with %q", value, err, want)
		}
	}
}

func TestEdits(t *testing.T) {
	for _, tt := range []struct{ name, op, path, value, at, want string }{
		{"a scalar as YAML", "put", "log/level", "debug", "log", `{"level":"debug"}`},
		{"a scalar as JSON", "put", "log/level", `"debug"`, "log", `{"level":"debug"}`},
		{"a new item takes its key from the path", "put", "clusters/order/endpoints/b:1", "{weight: 1}", "clusters/order/endpoints/b:1", `{"address":"b:1","weight":1}`},
		{
			"an item is replaced in its place", "put", "clusters/order/endpoints/127.0.0.1:12200", "{}", "clusters/order/endpoints",
			`[{"address":"127.0.0.1:12200"},{"address":"unix:/run/order"}]`,
		},
		{"a rule without a name stays without", "put", "routes/rpc/rules/rule-2", "{cluster: spare}", "routes/rpc/rules/rule-2", `{"cluster":"spare"}`},
		{"a new rule is named", "put", "routes/rpc/rules/last", "{cluster: spare}", "routes/rpc/rules/last", `{"name":"last","cluster":"spare"}`},
		{"an item behind the last", "put", "listeners/in/filters/2", "{rate_limit: {rate: 9}}", "listeners/in/filters/2", `{"rate_limit":{"rate":9}}`},
		{"a list that was not there", "put", "listeners/in/connection_filters/0", "{}", "listeners/in/connection_filters", `[{}]`},
		{"an entry of a mapping", "put", "routes/rpc/rules/rule-2/headers/set/a%2Fb", "x", "routes/rpc/rules/rule-2/headers", `{"set":{"a/b":"x"}}`},
		{"a list as a whole", "put", "clusters/order/endpoints", "[{address: 'b:1'}]", "clusters/order/endpoints", `[{"address":"b:1"}]`},
		{"an item's key by itself", "put", "clusters/order/name", "x", "clusters/x/name", `"x"`},
		{
			"a patch", "patch", "clusters/order", `{"max_age":"1h","protocol":null}`, "clusters/order",
			`{"name":"order","max_age":"1h","endpoints":[{"address":"127.0.0.1:12200","weight":5},{"address":"unix:/run/order"}]}`,
		},
		{"a patch with a list replaces it", "patch", "clusters/order", `{"endpoints":[{"address":"b:1"}]}`, "clusters/order/endpoints", `[{"address":"b:1"}]`},
		{"a patch of what is not set", "patch", "log", `{"level":"warn","format":null}`, "log", `{"level":"warn"}`},
		{"a patch of the whole", "patch", "", `{"log":{"level":"warn"}}`, "log", `{"level":"warn"}`},
		{
			"a field goes", "delete", "clusters/order/protocol", "", "clusters/order",
			`{"name":"order","endpoints":[{"address":"127.0.0.1:12200","weight":5},{"address":"unix:/run/order"}]}`,
		},
		{"an item goes", "delete", "clusters/order/endpoints/127.0.0.1:12200", "", "clusters/order/endpoints", `[{"address":"unix:/run/order"}]`},
		{"a filter goes", "delete", "listeners/in/filters/0", "", "listeners/in/filters", `[{"rate_limit":{"rate":8}}]`},
	} {
		d := document(t, order)
		before := string(d.JSON())
		var edited *Document
		var err error
		switch tt.op {
		case "put":
			edited, err = d.Put(tt.path, []byte(tt.value))
		case "patch":
			edited, err = d.Patch(tt.path, []byte(tt.value))
		case "delete":
			edited, err = d.Delete(tt.path)
		}
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if got, err := edited.Get(tt.at); err != nil || string(got.JSON()) != tt.want {
			t.Errorf("%s: %s is then\n%s, %v; want\n%s", tt.name, tt.at, got.JSON(), err, tt.want)
		}
		if again, _ := d.root.canonical(nil); string(document(t, string(again)).JSON()) != before {
			t.Errorf("%s: the old document has changed", tt.name)
		}
	}
}

// The examples of RFC 7386, appendix A.
func TestMergePatch(t *testing.T) {
	for _, tt := range [][3]string{
		{`{"a":"b"}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"b"}`, `{"b":"c"}`, `{"a":"b","b":"c"}`},
		{`{"a":"b"}`, `{"a":null}`, `{}`},
		{`{"a":"b","b":"c"}`, `{"a":null}`, `{"b":"c"}`},
		{`{"a":["b"]}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"c"}`, `{"a":["b"]}`, `{"a":["b"]}`},
		{`{"a":{"b":"c"}}`, `{"a":{"b":"d","c":null}}`, `{"a":{"b":"d"}}`},
		{`{"a":[{"b":"c"}]}`, `{"a":[1]}`, `{"a":[1]}`},
		{`["a","b"]`, `["c","d"]`, `["c","d"]`},
		{`{"a":"b"}`, `["c"]`, `["c"]`},
		{`{"a":"foo"}`, `null`, `null`},
		{`{"a":"foo"}`, `"bar"`, `"bar"`},
		{`{"e":null}`, `{"a":1}`, `{"a":1,"e":null}`},
		{`[1,2]`, `{"a":"b","c":null}`, `{"a":"b"}`},
		{`{}`, `{"a":{"bb":{"ccc":null}}}`, `{"a":{"bb":{}}}`},
	} {
		target, err := parseNode([]byte(tt[0]))
		if err != nil {
			t.Fatal(err)
		}
		patch, err := parseNode([]byte(tt[1]))
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := mergePatch(target, patch).canonical(nil); string(got) != tt[2] {
			t.Errorf("%s patched with %s is %s, want %s", tt[0], tt[1], got, tt[2])
		}
		if got, _ := target.canonical(nil); string(got) != tt[0] {
			t.Errorf("patching changed %s to %s", tt[0], got)
		}
	}
}

// What an edit puts in is checked as it would be in a file.
func TestEditedDocumentIsChecked(t *testing.T) {
	d, err := document(t, order).Put("clusters/order/endpoints/a:1", []byte("{weight: 1, weight: 2}"))
	if err != nil {
		t.Fatal(err)
	}
	if d, err = d.Patch("log", []byte(`{"level": "warn", "level": "warm", "format": yes}`)); err != nil {
		t.Fatal(err)
	}
	if d, err = d.Put("clusters/spare/endpoints/127.0.0.1:12201", []byte("{address: '127.0.0.1:12201', wieght: 2}")); err != nil {
		t.Fatal(err)
	}
	_, err = d.Config()
	faults, ok := errors.AsType[*Errors](err)
	if !ok {
		t.Fatalf("a document with faults gives %v, want an *Errors", err)
	}
	want := []Fault{
		{"clusters[0] (order).endpoints[2].weight", "/clusters/0/endpoints/2/weight", "is given more than once"},
		{"clusters[1] (spare).endpoints[0].wieght", "/clusters/1/endpoints/0/wieght", "there is no such field (did you mean weight?)"},
		{"log.level", "/log/level", "is given more than once"},
		{"log.format", "/log/format", `must be text, not a boolean: put it in quotes: "yes"`},
	}
	if diff := cmp.Diff(want, faults.Faults); diff != "" {
		t.Errorf("the faults differ (-want +got):\n%s", diff)
	}
}

// A few aliases make a small file large. It is refused before it is written out.
func TestDocumentTooLarge(t *testing.T) {
	text := "a: &a " + strings.Repeat("x", 1<<20) + "\nb: [" + strings.Repeat("*a, ", 50) + "]\n"
	if _, err := ParseDocument([]byte(text)); err == nil || !strings.Contains(err.Error(), "larger than 16MiB when all of it is written out") {
		t.Errorf("a document that is large when it is written out gives %v", err)
	}
	d := document(t, `{"a":"`+strings.Repeat("x", maxFile-100)+`"}`)
	if _, err := d.Put("log/level", []byte(`"`+strings.Repeat("y", 200)+`"`)); err == nil {
		t.Error("an edit made a document larger than a file may be")
	}
	// Nor is one made that could not be read again.
	d = document(t, `{"a":"`+strings.Repeat("-", maxMarks-100)+`"}`)
	if _, err := d.Put("log/level", []byte(`"`+strings.Repeat("-", 200)+`"`)); err == nil || !strings.Contains(err.Error(), "there may be 1000000") {
		t.Errorf("an edit that makes a document of too many values gives %v", err)
	}
}

// What a file's canonical forms say is what it says, and they are their own canonical forms.
func TestCanonicalForms(t *testing.T) {
	check := func(t fatal, d *Document) {
		t.Helper()
		text, err := d.YAML()
		if err != nil {
			t.Fatalf("a document has no YAML: %v", err)
		}
		for _, form := range []string{string(d.JSON()), string(text)} {
			if got := document(t, form); !got.Equal(d) {
				t.Fatalf("a canonical form has another:\n%s\n%s", form, got.JSON())
			}
		}
		want, err := d.Config()
		if err != nil {
			t.Fatalf("a valid document is not: %v", err)
		}
		got, err := document(t, string(text)).Config()
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Fatalf("the canonical form gives another configuration, %v (-want +got):\n%s", err, diff)
		}
	}
	paths := files(t, "good")
	examples, err := filepath.Glob(filepath.Join(root, "examples/*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(paths, examples...) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		check(t, document(t, string(data)))
	}
	rapid.Check(t, func(t *rapid.T) { check(t, drawDocument(t)) })
}

// drawDocument draws a valid document, which says all that may be said.
func drawDocument(t *rapid.T) *Document {
	d := &drawer{t: t, schema: tree()}
	text, err := json.Marshal(d.config())
	if err != nil {
		t.Fatalf("a configuration has no JSON: %v", err)
	}
	return document(t, string(text))
}
