package config

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"reflect"
	"sync"
)

// meaningsFile is what docs/configuration.md says of each field, by type and name. A test writes it.
//
//go:embed meanings.json
var meaningsFile []byte

var meanings = sync.OnceValue(func() map[string]string {
	var m map[string]string
	if err := json.Unmarshal(meaningsFile, &m); err != nil {
		panic(fmt.Sprintf("config: meanings.json: %v", err))
	}
	return m
})

// object is a JSON object whose members keep their order.
type object []member

type member struct {
	name  string
	value any
}

// MarshalJSON writes the members in their order.
func (o object) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for i, m := range o {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendText(b, m.name), ':')
		value, err := json.Marshal(m.value)
		if err != nil {
			return nil, err
		}
		b = append(b, value...)
	}
	return append(b, '}'), nil
}

// JSONSchema is the JSON Schema (draft 2020-12) of a configuration, made from what the decoder goes by: a definition for
// each type under $defs, by the type's name. It refuses no valid file. What it cannot say, such as the bounds of a
// duration or that a name must exist elsewhere, Parse alone finds.
func JSONSchema() []byte {
	w := &schemaWriter{written: map[reflect.Type]bool{}}
	root := reflect.TypeFor[Config]()
	body := w.structure(root)
	w.define(root)
	schema := append(object{
		{"$schema", "https://json-schema.org/draft/2020-12/schema"},
		{"title", "The configuration of Relevo"},
	}, body...)
	data, err := json.MarshalIndent(append(schema, member{"$defs", w.defs}), "", "  ")
	if err != nil {
		panic(fmt.Sprintf("config: the JSON Schema: %v", err))
	}
	return append(data, '\n')
}

// schemaWriter collects the definitions of types.
type schemaWriter struct {
	defs    object
	written map[reflect.Type]bool
}

// define writes the definitions of all structures within t, which is one.
func (w *schemaWriter) define(t reflect.Type) {
	for _, f := range fieldsOf(t) {
		inner := f.typ
		for inner.Kind() == reflect.Pointer || inner.Kind() == reflect.Slice {
			inner = inner.Elem()
		}
		if inner.Kind() != reflect.Struct || isUnit(inner) || w.written[inner] {
			continue
		}
		w.written[inner] = true
		w.defs = append(w.defs, member{inner.Name(), w.structure(inner)})
		w.define(inner)
	}
}

func (w *schemaWriter) structure(t reflect.Type) object {
	fields := fieldsOf(t)
	var properties, conditions object
	required := []string{}
	var tied []any
	only := false
	for i := range fields {
		f := &fields[i]
		properties = append(properties, member{f.name, w.field(t, f)})
		if f.required && f.when == "" && t != reflect.TypeFor[Rule]() { // whose name is completed
			required = append(required, f.name)
		}
		if f.one || f.some {
			tied = append(tied, f.present())
			only = f.one
		}
		if f.when != "" {
			conditions = append(conditions, member{"", f.condition(t)})
		}
	}
	s := object{{"type", "object"}, {"properties", properties}, {"additionalProperties", false}}
	if len(required) > 0 {
		s = append(s, member{"required", required})
	}
	switch {
	case len(tied) == 0:
	case only:
		s = append(s, member{"oneOf", tied})
	default:
		s = append(s, member{"anyOf", tied})
	}
	if len(conditions) > 0 {
		all := make([]any, len(conditions))
		for i := range conditions {
			all[i] = conditions[i].value
		}
		s = append(s, member{"allOf", all})
	}
	return s
}

// present is the schema of an object in which f is there: empty lists and mappings are as good as none.
func (f *field) present() object {
	s := object{{"required", []string{f.name}}}
	if kind := f.typ.Kind(); kind == reflect.Slice {
		s = append(s, member{"properties", object{{f.name, object{{"minItems", 1}}}}})
	} else if kind == reflect.Map || kind == reflect.Struct {
		s = append(s, member{"properties", object{{f.name, object{{"minProperties", 1}}}}})
	}
	return s
}

// condition ties f, a field of t, to the field that says whether it has a meaning.
func (f *field) condition(t reflect.Type) object {
	deciding := tree().field(t, f.when)
	holds := object{{"properties", object{{f.when, object{{"const", f.is}}}}}}
	if deciding.def != f.is {
		holds = append(holds, member{"required", []string{f.when}})
	}
	s := object{{"if", holds}}
	var absent any = false
	switch {
	case f.required:
		s = append(s, member{"then", object{{"required", []string{f.name}}}})
	case f.typ.Kind() == reflect.Slice:
		s = append(s, member{"then", object{{"properties", object{{f.name, object{{"minItems", 1}}}}}}})
		absent = object{{"maxItems", 0}}
	}
	return append(s, member{"else", object{{"properties", object{{f.name, absent}}}}})
}

// field is the schema of the value of f, a field of t.
func (w *schemaWriter) field(t reflect.Type, f *field) object {
	s := w.value(f, plainType(f.typ))
	description := meanings()[t.Name()+"."+f.name]
	if f.minimum != "" && plainType(f.typ).Kind() != reflect.Int { // which the schema cannot say of text
		description += " From " + f.minimum + " to " + f.maximum + "."
	}
	s = append(s, member{"description", description})
	if f.def != "" {
		s = append(s, member{"default", f.jsonDefault()})
	}
	return s
}

