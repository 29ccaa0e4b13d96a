package config

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// The model of a document is what encoding/json makes of it, and its paths are lists of segments.

func model(t fatal, data []byte) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatalf("a document's JSON is none: %v", err)
	}
	return v
}

// modelKeys are the fields that tell the items of lists apart, by where the list stands: its path, with * for items.
var modelKeys = map[string]string{
	"/listeners": "name", "/routes": "name", "/routes/*/rules": "name", "/routes/*/rules/*/clusters": "cluster",
	"/clusters": "name", "/clusters/*/endpoints": "address",
}

// below is where the part at segment of v stands. What has another kind than it should stands nowhere.
func below(where string, v any, segment string) string {
	_, isList := v.([]any)
	switch keyed := modelKeys[where] != ""; {
	case keyed && isList:
		return where + "/*"
	case keyed:
		return "nowhere"
	default:
		return where + "/" + segment
	}
}

// modelItem is the segment for item i of a list, empty where no path leads to it.
func modelItem(where string, list []any, i int) string {
	key := modelKeys[where]
	if key == "" {
		return strconv.Itoa(i)
	}
	name := func(i int) string {
		item, ok := list[i].(map[string]any)
		if _, given := item[key]; ok && !given && where == "/routes/*/rules" {
			return fmt.Sprintf("rule-%d", i+1)
		}
		s, _ := item[key].(string)
		return s
	}
	for j := range list {
		if j != i && name(j) == name(i) {
			return ""
		}
	}
	return name(i)
}

// part is a part of a model that has a path.
type part struct {
	path  []string
	where string
	value any
	// key and index are what tells an item of a list with keys apart, and its place.
	key   string
	index int
	// isKey says that the part is what tells such an item apart.
	isKey bool
}

// parts are all parts of v.
func parts(v any) []part {
	var all []part
	var walk func(p part)
	walk = func(p part) {
		all = append(all, p)
		child := func(segment string, v any) part {
			return part{path: append(slices.Clone(p.path), segment), where: below(p.where, p.value, segment), value: v}
		}
		switch v := p.value.(type) {
		case map[string]any:
			for _, key := range slices.Sorted(maps.Keys(v)) {
				if key == "" {
					continue
				}
				c := child(key, v[key])
				c.isKey = p.key == key
				walk(c)
			}
		case []any:
			for i := range v {
				if segment := modelItem(p.where, v, i); segment != "" {
					c := child(segment, v[i])
					c.key, c.index = modelKeys[p.where], i
					walk(c)
				}
			}
		}
	}
	walk(part{value: v})
	return all
}

// editModel is v with the part at path replaced by what change makes of it; a nil result takes it away.
func editModel(v any, where string, path []string, change func(any) any) any {
	if len(path) == 0 {
		return change(v)
	}
	next := below(where, v, path[0])
	switch v := v.(type) {
	case map[string]any:
		v = maps.Clone(v)
		if child := editModel(v[path[0]], next, path[1:], change); child != nil {
			v[path[0]] = child
		} else {
			delete(v, path[0])
		}
		return v
	case []any:
		for i := range v {
			if modelItem(where, v, i) != path[0] {
				continue
			}
			if child := editModel(v[i], next, path[1:], change); child != nil {
				v = slices.Clone(v)
				v[i] = child
				return v
			}
			return slices.Delete(slices.Clone(v), i, i+1)
		}
	}
	panic(fmt.Sprintf("the model has no %v below %s", path, where))
}

func escape(path []string) string {
	segments := make([]string, len(path))
	for i := range path {
		segments[i] = url.PathEscape(path[i])
	}
	return strings.Join(segments, "/")
}

