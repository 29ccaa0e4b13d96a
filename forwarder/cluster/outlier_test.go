package cluster

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

const second = 1000 * ms

// testRules are the defaults, but that half of the endpoints may be ejected.
func testRules() *OutlierRules {
	return &OutlierRules{
		Failures: 5, Interval: 10 * second, Time: 30 * second, MaxTime: 300 * second, MaxShare: 5000,
		SuccessRate: &SuccessRate{MinRequests: 100, MinEndpoints: 5, Deviations: 1.9},
	}
}

func watched(rules *OutlierRules, n int) (*Outliers, []*Endpoint) {
	endpoints := endpointsOf(slices.Repeat([]int{1}, n)...)
	return NewOutliers(rules, endpoints, nil), endpoints
}

// fail tells of failures in a row, and returns the last verdict.
func (o *Outliers) fail(i, n int, now int64) (v Verdict) {
	for range n {
		if w := o.Failed(o.Record(i), now); w.Endpoint != nil {
			v = w
		}
	}
	return v
}

func (o *Outliers) work(i, n int) {
	o.Record(i).Worked()
	o.Record(i).Count(uint64(n))
}

// ejected are the indexes of those that are.
func ejectedOf(endpoints []*Endpoint) (out []int) {
	for i, e := range endpoints {
		if e.Health().Ejected {
			out = append(out, i)
		}
	}
	return out
}

func wantEjected(t *testing.T, endpoints []*Endpoint, want ...int) {
	t.Helper()
	if diff := cmp.Diff(want, ejectedOf(endpoints)); diff != "" {
		t.Errorf("ejected endpoints (-want +got):\n%s", diff)
	}
}

// TestFailuresInARow: one success among them, and it is another row.
func TestFailuresInARow(t *testing.T) {
	o, endpoints := watched(testRules(), 4)
	for range 10 {
		o.fail(1, 4, second)
		o.work(1, 1)
	}
	wantEjected(t, endpoints)
	v := o.fail(1, 5, second)
	wantEjected(t, endpoints, 1)
	e := endpoints[1]
	if v.Endpoint != e || v.Why != ByFailures || v.Failures != 5 || v.Refused != "" || v.Ejection != e.Ejection() || e.Usable() || !e.Reachable() {
		t.Errorf("got %+v of an endpoint that is usable: %v, reachable: %v; want it ejected, and reachable still", v, e.Usable(), e.Reachable())
	}
	if d := e.Ejection().Until - second; d < 30*second || d > 33*second || e.Ejection().Number != 1 {
		t.Errorf("got it ejected for %v, %+v, want 30 s and a tenth at most", time.Duration(d), e.Ejection())
	}
	if v := o.fail(1, 50, second); v.Endpoint != nil {
		t.Errorf("got %+v of one that is ejected already, want nothing", v)
	}
	rules := testRules()
	rules.Failures = 0
	o, endpoints = watched(rules, 4)
	o.fail(1, 1000, second)
	wantEjected(t, endpoints)
}

// TestReturn: at its time, not before, and from then on it is as any other.
func TestReturn(t *testing.T) {
	o, endpoints := watched(testRules(), 4)
	o.Look(0)
	o.fail(2, 7, second)
	until := endpoints[2].Ejection().Until
	for now := int64(0); now < until; now += second / 2 {
		_, returned, next := o.Look(now)
		if len(returned) > 0 || next > until || next <= now {
			t.Fatalf("at %v: got %d let in and the next look at %v, want none before %v, and that not slept through",
				time.Duration(now), len(returned), time.Duration(next), time.Duration(until))
		}
	}
	_, returned, _ := o.Look(until)
	if len(returned) != 1 || returned[0] != endpoints[2] || !endpoints[2].Usable() {
		t.Fatalf("got %d let in, usable %v, want this one", len(returned), endpoints[2].Usable())
	}
	if v := o.fail(2, 4, until); v.Endpoint != nil {
		t.Error("got it ejected by failures from before, want those forgotten")
	}
	if v := o.fail(2, 1, until); v.Ejection.Number != 2 {
		t.Errorf("got %+v, want the second ejection", v)
	}
}

