package config

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

const (
	maxKey   = 256  // bytes of the key of a header
	maxValue = 4096 // bytes of the value that a header is given
)

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
	v.inline(c)
	v.keys(c)
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
		value := s.Field(f.index)
		switch {
		case f.when != "" && !v.conditional(p, f, s):
		case f.same != "" && value.Int() == s.Field(v.schema.field(s.Type(), f.same).index).Int():
		default:
			v.value(p.field(f.name), f, value)
		}
	}
	v.together(p, fields, s)
	v.relations(p, s)
}

// conditional says whether the field f of s has a meaning and is there. It notes where only one of the two is so.
func (v *validator) conditional(p place, f *field, s reflect.Value) bool {
	holds, there := v.schema.holds(f, s), !isAbsent(s.Field(f.index))
	switch {
	case v.report.has(p.field(f.when)):
	case holds && !there && (f.required || f.def != ""):
		v.report.add(p.field(f.name), "is missing or empty: %s: %s needs it", f.when, f.is)
	case there && !holds:
		v.report.add(p.field(f.name), "has a meaning only with %s: %s", f.when, f.is)
	}
	return holds && there
}

// together checks the fields of which one must be there, or some.
func (v *validator) together(p place, fields []field, s reflect.Value) {
	var among, there []string
	only := false
	for i := range fields {
		f := &fields[i]
		if !f.one && !f.some {
			continue
		}
		only = f.one
		among = append(among, f.name)
		if !isAbsent(s.Field(f.index)) {
			there = append(there, f.name)
		}
	}
	switch {
	case len(among) == 0:
	case len(there) == 0 && v.report.hasWithin(p): // which may be the one that was meant
	case len(there) == 0 && len(among) == 1:
		v.report.add(p, "%s is missing", among[0])
	case len(there) == 0 && only:
		v.report.add(p, "one of %s must be there", strings.Join(among, ", "))
	case len(there) == 0:
		v.report.add(p, "at least one of %s must be there", strings.Join(among, ", "))
	case len(there) > 1 && only: // what else is wrong there is so whichever stays
		v.report.note(p, "%s exclude each other", strings.Join(there, " and "))
	}
}

// isAbsent says that a file would leave v out.
func isAbsent(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Slice, reflect.Map:
		return v.Len() == 0
	case reflect.Struct:
		for _, field := range v.Fields() {
			if !isAbsent(field) {
				return false
			}
		}
		return true
	default:
		return v.IsZero()
	}
}

func (v *validator) value(p place, f *field, value reflect.Value) {
	if text, ok := reflect.TypeAssert[Text](value); ok {
		if err := text.check(); text != (Text{}) && err != nil {
			v.report.add(p, "%s", err)
		}
		return
	}
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
		v.mapping(p, f, value)
	case reflect.String:
		v.text(p, f, value)
	case reflect.Int, reflect.Int64:
		v.number(p, f, value)
	default:
	}
}

func (v *validator) list(p place, f *field, list reflect.Value) {
	switch n := list.Len(); {
	case n == 0 && f.required:
		v.report.add(p, "is missing or empty: there must be at least one")
	case n == 0 && f.typ == reflect.TypeFor[[]RetryOn]():
		v.report.add(p, "must not be empty: attempts: 1 is what switches retries off")
	case f.most > 0 && n > f.most:
		v.report.add(p, "has %d items; there may be %d", n, f.most)
		return
	}
	seen := map[string]bool{}
	for i := range list.Len() {
		item := list.Index(i)
		if item.Kind() == reflect.Struct {
			v.structure(p.item(i, itemLabel(i, item)), item)
			continue
		}
		v.text(p.item(i, ""), f, item)
		key := item.String()
		if prefix, ok := reflect.TypeAssert[Prefix](item); ok {
			key = prefix.canonical()
		}
		if seen[key] {
			v.report.add(p.item(i, ""), "%s stands in the list twice", clip(item.String()))
		}
		seen[key] = true
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

func (v *validator) mapping(p place, f *field, entries reflect.Value) {
	if n := entries.Len(); f.most > 0 && n > f.most {
		v.report.add(p, "names %d keys; there may be %d", n, f.most)
		return
	}
	if entries.MapIndex(reflect.ValueOf("<<")).IsValid() {
		// YAML's merge is written without quotes, even where the tree's own YAML means the text.
		v.report.add(p, `"<<" cannot be a key`)
	}
	keys := make([]string, 0, entries.Len())
	for _, key := range entries.MapKeys() {
		keys = append(keys, key.String())
	}
	slices.Sort(keys)
	for _, key := range keys {
		value := entries.MapIndex(reflect.ValueOf(key))
		if err := checkKey(key); err != nil {
			v.report.add(p, "%s", err)
			continue
		}
		if text, ok := reflect.TypeAssert[Text](value); ok {
			if err := text.check(); err != nil {
				v.report.add(p.field(key), "%s", err)
			}
		} else if n := value.Len(); n > maxValue {
			v.report.add(p.field(key), "the value has %d bytes; it may have %d", n, maxValue)
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
	case f.none && text == none:
	case f.form == "name":
		if !validName(text) {
			v.report.add(p, "%s is not a name: 1 to %d of the characters A-Z a-z 0-9 . _ -", quote(text), maxName)
		}
	case f.form != "":
		if err := checkForm(text, f.form); err != nil {
			v.report.add(p, "%s", err)
		}
	}
}

// checkForm refuses text that has not this form, of those that field.form lists.
func checkForm(text, form string) error {
	switch form {
	case "prefix":
		_, err := parsePrefix(text)
		return err
	case "key":
		return checkKey(text)
	case "log":
		return checkLogPath(text)
	case "template":
		return checkTemplate(text)
	case "mode":
		return checkMode(text)
	case "folder":
		return checkFolder(text)
	case "file":
		return checkFile(text)
	case "dns":
		return checkDNS(text)
	case "server":
		return checkServer(text)
	default:
		return checkAddress(Address(text), form)
	}
}

// checkMode refuses what is not the mode of a socket's file that only its owner and group may write.
func checkMode(text string) error {
	mode, err := strconv.ParseUint(text, 8, 32)
	switch {
	case err != nil || len(text) != 4 || mode > 0o777:
		return fmt.Errorf(`%s is not a mode such as "0660"`, quote(text))
	case mode&0o002 != 0:
		return fmt.Errorf("%s lets everybody on the host write", quote(text))
	}
	return nil
}

// checkKey refuses what cannot be the key of a header.
func checkKey(key string) error {
	switch {
	case key == "":
		return errors.New(`"" cannot be a key`)
	case len(key) > maxKey:
		return fmt.Errorf("the key %s has %d bytes; it may have %d", quote(key), len(key), maxKey)
	}
	return nil
}

func (v *validator) number(p place, f *field, value reflect.Value) {
	n := value.Int()
	switch value.Interface().(type) {
	case Duration, Rate, Size, Percent, Count: // to all of them none is the same number
		if n == int64(None) {
			if !f.none {
				v.report.add(p, "%s", errNoneHere)
			}
			return
		}
	}
	if n < f.lowest || n > f.highest {
		v.report.add(p, "%v is out of range: %s to %s", value.Interface(), f.minimum, f.maximum)
	}
}
