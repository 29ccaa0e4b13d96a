package config

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

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
	for i := range d.schema[v.Type()] {
		f := &d.schema[v.Type()][i]
		d.value(f, v.Field(f.index))
	}
}

func (d *drawer) value(f *field, v reflect.Value) {
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
			reasons := rapid.Permutation(f.oneOf).Draw(d.t, f.name)
			for _, reason := range reasons[:rapid.IntRange(1, len(reasons)).Draw(d.t, "reasons")] {
				v.Set(reflect.Append(v, reflect.ValueOf(reason).Convert(v.Type().Elem())))
			}
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), rapid.IntRange(1, 3).Draw(d.t, f.name), 3))
		for i := range v.Len() {
			d.value(f, v.Index(i))
		}
	case reflect.Map:
		// Keys and values of all characters, those among them that YAML reads as something else.
		words := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"on", "n", "~", "null", "1.0", "1:30", "=", "2001-01-01", " x ", "a: b", "#", "\t"}))
		header := rapid.MapOfN(words, words, 0, maxMatchHeaders).Draw(d.t, f.name)
		delete(header, "")
		delete(header, "<<")
		if len(header) > 0 {
			v.Set(reflect.ValueOf(header))
		}
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

func (d *drawer) text(f *field) string {
	d.drawn++
	switch {
	case len(f.oneOf) > 0:
		return rapid.SampledFrom(f.oneOf).Draw(d.t, f.name)
	case f.form == "name":
		return rapid.SampledFrom([]string{"n", "0x", "1.", "-", "a_b.c", ".5e"}).Draw(d.t, f.name) + fmt.Sprint(d.drawn)
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
		l.QueueLow, l.QueueHigh, l.MaxQueued = min(queues[0], queues[1]-1), queues[1], max(queues[2], 64<<10)
	}
	for i := range c.Routes {
		for j := range c.Routes[i].Rules {
			c.Routes[i].Rules[j].Cluster = rapid.SampledFrom(c.Clusters).Draw(d.t, "cluster").Name
		}
	}
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

// A rule is said to be shadowed exactly when an earlier one matches all that it does.
func TestShadowedRules(t *testing.T) {
	covers := func(a, b Match) bool {
		if a.Service != "" && a.Service != b.Service {
			return false
		}
		for key, value := range maps.All(a.Header) {
			if got, ok := b.Header[key]; !ok || got != value {
				return false
			}
		}
		return true
	}
	word := rapid.SampledFrom([]string{"a", "b", "c"})
	match := rapid.Custom(func(t *rapid.T) Match {
		return Match{
			Service: rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "service"),
			Header:  rapid.MapOfN(word, word, 0, 3).Draw(t, "header"),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		var rules []Rule
		var want []string
		for i, m := range rapid.SliceOfN(match, 1, 12).Draw(t, "matches") {
			for _, r := range rules {
				if covers(r.Match, m) {
					want = append(want, fmt.Sprintf("/routes/0/rules/%d", i))
					break
				}
			}
			rules = append(rules, Rule{Match: m})
		}
		c := &Config{Routes: []RouteTable{{Rules: rules}}}
		var got []string
		for _, w := range c.shadowedRules() {
			got = append(got, w.Pointer)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("the shadowed rules are %v, want %v", got, want)
		}
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