// TestEjectionTimes grow up to their bound, and shrink again.
func TestEjectionTimes(t *testing.T) {
	o, endpoints := watched(testRules(), 4)
	now := int64(0)
	e := endpoints[0]
	for n := int64(1); n <= 20; n++ {
		v := o.fail(0, 5, now)
		want := min(n*30*second, 300*second)
		if d := v.Ejection.Until - now; d < want || d > want+want/10 {
			t.Fatalf("ejection %d: got %v, want %v and a tenth at most", n, time.Duration(d), time.Duration(want))
		}
		now = v.Ejection.Until
		o.Look(now)
	}
	o.Look(now + 10*second - 1)
	if got := e.Ejection().Number; got != 20 {
		t.Errorf("got the number %d before an interval has passed, want 20", got)
	}
	for n := 19; n > 0; n-- {
		now += 10 * second
		o.Look(now)
		if got := e.Ejection(); got.Number != n || got.Why != ByFailures {
			t.Fatalf("got %+v, want the number %d: one less for each interval", got, n)
		}
		if n == 10 {
			n, now = 7, now+30*second // a clock that slept
			o.Look(now)
		}
	}
	o.Look(now + 10*second)
	if e.Ejection() != (Ejection{}) || e.trouble.Load() != nil {
		t.Errorf("got %+v, want nothing known of it any more", e.Ejection())
	}
}

func TestSuccessRates(t *testing.T) {
	type count struct{ good, bad int }
	fine := count{990, 10}
	for _, c := range []struct {
		name   string
		counts []count
		edit   func(*OutlierRules)
		want   []int
	}{
		{name: "one is worse", counts: []count{fine, fine, fine, fine, {900, 100}}, want: []int{4}},
		{name: "all are bad", counts: slices.Repeat([]count{{1, 999}}, 6)},
		{name: "all are good", counts: slices.Repeat([]count{{1000, 0}}, 6)},
		{name: "shares that are no round numbers", counts: slices.Repeat([]count{{333, 667}}, 7)},
		{name: "too few endpoints", counts: []count{fine, fine, fine, {900, 100}}},
		{name: "too few requests at one of five", counts: []count{fine, fine, fine, fine, {9, 90}}},
		{name: "a hundred are enough", counts: []count{fine, fine, fine, fine, {9, 91}}, want: []int{4}},
		{name: "a success rate within its deviations", counts: []count{{95, 5}, {96, 4}, {97, 3}, {98, 2}, {99, 1}}},
		{name: "fewer deviations", counts: []count{{95, 5}, {96, 4}, {97, 3}, {98, 2}, {99, 1}}, edit: func(r *OutlierRules) { r.SuccessRate.Deviations = 1 }, want: []int{0}},
		{
			name: "the worst first", counts: append(slices.Repeat([]count{fine}, 18), count{500, 500}, count{100, 900}),
			edit: func(r *OutlierRules) { r.MaxShare = 500 }, want: []int{19},
		},
		{name: "not asked for", counts: []count{fine, fine, fine, fine, {0, 1000}}, edit: func(r *OutlierRules) { r.SuccessRate = nil }},
	} {
		t.Run(c.name, func(t *testing.T) {
			rules := testRules()
			rules.Failures = 0
			if c.edit != nil {
				c.edit(rules)
			}
			o, endpoints := watched(rules, len(c.counts))
			o.Look(0)
			tell := func(now int64) {
				for i, n := range c.counts {
					o.work(i, n.good)
					o.fail(i, n.bad, now)
				}
			}
			tell(second)
			o.Look(10*second - 1)
			wantEjected(t, endpoints)
			verdicts, _, _ := o.Look(10 * second)
			wantEjected(t, endpoints, c.want...)
			if len(c.want) > 0 {
				v, n := verdicts[0], c.counts[c.want[0]]
				if v.Why != BySuccessRate || v.Rate != float64(n.good)/float64(n.good+n.bad) || v.Requests != n.good+n.bad || v.Threshold <= v.Rate {
					t.Errorf("got %+v, want it ejected for its rate, below the threshold", v)
				}
			}
			if verdicts, _, _ = o.Look(20 * second); len(verdicts) > 0 {
				t.Errorf("got %+v in an interval without requests, want nothing", verdicts)
			}
		})
	}
}

