package contract

import (
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Example is an example of an answer, with the request that brings it.
type Example struct {
	Name  string
	Of    *Operation // that is asked
	Value any        // the answer

	// Request is nil where the document has no x-request.
	Request *Request
}

// Request is an x-request.
type Request struct {
	At           string // which process is asked; empty for the one that most are of
	Method, Path string // with its parameters
	Header       map[string]string
	Body         string
}

func (p *parser) example(o *Operation, name string, spec map[string]any) Example {
	e := Example{Name: name, Of: o, Value: spec["value"]}
	asked := object(spec["x-request"])
	if asked == nil {
		return e
	}
	e.Request = &Request{text(asked["at"]), text(asked["method"]), text(asked["path"]), map[string]string{}, text(asked["body"])}
	for header, value := range object(asked["headers"]) {
		e.Request.Header[header] = text(value)
	}
	if body, some := o.Bodies[name]; some && e.Request.Body == "" {
		data, err := json.Marshal(body)
		if err != nil {
			p.wrong("%s: %w", name, err)
		}
		e.Request.Body = string(data)
		e.Request.Header["Content-Type"] = o.BodyType
	}
	return e
}

// Examples are those of the operations, in the order of the document, with the status that each answer has. Those of
// refusals that operations share come last, once each.
func (d *Document) Examples() iter.Seq2[int, Example] {
	return func(yield func(int, Example) bool) {
		type refusal struct {
			code int
			Example
		}
		shared := map[string]refusal{}
		for _, o := range d.Operations {
			for _, code := range slices.Sorted(maps.Keys(o.Responses)) {
				r := o.Responses[code]
				for _, kind := range slices.Sorted(maps.Keys(r.Content)) {
					for _, name := range slices.Sorted(maps.Keys(r.Content[kind].Examples)) {
						e := r.Content[kind].Examples[name]
						if r.shared != "" {
							if e.Request != nil {
								path, _, _ := strings.Cut(e.Request.Path, "?")
								e.Of = d.Find(e.Request.Method, path)
							}
							shared[r.shared+" "+name] = refusal{code, e}
						} else if !yield(code, e) {
							return
						}
					}
				}
			}
		}
		for _, key := range slices.Sorted(maps.Keys(shared)) {
			if r := shared[key]; !yield(r.code, r.Example) {
				return
			}
		}
	}
}

// volatile are the fields of answers whose values are others each time.
var volatile = map[string]bool{
	"client": true, "total": true, "pid": true, "uid": true, "who": true, "version": true, "commit": true, "go_version": true,
	"local": true, "remote": true, "age": true, "idle": true, "left": true, "memory": true, "descriptors": true,
}

// random matches hashes and the ids of events.
var random = regexp.MustCompile(`^([0-9a-f]{32,64}|[0-9]+-[0-9a-f]+-[0-9]+)$`)

// Compare says where an answer is not as in the example: times, what is random and what is volatile may be others. Of an example
// that is text, each line must be in the answer, however much space is between its words.
func (e *Example) Compare(kind string, body []byte) error {
	value, err := valueOf(kind, body)
	if err != nil {
		return err
	}
	lines, some := e.Value.(string)
	if kind == eventStream {
		want, err := eventsOf(lines)
		if err != nil {
			return err
		}
		return same("", want, value)
	}
	if got, ok := value.(string); ok && some {
		got = strings.Join(strings.FieldsFunc(got, func(r rune) bool { return r == ' ' }), " ")
		for line := range strings.Lines(lines) {
			if !strings.Contains("\n"+got, line) {
				return fmt.Errorf("the line %q is not in\n%.2000s", line, body)
			}
		}
		return nil
	}
	return same("", e.Value, value)
}

func same(path string, want, got any) error {
	differs := fmt.Errorf("%s is %s, and in the example %s", "/"+path, written(got), written(want))
	switch want := want.(type) {
	case map[string]any:
		got, ok := got.(map[string]any)
		if !ok {
			return differs
		}
		for _, key := range slices.Sorted(maps.Keys(want)) {
			there, some := got[key]
			if !some {
				return differs
			}
			if _, is := there.(string); volatile[key] && is == isText(want[key]) {
				continue
			}
			if err := same(path+"/"+key, want[key], there); err != nil {
				return err
			}
		}
		if len(got) != len(want) {
			return differs
		}
	case []any:
		got, ok := got.([]any)
		if !ok || len(got) != len(want) {
			return differs
		}
		for i := range want {
			if err := same(fmt.Sprintf("%s/%d", path, i), want[i], got[i]); err != nil {
				return err
			}
		}
	case string:
		got, ok := got.(string)
		volatile := isTime(want) && isTime(got) || random.MatchString(want) && random.MatchString(got)
		if !ok || want != got && !volatile {
			return differs
		}
	default:
		if want != got {
			return differs
		}
	}
	return nil
}

func isText(v any) bool {
	_, ok := v.(string)
	return ok
}

func isTime(s string) bool {
	_, err := time.Parse(time.RFC3339, s)
	return err == nil
}

func written(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(data)
}
