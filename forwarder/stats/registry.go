package stats

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
)

// Label is one dimension of a series. The name is a constant of the program. The value may come from the
// configuration and hold any bytes: what is not UTF-8 is shown as \xNN. It never comes from a peer, because
// nothing would bound the number of series then.
type Label struct{ Name, Value string }

type kind uint8

const (
	kindCounter   kind = iota // only grows
	kindGauge                 // goes up and down
	kindHistogram             // durations in buckets
)

var kindNames = [...]string{"counter", "gauge", "histogram"}

func (k kind) String() string { return kindNames[k] }

// Registry names the metrics of a process. A name has one kind, one help text and one set of label names;
// asking for it differently is a mistake in the program and panics. Asking twice for the same name and label
// values gives the same object, so that a count outlives the configuration that it began under.
//
// All methods are safe for concurrent use. None belongs on the road of a request.
type Registry struct {
	mu sync.Mutex

	// Guarded by mu.
	families map[string]*family
}

// family is all series of one name.
type family struct {
	// Static after New.
	name   string
	help   string
	kind   kind
	labels []string // sorted
	desc   *prometheus.Desc

	// Guarded by the registry's mu.
	series   map[string]*series // by key(values)
	imported bool               // only Import has asked for it so far
}

// series is one metric. Exactly one of the four is set.
type series struct {
	// Static after New.
	values []string // in the order of the family's labels

	// Guarded by the registry's mu; what they point to is atomic.
	counter   *Counter
	gauge     *Gauge
	histogram *Histogram
	fn        func() float64
	imported  bool // only Import has asked for it so far
}

// NewRegistry returns a registry without metrics.
func NewRegistry() *Registry { return &Registry{families: make(map[string]*family)} }

// Counter returns the counter of this name and these label values, new if there was none. The name ends in
// _total.
func (r *Registry) Counter(name, help string, labels ...Label) *Counter {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.lookup(kindCounter, false, name, help, labels)
	if s.counter == nil {
		s.counter = new(Counter)
	}
	return s.counter
}

// Gauge returns the gauge of this name and these label values, new if there was none.
func (r *Registry) Gauge(name, help string, labels ...Label) *Gauge {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.lookup(kindGauge, false, name, help, labels)
	if s.gauge == nil {
		s.gauge = new(Gauge)
	}
	return s.gauge
}

// Histogram returns the histogram of this name and these label values, new if there was none. The name ends
// in _seconds.
func (r *Registry) Histogram(name, help string, labels ...Label) *Histogram {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.lookup(kindHistogram, false, name, help, labels)
	if s.histogram == nil {
		s.histogram = new(Histogram)
	}
	return s.histogram
}

// CounterFunc makes fn the source of a counter, in place of an earlier function. fn is called on every read,
// by any goroutine, while the registry is unlocked, and must not block. It may be called once more by a read
// that is under way when it is replaced or forgotten.
func (r *Registry) CounterFunc(name, help string, fn func() float64, labels ...Label) {
	r.function(kindCounter, name, help, fn, labels)
}

// GaugeFunc makes fn the source of a gauge, in place of an earlier function. The rules for fn are those of
// CounterFunc.
func (r *Registry) GaugeFunc(name, help string, fn func() float64, labels ...Label) {
	r.function(kindGauge, name, help, fn, labels)
}

// FlagFunc is GaugeFunc for what is so, 1, or is not, 0.
func (r *Registry) FlagFunc(name, help string, fn func() bool, labels ...Label) {
	r.GaugeFunc(name, help, func() float64 {
		if fn() {
			return 1
		}
		return 0
	}, labels...)
}

