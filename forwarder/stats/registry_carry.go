package stats

import (
	"slices"
	"unicode/utf8"
)

// Series is what a counter or a histogram has counted, to be carried from a process to the one that follows it.
type Series struct {
	Name, Help string
	Labels     []Label
	Value      uint64   // of a counter
	Buckets    []uint64 // of a histogram, those of each bucket alone, the one without a bound last; nil of a counter
	Sum        uint64   // of a histogram, in nanoseconds
}

// Export returns all counters and histograms as they stand, by name and then by label values. Gauges and what a function
// says are not among them: they are about one process. The numbers are read while the registry is unlocked.
func (r *Registry) Export() []Series {
	var out []Series
	for _, m := range r.readings() {
		s := Series{Name: m.f.name, Help: m.f.help}
		switch {
		case m.s.counter != nil:
			s.Value = m.s.counter.Value()
		case m.s.histogram != nil:
			s.Buckets = make([]uint64, len(m.s.histogram.counts))
			for i := range s.Buckets {
				s.Buckets[i] = m.s.histogram.counts[i].Load()
			}
			s.Sum = m.s.histogram.sum.Load()
		default:
			continue
		}
		for i, name := range m.f.labels {
			s.Labels = append(s.Labels, Label{name, m.s.values[i]})
		}
		out = append(out, s)
	}
	return out
}

// Import adds what another process has exported to what this one has counted, so that its numbers go on from there. What
// this registry does not know becomes known; if it is asked for later and differently, what was asked for holds. What
// clashes with what was asked for already, or is no series that this release can have, is passed over: another kind, other
// label names, a function in the place of a number, another number of buckets. Import returns how many those were.
func (r *Registry) Import(list []Series) (passedOver int) {
	for i := range list {
		s := &list[i]
		counter, histogram := r.adopt(s)
		switch {
		case counter != nil:
			counter.Add(s.Value)
		case histogram != nil:
			histogram.add(s.Buckets, s.Sum)
		default:
			passedOver++
		}
	}
	return passedOver
}

// adopt returns the counter or the histogram to which s is to be added, or neither.
func (r *Registry) adopt(s *Series) (*Counter, *Histogram) {
	k := kindCounter
	if s.Buckets != nil {
		k = kindHistogram
		if len(s.Buckets) != Buckets+1 {
			return nil, nil
		}
	}
	names, values := split(s.Labels)
	if err := checkFamily(k, s.Name, s.Help, names); err != nil || !utf8.ValidString(s.Help) {
		return nil, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.families[s.Name]
	switch {
	case f == nil:
		f = newFamily(k, s.Name, s.Help, names)
		f.imported = true
		r.families[s.Name] = f
	case f.kind != k || !slices.Equal(f.labels, names):
		return nil, nil
	}
	id := key(values)
	to := f.series[id]
	if to == nil {
		to = &series{values: values, imported: true}
		if k == kindHistogram {
			to.histogram = new(Histogram)
		} else {
			to.counter = new(Counter)
		}
		f.series[id] = to
	}
	return to.counter, to.histogram // a function has neither
}
