package config

import (
	"crypto/sha256"
	"encoding/hex"
	"reflect"
)

// Document is a configuration as its author wrote it: what was said, without the defaults, and not yet checked. It is
// never changed: an edit makes another one. Comments, anchors and the order of fields are not kept; fields stand in the
// order of the types, whatever has no order in the order of its keys.
//
// A path leads to a part of it, as in clusters/order/endpoints/127.0.0.1:12200/weight. Its segments are fields, keys
// of mappings, and items of lists: by the field that tells them apart (a listener's, route table's, rule's and
// cluster's name, an endpoint's address, a share's cluster), or where they have none by their number from 0. A rule
// without a name is rule-N. Segments are escaped as in a URL, so that a slash in one is %2F. The empty path is the whole.
type Document struct {
	root node
	// json is the canonical JSON of root.
	json []byte
}

// ParseDocument reads one document of YAML or JSON. Its error is an *Errors: what is wrong with its syntax, or that it
// is too large. All else that may be wrong Config finds.
func ParseDocument(data []byte) (*Document, error) {
	if len(data) > maxFile {
		return nil, wrong("the configuration is larger than %v", Size(maxFile))
	}
	n, err := parseNode(data)
	if err != nil {
		return nil, wrong("%s", err)
	}
	if n.kind == nullNode {
		n.kind = objectNode
	}
	return newDocument(n)
}

func newDocument(root node) (*Document, error) {
	data, ok := root.canonical(reflect.TypeFor[Config]())
	if !ok {
		return nil, wrong("the configuration is larger than %v when all of it is written out", Size(maxFile))
	}
	if err := checkMarks(data); err != nil { // as it is kept, and read again
		return nil, wrong("when all of the configuration is written out, %s", err)
	}
	return &Document{root, data}, nil
}

// wrong is an *Errors with one fault of the whole.
func wrong(format string, args ...any) error {
	return &Errors{Faults: []Fault{place{}.fault(format, args...)}}
}

// Config is the tree that the document makes, complete and checked as Parse does it. Its error is an *Errors with all
// that is wrong, whose pointers lead into the document.
func (d *Document) Config() (*Config, error) {
	r := &report{}
	dec := &decoder{schema: tree(), report: r}
	c := &Config{}
	root := reflect.ValueOf(c).Elem()
	dec.schema.fillDefaults(root)
	dec.structure(place{}, d.root, root)
	c.complete()
	c.validate(r)
	if err := r.errors(); err != nil {
		return nil, err
	}
	return c, nil
}

// JSON is the document in its canonical form, on one line. The caller may not change it.
func (d *Document) JSON() []byte { return d.json }

// MarshalJSON is JSON.
func (d *Document) MarshalJSON() ([]byte, error) { return d.json, nil }

// UnmarshalJSON is ParseDocument.
func (d *Document) UnmarshalJSON(data []byte) error {
	read, err := ParseDocument(data)
	if err == nil {
		*d = *read
	}
	return err
}

// YAML is the document as YAML, in the canonical order.
func (d *Document) YAML() ([]byte, error) { return yamlOf(d.json) }

// Equal says whether both say the same.
func (d *Document) Equal(other *Document) bool { return string(d.json) == string(other.json) }

// Part is a part of a document.
type Part struct{ json []byte }

// Get is the part at path. Its error is a *PathError.
func (d *Document) Get(path string) (Part, error) {
	s, err := d.find(path)
	if err != nil {
		return Part{}, err
	}
	if len(s.steps) == 0 {
		return Part{d.json}, nil
	}
	data, _ := s.node.canonical(s.typ) // no longer than that of the document
	return Part{data}, nil
}

// ETag is the ETag of the part at path. Its error is a *PathError.
func (d *Document) ETag(path string) (string, error) {
	p, err := d.Get(path)
	return p.ETag(), err
}

// JSON is the part in its canonical form, on one line. The caller may not change it.
func (p Part) JSON() []byte { return p.json }

// YAML is the part as YAML, in the canonical order.
func (p Part) YAML() ([]byte, error) { return yamlOf(p.json) }

// ETag names what the part says: 32 hexadecimal digits, without the quotes that HTTP puts around them. Two parts have
// the same if and only if their canonical JSON is the same.
func (p Part) ETag() string {
	sum := sha256.Sum256(p.json)
	return hex.EncodeToString(sum[:16])
}
