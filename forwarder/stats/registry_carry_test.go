package stats

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestExport(t *testing.T) {
	r := NewRegistry()
	r.Counter("z_total", "Z.", Label{"route", "b"}, Label{"cluster", "\xff"}).Add(2)
	r.Counter("a_total", "A.")
	r.Gauge("depth", "D.").Set(3)
	r.GaugeFunc("f", "F.", func() float64 { return 1 })
	r.CounterFunc("c_total", "C.", func() float64 { return 1 })
	h := r.Histogram("d_seconds", "D.")
	h.Observe(time.Millisecond)
	h.Observe(time.Hour)
	buckets := make([]uint64, Buckets+1)
	buckets[bucketOf(time.Millisecond)], buckets[overflow] = 1, 1
	want := []Series{
		{Name: "a_total", Help: "A."},
		{Name: "d_seconds", Help: "D.", Buckets: buckets, Sum: uint64(time.Hour + time.Millisecond)},
		{Name: "z_total", Help: "Z.", Labels: []Label{{"cluster", `\xff`}, {"route", "b"}}, Value: 2},
	}
	if diff := cmp.Diff(want, r.Export()); diff != "" {
		t.Errorf("what is exported differs (- want, + got):\n%s", diff)
	}
}

// draw makes a registry with counters and histograms of some of a few names and label values.
func draw(t *rapid.T, who string) *Registry {
	r := NewRegistry()
	for i := range rapid.IntRange(0, 8).Draw(t, who) {
		l := Label{"route", rapid.SampledFrom([]string{"a", "b", "\xff"}).Draw(t, "route")}
		if n := rapid.IntRange(0, 1).Draw(t, "name"); i%2 == 0 {
			r.Counter(fmt.Sprintf("c%d_total", n), "C.", l).Add(uint64(rapid.Uint32().Draw(t, "value")))
		} else {
			r.Histogram(fmt.Sprintf("h%d_seconds", n), "H.", l).Observe(time.Duration(rapid.Int64Range(0, 1e11).Draw(t, "duration")))
		}
	}
	return r
}

// numbers is what a registry exports, by name and labels: value or sum, then buckets.
func numbers(r *Registry) map[string][]uint64 {
	all := map[string][]uint64{}
	for _, s := range r.Export() {
		all[fmt.Sprint(s.Name, s.Labels)] = append([]uint64{s.Value + s.Sum}, s.Buckets...)
	}
	return all
}

// sum is what two registries have counted together.
func sum(a, b map[string][]uint64) map[string][]uint64 {
	out := maps.Clone(a)
	for key, more := range b {
		n := slices.Clone(more)
		for i, v := range a[key] {
			n[i] += v
		}
		out[key] = n
	}
	return out
}

func TestImportAdds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		old, heir := draw(t, "old"), draw(t, "heir")
		want := sum(numbers(old), numbers(heir))
		if n := heir.Import(old.Export()); n != 0 {
			t.Fatalf("%d series are passed over, want none", n)
		}
		if diff := cmp.Diff(want, numbers(heir)); diff != "" {
			t.Fatalf("the heir has not counted what both have together (- want, + got):\n%s", diff)
		}
		before := numbers(heir)
		heir.Import(heir.Export())
		if diff := cmp.Diff(sum(before, before), numbers(heir)); diff != "" {
			t.Fatalf("importing its own export does not double it (- want, + got):\n%s", diff)
		}
	})
}

