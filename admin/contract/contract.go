// Package contract holds the answers of the admin door against its OpenAPI document. It is for tests alone, of whoever asks
// the door: nothing of the program imports it.
package contract

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/google/jsonschema-go/jsonschema"
)

// base is where the document is, for its references.
const base = "http://localhost/v1/openapi.json"

// Document is an OpenAPI document to check by. It may be used by many goroutines.
type Document struct {
	// Static after Parse.
	Operations []*Operation // in the order of the document
	root       map[string]any
	problem    *jsonschema.Resolved
}

// Operation is what one method does at a path.
type Operation struct {
	ID, Method string
	Path       string // as the document has it: /v1/config/{path}
	Summary    string
	Tags       []string
	Parameters []Parameter // those of the path, too
	Responses  map[int]*Response
	Bodies     map[string]any // of requests, by the names of their examples
	BodyType   string         // the first of these by name; empty where there is no body

	// Static after Parse.
	matches *regexp.Regexp // the escaped path of a request
	at      int            // in the text
}

// Parameter is one of an operation.
type Parameter struct {
	Name, In, Description string
	Required              bool
}

// Response is one of an operation.
type Response struct {
	Required []string // headers
	Content  map[string]*Content

	// Static after Parse.
	shared string // its name under components, if that is where it is
}

// Content is a response in one type of media.
type Content struct {
	Examples map[string]Example

	// Static after Parse.
	schema *jsonschema.Resolved // nil: anything
	event  *jsonschema.Resolved // of a stream: the data of an event
}

// Parse reads a document. schema is the configuration's, to which it refers. All that is wrong with it is in the error.
func Parse(document, schema []byte) (*Document, error) {
	d := &Document{}
	if err := json.Unmarshal(document, &d.root); err != nil {
		return nil, fmt.Errorf("reading the document: %w", err)
	}
	p := &parser{document: d, schema: schema, resolved: map[string]*jsonschema.Resolved{}}
	p.problem()
	for path, item := range object(d.root["paths"]) {
		item := object(item)
		for _, method := range []string{"get", "put", "post", "delete", "options", "patch", "trace"} {
			if spec, ok := item[method]; ok {
				p.operation(strings.ToUpper(method), path, object(spec), list(item["parameters"]))
			}
		}
	}
	for _, o := range d.Operations {
		// Objects of JSON lose their order, but each operation's id stands in the text once.
		if o.at = strings.Index(string(document), `"operationId": "`+o.ID+`"`); o.at < 0 {
			p.wrong("%s %s has no operationId of its own", o.Method, o.Path)
		}
	}
	slices.SortFunc(d.Operations, func(a, b *Operation) int { return cmp.Compare(a.at, b.at) })
	return d, errors.Join(p.errs...)
}

// parser collects what is wrong.
type parser struct {
	document *Document
	schema   []byte
	resolved map[string]*jsonschema.Resolved // by the text of what they were made from
	errs     []error
}

func (p *parser) wrong(format string, args ...any) {
	p.errs = append(p.errs, fmt.Errorf(format, args...))
}

// problem keeps the schema of every answer that says no.
func (p *parser) problem() {
	p.document.problem = p.resolve("Problem", map[string]any{"$ref": "#/components/schemas/Problem"})
}

func (p *parser) operation(method, path string, spec map[string]any, shared []any) {
	o := &Operation{
		Method: method, Path: path, ID: text(spec["operationId"]), Summary: text(spec["summary"]),
		Responses: map[int]*Response{}, Bodies: map[string]any{},
	}
	for _, tag := range list(spec["tags"]) {
		o.Tags = append(o.Tags, text(tag))
	}
	for _, parameter := range append(slices.Clone(shared), list(spec["parameters"])...) {
		at, _ := p.follow(parameter)
		required, _ := at["required"].(bool)
		o.Parameters = append(o.Parameters, Parameter{text(at["name"]), text(at["in"]), text(at["description"]), required})
		if sample, some := at["example"]; some {
			p.valid(fmt.Sprintf("the example of %s of %s", at["name"], o.ID), at["schema"], sample)
		}
	}
	o.matches = pattern(path)
	content := object(object(spec["requestBody"])["content"])
	for _, kind := range slices.Sorted(maps.Keys(content)) {
		for name, example := range object(object(content[kind])["examples"]) {
			o.BodyType, o.Bodies[name] = kind, object(example)["value"]
			p.valid(fmt.Sprintf("the body %s of %s", name, o.ID), object(content[kind])["schema"], o.Bodies[name])
		}
	}
	for code, response := range object(spec["responses"]) {
		n, err := strconv.Atoi(code)
		if err != nil {
			p.wrong("%s: %q is not a status", o.ID, code)
		}
		o.Responses[n] = p.response(o, code, response)
	}
	p.document.Operations = append(p.document.Operations, o)
}