// TestRefusals: there are always some left.
func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		name     string
		n, share int
		before   func([]*Endpoint)
		want     []string // what becomes of each in its turn
	}{
		{"half", 4, 5000, nil, []string{"", "", TooManyEjected, TooManyEjected}},
		{"one always may be", 4, 100, nil, []string{"", TooManyEjected, TooManyEjected, TooManyEjected}},
		{"all may", 3, 10000, nil, []string{"", "", LastUsable}},
		{"rounded down", 15, 1000, nil, []string{"", TooManyEjected}},
		{"exact", 20, 1000, nil, []string{"", "", TooManyEjected}},
		{"alone", 1, 10000, nil, []string{LastUsable}},
		{"others are passed over", 3, 10000, func(e []*Endpoint) { e[1].Failed(0); e[2].Failed(0) }, []string{LastUsable, "", ""}},
		{"others drain", 3, 10000, func(e []*Endpoint) { e[1].Drain(true); e[2].Drain(true) }, []string{LastUsable, "drains", "drains"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			rules := testRules()
			rules.MaxShare = c.share
			o, endpoints := watched(rules, c.n)
			if c.before != nil {
				c.before(endpoints)
			}
			for i, want := range c.want {
				v := o.fail(i, 5, second)
				switch {
				case want == "drains" && (v.Endpoint != nil || endpoints[i].Health().Ejected):
					t.Errorf("endpoint %d: got %+v, want one that drains left alone", i, v)
				case want != "drains" && (v.Endpoint == nil || v.Refused != want || endpoints[i].Health().Ejected != (want == "")):
					t.Errorf("endpoint %d: got %+v, want it refused with %q", i, v, want)
				}
			}
			if v := o.fail(0, 4, second); v.Endpoint != nil {
				t.Errorf("got %+v within the next row, want what was refused to be asked once a row", v)
			}
		})
	}
}

// TestOutliersAsTheyChange: whatever happens, in whatever order and with whatever configuration: never more are ejected at once than
// may be, never the last that is usable, times are bounded, and each ejection ends.
func TestOutliersAsTheyChange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := endpointsOf(slices.Repeat([]int{1}, 8)...)
		endpoints := all[:rapid.IntRange(1, 8).Draw(t, "endpoints")]
		rules := func() *OutlierRules {
			r := testRules()
			r.Failures = rapid.IntRange(0, 4).Draw(t, "failures")
			r.MaxShare = rapid.IntRange(100, 10000).Draw(t, "share")
			r.Time = rapid.Int64Range(1, 60).Draw(t, "time") * second
			r.MaxTime = r.Time * rapid.Int64Range(1, 5).Draw(t, "longest")
			r.Interval = rapid.Int64Range(1, 20).Draw(t, "interval") * second
			r.SuccessRate = &SuccessRate{MinRequests: 2, MinEndpoints: 3, Deviations: rapid.Float64Range(0, 2).Draw(t, "deviations")}
			return r
		}
		current := rules()
		o := NewOutliers(current, endpoints, nil)
		now, longest := int64(0), current.MaxTime
		judge := func(v Verdict) {
			if v.Endpoint == nil || v.Refused != "" {
				return
			}
			inList := len(ejectedOf(endpoints))
			if most := max(1, len(endpoints)*current.MaxShare/10000); inList > most {
				t.Fatalf("%d of %d endpoints are ejected, want %d at most", inList, len(endpoints), most)
			}
			if !slices.ContainsFunc(endpoints, (*Endpoint).Usable) {
				t.Fatal("the last usable endpoint was ejected")
			}
			if d := v.Ejection.Until - now; d <= 0 || d > current.MaxTime+current.MaxTime/10 {
				t.Fatalf("an endpoint is ejected for %v, want %v and a tenth at most", time.Duration(d), time.Duration(current.MaxTime))
			}
		}
		look := func() {
			verdicts, returned, next := o.Look(now)
			for _, v := range verdicts {
				judge(v)
			}
			for _, e := range returned {
				if e.Health().Ejected && !slices.ContainsFunc(verdicts, func(v Verdict) bool { return v.Endpoint == e }) {
					t.Fatal("an endpoint was let in, and is ejected")
				}
			}
			for _, i := range ejectedOf(endpoints) {
				if until := endpoints[i].Ejection().Until; until <= now || next > until {
					t.Fatalf("at %d an endpoint is ejected until %d, and the next look is at %d", now, until, next)
				}
			}
		}
		for range 60 {
			i := rapid.IntRange(0, len(endpoints)-1).Draw(t, "endpoint")
			e := endpoints[i]
			switch event := rapid.IntRange(0, 9).Draw(t, "event"); {
			case event <= 3 && o.Record(i) != nil:
				for range rapid.IntRange(1, 6).Draw(t, "failures") {
					judge(o.Failed(o.Record(i), now))
				}
			case event == 4 && o.Record(i) != nil:
				o.work(i, 5)
			case event == 5:
				now += rapid.Int64Range(0, 40).Draw(t, "passed") * second
				look()
			case event == 6:
				e.Failed(now)
			case event == 7:
				e.Connected()
				e.Drain(rapid.Bool().Draw(t, "drain"))
			case event == 8: // another configuration
				endpoints = rapid.Permutation(all).Draw(t, "order")[:rapid.IntRange(1, 8).Draw(t, "endpoints")]
				r := rules()
				if rapid.IntRange(0, 3).Draw(t, "off") == 0 {
					r = nil
				} else {
					current, longest = r, max(longest, r.MaxTime)
				}
				o = NewOutliers(r, endpoints, o)
				if rapid.Bool().Draw(t, "looked") {
					look()
				}
			}
		}
		now += longest + longest/10
		look()
		if got := ejectedOf(all); len(got) > 0 && o.rules != nil { // by their success rate, at this very look
			now += longest + longest/10
			look()
		}
		if got := ejectedOf(all); len(got) > 0 {
			t.Fatalf("endpoints %v are ejected for ever", got)
		}
		if left := *o.shared.ejected.Load(); len(left) > 0 {
			t.Fatalf("%d places among the ejected are taken for ever", len(left))
		}
	})
}