func TestImportPassesOverWhatClashes(t *testing.T) {
	a := []Label{{"a", "1"}}
	good := Series{Name: "good_total", Help: "G.", Labels: a, Value: 1}
	for name, s := range map[string]Series{
		"another kind":                  {Name: "h_seconds", Help: "H.", Value: 1},
		"another kind, of a gauge":      {Name: "g", Help: "G.", Value: 1},
		"other label names":             {Name: "x_total", Help: "X.", Labels: []Label{{"b", "1"}}, Value: 1},
		"more label names":              {Name: "x_total", Help: "X.", Labels: []Label{{"a", "1"}, {"b", "1"}}, Value: 1},
		"a function":                    {Name: "f_total", Help: "F.", Value: 1},
		"fewer buckets":                 {Name: "h_seconds", Help: "H.", Buckets: make([]uint64, Buckets), Sum: 1},
		"more buckets":                  {Name: "h_seconds", Help: "H.", Buckets: make([]uint64, Buckets+2), Sum: 1},
		"no buckets, of a histogram":    {Name: "h_seconds", Help: "H.", Buckets: []uint64{}, Sum: 1},
		"a name that is none":           {Name: "a-b", Help: "A.", Value: 1},
		"no name":                       {Help: "A.", Value: 1},
		"no help":                       {Name: "new_total", Value: 1},
		"a help that is no text":        {Name: "new_total", Help: "\xff", Value: 1},
		"a label that is none":          {Name: "new_total", Help: "N.", Labels: []Label{{"__a", ""}}, Value: 1},
		"a label that a histogram uses": {Name: "new_seconds", Help: "N.", Labels: []Label{{"le", ""}}, Buckets: make([]uint64, Buckets+1)},
		"a label twice":                 {Name: "new_total", Help: "N.", Labels: []Label{{"a", "1"}, {"a", "2"}}, Value: 1},
	} {
		r := NewRegistry()
		r.Counter("x_total", "X.", a...).Add(1)
		r.Histogram("h_seconds", "H.").Observe(time.Second)
		r.Gauge("g", "G.")
		r.CounterFunc("f_total", "F.", func() float64 { return 7 })
		before := lines(r)
		if n := r.Import([]Series{s, good, s}); n != 2 {
			t.Errorf("%s: %d series are passed over, want the 2 that clash", name, n)
		}
		if n := r.Counter("good_total", "G.", a...).Value(); n != 1 {
			t.Errorf("%s: the series between them has %d, want 1", name, n)
		}
		r.Forget(a[0])
		r.Counter("x_total", "X.", a...).Add(1)
		if diff := cmp.Diff(before, lines(r)); diff != "" {
			t.Errorf("%s: the registry has changed (- want, + got):\n%s", name, diff)
		}
	}
}

// What an older release has counted under a name must not make this one panic when it asks for the name in its own way.
func TestWhatWasAskedForHoldsAgainstWhatWasImported(t *testing.T) {
	route := Label{"route", "a"}
	imported := []Series{{Name: "x_total", Help: "As it was.", Labels: []Label{route}, Value: 3}}
	for _, tc := range []struct {
		what string
		ask  func(r *Registry)
		want []string
	}{
		{"the same", func(r *Registry) { r.Counter("x_total", "As it was.", route).Add(1) }, []string{`x_total{route="a"} 4`}},
		{"another help", func(r *Registry) { r.Counter("x_total", "X.", route).Add(1) }, []string{`x_total{route="a"} 4`}},
		{"another series", func(r *Registry) { r.Counter("x_total", "X.", Label{"route", "b"}) }, []string{`x_total{route="a"} 3`, `x_total{route="b"} 0`}},
		{"other labels", func(r *Registry) { r.Counter("x_total", "X.").Add(1) }, []string{`x_total 1`}},
		{"another kind", func(r *Registry) { r.Gauge("x_total", "X.", route) }, []string{`x_total{route="a"} 0`}},
		{"a function", func(r *Registry) { r.CounterFunc("x_total", "X.", func() float64 { return 7 }, route) }, []string{`x_total{route="a"} 7`}},
	} {
		r := NewRegistry()
		if n := r.Import(imported); n != 0 {
			t.Fatalf("%d series are passed over, want none", n)
		}
		tc.ask(r)
		if diff := cmp.Diff(tc.want, lines(r)); diff != "" {
			t.Errorf("asked for %s, the registry says otherwise (- want, + got):\n%s", tc.what, diff)
		}
		tc.ask(r) // and again, as for any other
	}

	r := NewRegistry()
	r.Import(imported)
	r.Counter("x_total", "X.", route)
	defer func() {
		if got, want := recover(), `stats: x_total has the help "X.", asked for with "Y."`; got != want {
			t.Errorf("asking in two ways gives the panic %v, want %s", got, want)
		}
	}()
	r.Counter("x_total", "Y.", route)
}

