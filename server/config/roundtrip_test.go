package config

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// drawer draws valid trees from what the tags of the tree's types allow.
type drawer struct {
	t      *rapid.T
	schema schema
	// drawn makes names and addresses differ.
	drawn int
}

func (d *drawer) structure(v reflect.Value) {
	fields := d.schema[v.Type()]
	for i := range fields {
		f := &fields[i]
		d.value(f, v.Field(f.index))
	}
	// One of those that exclude each other, one at least of those of which some must be there.
	var tied []*field
	for i := range fields {
		if fields[i].one || fields[i].some {
			tied = append(tied, &fields[i])
		}
	}
	if len(tied) > 0 {
		chosen := rapid.SampledFrom(tied).Draw(d.t, "chosen")
		for _, f := range tied {
			if fv := v.Field(f.index); f.one && f != chosen {
				fv.SetZero()
			} else if f == chosen {
				d.present(f, fv)
			}
		}
	}
	for i := range fields {
		f := &fields[i]
		switch fv := v.Field(f.index); {
		case f.when != "" && !d.schema.holds(f, v):
			fv.SetZero()
		case f.when != "":
			d.present(f, fv)
		}
	}
	d.mend(v)
}

// present draws v until it is there.
func (d *drawer) present(f *field, v reflect.Value) {
	for isAbsent(v) {
		v.SetZero()
		if v.Kind() == reflect.Pointer {
			v.Set(reflect.New(v.Type().Elem()))
			d.value(f, v.Elem())
			continue
		}
		d.value(f, v)
	}
}

// mend makes one structure's values agree where tags do not say how they must.
func (d *drawer) mend(v reflect.Value) {
	switch s := v.Addr().Interface().(type) {
	case *Match:
		for _, text := range []*Text{&s.Service, &s.Method} {
			if *text == Exactly("") {
				text.Value = "x"
			}
		}
		for key, text := range map[string]Text{ServiceKey: s.Service, MethodKey: s.Method} {
			if text != (Text{}) {
				delete(s.Header, key)
			}
		}
		if len(s.Header) == 0 {
			s.Header = nil
		}
	case *HeaderEdits:
		for key := range s.Set {
			delete(s.Add, key)
		}
		if len(s.Add) == 0 {
			s.Add = nil
		}
		s.Remove = slices.DeleteFunc(s.Remove, func(key string) bool {
			_, set := s.Set[key]
			_, added := s.Add[key]
			return set || added
		})
		if len(s.Remove) == 0 {
			s.Remove = nil
		}
	case *Discovery:
		s.MinTTL, s.MaxTTL = min(s.MinTTL, s.MaxTTL), max(s.MinTTL, s.MaxTTL)
		if s.File != "" {
			s.Servers, s.MinTTL, s.MaxTTL = nil, Duration(5*time.Second), Duration(5*time.Minute)
		}
	case *HeaderFilter:
		if isAbsent(reflect.ValueOf(*s)) { // as mended
			s.Reply.Remove = []string{"x"}
		}
	}
}

func (d *drawer) value(f *field, v reflect.Value) {
	if text, ok := reflect.TypeAssert[*Text](v.Addr()); ok {
		if rapid.Bool().Draw(d.t, f.name+" is there") {
			*text = d.condition()
		}
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if rapid.Bool().Draw(d.t, f.name+" is there") {
			v.Set(reflect.New(v.Type().Elem()))
			d.value(f, v.Elem())
		}
	case reflect.Struct:
		d.structure(v)
	case reflect.Slice:
		if len(f.oneOf) > 0 {
			words := rapid.Permutation(f.oneOf).Draw(d.t, f.name)
			for _, word := range words[:rapid.IntRange(1, len(words)).Draw(d.t, "words")] {
				v.Set(reflect.Append(v, reflect.ValueOf(word).Convert(v.Type().Elem())))
			}
			return
		}
		least := 0
		if f.required {
			least = 1
		}
		n := rapid.IntRange(least, 2).Draw(d.t, f.name)
		if n == 0 {
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range v.Len() {
			d.value(f, v.Index(i))
		}
	case reflect.Map:
		d.mapping(f, v)
	case reflect.String:
		v.SetString(d.text(f))
	case reflect.Bool:
		v.SetBool(rapid.Bool().Draw(d.t, f.name))
	default:
		if f.none && rapid.Bool().Draw(d.t, f.name+" is none") {
			v.SetInt(int64(None))
			return
		}
		v.SetInt(rapid.Int64Range(f.lowest, f.highest).Draw(d.t, f.name))
	}
}

// words are texts of all characters, those among them that YAML reads as something else.
var words = rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"on", "n", "~", "null", "1.0", "1:30", "=", "2001-01-01", " x ", "a: b", "#", "\t"})).
	Filter(func(s string) bool { return len(s) <= maxKey })

func (d *drawer) condition() Text {
	form := rapid.SampledFrom(textForms).Draw(d.t, "form")
	if TextForm(form) == RegexText {
		return Text{RegexText, rapid.SampledFrom([]string{".*", "a|b", `\d+`, "^$", "[.]x{3}"}).Draw(d.t, "regex")}
	}
	return Text{TextForm(form), words.Draw(d.t, "text")}
}

func (d *drawer) mapping(f *field, v reflect.Value) {
	entries := reflect.MakeMap(v.Type())
	for _, key := range rapid.SliceOfN(words, 0, min(f.most, 4)).Draw(d.t, f.name) {
		if key == "" || key == "<<" {
			continue
		}
		value := reflect.New(v.Type().Elem()).Elem()
		if text, ok := reflect.TypeAssert[*Text](value.Addr()); ok {
			*text = d.condition()
		} else {
			value.SetString(words.Draw(d.t, "value"))
		}
		entries.SetMapIndex(reflect.ValueOf(key), value)
	}
	if entries.Len() > 0 {
		v.Set(entries)
	}
}