// TestRulesThatEnd: without rules everybody is let in at once, and nothing is remembered.
func TestRulesThatEnd(t *testing.T) {
	o, endpoints := watched(testRules(), 4)
	o.Look(0)
	o.fail(0, 5, 0)
	o.Look(40 * second) // it has one ejection behind it
	o.fail(1, 5, 40*second)
	off := NewOutliers(nil, endpoints, o)
	if off.Record(0) != nil || off.Failed(o.Record(2), 0).Endpoint != nil {
		t.Error("got something to tell failures to, want nothing")
	}
	_, returned, next := off.Look(41 * second)
	if len(returned) != 1 || next != math.MaxInt64 {
		t.Errorf("got %d let in and another look at %d, want 1 and none", len(returned), next)
	}
	for i, e := range endpoints {
		if e.trouble.Load() != nil {
			t.Errorf("got %+v known of endpoint %d, want nothing", e.Ejection(), i)
		}
	}
	o.fail(2, 5, 41*second) // somebody who has not noticed
	if off.Look(41 * second); !endpoints[2].Health().Ejected {
		t.Fatal("this test ejects nobody behind the end of its rules")
	}
	if off.Look(80 * second); endpoints[2].Health().Ejected {
		t.Error("got an endpoint ejected for ever by who has not noticed that there are no rules any more")
	}
}

// TestEjectedWhileRulesEnd: a mark that comes while ejections are forgotten stays. Without it, its place among the ejected would never
// be given back, and the next look always be due.
func TestEjectedWhileRulesEnd(t *testing.T) {
	o, endpoints := watched(testRules(), 2)
	o.Look(0)
	o.fail(0, 5, 0)
	endpoints[0].forget()
	if !endpoints[0].Health().Ejected || endpoints[0].Ejection().Until == 0 {
		t.Fatalf("got %+v, want the endpoint ejected until its time is over", endpoints[0].Ejection())
	}
	off := NewOutliers(nil, endpoints, o)
	if _, returned, next := off.Look(second); len(returned) != 1 || next != math.MaxInt64 || len(*off.shared.ejected.Load()) != 0 {
		t.Errorf("got %d let in, and another look at %d; want 1 and none", len(returned), next)
	}
}