// Any sequence of edits gives what it gives on a simple model, whether it is valid or not, and leaves the documents
// before as they were. What Changes says of each is what there is.
func TestEditsAreThoseOfAModel(t *testing.T) {
	scalar := rapid.OneOf(rapid.Just[any]("x"), rapid.Just[any](1.0), rapid.Just[any](true), rapid.Map(words, func(s string) any { return strings.ToValidUTF8(s, "") }))
	small := rapid.OneOf(scalar,
		rapid.Map(rapid.SliceOfN(scalar, 0, 3), func(list []any) any { return append([]any{}, list...) }),
		rapid.Map(rapid.MapOfN(rapid.SampledFrom([]string{"x", "y/z", "~"}), scalar, 0, 3), func(m map[string]any) any { return m }))
	edits := map[string]int{}
	rapid.Check(t, func(t *rapid.T) {
		d, other := drawDocument(t), drawDocument(t)
		m := model(t, d.JSON())
		donors := map[string][]any{} // parts of another document, by where they stand
		for _, p := range parts(model(t, other.JSON())) {
			donors[p.where] = append(donors[p.where], p.value)
		}
		for range rapid.IntRange(1, 12).Draw(t, "edits") {
			at := rapid.SampledFrom(parts(m)).Draw(t, "part")
			path, key := at.path, at.key
			op := rapid.SampledFrom([]string{"put", "put", "patch", "patch", "delete"}).Draw(t, "op")
			if len(path) == 0 && op != "patch" {
				continue
			}
			var value any
			switch donor := donors[at.where]; {
			case op == "put" && len(donor) > 0 && rapid.Bool().Draw(t, "donated"):
				value = rapid.SampledFrom(donor).Draw(t, "donor")
			case op == "put" && key == "":
				value = small.Draw(t, "value")
			default:
				value = rapid.MapOfN(rapid.SampledFrom([]string{"x", "protocol", "rules", "endpoints", "weight", "timeout"}), rapid.OneOf(small, rapid.Just[any](nil)), 0, 4).Draw(t, "patch")
			}
			if op == "put" {
				value = withoutNulls(value) // which are for patches
			}
			object, isObject := value.(map[string]any)
			if op == "put" && key != "" && !isObject {
				continue
			}
			if key != "" && isObject {
				object = maps.Clone(object)
				delete(object, key)
				value = object
			}
			text, err := json.Marshal(value)
			if err != nil {
				t.Fatal(err)
			}

			before, was := d, string(d.JSON())
			var put any
			switch op {
			case "put":
				d, err = d.Put(escape(path), text)
				put = value
				if key != "" {
					named := maps.Clone(object)
					name := path[len(path)-1]
					if unnamed := at.where == "/routes/*/rules/*" && name == fmt.Sprintf("rule-%d", at.index+1); !unnamed {
						named[key] = name
					}
					put = named
				}
				m = editModel(m, "", path, func(any) any { return put })
			case "patch":
				d, err = d.Patch(escape(path), text)
				m = editModel(m, "", path, func(old any) any { return mergeModel(old, value) })
			case "delete":
				d, err = d.Delete(escape(path))
				m = editModel(m, "", path, func(any) any { return nil })
			}
			if err != nil {
				t.Fatalf("%s %s with %s: %v", op, escape(path), text, err)
			}
			edits[op]++
			if diff := cmp.Diff(m, model(t, d.JSON())); diff != "" {
				t.Fatalf("%s %s with %s differs from the model (-model +document):\n%s", op, escape(path), text, diff)
			}
			if string(before.JSON()) != was {
				t.Fatalf("%s %s changed the document before", op, escape(path))
			}
			if op == "put" && !at.isKey { // with which it would be elsewhere
				got, err := d.Get(escape(path))
				if err != nil {
					t.Fatalf("what was put at %s is not there: %v", escape(path), err)
				}
				if diff := cmp.Diff(put, model(t, got.JSON())); diff != "" {
					t.Fatalf("at %s is something else than was put (-put +got):\n%s", escape(path), diff)
				}
				if tag, _ := d.ETag(escape(path)); tag != got.ETag() {
					t.Fatalf("the ETag of %s is %s and %s", escape(path), tag, got.ETag())
				}
			}
			checkChanges(t, before, d)
		}
	})
	for _, op := range []string{"put", "patch", "delete"} {
		if edits[op] < 20 {
			t.Errorf("%d edits were of the kind %s: the test shows nothing", edits[op], op)
		}
	}
}