func (d *drawer) text(f *field) string {
	d.drawn++
	switch {
	case len(f.oneOf) > 0:
		return rapid.SampledFrom(f.oneOf).Draw(d.t, f.name)
	case f.form == "prefix":
		form := rapid.SampledFrom([]string{"10.0.%d.0/24", "10.1.0.%d", "fd00:%x::/32", "fd00::%x"}).Draw(d.t, f.name)
		return fmt.Sprintf(form, d.drawn%256)
	case f.form == "key":
		return rapid.SampledFrom([]string{"on", "<<", "~", "\t", "a"}).Draw(d.t, f.name) + fmt.Sprint(d.drawn)
	case f.form == "log":
		return rapid.SampledFrom([]string{PathStderr, PathJournal, "/a", "/var/log/~/{x}: #"}).Draw(d.t, f.name)
	case f.form == "folder":
		return rapid.SampledFrom([]string{none, "/a", "/run/~/{x}: #"}).Draw(d.t, f.name)
	case f.form == "mode":
		return rapid.SampledFrom([]string{"0660", "0600", "0775"}).Draw(d.t, f.name)
	case f.form == "template":
		return rapid.SampledFrom([]string{"{time}", " {id}{id} # ", "\t{total}: ~", "on {rpc}"}).Draw(d.t, f.name)
	case f.form == "name":
		return rapid.SampledFrom([]string{"n", "0x", "1.", "-", "a_b.c", ".5e"}).Draw(d.t, f.name) + fmt.Sprint(d.drawn)
	case f.form == "file":
		return rapid.SampledFrom([]string{"/a", "/etc/~/{x}: #"}).Draw(d.t, f.name)
	case f.form == "dns":
		return fmt.Sprintf(rapid.SampledFrom([]string{"a.internal:%d", "localhost:%d", "_a-%d._tcp.b.internal"}).Draw(d.t, f.name), d.drawn)
	case f.form == "server":
		return fmt.Sprintf(rapid.SampledFrom([]string{"127.0.0.1:%d", "[::1]:%d"}).Draw(d.t, f.name), d.drawn)
	case f.form == "unix":
		return fmt.Sprintf("unix:/run/%d", d.drawn)
	case f.form == "tcp":
		return fmt.Sprintf("127.0.0.1:%d", d.drawn)
	case f.form != "":
		return fmt.Sprintf(rapid.SampledFrom([]string{"127.0.0.1:%d", "[::1]:%d", "localhost:%d", "unix:/run/%d"}).Draw(d.t, f.name), d.drawn)
	default:
		return rapid.String().Draw(d.t, f.name)
	}
}

// config draws a tree and mends what its values must say of each other.
func (d *drawer) config() *Config {
	c := &Config{}
	d.structure(reflect.ValueOf(c).Elem())
	for i := range c.Listeners {
		l := &c.Listeners[i]
		l.Routes = rapid.SampledFrom(c.Routes).Draw(d.t, "table").Name
		queues := []Size{l.QueueLow, max(l.QueueHigh, 2), l.MaxQueued}
		slices.Sort(queues)
		if l.Forwarding == ForwardInline { // which the filters may not allow
			l.Forwarding = ForwardWorker
		}
		l.QueueLow, l.QueueHigh, l.MaxQueued = min(queues[0], queues[1]-1), queues[1], max(queues[2], 64<<10)
	}
	for i := range c.Routes {
		for j := range c.Routes[i].Rules {
			r := &c.Routes[i].Rules[j]
			if r.Cluster != "" {
				r.Cluster = rapid.SampledFrom(c.Clusters).Draw(d.t, "cluster").Name
			}
			r.Clusters = r.Clusters[:min(len(r.Clusters), len(c.Clusters))]
			for k := range r.Clusters {
				r.Clusters[k].Cluster = c.Clusters[k].Name
			}
		}
	}
	if a := c.Admin; a != nil && a.Address == "" {
		a.Mode, a.Group = "", ""
	}
	o := &c.Overload
	o.StopAccepting = max(o.StopAccepting, o.StopReading)
	o.RefuseLow = max(o.RefuseLow, o.StopAccepting)
	o.RefuseNormal = max(o.RefuseNormal, o.RefuseLow)
	for i := range c.Clusters {
		c.Clusters[i].ConnectionsPerEndpoint = min(c.Clusters[i].ConnectionsPerEndpoint, c.Clusters[i].MaxConnections)
	}
	return c
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := &drawer{t: t, schema: tree()}
		roundTrip(t, d.config())
	})
}

func FuzzParse(f *testing.F) {
	for _, folder := range []string{"testdata/good", "testdata/bad", "../../examples", "../../examples/sidecar"} {
		entries, err := os.ReadDir(folder)
		if err != nil {
			f.Fatal(err)
		}
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), ".txt") || e.IsDir() {
				continue
			}
			data, err := os.ReadFile(folder + "/" + e.Name())
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(data)
		if err == nil {
			roundTrip(t, c)
			c.Warnings()
			return
		}
		faults, ok := errors.AsType[*Errors](err)
		if !ok || len(faults.Faults) == 0 {
			t.Fatalf("the error is %v, want an *Errors with a fault", err)
		}
		if lines := strings.Count(err.Error(), "\n") + 1; lines != len(faults.Faults) {
			t.Fatalf("%d faults have %d lines:\n%v", len(faults.Faults), lines, err)
		}
	})
}