// pattern matches the escaped paths that a template stands for. The last variable {path} may have slashes.
func pattern(path string) *regexp.Regexp {
	expr := regexp.QuoteMeta(path)
	expr = strings.ReplaceAll(expr, `\{path\}`, `.+`)
	return regexp.MustCompile(`^` + regexp.MustCompile(`\\\{[a-z_]+\\\}`).ReplaceAllString(expr, `[^/]+`) + `$`)
}

func (p *parser) response(o *Operation, code string, spec any) *Response {
	at, name := p.follow(spec)
	r := &Response{Content: map[string]*Content{}, shared: name}
	for header, is := range object(at["headers"]) {
		described, _ := p.follow(is)
		if required, _ := described["required"].(bool); required {
			r.Required = append(r.Required, header)
		}
	}
	for kind, is := range object(at["content"]) {
		c := &Content{Examples: map[string]Example{}}
		what := o.ID + " " + code
		if schema, some := object(is)["schema"]; some {
			c.schema = p.resolve(what, schema)
		}
		if schema, some := object(is)["x-event"]; some {
			c.event = p.resolve(what, schema)
		}
		for name, example := range object(object(is)["examples"]) {
			c.Examples[name] = p.example(o, name, object(example))
			p.valid(what+", the example "+name, object(is)["schema"], object(example)["value"])
		}
		r.Content[kind] = c
	}
	return r
}

// follow is an object, or the one that it refers to and that one's name.
func (p *parser) follow(v any) (at map[string]any, name string) {
	at = object(v)
	ref, some := at["$ref"].(string)
	if !some {
		return at, ""
	}
	var found any = p.document.root
	for step := range strings.SplitSeq(strings.TrimPrefix(ref, "#/"), "/") {
		found, name = object(found)[step], step
	}
	if found == nil || !strings.HasPrefix(ref, "#/") {
		p.wrong("nothing is at %s", ref)
	}
	return object(found), name
}

// valid checks a value that the document itself gives.
func (p *parser) valid(what string, schema, value any) {
	if resolved := p.resolve(what, schema); resolved != nil {
		if err := resolved.Validate(value); err != nil {
			p.wrong("%s: %w", what, err)
		}
	}
}

// resolve makes a schema of the document one that checks. Its objects have no other fields than those that are described:
// clients may get more one day, but then it is described.
func (p *parser) resolve(what string, schema any) *jsonschema.Resolved {
	data, err := json.Marshal(p.standalone(schema))
	if err != nil {
		p.wrong("%s: %w", what, err)
		return nil
	}
	if known, some := p.resolved[string(data)]; some {
		return known
	}
	var s jsonschema.Schema
	if err := json.Unmarshal(data, &s); err != nil {
		p.wrong("%s: %w", what, err)
		return nil
	}
	resolved, err := s.Resolve(&jsonschema.ResolveOptions{BaseURI: base, Loader: p.load})
	if err != nil {
		p.wrong("%s: %w", what, err)
	}
	p.resolved[string(data)] = resolved
	return resolved
}

const componentSchemas = "#/components/schemas/"

// standalone is a schema with the others that it needs under $defs, all closed.
func (p *parser) standalone(schema any) map[string]any {
	schemas, defs := object(object(p.document.root["components"])["schemas"]), map[string]any{}
	var closed func(v any) any
	closed = func(v any) any {
		switch v := v.(type) {
		case map[string]any:
			out := make(map[string]any, len(v)+1)
			for key, inner := range v {
				out[key] = closed(inner)
			}
			if _, some := v["properties"].(map[string]any); some && v["type"] == "object" && v["additionalProperties"] == nil {
				out["additionalProperties"] = false
			}
			if name, ours := strings.CutPrefix(text(v["$ref"]), componentSchemas); ours {
				out["$ref"] = "#/$defs/" + name
				if there, some := schemas[name]; some && defs[name] == nil {
					defs[name] = true // in case it needs itself
					defs[name] = closed(there)
				}
			}
			return out
		case []any:
			out := make([]any, len(v))
			for i := range v {
				out[i] = closed(v[i])
			}
			return out
		default:
			return v
		}
	}
	whole := map[string]any{}
	if schema != nil {
		whole = object(closed(schema))
	}
	whole["$defs"] = defs
	return whole
}