func mergeModel(target, patch any) any {
	changes, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	object, _ := target.(map[string]any)
	object = maps.Clone(object)
	if object == nil {
		object = map[string]any{}
	}
	for key, value := range changes {
		if value == nil {
			delete(object, key)
		} else {
			object[key] = mergeModel(object[key], value)
		}
	}
	return object
}

func withoutNulls(v any) any {
	if object, ok := v.(map[string]any); ok {
		object = maps.Clone(object)
		maps.DeleteFunc(object, func(_ string, v any) bool { return v == nil })
		return object
	}
	return v
}

// checkChanges holds what Changes says against both documents.
func checkChanges(t fatal, from, to *Document) {
	t.Helper()
	if c := to.Changes(to); len(c.List) > 0 {
		t.Fatalf("a document differs from itself:\n%v", c)
	}
	c := from.Changes(to)
	if len(c.List) > 0 == from.Equal(to) {
		t.Fatalf("two documents that are equal: %v, have the changes\n%v", from.Equal(to), c)
	}
	for _, change := range c.List {
		for _, side := range []struct {
			document *Document
			value    json.RawMessage
			is       bool
		}{{from, change.From, change.Op != Added}, {to, change.To, change.Op != Removed}} {
			if (side.value != nil) != side.is {
				t.Fatalf("a change has not the values that it must have: %v", change)
			}
			if !side.is {
				continue
			}
			p, err := side.document.Get(change.Path)
			if err != nil {
				t.Fatalf("the path of a change leads nowhere: %v: %v", change, err)
			}
			moved := change.Op == Changed && strings.HasPrefix(string(p.JSON()), "[{")
			if string(p.JSON()) != string(side.value) && len(p.JSON()) <= maxChangeValue && !moved {
				t.Fatalf("at %s is %s, the change says %s", change.Path, p.JSON(), side.value)
			}
		}
	}
}

// Changes between any two documents are told by what is there.
func TestChangesOfAnyTwo(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) { checkChanges(t, drawDocument(t), drawDocument(t)) })
}

// What is put anywhere is what is got, and of a valid document's part it is the document again.
func TestPutThenGet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := drawDocument(t)
		path := escape(rapid.SampledFrom(parts(model(t, d.JSON()))).Draw(t, "part").path)
		part, err := d.Get(path)
		if err != nil {
			t.Fatalf("getting %s: %v", path, err)
		}
		text, err := part.YAML()
		if err != nil {
			t.Fatalf("the part at %s has no YAML: %v", path, err)
		}
		for _, form := range [][]byte{part.JSON(), text} {
			again, err := d.Put(path, form)
			if err != nil {
				t.Fatalf("putting %s back to %s: %v", form, path, err)
			}
			if !again.Equal(d) {
				t.Fatalf("putting %s back to %s changed the document:\n%v", form, path, d.Changes(again))
			}
		}
		if path == "" {
			return
		}
		without, err := d.Delete(path)
		if err != nil {
			t.Fatalf("deleting %s: %v", path, err)
		}
		if without.Equal(d) {
			t.Fatalf("deleting %s changed nothing", path)
		}
	})
}

// An item whose name is empty has no path, so that a change of it is one of its list.
func TestAnItemWithoutANameChangesWithItsList(t *testing.T) {
	var docs [2]*Document
	for i, text := range []string{`routes: [{name: a}]`, `routes: [{name: a}, {name: ""}]`} {
		d, err := ParseDocument([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		docs[i] = d
	}
	got := docs[0].Changes(docs[1])
	if len(got.List) != 1 || got.List[0].Path != "routes" || got.List[0].Op != Changed {
		t.Errorf("the changes are %v, want one: routes is changed", got)
	}
	checkChanges(t, docs[0], docs[1])
}
