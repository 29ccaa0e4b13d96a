package config

import (
	"bytes"
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// canonical is n, a value of type t, as JSON on one line: fields in the order of the type, those that it has not and
// keys of mappings sorted behind them. It gives up where that is more than a file may have, which a few aliases can
// bring about.
func (n node) canonical(t reflect.Type) (data []byte, ok bool) {
	data = n.appendJSON(nil, t)
	return data, len(data) <= maxFile
}

// appendJSON may stop in the middle once b is larger than a file may be. What JSON has no notation for, such as 0x10 or
// yes, is written as text, and what is no UTF-8 as U+FFFD: no valid tree has it.
func (n node) appendJSON(b []byte, t reflect.Type) []byte {
	switch n.kind {
	case nullNode:
		return append(b, "null"...)
	case boolNode:
		if n.text == "true" || n.text == "false" {
			return append(b, n.text...)
		}
	case numberNode:
		if json.Valid([]byte(n.text)) {
			return append(b, n.text...)
		}
	case listNode:
		element := elementType(t)
		b = append(b, '[')
		for i := range n.items {
			if len(b) > maxFile {
				return b
			}
			if i > 0 {
				b = append(b, ',')
			}
			b = n.items[i].appendJSON(b, element)
		}
		return append(b, ']')
	case objectNode:
		b = append(b, '{')
		for i, key := range n.keys(t) {
			if len(b) > maxFile {
				return b
			}
			if i > 0 {
				b = append(b, ',')
			}
			b = append(appendText(b, key), ':')
			child, _ := fieldType(t, key)
			b = n.fields[key].appendJSON(b, child)
		}
		return append(b, '}')
	case textNode:
	}
	return appendText(b, n.text)
}

func appendText(b []byte, text string) []byte {
	var buf bytes.Buffer
	e := json.NewEncoder(&buf)
	e.SetEscapeHTML(false)
	if err := e.Encode(strings.ToValidUTF8(text, "\ufffd")); err != nil { // which text cannot cause
		return append(b, `""`...)
	}
	return append(b, bytes.TrimSuffix(buf.Bytes(), []byte("\n"))...)
}

// keys are the keys of an object of type t, in the canonical order.
func (n node) keys(t reflect.Type) []string {
	fields := fieldsOf(t)
	keys := make([]string, 0, len(n.fields))
	for i := range fields {
		if _, ok := n.fields[fields[i].name]; ok {
			keys = append(keys, fields[i].name)
		}
	}
	if len(keys) == len(n.fields) {
		return keys
	}
	for _, key := range slices.SortedFunc(maps.Keys(n.fields), strings.Compare) {
		if !slices.ContainsFunc(fields, func(f field) bool { return f.name == key }) {
			keys = append(keys, key)
		}
	}
	return keys
}

// plainType is t without pointers. It is nil for what has no schema.
func plainType(t reflect.Type) reflect.Type {
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t
}

// fieldsOf are the fields of a structure, and none of anything else.
func fieldsOf(t reflect.Type) []field {
	if t = plainType(t); t == nil || t.Kind() != reflect.Struct {
		return nil
	}
	return tree()[t]
}

// fieldType is the type of a field of t, or of an entry where t is a mapping. It is not known for a field that there is
// not.
func fieldType(t reflect.Type, key string) (child reflect.Type, known bool) {
	t = plainType(t)
	if t != nil && t.Kind() == reflect.Map {
		return t.Elem(), true
	}
	if t == reflect.TypeFor[Text]() {
		return nil, slices.Contains(textForms, key)
	}
	for _, f := range fieldsOf(t) {
		if f.name == key {
			return plainType(f.typ), true
		}
	}
	return nil, false
}

// elementType is the type of an item of t, where t is a list.
func elementType(t reflect.Type) reflect.Type {
	if t = plainType(t); t == nil || t.Kind() != reflect.Slice {
		return nil
	}
	return t.Elem()
}

// keyField is the field that tells items of type t apart, nil where there is none.
func keyField(t reflect.Type) *field {
	fields := fieldsOf(t)
	for i := range fields {
		if fields[i].key {
			return &fields[i]
		}
	}
	return nil
}
