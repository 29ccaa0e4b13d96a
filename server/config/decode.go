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
		d.texts(p, n, v)
	default:
		if err := setScalar(n, v); err != nil {
			d.report.add(p, "%s", err)
		}
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
		if child, ok := n.fields[f.name]; ok {
			d.value(p.field(f.name), child, v.Field(f.index))
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

// texts decodes a mapping of text to text. A mapping without entries is the same as none.
func (d *decoder) texts(p place, n node, v reflect.Value) {
	if n.kind != objectNode {
		d.report.add(p, "must be a mapping of keys to text, not %s", n.kind)
		return
	}
	d.keys(p, n)
	if len(n.fields) == 0 {
		return
	}
	texts := make(map[string]string, len(n.fields))
	for _, key := range slices.Sorted(maps.Keys(n.fields)) {
		kp := p.field(key)
		switch text, err := n.fields[key].string(); {
		case err != nil:
			d.report.add(kp, "%s", err)
		case !utf8.ValidString(key):
			d.report.add(kp, "the key is not valid UTF-8")
		default:
			texts[key] = text
		}
	}
	v.Set(reflect.ValueOf(texts))
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
