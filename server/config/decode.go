package config

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"unicode/utf8"
)

// decoder lays a file's nodes over a tree of defaults and notes what does not fit.
type decoder struct {
	schema schema
	report *report
}

// unit is a scalar with a notation of its own.
type unit interface {
	set(node) error
}

func (d *decoder) value(p place, n node, v reflect.Value) {
	if n.kind == nullNode {
		d.report.add(p, "has no value: give one, or leave the field out")
		return
	}
	if isUnit(v.Type()) {
		d.scalar(p, n, v)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		target := reflect.New(v.Type().Elem())
		if target.Elem().Kind() == reflect.Struct {
			d.schema.fillDefaults(target.Elem())
		}
		d.value(p, n, target.Elem())
		v.Set(target)
	case reflect.Struct:
		d.structure(p, n, v)
	case reflect.Slice:
		d.list(p, n, v)
	case reflect.Map:
		d.mapping(p, n, v)
	default:
		d.scalar(p, n, v)
	}
}

func (d *decoder) scalar(p place, n node, v reflect.Value) {
	if err := setScalar(n, v); err != nil {
		d.report.add(p, "%s", err)
	}
}

func (d *decoder) structure(p place, n node, v reflect.Value) {
	if n.kind != objectNode {
		if p.path == "" {
			d.report.add(p, "the file must hold a mapping of fields to values, not %s", n.kind)
			return
		}
		d.report.add(p, "must be a mapping of fields to values, not %s", n.kind)
		return
	}
	d.keys(p, n)
	fields := d.schema[v.Type()]
	for i := range fields {
		f := &fields[i]
		child, given := n.fields[f.name]
		switch {
		case !given:
		case child.kind == textNode && child.text == none && f.minimum != "" && !f.none:
			d.report.add(p.field(f.name), "%s", errNoneHere)
		default:
			d.value(p.field(f.name), child, v.Field(f.index))
		}
	}
	for i := range fields {
		if _, given := n.fields[fields[i].name]; !given {
			d.leftOut(p, &fields[i], v)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(n.fields)) {
		if slices.ContainsFunc(fields, func(f field) bool { return f.name == key }) {
			continue
		}
		names := make([]string, len(fields))
		for i := range fields {
			names[i] = fields[i].name
		}
		d.report.add(p.field(key), "there is no such field%s", didYouMean(key, names))
	}
}

// leftOut gives a field of v that the file leaves out what it has from the others, and notes a number that must be
// there: as a zero it could not be told from one that was given.
func (d *decoder) leftOut(p place, f *field, v reflect.Value) {
	fv := v.Field(f.index)
	switch {
	case f.same != "":
		fv.SetInt(v.Field(d.schema.field(v.Type(), f.same).index).Int())
	case f.when != "" && d.schema.holds(f, v):
		f.fill(fv)
	case f.required && fv.CanInt():
		d.report.add(p.field(f.name), "is missing")
	}
}

// keys notes keys that are given twice or are none. What else is wrong in there is reported beside it.
func (d *decoder) keys(p place, n node) {
	slices.Sort(n.duplicates)
	for _, key := range slices.Compact(n.duplicates) {
		d.report.note(p.field(key), "is given more than once")
	}
	for _, problem := range n.problems {
		d.report.note(p, "%s", clip(problem))
	}
}

func (d *decoder) list(p place, n node, v reflect.Value) {
	if n.kind != listNode {
		d.report.add(p, "must be a list, not %s", n.kind)
		return
	}
	if len(n.items) == 0 && !v.IsNil() {
		v.Set(v.Slice(0, 0)) // the file takes away what the default had
		return
	}
	if len(n.items) == 0 {
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.items), len(n.items)))
	structures := v.Type().Elem().Kind() == reflect.Struct
	for i, item := range n.items {
		named := ""
		if name := item.fields["name"]; name.kind == textNode {
			named = label(name.text)
		}
		if structures {
			d.schema.fillDefaults(v.Index(i))
		}
		d.value(p.item(i, named), item, v.Index(i))
	}
}

// mapping decodes a mapping of keys to what is told by its text. A mapping without entries is the same as none.
func (d *decoder) mapping(p place, n node, v reflect.Value) {
	if n.kind != objectNode {
		d.report.add(p, "must be a mapping of keys to text, not %s", n.kind)
		return
	}
	d.keys(p, n)
	if len(n.fields) == 0 {
		return
	}
	entries := reflect.MakeMapWithSize(v.Type(), len(n.fields))
	for _, key := range slices.Sorted(maps.Keys(n.fields)) {
		entry := reflect.New(v.Type().Elem()).Elem()
		switch err := setEntry(n.fields[key], entry); {
		case err != nil:
			d.report.add(p.field(key), "%s", err)
		case !utf8.ValidString(key):
			d.report.add(p.field(key), "the key is not valid UTF-8")
		default:
			entries.SetMapIndex(reflect.ValueOf(key), entry)
		}
	}
	v.Set(entries)
}

// setEntry is setScalar for the value of a mapping, whose text may be empty.
func setEntry(n node, v reflect.Value) error {
	if v.Kind() != reflect.String {
		if n.kind == nullNode {
			return errors.New("has no value: give one, or leave it out")
		}
		return setScalar(n, v)
	}
	text, err := n.string()
	v.SetString(text)
	return err
}

// setScalar sets v, which is settable, from a scalar.
func setScalar(n node, v reflect.Value) error {
	if u, ok := reflect.TypeAssert[unit](v.Addr()); ok {
		return u.set(n)
	}
	switch v.Kind() {
	case reflect.String:
		text, err := n.string()
		if err == nil && text == "" {
			err = errors.New("must not be empty")
		}
		v.SetString(text)
		return err
	case reflect.Bool:
		if n.kind != boolNode {
			return fmt.Errorf("must be true or false, not %s", n.kind)
		}
		// Of YAML's many words only two are those of JSON.
		on, err := strconv.ParseBool(n.text)
		if err != nil || strconv.FormatBool(on) != n.text {
			return fmt.Errorf("must be true or false, not %s", clip(n.text))
		}
		v.SetBool(on)
		return nil
	case reflect.Int:
		number, err := wholeNumber(n)
		v.SetInt(number)
		return err
	default:
		return fmt.Errorf("a %s cannot be configured", v.Type())
	}
}

// string is the text of a text node.
func (n node) string() (string, error) {
	switch {
	case n.kind == boolNode || n.kind == numberNode:
		return "", fmt.Errorf("must be text, not %s: put it in quotes: %s", n.kind, quote(n.text))
	case n.kind == nullNode:
		return "", errors.New("has no value: give one, or leave it out")
	case n.kind != textNode:
		return "", fmt.Errorf("must be text, not %s", n.kind)
	case !utf8.ValidString(n.text):
		return "", errors.New("is not valid UTF-8")
	}
	return n.text, nil
}
