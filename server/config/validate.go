package config

import (
	"reflect"
	"slices"
	"strings"
)

// maxMatchHeaders is the number of header keys that one match may name.
const maxMatchHeaders = 8

// Validate checks the whole tree: each value by itself, then what the values say of each other. Its error is
// an *Errors. A tree from Parse or Load is valid; one that was changed may no longer be.
func (c *Config) Validate() error {
	r := &report{}
	c.validate(r)
	return r.errors()
}

func (c *Config) validate(r *report) {
	v := &validator{schema: tree(), report: r}
	v.structure(place{}, reflect.ValueOf(c).Elem())
	v.names(c)
	v.addresses(c)
	v.references(c)
	v.limits(c)
}

// validator checks a tree and notes what is wrong.
type validator struct {
	schema schema
	report *report
}

func (v *validator) structure(p place, s reflect.Value) {
	fields := v.schema[s.Type()]
	for i := range fields {
		f := &fields[i]
		v.value(p.field(f.name), f, s.Field(f.index))
	}
}

func (v *validator) value(p place, f *field, value reflect.Value) {
	switch value.Kind() {
	case reflect.Pointer:
		if !value.IsNil() {
			v.value(p, f, value.Elem())
		}
	case reflect.Struct:
		v.structure(p, value)
	case reflect.Slice:
		v.list(p, f, value)
	case reflect.Map:
		v.match(p, value)
	case reflect.String:
		v.text(p, f, value)
	case reflect.Int, reflect.Int64:
		v.number(p, f, value)
	default:
	}
}

func (v *validator) list(p place, f *field, list reflect.Value) {
	if list.Len() == 0 {
		why := "is missing or empty: there must be at least one"
		if f.typ == reflect.TypeFor[[]RetryOn]() {
			why = "must not be empty: attempts: 1 is what switches retries off"
		}
		v.report.add(p, "%s", why)
		return
	}
	for i := range list.Len() {
		item := list.Index(i)
		if item.Kind() == reflect.Struct {
			v.structure(p.item(i, itemLabel(i, item)), item)
			continue
		}
		v.text(p.item(i, ""), f, item)
		for j := range i {
			if list.Index(j).Equal(item) {
				v.report.add(p.item(i, ""), "%s stands in the list twice", clip(item.String()))
			}
		}
	}
}

// itemLabel is the label of item i of a list: its name, where it has one.
func itemLabel(i int, item reflect.Value) string {
	name := item.FieldByName("Name")
	switch {
	case !name.IsValid():
		return ""
	case item.Type() == reflect.TypeFor[Rule]():
		return ruleLabel(i, name.String())
	default:
		return label(name.String())
	}
}

func (v *validator) match(p place, header reflect.Value) {
	if header.Len() > maxMatchHeaders {
		v.report.add(p, "names %d keys; a match may name %d", header.Len(), maxMatchHeaders)
	}
	for _, key := range []string{"", "<<"} {
		if header.MapIndex(reflect.ValueOf(key)).IsValid() {
			// YAML's merge is written without quotes, even where the tree's own YAML means the text.
			v.report.add(p, "%q cannot be a key", key)
		}
	}
}

func (v *validator) text(p place, f *field, value reflect.Value) {
	text := value.String()
	switch {
	case text == "":
		if f.required || len(f.oneOf) > 0 {
			v.report.add(p, "is missing")
		}
	case len(f.oneOf) > 0:
		if !slices.Contains(f.oneOf, text) {
			v.report.add(p, "%s is not one of %s%s", quote(text), strings.Join(f.oneOf, ", "), didYouMean(text, f.oneOf))
		}
	case f.form == "name":
		if !validName(text) {
			v.report.add(p, "%s is not a name: 1 to %d of the characters A-Z a-z 0-9 . _ -", quote(text), maxName)
		}
	case f.form != "":
		if err := checkAddress(Address(text), f.form); err != nil {
			v.report.add(p, "%s", err)
		}
	}
}

func (v *validator) number(p place, f *field, value reflect.Value) {
	n := value.Int()
	if value.Type() != reflect.TypeFor[int]() && value.Type() != reflect.TypeFor[Size]() && n == int64(None) {
		if !f.none {
			v.report.add(p, "none is not allowed here: this bound cannot be switched off")
		}
		return
	}
	if n < f.lowest || n > f.highest {
		v.report.add(p, "%v is out of range: %s to %s", value.Interface(), f.minimum, f.maximum)
	}
}