// load is what the document may refer to outside of itself.
func (p *parser) load(at *url.URL) (*jsonschema.Schema, error) {
	if at.Path != "/v1/schema.json" {
		return nil, fmt.Errorf("there is nothing at %s", at)
	}
	var s jsonschema.Schema
	err := json.Unmarshal(p.schema, &s)
	return &s, err
}

// Find is the operation that a request asks for; nil where there is none. HEAD is as GET.
func (d *Document) Find(method, escapedPath string) *Operation {
	if method == http.MethodHead {
		method = http.MethodGet
	}
	for _, o := range d.Operations {
		if o.Method == method && o.matches.MatchString(escapedPath) {
			return o
		}
	}
	return nil
}

// Check says what is wrong with an answer to a request.
func (d *Document) Check(r *http.Request, code int, header http.Header, body []byte) error {
	said := func(format string, args ...any) error {
		return fmt.Errorf("%s %s gives %d, and %w\n%.500s", r.Method, r.URL.RequestURI(), code, fmt.Errorf(format, args...), body)
	}
	kind, _, err := mime.ParseMediaType(header.Get("Content-Type"))
	if header.Get("Content-Type") != "" && err != nil {
		return said("its Content-Type is none: %w", err)
	}
	o := d.Find(r.Method, r.URL.EscapedPath())
	headers, beside := besides[code]
	beside = beside && (o == nil || code == http.StatusRequestEntityTooLarge)
	var want *Response
	if o != nil {
		want = o.Responses[code]
	}
	switch {
	case want == nil && !beside:
		return said("the document does not have that")
	case want == nil:
		want = &Response{Required: headers, Content: map[string]*Content{"application/problem+json": {schema: d.problem}}}
	}
	for _, name := range want.Required {
		if header.Get(name) == "" {
			return said("there is no %s", name)
		}
	}
	c := want.Content[kind]
	switch {
	case len(want.Content) == 0 && len(body) == 0:
		return nil
	case c == nil:
		return said("it is %q, of which the document says nothing", kind)
	case c.schema == nil, len(body) == 0 && r.Method == http.MethodHead:
		return nil
	}
	value, err := valueOf(kind, body)
	if err != nil {
		return said("its body is no %s: %w", kind, err)
	}
	if value == nil {
		return nil
	}
	if c.event != nil {
		return c.checkEvents(list(value), said)
	}
	if err := c.schema.Validate(value); err != nil {
		return said("it is not as the document says: %w", err)
	}
	return nil
}

// checkEvents says what is wrong with the events of a stream.
func (c *Content) checkEvents(events []any, said func(string, ...any) error) error {
	for _, e := range events {
		data, some := object(e)["data"]
		if !some {
			continue // it is for the client itself
		}
		if err := c.event.Validate(data); err != nil {
			return said("an event is not as the document says: %w", err)
		}
		if kind := object(data)["type"]; kind != object(e)["event"] {
			return said("the event %v has data of the type %v", object(e)["event"], kind)
		}
	}
	return nil
}

// besides are the statuses that a path may have which is not there, and the headers that come with them.
var besides = map[int][]string{
	http.StatusUnauthorized: {"WWW-Authenticate"}, http.StatusForbidden: nil, http.StatusNotFound: nil, http.StatusMethodNotAllowed: {"Allow"},
	http.StatusRequestEntityTooLarge: nil, http.StatusMisdirectedRequest: nil, http.StatusTooManyRequests: {"Retry-After"},
}

// valueOf is a body as a schema sees it; nil where schemas have no say.
func valueOf(kind string, body []byte) (v any, err error) {
	switch {
	case strings.HasSuffix(kind, "json"):
		err = json.Unmarshal(body, &v)
		return v, err
	case strings.HasPrefix(kind, "text/plain"):
		return string(body), nil
	case kind == eventStream:
		return eventsOf(string(body))
	default:
		return nil, nil
	}
}

func object(v any) map[string]any {
	m, _ := v.(map[string]any)
	return m
}

func list(v any) []any {
	l, _ := v.([]any)
	return l
}

func text(v any) string {
	s, _ := v.(string)
	return s
}