func (r *Registry) function(k kind, name, help string, fn func() float64, labels []Label) {
	if fn == nil {
		panic(fmt.Sprintf("stats: %s: the function is nil", name))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lookup(k, true, name, help, labels).fn = fn
}

// Forget removes every series that has all the given labels, and returns how many those were. It is for what
// left the configuration, after the snapshot without it is in force: who still holds a handle may go on
// using it, but what it counts is shown no more, and asking for the series again starts a new one at zero.
// Without labels nothing is removed.
func (r *Registry) Forget(labels ...Label) int { return r.ForgetEach([][]Label{labels}) }

// ForgetEach is Forget for each of the lists of labels, in one pass over all series.
func (r *Registry) ForgetEach(lists [][]Label) int {
	type wanted struct {
		names  []string
		values map[string]bool // by key
	}
	byNames := make(map[string]*wanted)
	for _, labels := range lists {
		if len(labels) == 0 {
			continue
		}
		names, values := split(labels)
		w := byNames[key(names)]
		if w == nil {
			w = &wanted{names, make(map[string]bool)}
			byNames[key(names)] = w
		}
		w.values[key(values)] = true
	}
	if len(byNames) == 0 {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	removed := 0
	for _, f := range r.families {
		before := len(f.series)
		for _, w := range byNames {
			at, ok := f.indexes(w.names)
			if !ok {
				continue
			}
			values := make([]string, len(at))
			maps.DeleteFunc(f.series, func(_ string, s *series) bool {
				for i := range at {
					values[i] = s.values[at[i]]
				}
				return w.values[key(values)]
			})
		}
		removed += before - len(f.series)
	}
	return removed
}

// indexes are where the family has these labels, if it has them all.
func (f *family) indexes(names []string) (at []int, ok bool) {
	for _, name := range names {
		i, ok := slices.BinarySearch(f.labels, name)
		if !ok {
			return nil, false
		}
		at = append(at, i)
	}
	return at, true
}

// lookup returns the series, new and with no source if there was none. The caller holds mu. It panics when
// the name is known with another kind, help, label names, or sort of source (a function, or a handle). What only
// Import has asked for gives way: a release may name things differently from the one before.
func (r *Registry) lookup(k kind, function bool, name, help string, labels []Label) *series {
	names, values := split(labels)
	f := r.families[name]
	if f == nil || f.imported && !f.is(k, help, names) {
		was := f
		f = newFamily(k, name, help, names)
		if was != nil && was.is(k, was.help, names) { // in other words
			f.series = was.series
		}
		r.families[name] = f
	}
	f.imported = false
	switch {
	case f.kind != k:
		panic(fmt.Sprintf("stats: %s is a %v, asked for as a %v", name, f.kind, k))
	case !slices.Equal(f.labels, names):
		panic(fmt.Sprintf("stats: %s has the labels %q, asked for with %q", name, f.labels, names))
	case f.help != help:
		panic(fmt.Sprintf("stats: %s has the help %q, asked for with %q", name, f.help, help))
	}
	id := key(values)
	s := f.series[id]
	if s == nil || s.imported && function {
		s = &series{values: values}
		f.series[id] = s
	} else if (s.fn != nil) != function {
		panic(fmt.Sprintf("stats: %s%q is asked for as a function and as a handle", name, values))
	}
	s.imported = false
	return s
}

// split returns the names of labels, sorted, and in the same order their values as they are shown.
func split(labels []Label) (names, values []string) {
	labels = slices.Clone(labels)
	slices.SortFunc(labels, func(a, b Label) int { return cmp.Compare(a.Name, b.Name) })
	names, values = make([]string, len(labels)), make([]string, len(labels))
	for i, l := range labels {
		names[i], values[i] = l.Name, printable(l.Value)
	}
	return names, values
}

// is says whether the family is what asking for this gives.
func (f *family) is(k kind, help string, labels []string) bool {
	return f.kind == k && f.help == help && slices.Equal(f.labels, labels)
}

// newFamily panics when a name or the help is not what Prometheus takes.
func newFamily(k kind, name, help string, labels []string) *family {
	if err := checkFamily(k, name, help, labels); err != nil {
		panic(err.Error())
	}
	return &family{
		name: name, help: help, kind: k, labels: labels,
		desc:   prometheus.NewDesc(name, help, labels, nil),
		series: make(map[string]*series),
	}
}

// checkFamily refuses a name or help that is not what Prometheus takes.
func checkFamily(k kind, name, help string, labels []string) error {
	if !isName(name) {
		return fmt.Errorf("stats: %q is not a metric name", name)
	}
	if help == "" {
		return fmt.Errorf("stats: %s has no help", name)
	}
	for i, l := range labels {
		switch {
		case !isName(l) || strings.HasPrefix(l, "__") || k == kindHistogram && l == "le":
			return fmt.Errorf("stats: %s: %q is not a label name", name, l)
		case i > 0 && labels[i-1] == l:
			return fmt.Errorf("stats: %s has the label %q twice", name, l)
		}
	}
	return nil
}

func isName(s string) bool {
	for i, c := range []byte(s) {
		letter := c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// key joins label values by a byte that valid UTF-8 never holds.
func key(values []string) string { return strings.Join(values, "\xff") }

// printable returns s with each byte that is not UTF-8 as \xNN, so that different values stay different.
func printable(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		c, n := utf8.DecodeRuneInString(s)
		if c == utf8.RuneError && n == 1 {
			fmt.Fprintf(&b, `\x%02x`, s[0])
		} else {
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	return b.String()
}
