package stats

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

var _ prometheus.Collector = (*Registry)(nil)

// reading is a copy of one series' references, taken under the lock and read without it.
type reading struct {
	f *family // only what is static
	s series
}

// readings returns all series, by name and then by label values.
func (r *Registry) readings() []reading {
	r.mu.Lock()
	var all []reading
	for _, f := range r.families {
		for _, s := range f.series {
			all = append(all, reading{f, *s})
		}
	}
	r.mu.Unlock()
	slices.SortFunc(all, func(a, b reading) int {
		return cmp.Or(cmp.Compare(a.f.name, b.f.name), slices.Compare(a.s.values, b.s.values))
	})
	return all
}

// value returns what a counter or a gauge says.
func (r *reading) value() float64 {
	switch {
	case r.s.fn != nil:
		return r.s.fn()
	case r.s.counter != nil:
		return float64(r.s.counter.Value())
	default:
		return float64(r.s.gauge.Value())
	}
}

// Describe sends nothing: series come and go with the configuration, and the registry itself keeps names
// and labels consistent.
func (r *Registry) Describe(chan<- *prometheus.Desc) {}

// Collect sends every series as it stands, durations in seconds.
func (r *Registry) Collect(out chan<- prometheus.Metric) {
	for _, m := range r.readings() {
		switch m.f.kind {
		case kindHistogram:
			cumulative, count, sum := m.s.histogram.read()
			buckets := make(map[float64]uint64, Buckets)
			for i, n := range cumulative {
				buckets[bounds[i]] = n
			}
			out <- prometheus.MustNewConstHistogram(m.f.desc, count, float64(sum)/1e9, buckets, m.s.values...)
		case kindCounter:
			out <- prometheus.MustNewConstMetric(m.f.desc, prometheus.CounterValue, m.value(), m.s.values...)
		case kindGauge:
			out <- prometheus.MustNewConstMetric(m.f.desc, prometheus.GaugeValue, m.value(), m.s.values...)
		}
	}
}

// bounds holds the upper bounds of the buckets, in seconds. It is never written to.
var bounds = func() (b [Buckets]float64) {
	for i := range b {
		b[i] = float64(Bound(i).Microseconds()) / 1e6
	}
	return b
}()

// Sample is one number as the text format of Prometheus has it: a histogram is several of them, NAME_bucket
// with the label le, NAME_sum in seconds and NAME_count.
type Sample struct {
	Name   string
	Labels []Label // sorted by name; le is the last one
	Value  float64
}

// String returns the sample as a line of the text format, without its line feed.
func (s Sample) String() string {
	var b strings.Builder
	b.WriteString(s.Name)
	sep := byte('{')
	for _, l := range s.Labels {
		b.WriteByte(sep)
		b.WriteString(l.Name)
		b.WriteString(`="`)
		b.WriteString(escaper.Replace(l.Value))
		b.WriteByte('"')
		sep = ','
	}
	if sep == ',' {
		b.WriteByte('}')
	}
	b.WriteByte(' ')
	b.WriteString(number(s.Value))
	return b.String()
}

var escaper = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

func number(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }

// Snapshot returns every number there is, by name, then by label values, then by bucket.
func (r *Registry) Snapshot() []Sample {
	var out []Sample
	for _, m := range r.readings() {
		labels := make([]Label, len(m.f.labels))
		for i := range labels {
			labels[i] = Label{m.f.labels[i], m.s.values[i]}
		}
		if m.f.kind != kindHistogram {
			out = append(out, Sample{m.f.name, labels, m.value()})
			continue
		}
		cumulative, count, sum := m.s.histogram.read()
		bucket := func(le string, n uint64) {
			with := append(slices.Clip(labels), Label{"le", le})
			out = append(out, Sample{m.f.name + "_bucket", with, float64(n)})
		}
		for i, n := range cumulative {
			bucket(number(bounds[i]), n)
		}
		bucket("+Inf", count)
		out = append(out,
			Sample{m.f.name + "_sum", labels, float64(sum) / 1e9},
			Sample{m.f.name + "_count", labels, float64(count)})
	}
	return out
}