// TestManyReturn: what it takes to let many in again at once is that of as many single ones.
func TestManyReturn(t *testing.T) {
	const n = 10_000
	o, endpoints := watched(testRules(), n)
	o.Look(0)
	ejected := slices.Clone(o.records[:n/2])
	for _, r := range ejected {
		r.endpoint.eject(ByFailures, func(int) int64 { return second })
	}
	o.shared.ejected.Store(&ejected)
	o.shared.dueBy(second)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, returned, _ := o.Look(second)
	runtime.ReadMemStats(&after)
	if len(returned) != n/2 || len(ejectedOf(endpoints)) != 0 || len(*o.shared.ejected.Load()) != 0 {
		t.Errorf("got %d let in, want %d", len(returned), n/2)
	}
	if got := (after.TotalAlloc - before.TotalAlloc) / (n / 2); got > 1000 {
		t.Errorf("got %d bytes allocated for each that was let in, want no list of all for each", got)
	}
}

// TestEndpointsThatLeave take no place among the ejected.
func TestEndpointsThatLeave(t *testing.T) {
	rules := testRules()
	rules.MaxShare = 100
	o, endpoints := watched(rules, 4)
	o.Look(0)
	o.fail(0, 5, 0)
	o = NewOutliers(rules, []*Endpoint{endpoints[3], endpoints[1]}, o)
	if _, returned, _ := o.Look(second); len(returned) != 1 || endpoints[0].Health().Ejected {
		t.Errorf("got %d let in, want the one that has left", len(returned))
	}
	if v := o.fail(0, 5, second); v.Endpoint != endpoints[3] || v.Refused != "" {
		t.Errorf("got %+v, want the endpoint that is the first now to be ejected in its place", v)
	}
	o = NewOutliers(rules, []*Endpoint{endpoints[1], endpoints[2], endpoints[3]}, o)
	if o.Look(2 * second); !endpoints[3].Health().Ejected {
		t.Error("got an endpoint let in because it has moved in the list")
	}
}

