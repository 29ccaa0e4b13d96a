package config

import (
	"fmt"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// maxDocumentPath is the length in bytes of the longest path that is looked up.
const maxDocumentPath = 8192

// PathReason says in one word what is wrong with a path.
type PathReason string

// The reasons.
const (
	// NoSuchPath is a path to what is not there.
	NoSuchPath PathReason = "no-such-path"
	// NotAContainer is a path through a value in which nothing can stand.
	NotAContainer PathReason = "not-a-container"
	// Ambiguous is a path that fits two items.
	Ambiguous PathReason = "ambiguous"
	// MalformedPath is a path that is none.
	MalformedPath PathReason = "malformed-path"
	// KeyDiffers is an item that says another name, address or cluster than the path at which it is to stand.
	KeyDiffers PathReason = "key-differs"
	// NotEditable is an edit that makes no sense at its path, such as to delete the whole.
	NotEditable PathReason = "not-editable"
)

// PathError is what is wrong with a path, or with what is to be done there.
type PathError struct {
	// Path is the path as far as the segment at fault, inclusive.
	Path    string
	Reason  PathReason
	Message string
}

func (e *PathError) Error() string {
	if e.Path == "" {
		return e.Message
	}
	return e.Path + ": " + e.Message
}

// step is one segment of a path that was walked.
type step struct {
	// container is what the segment leads into, of type typ, whose items are of type element if it is a list.
	container    node
	typ, element reflect.Type
	// key is the segment.
	key string
	// index is the item's place in a list, its length where it is not there, and -1 where container is a mapping.
	index int
}

// spot is where a path leads.
type spot struct {
	steps []step
	// node is what is there, if exists.
	node   node
	exists bool
	// typ is nil where the schema says nothing.
	typ reflect.Type
}

// path is the canonical spelling of the first n segments.
func (s *spot) path(n int) string {
	segments := make([]string, n)
	for i := range segments {
		segments[i] = url.PathEscape(s.steps[i].key)
	}
	return strings.Join(segments, "/")
}

func (s *spot) fault(reason PathReason, format string, args ...any) error {
	return &PathError{s.path(len(s.steps)), reason, fmt.Sprintf(format, args...)}
}

// Pointer is the JSON pointer (RFC 6901) of the part at path: /clusters/0/endpoints/1. Its error is a *PathError.
func (d *Document) Pointer(path string) (string, error) {
	s, err := d.find(path)
	if err != nil {
		return "", err
	}
	var p place
	for _, step := range s.steps {
		if step.index < 0 {
			p = p.field(step.key)
		} else {
			p = p.item(step.index, "")
		}
	}
	return p.pointer, nil
}

// find is locate for what must exist.
func (d *Document) find(path string) (*spot, error) {
	s, err := d.locate(path)
	if err != nil {
		return nil, err
	}
	if s.exists {
		return s, nil
	}
	last := s.steps[len(s.steps)-1]
	if last.index >= 0 {
		return nil, s.absentItem()
	}
	return nil, s.fault(NoSuchPath, "is not set%s", there(last.container.keys(last.typ), last.key))
}

// absentItem says that the last segment of s is no item of its list.
func (s *spot) absentItem() error {
	last := s.steps[len(s.steps)-1]
	return s.fault(NoSuchPath, "there is no such item%s", there(itemKeys(last.container, last.element), last.key))
}

// locate walks along path. What it finds may not exist yet: then it is a field that there could be, or an item behind the
// last one.
func (d *Document) locate(path string) (*spot, error) {
	s := &spot{node: d.root, exists: true, typ: reflect.TypeFor[Config]()}
	if len(path) > maxDocumentPath {
		return nil, s.fault(MalformedPath, "the path has %d bytes; it may have %d", len(path), maxDocumentPath)
	}
	path = strings.TrimSuffix(strings.TrimPrefix(path, "/"), "/")
	if path == "" {
		return s, nil
	}
	for escaped := range strings.SplitSeq(path, "/") {
		segment, err := url.PathUnescape(escaped)
		if err != nil {
			return nil, s.fault(MalformedPath, "the next segment, %s, is not escaped as in a URL", quote(escaped))
		}
		if segment == "" {
			return nil, s.fault(MalformedPath, "the next segment is empty")
		}
		if err := s.enter(segment); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// enter goes on to one field, entry or item of where s is.
func (s *spot) enter(segment string) error {
	if n := len(s.steps); n > 0 && s.steps[n-1].index >= 0 && !s.exists {
		return s.absentItem()
	}
	switch s.container() {
	case objectNode:
		return s.enterField(segment)
	case listNode:
		return s.enterItem(segment)
	default:
		return s.fault(NotAContainer, "is %s, so there is no %s in it", s.what(), quote(segment))
	}
}

// container is the kind of what is there or, where nothing is, of what could be.
func (s *spot) container() kind {
	switch {
	case s.exists:
		return s.node.kind
	case s.typ == nil:
		return nullNode
	case s.typ.Kind() == reflect.Slice:
		return listNode
	case s.typ.Kind() == reflect.Map, s.typ.Kind() == reflect.Struct && (!isUnit(s.typ) || s.typ == reflect.TypeFor[Text]()):
		return objectNode
	default:
		return nullNode
	}
}

func (s *spot) what() string {
	if s.exists {
		return s.node.kind.String()
	}
	return "not a mapping or a list"
}

func (s *spot) enterField(name string) error {
	child, exists := s.node.fields[name]
	typ, known := fieldType(s.typ, name)
	from := *s
	s.steps = append(s.steps, step{container: s.node, typ: s.typ, key: name, index: -1})
	if !exists && !known {
		names := from.node.keys(from.typ)
		for _, f := range fieldsOf(from.typ) {
			if !slices.Contains(names, f.name) {
				names = append(names, f.name)
			}
		}
		return s.fault(NoSuchPath, "there is no such field%s", there(names, name))
	}
	s.node, s.exists, s.typ = child, exists, typ
	return nil
}

func (s *spot) enterItem(segment string) error {
	element := elementType(s.typ)
	list := s.node
	s.steps = append(s.steps, step{container: list, typ: s.typ, element: element, key: segment, index: len(list.items)})
	at := &s.steps[len(s.steps)-1]
	if keyField(element) == nil {
		i, err := strconv.Atoi(segment)
		if err != nil || strconv.Itoa(i) != segment || i < 0 {
			return s.fault(NoSuchPath, "is no number: the items of this list are counted from 0")
		}
		if i > len(list.items) {
			return s.fault(NoSuchPath, "there is no such item: the list has %d", len(list.items))
		}
		at.index = i
	} else {
		found := 0
		for i := range list.items {
			if key, ok := itemKey(list.items[i], element, i); ok && key == segment {
				found++
				at.index = i
			}
		}
		if found > 1 {
			return s.fault(Ambiguous, "%d items of the list are called that", found)
		}
	}
	s.node, s.typ = node{}, element
	if s.exists = at.index < len(list.items); s.exists {
		s.node = list.items[at.index]
	}
	return nil
}

// itemKey is what an item, of type t and at index i of its list, is told apart by.
func itemKey(n node, t reflect.Type, i int) (key string, ok bool) {
	f := keyField(t)
	if f == nil {
		return "", false
	}
	name, given := n.fields[f.name]
	switch {
	case !given && t == reflect.TypeFor[Rule]() && n.kind == objectNode:
		return ruleName(i), true
	case name.kind != textNode, name.text == "": // no path leads to one without a name
		return "", false
	}
	return name.text, true
}

// itemKeys are the keys of a list's items, of those that have one.
func itemKeys(list node, element reflect.Type) []string {
	var keys []string
	for i := range list.items {
		if key, ok := itemKey(list.items[i], element, i); ok {
			keys = append(keys, key)
		}
	}
	return keys
}

// maxThere bounds the names that a message lists.
const maxThere = 20

// there says what there is instead of the name that was asked for.
func there(names []string, asked string) string {
	if len(names) == 0 {
		return ": there is none"
	}
	hint := didYouMean(asked, names)
	more := ""
	if n := len(names) - maxThere; n > 0 {
		names, more = names[:maxThere], fmt.Sprintf(" and %d more", n)
	}
	clipped := make([]string, len(names))
	for i := range names {
		clipped[i] = clip(names[i])
	}
	return hint + ": there is " + strings.Join(clipped, ", ") + more
}
