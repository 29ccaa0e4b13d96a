package config

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// schema is what the tags of the tree's types say, by type.
type schema map[reflect.Type][]field

// field is one field of a type of the tree.
type field struct {
	name     string
	index    int
	typ      reflect.Type
	required bool
	// one and some tie fields of a type together: of those with one exactly one is there, of those with some at
	// least one.
	one, some bool
	// key says that the field tells items of a list apart.
	key bool
	// when and is say when the field has a meaning: while the field when is that. Only then does its default hold.
	when, is string
	// same is the field from which this one has its default.
	same string
	// most is the largest number of items or keys; 0 means that the file's size is bound enough.
	most int
	// none says that the word none is allowed.
	none bool
	// def, minimum and maximum are as a file would have them; empty where there is none.
	def, minimum, maximum string
	// lowest and highest are minimum and maximum as numbers.
	lowest, highest int64
	oneOf           []string
	// form is a rule for text: name, listen, dial, unix, tcp, prefix, key, log, template, mode, folder, file, dns or server.
	form string
}

// tree is the schema of Config. It is built once and not changed.
var tree = sync.OnceValue(func() schema {
	s := schema{}
	s.learn(reflect.TypeFor[Config]())
	return s
})

// learn reads the tags of t and of all types within. It panics at a tag that makes no sense, which every
// test of the package would meet.
func (s schema) learn(t reflect.Type) {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		s.learn(t.Elem())
		return
	case reflect.Struct:
	default:
		return
	}
	if s[t] != nil || isUnit(t) {
		return
	}
	fields := make([]field, 0, t.NumField())
	for i := range t.NumField() {
		sf := t.Field(i)
		fields = append(fields, newField(sf, i))
		s.learn(sf.Type)
	}
	s[t] = fields
}

// isUnit says that t is decoded as a whole, by itself.
func isUnit(t reflect.Type) bool { return reflect.PointerTo(t).Implements(reflect.TypeFor[unit]()) }

func newField(sf reflect.StructField, index int) field {
	f := field{
		index:   index,
		typ:     sf.Type,
		def:     sf.Tag.Get("default"),
		minimum: sf.Tag.Get("min"),
		maximum: sf.Tag.Get("max"),
		oneOf:   strings.Fields(sf.Tag.Get("oneof")),
		form:    sf.Tag.Get("form"),
		same:    sf.Tag.Get("same"),
	}
	f.when, f.is, _ = strings.Cut(sf.Tag.Get("when"), "=")
	if most := sf.Tag.Get("most"); most != "" {
		n, err := strconv.Atoi(most)
		if err != nil {
			panic(fmt.Sprintf("config: the most of %s: %v", f.name, err))
		}
		f.most = n
	}
	f.name, _, _ = strings.Cut(sf.Tag.Get("json"), ",")
	flags := strings.Split(sf.Tag.Get("cfg"), ",")
	f.required = slices.Contains(flags, "required")
	f.none = slices.Contains(flags, "none")
	f.one = slices.Contains(flags, "one")
	f.some = slices.Contains(flags, "some")
	f.key = slices.Contains(flags, "key")
	if f.minimum != "" {
		f.lowest = f.bound(f.minimum)
		f.highest = f.bound(f.maximum)
	}
	return f
}

// field is the field of t with this name, which must exist.
func (s schema) field(t reflect.Type, name string) *field {
	i := slices.IndexFunc(s[t], func(f field) bool { return f.name == name })
	return &s[t][i]
}

// holds says whether f has a meaning in v, a structure whose field it is.
func (s schema) holds(f *field, v reflect.Value) bool {
	return v.Field(s.field(v.Type(), f.when).index).String() == f.is
}

// scalarType is the field's type without the pointer that says whether it is there.
func (f *field) scalarType() reflect.Type {
	if f.typ.Kind() == reflect.Pointer {
		return f.typ.Elem()
	}
	return f.typ
}

func (f *field) bound(text string) int64 {
	v := reflect.New(f.scalarType()).Elem()
	if err := setScalar(tagNode(text), v); err != nil {
		panic(fmt.Sprintf("config: a bound of %s: %v", f.name, err))
	}
	return v.Int()
}

// allOfThem is the default of a list that has every word that it may have.
const allOfThem = "all"

// fill sets v to the field's default.
func (f *field) fill(v reflect.Value) {
	if f.def == "" {
		return
	}
	if f.typ.Kind() == reflect.Slice {
		items := strings.Split(f.def, ", ")
		if f.def == allOfThem {
			items = f.oneOf
		}
		for _, text := range items {
			item := reflect.New(f.typ.Elem()).Elem()
			item.SetString(text)
			v.Set(reflect.Append(v, item))
		}
		return
	}
	if err := setScalar(tagNode(f.def), v); err != nil {
		panic(fmt.Sprintf("config: the default of %s: %v", f.name, err))
	}
}

// unknownOrder puts fields that do not exist behind those that do.
const unknownOrder = 1 << 30

// order is the position in the tree to which a JSON pointer points: at each level the number of a field or item.
func (s schema) order(pointer string) []int {
	var order []int
	t := reflect.TypeFor[Config]()
	for key := range strings.SplitSeq(strings.TrimPrefix(pointer, "/"), "/") {
		if t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		switch t.Kind() {
		case reflect.Struct:
			i := slices.IndexFunc(s[t], func(f field) bool { return f.name == key })
			if i < 0 {
				return append(order, unknownOrder)
			}
			order = append(order, i)
			t = s[t][i].typ
		case reflect.Slice:
			i, err := strconv.Atoi(key)
			if err != nil {
				return order
			}
			order = append(order, i)
			t = t.Elem()
		default:
			return order
		}
	}
	return order
}

// tagNode is the text of a tag as the node that a file would give.
func tagNode(text string) node {
	switch {
	case text == "true" || text == "false":
		return node{kind: boolNode, text: text}
	case strings.Trim(text, "0123456789") == "":
		return node{kind: numberNode, text: text}
	}
	return node{kind: textNode, text: text}
}

// fillDefaults sets the structure v, and the structures in it, to the defaults that hold whatever else is said.
func (s schema) fillDefaults(v reflect.Value) {
	for i := range s[v.Type()] {
		f := &s[v.Type()][i]
		fv := v.Field(f.index)
		switch {
		case f.typ.Kind() == reflect.Struct:
			s.fillDefaults(fv)
		case f.when == "":
			f.fill(fv)
		}
	}
}