func TestImportUnderAnotherHelp(t *testing.T) {
	r := NewRegistry()
	r.Counter("x_total", "X.").Add(1)
	if n := r.Import([]Series{{Name: "x_total", Help: "As it was.", Value: 3}}); n != 0 {
		t.Errorf("%d series are passed over, want none: the help is for people", n)
	}
	if got := r.Counter("x_total", "X.").Value(); got != 4 {
		t.Errorf("the counter has %d, want 4", got)
	}
}

// TestCarryBesideUse exports and imports while loops count and the configuration changes.
func TestCarryBesideUse(t *testing.T) {
	const loops, rounds = 4, 300
	old, heir := NewRegistry(), NewRegistry()
	kept := old.Counter("kept_total", "K.")
	var wg sync.WaitGroup
	for i := range loops {
		wg.Go(func() {
			l := Label{"cluster", fmt.Sprint(i)}
			for range rounds {
				for _, r := range []*Registry{old, heir} {
					r.Counter("kept_total", "K.").Add(1)
					r.Histogram("h_seconds", "H.", l).Observe(time.Second)
					r.GaugeFunc("f", "F.", func() float64 { return float64(len(r.Export())) }, l)
					r.Forget(l)
				}
			}
		})
	}
	var carried, last uint64
	for range 50 {
		list := old.Export()
		i := slices.IndexFunc(list, func(s Series) bool { return s.Name == "kept_total" })
		if i < 0 || list[i].Value < last {
			t.Fatalf("kept_total is missing, or has fallen from %d: %v", last, list)
		}
		last = list[i].Value
		carried += last
		if n := heir.Import(list); n != 0 {
			t.Fatalf("%d series are passed over, want none", n)
		}
		heir.Snapshot()
	}
	wg.Wait()
	if got, want := kept.Value(), uint64(loops*rounds); got != want {
		t.Errorf("the old counter has %d, want %d", got, want)
	}
	if got, want := heir.Counter("kept_total", "K.").Value(), loops*rounds+carried; got != want {
		t.Errorf("the heir's counter has %d, want its own and all that was carried, %d", got, want)
	}
}

// Restoring is as if the older records had been added first.
func TestRestoreIsAddingBefore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		places := rapid.IntRange(1, 6).Draw(t, "places")
		older, newer := rapid.IntRange(0, 9).Draw(t, "older"), rapid.IntRange(0, 9).Draw(t, "newer")
		later := rapid.IntRange(0, 9).Draw(t, "later")
		old, heir, want := NewRing(rapid.IntRange(1, 9).Draw(t, "places of the old")), NewRing(places), NewRing(places)
		add := func(from, n int, rings ...*Ring) {
			for i := range n {
				for _, r := range rings {
					r.Add(Record{ID: uint32(from + i)})
				}
			}
		}
		add(0, older, old)
		kept, _ := old.Records()
		for _, r := range kept { // it cannot give what it has dropped itself
			want.Add(r)
		}
		want.total = uint64(older)
		add(older, newer, heir, want)
		heir.Restore(old.Records())
		for step, more := range []int{0, later} {
			add(older+newer, more, heir, want)
			got, total := heir.Records()
			wanted, wantTotal := want.Records()
			if diff := cmp.Diff(wanted, got); diff != "" || total != wantTotal {
				t.Fatalf("step %d: a total of %d, want %d; the records differ (- want, + got):\n%s", step, total, wantTotal, diff)
			}
		}
	})
}

func TestRestoreTrustsNobody(t *testing.T) {
	ring := NewRing(3)
	ring.Add(Record{ID: 9})
	given := []Record{{ID: 1}, {ID: 2, Service: strings.Repeat("x", 1000)}}
	ring.Restore(given, 0)
	records, total := ring.Records()
	if len(records) != 3 || records[0].ID != 1 || total != 3 {
		t.Fatalf("got %d records from %d on and a total of %d, want 3 from 1 on and, whatever was said, 3", len(records), records[0].ID, total)
	}
	if n := len(records[1].Service); n != MaxText {
		t.Errorf("a restored service has %d bytes, want %d", n, MaxText)
	}
	if n := len(given[1].Service); n != 1000 {
		t.Errorf("the caller's record has %d bytes now, want it left alone", n)
	}
	ring.Restore(nil, 5)
	if _, total := ring.Records(); total != 8 {
		t.Errorf("the total is %d, want 8", total)
	}
}