// TestFailuresTogetherEjectOnce, whoever tells of them, and no more endpoints than may be at any moment.
func TestFailuresTogetherEjectOnce(t *testing.T) {
	const n, most = 16, 4
	for range 20 {
		rules := testRules()
		rules.MaxShare = 10000 * most / n
		o, endpoints := watched(rules, n)
		var workers, observer sync.WaitGroup
		var mu sync.Mutex
		times := map[*Endpoint]int{}
		stop := make(chan struct{}) // closed below, when the workers have ended
		observer.Go(func() {
			for {
				if got := len(ejectedOf(endpoints)); got > most {
					t.Errorf("%d endpoints are ejected, want %d at most", got, most)
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
		for w := range 8 {
			workers.Go(func() {
				for k := range 60 * n {
					if v := o.Failed(o.Record((k+w)%n), second); v.Endpoint != nil && v.Refused == "" {
						mu.Lock()
						times[v.Endpoint]++
						mu.Unlock()
					}
				}
			})
		}
		workers.Wait()
		close(stop)
		observer.Wait()
		for e, n := range times {
			if n != 1 || e.Ejection().Number != 1 {
				t.Errorf("endpoint %s was ejected %d times, %+v, want once", e.Address(), n, e.Ejection())
			}
		}
		if len(times) != most {
			t.Errorf("%d endpoints were ejected, want %d", len(times), most)
		}
	}
}

// TestTheLastTwoTogether: of two endpoints that fail at the same moment one stays.
func TestTheLastTwoTogether(t *testing.T) {
	for range 500 {
		rules := testRules()
		rules.Failures, rules.MaxShare = 1, 10000
		o, endpoints := watched(rules, 2)
		var both sync.WaitGroup
		for i := range endpoints {
			both.Go(func() { o.fail(i, 3, second) })
		}
		both.Wait()
		if got := ejectedOf(endpoints); len(got) != 1 {
			t.Fatalf("got %d of 2 ejected, want one", len(got))
		}
	}
}

// TestBetweenPlaceAndMark: whoever is about to be ejected counts as ejected, is ejected once, and is not let in before its mark is there.
func TestBetweenPlaceAndMark(t *testing.T) {
	rules := testRules()
	rules.MaxShare = 10000
	o, endpoints := watched(rules, 2)
	o.Look(0)
	o.shared.ejected.Store(&[]*Record{o.Record(0)})
	if v := o.fail(1, 5, second); v.Refused != LastUsable {
		t.Errorf("got %+v of the last endpoint that stays, want it refused", v)
	}
	if v := o.fail(0, 5, second); v.Endpoint != nil || endpoints[0].Health().Ejected {
		t.Errorf("got %+v of one that somebody is about to eject, want nothing", v)
	}
	o.shared.dueBy(second)
	if _, returned, next := o.Look(second); len(returned) > 0 || next > second || !slices.Contains(*o.shared.ejected.Load(), o.Record(0)) {
		t.Errorf("got %d let in and the next look at %d, want to be asked again for one that has no mark yet", len(returned), next)
	}
}

// TestRestoreOutliers: what another process knew goes on here.
func TestRestoreOutliers(t *testing.T) {
	old, was := watched(testRules(), 6)
	old.Look(0)
	for i := range 3 { // more than may be here
		old.fail(i, 5, second)
	}
	old.Look(50 * second) // all are back
	old.fail(0, 5, 50*second)
	old.fail(1, 5, 50*second)
	old.fail(3, 4, 50*second)
	rules := testRules()
	rules.MaxShare = 100
	o, endpoints := watched(rules, 6)
	for i, e := range was {
		o.Restore(o.Record(i), e.Ejection(), old.Record(i).InARow(), 51*second)
		if got := endpoints[i].Ejection(); got != e.Ejection() {
			t.Errorf("endpoint %d: got %+v, want %+v", i, got, e.Ejection())
		}
	}
	wantEjected(t, endpoints, 0, 1)
	if v := o.fail(3, 1, 51*second); v.Refused != TooManyEjected {
		t.Errorf("got %+v, want the last of five failures in a row, and no place for one more", v)
	}
	for i := range 2 {
		o.Look(was[i].Ejection().Until)
		if i == 0 && !endpoints[1].Health().Ejected && was[1].Ejection().Until > was[0].Ejection().Until {
			t.Error("got an endpoint let in before its time")
		}
	}
	o.Look(200 * second)
	wantEjected(t, endpoints)
	o.Restore(o.Record(5), Ejection{Until: math.MaxInt64, Number: -3}, -5, 0)
	if e := endpoints[5].Ejection(); e.Until > 330*second || e.Number != 1 || o.Record(5).InARow() != 0 {
		t.Errorf("got %+v of what cannot be, want an end within the longest time", e)
	}
	off := NewOutliers(nil, endpoints[:4], nil)
	off.Restore(&Record{endpoint: endpoints[4]}, Ejection{Until: 7, Number: 1}, 2, 0)
	wantEjected(t, endpoints, 5)
}

func TestRecordsFillTheirCacheLines(t *testing.T) {
	if got := unsafe.Sizeof(Record{}); got != 128 {
		t.Errorf("a Record has %d bytes, want 128: what successes read and what batches write lie apart", got)
	}
}

// TestSuccessesWriteNothing that another core reads, while nothing fails: the row of failures is not touched.
func TestSuccessesWriteNothing(t *testing.T) {
	o, _ := watched(testRules(), 2)
	r := o.Record(0)
	if n := testing.AllocsPerRun(100, func() { r.Worked(); r.Count(1) }); n != 0 {
		t.Errorf("got %v allocations of a success, want none", n)
	}
	o.fail(0, 3, 0)
	if r.Worked(); r.InARow() != 0 {
		t.Errorf("got %d failures in a row behind a success, want none", r.InARow())
	}
}

// BenchmarkSuccess: what a request costs where its cluster ejects outliers, with all cores at one endpoint, its count told once a
// batch of 64.
func BenchmarkSuccess(b *testing.B) {
	o, _ := watched(testRules(), 2)
	for _, failing := range []bool{false, true} {
		b.Run(fmt.Sprint("failing=", failing), func(b *testing.B) {
			b.RunParallel(func(p *testing.PB) {
				r, n := o.Record(0), uint64(0)
				for p.Next() {
					if n++; n%64 == 0 {
						r.Count(64)
						if failing {
							o.Failed(r, 0)
						}
					}
					r.Worked()
				}
			})
		})
	}
}