func (f *field) jsonDefault() any {
	v := reflect.New(f.scalarType()).Elem()
	f.fill(v)
	return v.Interface()
}

// Patterns of what is written as text. Parse looks closer.
const (
	durationPattern = `([0-9]+(\.[0-9]+)?(ns|us|µs|μs|ms|s|m|h))+`
	sizePattern     = `(0|[1-9][0-9]*)(KiB|MiB|GiB|TiB|B)?`
	percentPattern  = `(0|[1-9][0-9]{0,8})(\.[0-9]{1,2})?%`
)

// formPatterns are the patterns of the forms that have one.
var formPatterns = map[string]string{
	"name":     `^[A-Za-z0-9._-]{1,64}$`,
	"listen":   `^(unix:/|.*:[0-9]{1,5}$)`,
	"unix":     `^unix:/`,
	"tcp":      `^.*:[0-9]{1,5}$`,
	"dial":     `^(unix:/|.+:[0-9]{1,5}$)`,
	"log":      `^(stderr$|journal$|/)`,
	"folder":   `^/`,
	"file":     `^/`,
	"dns":      `^(_.+\..+|.+:[0-9]{1,5})$`,
	"server":   `^.+:[0-9]{1,5}$`,
	"mode":     `^0[0-7]{2}[0145]$`,
	"template": `\{[a-z_]+\}`,
	"prefix":   `^[0-9A-Fa-f.:]+(/[0-9]{1,3})?$`,
}

// value is the schema of a value of f that is of type t: that of f, or of an item where f is a list.
func (w *schemaWriter) value(f *field, t reflect.Type) object {
	switch t {
	case reflect.TypeFor[Duration]():
		return text(orNone(durationPattern, f.none))
	case reflect.TypeFor[Size]():
		number := object{{"type", "integer"}, {"minimum", f.lowest}, {"maximum", f.highest}}
		return object{{"anyOf", []any{number, text(orNone(sizePattern, f.none))}}}
	case reflect.TypeFor[Rate](), reflect.TypeFor[Count]():
		number := object{{"type", "integer"}, {"minimum", f.lowest}, {"maximum", f.highest}}
		if !f.none {
			return number
		}
		return object{{"anyOf", []any{number, object{{"const", none}}}}}
	case reflect.TypeFor[Percent]():
		return text(orNone(percentPattern, f.none))
	case reflect.TypeFor[Text]():
		return textCondition()
	}
	switch t.Kind() {
	case reflect.Struct:
		return object{{"$ref", "#/$defs/" + t.Name()}}
	case reflect.Slice:
		return w.list(f, t)
	case reflect.Map:
		return w.mapping(f, t)
	case reflect.Bool:
		return object{{"type", "boolean"}}
	case reflect.Int:
		return object{{"type", "integer"}, {"minimum", f.lowest}, {"maximum", f.highest}}
	case reflect.String:
		return f.text()
	default:
		panic(fmt.Sprintf("config: %v has no JSON Schema", t))
	}
}

func (f *field) text() object {
	switch {
	case len(f.oneOf) > 0:
		return object{{"type", "string"}, {"enum", f.oneOf}}
	case f.form == "key":
		return object{{"type", "string"}, {"minLength", 1}, {"maxLength", maxKey}}
	case f.none && f.form != "":
		return object{{"anyOf", []any{object{{"const", none}}, text(formPatterns[f.form])}}}
	case f.form != "":
		return text(formPatterns[f.form])
	}
	return object{{"type", "string"}, {"minLength", 1}}
}

func (w *schemaWriter) list(f *field, t reflect.Type) object {
	s := object{{"type", "array"}, {"items", w.value(f, t.Elem())}}
	if f.required || t == reflect.TypeFor[[]RetryOn]() {
		s = append(s, member{"minItems", 1})
	}
	if f.most > 0 {
		s = append(s, member{"maxItems", f.most})
	}
	if t.Elem().Kind() == reflect.String {
		s = append(s, member{"uniqueItems", true})
	}
	return s
}

func (w *schemaWriter) mapping(f *field, t reflect.Type) object {
	entry := object{{"type", "string"}, {"maxLength", maxValue}}
	if t.Elem() != reflect.TypeFor[string]() {
		entry = w.value(f, t.Elem())
	}
	s := object{
		{"type", "object"},
		{"additionalProperties", entry},
		{"propertyNames", object{{"minLength", 1}, {"maxLength", maxKey}, {"not", object{{"const", "<<"}}}}},
	}
	if f.most > 0 {
		s = append(s, member{"maxProperties", f.most})
	}
	return s
}

func textCondition() object {
	var forms object
	for _, form := range textForms {
		forms = append(forms, member{form, object{{"type", "string"}}})
	}
	return object{{"anyOf", []any{
		object{{"type", "string"}},
		object{{"type", "object"}, {"properties", forms}, {"additionalProperties", false}, {"minProperties", 1}, {"maxProperties", 1}},
	}}}
}

func text(pattern string) object { return object{{"type", "string"}, {"pattern", pattern}} }

// orNone is the pattern of a whole text.
func orNone(pattern string, orNone bool) string {
	if orNone {
		pattern = none + "|" + pattern
	}
	return "^(" + pattern + ")$"
}
