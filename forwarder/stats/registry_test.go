package stats

import (
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func lines(r *Registry) []string {
	var out []string
	for _, s := range r.Snapshot() {
		out = append(out, s.String())
	}
	return out
}

func TestSameNameAndLabelsGiveSameObject(t *testing.T) {
	r := NewRegistry()
	a := r.Counter("x_total", "X.", Label{"route", "r"}, Label{"cluster", "c"})
	b := r.Counter("x_total", "X.", Label{"cluster", "c"}, Label{"route", "r"})
	if a != b {
		t.Error("the order of labels makes another counter, want the same one")
	}
	if c := r.Counter("x_total", "X.", Label{"cluster", "r"}, Label{"route", "c"}); a == c {
		t.Error("other label values give the same counter, want another one")
	}
	if r.Gauge("g", "G.") != r.Gauge("g", "G.") || r.Histogram("h_seconds", "H.") != r.Histogram("h_seconds", "H.") {
		t.Error("a gauge or a histogram is new when asked for again, want the same one")
	}
}

func TestSnapshot(t *testing.T) {
	r := NewRegistry()
	r.Counter("z_total", "Z.", Label{"route", "b"}).Add(2)
	r.Counter("z_total", "Z.", Label{"route", "a"}).Add(1)
	r.Gauge("depth", "D.", Label{"b", `q"\` + "\n"}, Label{"a", "\xff\xc3\xa9"}).Set(-3)
	r.GaugeFunc("f", "F.", func() float64 { return 1 })
	r.GaugeFunc("f", "F.", func() float64 { return math.Inf(1) })
	r.CounterFunc("c_total", "C.", func() float64 { return 1e6 })
	r.Histogram("d_seconds", "D.", Label{"route", "a"}).Observe(20 * time.Second)
	got := lines(r)
	want := []string{
		`c_total 1e+06`,
		`d_seconds_bucket{route="a",le="3.2e-05"} 0`,
		`d_seconds_bucket{route="a",le="6.4e-05"} 0`,
		`d_seconds_bucket{route="a",le="0.000128"} 0`,
		`d_seconds_bucket{route="a",le="0.000256"} 0`,
		`d_seconds_bucket{route="a",le="0.000512"} 0`,
		`d_seconds_bucket{route="a",le="0.001024"} 0`,
		`d_seconds_bucket{route="a",le="0.002048"} 0`,
		`d_seconds_bucket{route="a",le="0.004096"} 0`,
		`d_seconds_bucket{route="a",le="0.008192"} 0`,
		`d_seconds_bucket{route="a",le="0.016384"} 0`,
		`d_seconds_bucket{route="a",le="0.032768"} 0`,
		`d_seconds_bucket{route="a",le="0.065536"} 0`,
		`d_seconds_bucket{route="a",le="0.131072"} 0`,
		`d_seconds_bucket{route="a",le="0.262144"} 0`,
		`d_seconds_bucket{route="a",le="0.524288"} 0`,
		`d_seconds_bucket{route="a",le="1.048576"} 0`,
		`d_seconds_bucket{route="a",le="2.097152"} 0`,
		`d_seconds_bucket{route="a",le="4.194304"} 0`,
		`d_seconds_bucket{route="a",le="8.388608"} 0`,
		`d_seconds_bucket{route="a",le="16.777216"} 0`,
		`d_seconds_bucket{route="a",le="+Inf"} 1`,
		`d_seconds_sum{route="a"} 20`,
		`d_seconds_count{route="a"} 1`,
		`depth{a="\\xffé",b="q\"\\\n"} -3`,
		`f +Inf`,
		`z_total{route="a"} 1`,
		`z_total{route="b"} 2`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the snapshot differs (- want, + got):\n%s", diff)
	}
}

func TestExposition(t *testing.T) {
	r := NewRegistry()
	r.Counter("relevo_requests_total", "Requests taken in.", Label{"route", "a\xff"}).Add(7)
	r.Gauge("relevo_requests_in_flight", "Requests without a reply yet.").Add(3)
	h := r.Histogram("relevo_request_duration_seconds", "Time from a request to its reply.")
	h.Observe(32 * time.Microsecond)
	h.Observe(time.Millisecond)
	h.Observe(time.Minute)
	var text strings.Builder
	text.WriteString(`# HELP relevo_request_duration_seconds Time from a request to its reply.
# TYPE relevo_request_duration_seconds histogram
`)
	for i := range Buckets {
		n := 1
		if Bound(i) >= time.Millisecond {
			n = 2
		}
		fmt.Fprintf(&text, "relevo_request_duration_seconds_bucket{le=\"%v\"} %d\n", bounds[i], n)
	}
	text.WriteString(`relevo_request_duration_seconds_bucket{le="+Inf"} 3
relevo_request_duration_seconds_sum 60.001032
relevo_request_duration_seconds_count 3
# HELP relevo_requests_in_flight Requests without a reply yet.
# TYPE relevo_requests_in_flight gauge
relevo_requests_in_flight 3
# HELP relevo_requests_total Requests taken in.
# TYPE relevo_requests_total counter
relevo_requests_total{route="a\\xff"} 7
`)
	pr := prometheus.NewPedanticRegistry()
	pr.MustRegister(r)
	if err := testutil.GatherAndCompare(pr, strings.NewReader(text.String())); err != nil {
		t.Error(err)
	}
	problems, err := testutil.GatherAndLint(pr)
	if err != nil || len(problems) != 0 {
		t.Errorf("lint says %v, %v; want nothing", problems, err)
	}
}

func TestForget(t *testing.T) {
	r := NewRegistry()
	label := func(c, e string) []Label { return []Label{{"cluster", c}, {"endpoint", e}} }
	for _, c := range []string{"order\xff", "user"} {
		for _, e := range []string{"1", "2"} {
			r.Counter("sent_total", "S.", label(c, e)...).Add(1)
			r.GaugeFunc("usable", "U.", func() float64 { return 1 }, label(c, e)...)
		}
		r.Counter("picks_total", "P.", Label{"cluster", c}).Add(1)
	}
	r.Counter("all_total", "A.").Add(1)
	kept := r.Counter("sent_total", "S.", label("order\xff", "1")...)

	if got := r.Forget(); got != 0 {
		t.Errorf("without labels %d series are removed, want 0", got)
	}
	if got := r.Forget(Label{"cluster", "1"}); got != 0 {
		t.Errorf("with an unknown value %d series are removed, want 0", got)
	}
	if got, want := r.Forget(label("user", "2")...), 2; got != want {
		t.Errorf("with two labels %d series are removed, want %d", got, want)
	}
	if got, want := r.Forget(Label{"cluster", "order\xff"}), 5; got != want {
		t.Errorf("with one label %d series are removed, want %d", got, want)
	}
	want := []string{
		`all_total 1`, `picks_total{cluster="user"} 1`,
		`sent_total{cluster="user",endpoint="1"} 1`, `usable{cluster="user",endpoint="1"} 1`,
	}
	if diff := cmp.Diff(want, lines(r)); diff != "" {
		t.Errorf("what is left differs (- want, + got):\n%s", diff)
	}
	kept.Add(1)
	if again := r.Counter("sent_total", "S.", label("order\xff", "1")...); again == kept || again.Value() != 0 {
		t.Errorf("the forgotten counter is back with %d, want a new one at 0", again.Value())
	}
}

func TestMistakesPanic(t *testing.T) {
	a, b := Label{"a", "1"}, Label{"b", "2"}
	fn := func() float64 { return 0 }
	for _, tc := range []struct {
		want string
		do   func(r *Registry)
	}{
		{"stats: x_total is a counter, asked for as a gauge", func(r *Registry) { r.Gauge("x_total", "X.", a) }},
		{"stats: x_total is a counter, asked for as a histogram", func(r *Registry) { r.Histogram("x_total", "X.", a) }},
		{`stats: x_total has the labels ["a"], asked for with ["b"]`, func(r *Registry) { r.Counter("x_total", "X.", b) }},
		{`stats: x_total has the labels ["a"], asked for with ["a" "b"]`, func(r *Registry) { r.Counter("x_total", "X.", b, a) }},
		{`stats: x_total has the labels ["a"], asked for with []`, func(r *Registry) { r.Counter("x_total", "X.") }},
		{`stats: x_total has the help "X.", asked for with "Y."`, func(r *Registry) { r.Counter("x_total", "Y.", a) }},
		{`stats: x_total["1"] is asked for as a function and as a handle`, func(r *Registry) { r.CounterFunc("x_total", "X.", fn, a) }},
		{`stats: f["1"] is asked for as a function and as a handle`, func(r *Registry) { r.GaugeFunc("f", "F.", fn, a); r.Gauge("f", "F.", a) }},
		{`stats: f: the function is nil`, func(r *Registry) { r.GaugeFunc("f", "F.", nil) }},
		{`stats: y has the label "a" twice`, func(r *Registry) { r.Gauge("y", "Y.", a, a) }},
		{`stats: y has no help`, func(r *Registry) { r.Gauge("y", "") }},
		{`stats: "" is not a metric name`, func(r *Registry) { r.Gauge("", "Y.") }},
		{`stats: "9y" is not a metric name`, func(r *Registry) { r.Gauge("9y", "Y.") }},
		{`stats: "y-z" is not a metric name`, func(r *Registry) { r.Gauge("y-z", "Y.") }},
		{`stats: y: "__a" is not a label name`, func(r *Registry) { r.Gauge("y", "Y.", Label{"__a", ""}) }},
		{`stats: y: "le" is not a label name`, func(r *Registry) { r.Histogram("y", "Y.", Label{"le", ""}) }},
	} {
		r := NewRegistry()
		r.Counter("x_total", "X.", a)
		func() {
			defer func() {
				if got := recover(); got != tc.want {
					t.Errorf("got the panic %v, want %s", got, tc.want)
				}
			}()
			tc.do(r)
		}()
		r.Counter("x_total", "X.", a).Add(1) // hangs when the panic left the registry locked
	}
}

// TestConcurrentUse has what a configuration swap does beside scrapes, with functions that use the registry.
func TestConcurrentUse(t *testing.T) {
	r := NewRegistry()
	total := r.Counter("kept_total", "K.")
	r.GaugeFunc("size", "S.", func() float64 { return float64(r.Gauge("inner", "I.").Value()) })
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			l := Label{"cluster", fmt.Sprint(i)}
			for range 200 {
				r.Counter("kept_total", "K.").Add(1)
				r.Counter("x_total", "X.", l).Add(1)
				r.Histogram("h_seconds", "H.", l).Observe(time.Second)
				r.GaugeFunc("f", "F.", func() float64 { return float64(i) }, l)
				r.Forget(l)
			}
		})
	}
	pr := prometheus.NewRegistry()
	pr.MustRegister(r)
	for range 50 {
		if _, err := pr.Gather(); err != nil {
			t.Fatalf("gather: %v", err)
		}
		r.Snapshot()
	}
	wg.Wait()
	if got, want := total.Value(), uint64(800); got != want {
		t.Errorf("the counter has %d, want %d", got, want)
	}
}

func BenchmarkCollect(b *testing.B) {
	b.ReportAllocs()
	r := NewRegistry()
	for i := range 100 {
		l := Label{"cluster", fmt.Sprint(i)}
		r.Counter("x_total", "X.", l)
		r.Gauge("g", "G.", l)
		r.Histogram("h_seconds", "H.", l)
	}
	out := make(chan prometheus.Metric, 300)
	for b.Loop() {
		r.Collect(out)
		for len(out) > 0 {
			<-out
		}
	}
}
