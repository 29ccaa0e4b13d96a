package admin

import (
	"encoding/json"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/google/go-cmp/cmp"
	"github.com/google/jsonschema-go/jsonschema"

	"github.com/relevo-proxy/relevo/admin/contract"
	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/server/config"
)

var parsed = sync.OnceValues(func() (*contract.Document, error) { return contract.Parse(OpenAPI(), config.JSONSchema()) })

// contractOf is the document of the door, which must be whole.
func contractOf(t *testing.T) *contract.Document {
	t.Helper()
	d, err := parsed()
	if err != nil {
		t.Fatalf("the OpenAPI document is broken: %v", err)
	}
	return d
}

// described are the operations of the document, as "GET /v1/config/{path}".
func described(d *contract.Document) (all []string) {
	for _, o := range d.Operations {
		all = append(all, o.Method+" "+o.Path)
	}
	slices.Sort(all)
	return all
}

// asDescribed is a path of the router as the document has it.
func asDescribed(path string) string { return strings.Replace(path, "*", "{path}", 1) }

// idleControl is a Control of which nothing is asked but what the routes are made of.
type idleControl struct{ Control }

func (*idleControl) Events() *Events { return NewEvents(1, time.Now()) }

func (*idleControl) Profiles() bool { return false }

func TestDocumentIsTheRouter(t *testing.T) {
	routes := router(adminRoutes(stats.NewRegistry(), &fakeState{}, &idleControl{}, testBuild)).(chi.Routes)
	var routed, heads []string
	err := chi.Walk(routes, func(method, path string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		if method == http.MethodHead {
			heads = append(heads, http.MethodGet+" "+asDescribed(path))
		} else {
			routed = append(routed, method+" "+asDescribed(path))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(routed)
	if diff := cmp.Diff(routed, described(contractOf(t))); diff != "" {
		t.Errorf("the document has not what the router has (- router, + document):\n%s", diff)
	}
	gets := slices.DeleteFunc(routed, func(s string) bool { return !strings.HasPrefix(s, http.MethodGet) })
	slices.Sort(heads)
	if diff := cmp.Diff(gets, heads); diff != "" {
		t.Errorf("not every GET has a HEAD, as the document says (- GET, + HEAD):\n%s", diff)
	}
}

func TestDocumentIsWhole(t *testing.T) {
	var root struct{ Tags []struct{ Name string } }
	if err := json.Unmarshal(OpenAPI(), &root); err != nil {
		t.Fatal(err)
	}
	tags := map[string]int{}
	for _, tag := range root.Tags {
		tags[tag.Name] = 0
	}
	ids := map[string]bool{}
	for _, o := range contractOf(t).Operations {
		what := o.Method + " " + o.Path
		if ids[o.ID] || !regexp.MustCompile(`^[a-z]+[A-Z][A-Za-z]+$`).MatchString(o.ID) {
			t.Errorf("%s has the operationId %q, want a verb and a noun that no other has", what, o.ID)
		}
		ids[o.ID] = true
		if o.Summary == "" || strings.HasSuffix(o.Summary, ".") {
			t.Errorf("%s has the summary %q, want a phrase without a full stop", what, o.Summary)
		}
		if len(o.Tags) != 1 {
			t.Errorf("%s has the tags %v, want one", what, o.Tags)
		}
		for _, tag := range o.Tags {
			if _, known := tags[tag]; !known {
				t.Errorf("%s has the tag %q, which the document does not describe", what, tag)
			}
			tags[tag]++
		}
		checkParameters(t, what, o)
		checkStatuses(t, what, o)
		if without := withoutExample[o.ID]; hasExample(o) != (without == "") {
			t.Errorf("%s has an example of an answer that says yes: %v; but the reason to have none is %q", what, hasExample(o), without)
		}
	}
	for tag, n := range tags {
		if n == 0 {
			t.Errorf("nothing has the tag %s", tag)
		}
	}
}

// withoutExample are the operations whose answers have no example, and why.
var withoutExample = map[string]string{
	"getSchema":       "it is a document of its own, which TestDocumentIsServed compares",
	"getSchemaFile":   "as getSchema",
	"getOpenAPI":      "as getSchema",
	"closeConnection": "what says yes has no body; TestCloseConnections in server has all of it",
}

func hasExample(o *contract.Operation) bool {
	for code, r := range o.Responses {
		for _, c := range r.Content {
			if code < 300 && len(c.Examples) > 0 {
				return true
			}
		}
	}
	return false
}

func checkParameters(t *testing.T, what string, o *contract.Operation) {
	t.Helper()
	var inPath, said []string
	for _, m := range regexp.MustCompile(`\{([a-z_]+)\}`).FindAllStringSubmatch(o.Path, -1) {
		inPath = append(inPath, m[1])
	}
	seen := map[string]bool{}
	for _, p := range o.Parameters {
		if p.Description == "" || seen[p.In+" "+p.Name] {
			t.Errorf("%s has the parameter %s twice, or without a description", what, p.Name)
		}
		seen[p.In+" "+p.Name] = true
		if p.In == "path" {
			said = append(said, p.Name)
			if !p.Required {
				t.Errorf("%s: %s is in the path, and not required", what, p.Name)
			}
		}
	}
	if diff := cmp.Diff(inPath, said); diff != "" {
		t.Errorf("%s: the parameters of its path are others than those described (- path, + described):\n%s", what, diff)
	}
}

// changes are the statuses that any change of the configuration may have.
var changes = []int{400, 409, 412, 422, 500, 503}

func checkStatuses(t *testing.T, what string, o *contract.Operation) {
	t.Helper()
	codes := slices.Sorted(maps.Keys(o.Responses))
	if len(codes) == 0 || codes[0] < 200 || codes[0] > 299 {
		t.Fatalf("%s has the statuses %v, want one that says yes", what, codes)
	}
	want := []int{403, 421, 429} // the door's own
	if probe := o.Path == "/healthz" || o.Path == "/readyz"; probe == slices.Contains(codes, 401) {
		t.Errorf("%s has the statuses %v, want 401 unless it is for everybody", what, codes)
	}
	headers := map[string]bool{}
	for _, p := range o.Parameters {
		headers[p.Name] = p.In == "header"
	}
	if headers["If-Match"] {
		want = append(want, changes...)
	}
	if headers["If-Match"] && o.ID != "patchEndpoint" { // which does not ask for it
		want = append(want, 428)
	}
	if o.BodyType != "" {
		want = append(want, 413, 415)
	}
	for _, code := range want {
		if !slices.Contains(codes, code) {
			t.Errorf("%s has the statuses %v, want %d, too", what, codes, code)
		}
	}
	for code, r := range o.Responses {
		for kind := range r.Content {
			notYet := code == 503 && slices.Contains(o.Tags, "probes") // which is for people
			if isProblem := kind == "application/problem+json"; isProblem != (code >= 400 && !notYet) {
				t.Errorf("%s: %d is %s, want a problem for what says no, and nothing else", what, code, kind)
			}
		}
	}
}

// The document is valid by the schema that the OpenAPI Initiative gives for it.
func TestDocumentIsOpenAPI(t *testing.T) {
	data, err := os.ReadFile("testdata/openapi-3.1-schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var schema jsonschema.Schema
	if err := json.Unmarshal(data, &schema); err != nil {
		t.Fatal(err)
	}
	resolved, err := schema.Resolve(nil)
	if err != nil {
		t.Fatal(err)
	}
	var v map[string]any
	if err := json.Unmarshal(OpenAPI(), &v); err != nil {
		t.Fatal(err)
	}
	if err := resolved.Validate(v); err != nil {
		t.Errorf("the document is no OpenAPI 3.1: %v", err)
	}
	// What a schema that takes anything would let pass.
	v["paths"].(map[string]any)["/v1/status"].(map[string]any)["get"].(map[string]any)["responses"] = "none"
	if resolved.Validate(v) == nil {
		t.Error("the schema of OpenAPI 3.1 takes responses that are none")
	}
}

func TestDocumentIsServed(t *testing.T) {
	c := doors(t, &fakeState{})["admin-unix"]
	schema := string(config.JSONSchema())
	for path, want := range map[string]string{"/v1/openapi.json": string(OpenAPI()), "/v1/schema": schema, "/v1/schema.json": schema} {
		got := ask(t, c, "GET", base+path)
		etag := got.header.Get("ETag")
		if got.code != 200 || got.body != want || got.header.Get("Cache-Control") != "no-cache" {
			t.Errorf("GET %s gives %d, Cache-Control %q and %d bytes; want 200, no-cache and %d bytes", path, got.code,
				got.header.Get("Cache-Control"), len(got.body), len(want))
		}
		for seen, code := range map[string]int{etag: 304, `"0", W/` + etag: 304, "*": 304, `"0"`: 200} {
			r, err := http.NewRequestWithContext(t.Context(), "GET", base+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("If-None-Match", seen)
			resp, err := c.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != code || resp.Header.Get("ETag") != etag {
				t.Errorf("GET %s, If-None-Match: %s gives %d with ETag %s; want %d and %s", path, seen, resp.StatusCode, resp.Header.Get("ETag"), code, etag)
			}
		}
	}
}

// docs/api.md lists what the document has.
func TestDocumentedRequests(t *testing.T) {
	page, err := os.ReadFile("../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("(?m)^\\| ([A-Z]+) ((?:`/[^`]*`(?:, )?)+)")
	var listed []string
	for _, m := range row.FindAllStringSubmatch(string(page), -1) {
		for path := range strings.SplitSeq(m[2], ", ") {
			listed = append(listed, m[1]+" "+asDescribed(strings.Trim(path, "`")))
		}
	}
	slices.Sort(listed)
	if diff := cmp.Diff(described(contractOf(t)), listed); diff != "" {
		t.Errorf("docs/api.md lists others than the document has (- document, + docs/api.md):\n%s", diff)
	}
}

// The checker of contracts sees what is wrong with an answer.
func TestContractIsNotBlind(t *testing.T) {
	d := contractOf(t)
	jsonHeader := http.Header{"Content-Type": {"application/json"}}
	for what, tc := range map[string]struct {
		method, path string
		code         int
		header       http.Header
		body         string
		want         string
	}{
		"a field that is not described": {"GET", "/v1/build", 200, jsonHeader, `{"version":"","commit":"","go_version":"","x":1}`, "unexpected additional properties"},
		"a field that is missing":       {"GET", "/v1/build", 200, jsonHeader, `{"version":"","commit":""}`, "missing"},
		"another type":                  {"GET", "/v1/failures", 200, jsonHeader, `{"total":0,"failures":null}`, "failures"},
		"another status":                {"GET", "/v1/build", 201, jsonHeader, `{}`, "does not have that"},
		"another kind of body":          {"GET", "/v1/build", 200, http.Header{"Content-Type": {"text/html"}}, ``, "text/html"},
		"a header that is missing":      {"GET", "/v1/config", 200, jsonHeader, `{}`, "there is no"},
		"another event": {
			"GET", "/v1/events", 200,
			http.Header{"Content-Type": {"text/event-stream"}},
			"event: end\ndata: {\"type\":\"end\",\"time\":\"2026-11-27T01:18:59Z\",\"fin\":1}\n\n", "fin",
		},
		"an event of another type": {
			"GET", "/v1/events", 200,
			http.Header{"Content-Type": {"text/event-stream"}},
			"event: lost\ndata: {\"type\":\"end\",\"time\":\"2026-11-27T01:18:59Z\"}\n\n", "lost",
		},
		"429 without an end": {"GET", "/v1/nothing", 429, http.Header{"Content-Type": {"application/problem+json"}}, `{}`, "Retry-After"},
		"no JSON":            {"GET", "/v1/build", 200, jsonHeader, `{`, "no application/json"},
		"an operation that is not there": {
			"POST", "/v1/build", 200, jsonHeader, `{}`, "does not have that",
		},
		"a configuration that is none": {
			"GET", "/v1/config", 200,
			http.Header{"Content-Type": {"application/json"}, "Etag": {`"x"`}, "X-Revision": {"1"}, "Vary": {"Accept"}},
			`{"clusters": 1}`, "clusters",
		},
	} {
		r, err := http.NewRequestWithContext(t.Context(), tc.method, base+tc.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Check(r, tc.code, tc.header, []byte(tc.body)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: the check says %v, want something with %q", what, err, tc.want)
		}
	}
}
