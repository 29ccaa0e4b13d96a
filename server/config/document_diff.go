package config

import (
	"encoding/json"
	"fmt"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Op is what happened to a part of a document.
type Op string

// The operations.
const (
	Added   Op = "added"
	Removed Op = "removed"
	Changed Op = "changed"
)

// Change is one difference between two documents.
type Change struct {
	// Path is as in Document, in the newer one, or in the older one for what was removed.
	Path string `json:"path"`
	Op   Op     `json:"op"`
	// From and To are what was there and what is, nil for what was not or is no more. A value of more than 4 KiB is left
	// out: instead there is text that says how long it is. Of a list whose items were only put into another order they
	// are the items' keys.
	From json.RawMessage `json:"from,omitempty"`
	To   json.RawMessage `json:"to,omitempty"`
}

// String is one line for people: + for what was added, - for what was removed, ~ for what was changed.
func (c Change) String() string {
	switch c.Op {
	case Added:
		return "+ " + c.Path + ": " + clipValue(c.To)
	case Removed:
		return "- " + c.Path + ": " + clipValue(c.From)
	default:
		return "~ " + c.Path + ": " + clipValue(c.From) + " -> " + clipValue(c.To)
	}
}

// Changes are the differences between two documents.
type Changes struct {
	// List has at most 1000, in the order of the types.
	List []Change `json:"changes"`
	// More is the number of those beyond.
	More int `json:"more,omitempty"`
}

// String is one line a change, without a final line feed.
func (c Changes) String() string {
	lines := make([]string, len(c.List), len(c.List)+1)
	for i := range c.List {
		lines[i] = c.List[i].String()
	}
	if c.More > 0 {
		lines = append(lines, fmt.Sprintf("and %d more changes", c.More))
	}
	return strings.Join(lines, "\n")
}

const (
	maxChanges = 1000
	// maxChangeValue is the length in bytes of the longest value that a change holds, and maxLineValue of the longest
	// that its line shows.
	maxChangeValue = 4096
	maxLineValue   = 200
)

// Changes are what must be changed in d to make it to. There are none if and only if the two are Equal.
func (d *Document) Changes(to *Document) Changes {
	c := differ{Changes{List: []Change{}}}
	c.value("", d.root, to.root, reflect.TypeFor[Config]())
	return c.changes
}

type differ struct{ changes Changes }

func (d *differ) add(path string, op Op, from, to json.RawMessage) {
	if len(d.changes.List) == maxChanges {
		d.changes.More++
		return
	}
	d.changes.List = append(d.changes.List, Change{path, op, from, to})
}

// value compares what is there on both sides.
func (d *differ) value(path string, from, to node, t reflect.Type) {
	switch {
	case from.kind == objectNode && to.kind == objectNode:
		d.fields(path, from, to, t)
	case from.kind == listNode && to.kind == listNode:
		d.list(path, from, to, t)
	default:
		if a, b := from.appendJSON(nil, t), to.appendJSON(nil, t); string(a) != string(b) {
			d.add(path, Changed, shorten(a), shorten(b))
		}
	}
}

func (d *differ) fields(path string, from, to node, t reflect.Type) {
	both := node{fields: map[string]node{}}
	for key := range from.fields {
		both.fields[key] = node{}
	}
	for key := range to.fields {
		both.fields[key] = node{}
	}
	for _, key := range both.keys(t) {
		a, had := from.fields[key]
		b, has := to.fields[key]
		child, _ := fieldType(t, key)
		at := join(path, key)
		switch {
		case !has:
			d.add(at, Removed, value(a, child), nil)
		case !had:
			d.add(at, Added, nil, value(b, child))
		default:
			d.value(at, a, b, child)
		}
	}
}

func (d *differ) list(path string, from, to node, t reflect.Type) {
	element := elementType(t)
	before, ok := distinctKeys(from, element)
	after, also := distinctKeys(to, element)
	switch {
	case ok && also:
		d.keyed(path, from, to, before, after, element)
	case keyField(element) != nil, fieldsOf(element) == nil: // no path leads to an item, or none is worth it
		if a, b := from.appendJSON(nil, t), to.appendJSON(nil, t); string(a) != string(b) {
			d.add(path, Changed, shorten(a), shorten(b))
		}
	default:
		for i := range max(len(from.items), len(to.items)) {
			at := join(path, strconv.Itoa(i))
			switch {
			case i >= len(to.items):
				d.add(at, Removed, value(from.items[i], element), nil)
			case i >= len(from.items):
				d.add(at, Added, nil, value(to.items[i], element))
			default:
				d.value(at, from.items[i], to.items[i], element)
			}
		}
	}
}

// keyed compares two lists whose items have keys, which before and after are.
func (d *differ) keyed(path string, from, to node, before, after []string, element reflect.Type) {
	was := places(before)
	is := places(after)
	for i, key := range before {
		if _, ok := is[key]; !ok {
			d.add(join(path, key), Removed, value(from.items[i], element), nil)
		}
	}
	for i, key := range after {
		if j, ok := was[key]; ok {
			d.value(join(path, key), from.items[j], to.items[i], element)
		} else {
			d.add(join(path, key), Added, nil, value(to.items[i], element))
		}
	}
	// What stayed may stand in another order, or something new between it: the first that matches decides.
	expected := slices.DeleteFunc(slices.Clone(before), func(key string) bool { _, ok := is[key]; return !ok })
	for _, key := range after {
		if _, ok := was[key]; !ok {
			expected = append(expected, key)
		}
	}
	if !slices.Equal(expected, after) {
		d.add(path, Changed, keyList(before), keyList(after))
	}
}

// distinctKeys are the keys of all items. They tell nothing apart where one is missing or there twice.
func distinctKeys(list node, element reflect.Type) (keys []string, ok bool) {
	if keyField(element) == nil {
		return nil, false
	}
	keys = itemKeys(list, element)
	return keys, len(keys) == len(list.items) && len(places(keys)) == len(keys)
}

func places(keys []string) map[string]int {
	at := make(map[string]int, len(keys))
	for i, key := range keys {
		at[key] = i
	}
	return at
}

func keyList(keys []string) json.RawMessage {
	b := []byte{'['}
	for i, key := range keys {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendText(b, key)
	}
	return shorten(append(b, ']'))
}

func value(n node, t reflect.Type) json.RawMessage { return shorten(n.appendJSON(nil, t)) }

func shorten(data []byte) json.RawMessage {
	if len(data) <= maxChangeValue {
		return data
	}
	return appendText(nil, fmt.Sprintf("(%d bytes)", len(data)))
}

func clipValue(data json.RawMessage) string {
	if len(data) <= maxLineValue {
		return string(data)
	}
	return strings.ToValidUTF8(string(data[:maxLineValue]), "") + "..."
}

func join(path, key string) string {
	if path == "" {
		return url.PathEscape(key)
	}
	return path + "/" + url.PathEscape(key)
}
