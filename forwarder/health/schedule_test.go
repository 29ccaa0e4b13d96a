package health

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/relevo-proxy/relevo/forwarder/cluster"
)

const second = int64(time.Second)

// many are targets with an interval of 5 s and a timeout of 1 s.
func many(n int) []*Target {
	targets := make([]*Target, n)
	for i := range targets {
		address := fmt.Sprintf("10.%d.%d.%d:80", i>>16, i>>8&255, i&255)
		targets[i] = &Target{
			Endpoint: cluster.NewEndpoint(address, 1), Network: "tcp", Address: address, Interval: 5 * time.Second, Timeout: time.Second,
		}
	}
	return targets
}

// world has a schedule's checks take their time, on a clock of its own, in steps.
type world struct {
	s      *schedule
	now    int64
	begins map[*Target][]int64 // when each was begun
	ends   map[*entry]int64    // when those under way will have their result
	takes  func(*entry) int64  // how long that is; more than the timeout: none comes
	most   int                 // there ever were under way
	late   int64               // the most that anybody has waited for its turn
	over   int                 // checks whose time was over
}

func newWorld(most int, takes func(*entry) int64) *world {
	return &world{s: newSchedule(most), now: second, begins: make(map[*Target][]int64), ends: make(map[*entry]int64), takes: takes}
}

func (w *world) set(targets []*Target) {
	for _, e := range w.s.set(targets, w.now) {
		delete(w.ends, e)
	}
}

// run lets d pass.
func (w *world) run(d int64) {
	for until := w.now + d; w.now < until; w.now += 10 * 1e6 {
		for e, at := range w.ends {
			if at <= w.now {
				delete(w.ends, e)
				w.s.end(e, w.now)
			}
		}
		for _, e := range w.s.advance(w.now, nil) {
			w.over++
			delete(w.ends, e)
			w.s.end(e, w.now)
		}
		for e := w.s.begin(w.now); e != nil; e = w.s.begin(w.now) {
			w.begins[e.target] = append(w.begins[e.target], w.now)
			w.late = max(w.late, w.now-e.since)
			w.ends[e] = w.now + w.takes(e)
		}
		w.most = max(w.most, w.s.under)
	}
}

// instantly is checks that have their result in the same step, or in the next.
func instantly(*entry) int64 { return 0 }

// TestFirstChecksAreSpread: of many endpoints each is checked within the first interval, in no part of it much more than its share;
// of a few at once.
func TestFirstChecksAreSpread(t *testing.T) {
	const n = 23000
	w, targets := newWorld(1024, instantly), many(n)
	w.set(targets)
	checked := 0
	for tenth := range 10 {
		w.run(second / 2)
		before := checked
		checked = len(w.begins)
		if got := checked - before; got < n/10*8/10 || got > n/10*12/10 {
			t.Errorf("got %d first checks in tenth %d of the interval, want about %d", got, tenth, n/10)
		}
	}
	w.run(20 * 1e6)
	if len(w.begins) != n {
		t.Errorf("got %d endpoints checked in the first interval, want all %d", len(w.begins), n)
	}
	few := newWorld(1024, instantly)
	few.set(many(20))
	few.run(50 * 1e6)
	if len(few.begins) != 20 {
		t.Errorf("got %d of 20 endpoints checked in the first 50 ms, want all", len(few.begins))
	}
}

// TestChecksStaySpread: those of endpoints that came at once do not stay together, and each comes once an interval.
func TestChecksStaySpread(t *testing.T) {
	const n, rounds = 1000, 10
	w, targets := newWorld(1024, instantly), many(n)
	w.set(targets)
	w.run((rounds + 2) * 5 * second)
	var tenths [10]int
	for _, target := range targets {
		begins := w.begins[target]
		for i := 2; i < len(begins); i++ {
			if gap := begins[i] - begins[i-1]; gap < 44*second/10 || gap > 56*second/10 {
				t.Fatalf("got %v between two checks of %s, want 5 s give or take a tenth", time.Duration(gap), target.Address)
			}
		}
		if got := len(begins); got < rounds || got > rounds+4 {
			t.Errorf("got %d checks of %s in %d intervals", got, target.Address, rounds+2)
		}
		tenths[begins[1]%(5*second)/(second/2)]++
	}
	for i, got := range tenths {
		if got < n/10*6/10 || got > n/10*14/10 {
			t.Errorf("got %d second checks in tenth %d of the interval, want about %d", got, i, n/10)
		}
	}
}

// TestNoMoreAtOnceThanMayBe: when checks take longer than they may for all to get their turn, they wait for it in order, and nobody
// is forgotten.
func TestNoMoreAtOnceThanMayBe(t *testing.T) {
	const n, most = 1000, 20
	w, targets := newWorld(most, func(*entry) int64 { return 100 * second }), many(n) // nobody answers: 20 a second
	w.set(targets)
	w.run(110 * second)
	if w.most != most {
		t.Errorf("got %d checks under way at once, want %d", w.most, most)
	}
	for _, target := range targets {
		if got := len(w.begins[target]); got != 2 && got != 3 {
			t.Errorf("got %d checks of %s, want 2 or 3 of 2200: each gets its turn", got, target.Address)
		}
	}
	if w.over < 2000 {
		t.Errorf("got %d checks whose time was over, want about 2,180", w.over)
	}
	if w.late < 30*second {
		t.Errorf("got %v as the longest wait for a turn, want about 45 s, and that it shows", time.Duration(w.late))
	}
}

// TestOthersComeAndGo: who has left is not checked any more, and who stays keeps its time; what another process knew is gone on with.
func TestOthersComeAndGo(t *testing.T) {
	w, targets := newWorld(1024, func(*entry) int64 { return second / 2 }), many(100)
	w.set(targets)
	w.run(20 * second)
	stay, left := targets[:50], targets[50:]
	at := make(map[*Target]int64)
	for _, target := range stay {
		at[target] = w.s.entries[target.Endpoint].at
	}
	before := len(w.begins[left[0]])
	fresh := many(101)[100]
	fresh.Last = w.now - second
	w.set(append([]*Target{fresh}, stay...))
	for _, target := range stay {
		if got := w.s.entries[target.Endpoint].at; got != at[target] {
			t.Errorf("got another time for %s, which has not changed", target.Address)
		}
	}
	if got := w.s.entries[fresh.Endpoint].at - w.now; got < 35*second/10 || got > 45*second/10 {
		t.Errorf("got the first check of an endpoint that was checked 1 s ago in %v, want it 5 s behind that, give or take a tenth", time.Duration(got))
	}
	w.run(20 * second)
	if got := len(w.begins[left[0]]); got != before {
		t.Errorf("got %d further checks of an endpoint that has left, want none", got-before)
	}
	if got := len(w.begins[stay[0]]); got < 7 {
		t.Errorf("got %d checks of an endpoint that stayed in 40 s, want about 8", got)
	}
}

// TestShorterInterval holds at once, not behind what is left of the longer one.
func TestShorterInterval(t *testing.T) {
	w, targets := newWorld(8, instantly), many(1)
	targets[0].Interval = time.Hour
	w.set(targets)
	w.run(second)
	shorter := *targets[0]
	shorter.Interval = time.Second
	w.set([]*Target{&shorter})
	w.run(4 * second)
	if got := len(w.begins[&shorter]); got < 3 || got > 6 {
		t.Errorf("got %d checks in 4 s with an interval of 1 s, want about 4", got)
	}
}

// TestPostponed: a check that could not be made is due again behind a second, and is not the endpoint's turn for this interval.
func TestPostponed(t *testing.T) {
	s, targets := newSchedule(1), many(1)
	s.set(targets, second)
	s.advance(2*second, nil)
	e := s.begin(2 * second)
	s.postpone(e, 2*second)
	if at, ok := s.next(2 * second); !ok || at != 3*second || s.under != 0 {
		t.Errorf("got the next check at %v, %v, %d under way, want it 1 s later and none", time.Duration(at), ok, s.under)
	}
}

// TestSchedule: whatever happens, no endpoint is checked twice at once, no more than may be are under way, the counts are right, and
// whoever there is has its next time.
func TestSchedule(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := many(12)
		s := newSchedule(rapid.IntRange(1, 4).Draw(t, "most"))
		now, there := second, map[*cluster.Endpoint]bool{}
		under := map[*entry]bool{}
		ended := func(list []*entry) {
			for _, e := range list {
				if !under[e] {
					t.Fatalf("%s is over, and was not under way", e.target.Address)
				}
				delete(under, e)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"time passes": func(t *rapid.T) {
				now += rapid.Int64Range(0, 3*second).Draw(t, "by")
				over := s.advance(now, nil)
				ended(over)
				for _, e := range over {
					if rapid.Bool().Draw(t, "goes on") {
						s.extend(e, now+1)
						under[e] = true
					} else {
						s.end(e, now)
					}
				}
			},
			"begin": func(t *rapid.T) {
				if e := s.begin(now); e != nil {
					if under[e] || !there[e.target.Endpoint] {
						t.Fatalf("%s is begun: under way already %v, there %v", e.target.Address, under[e], there[e.target.Endpoint])
					}
					under[e] = true
				} else if s.waiting > 0 && s.under < s.most {
					t.Fatalf("%d wait, %d of %d are under way, and none is begun", s.waiting, s.under, s.most)
				}
			},
			"end": func(t *rapid.T) {
				for e := range under {
					delete(under, e)
					switch rapid.IntRange(0, 2).Draw(t, "how") {
					case 0:
						s.end(e, now)
					case 1:
						s.postpone(e, now)
					case 2:
						s.again(e, now)
					}
					return
				}
			},
			"set": func(t *rapid.T) {
				var targets []*Target
				clear(there)
				for _, target := range all {
					if rapid.Bool().Draw(t, "stays") {
						next := *target
						if rapid.Bool().Draw(t, "is asked") {
							next.Ask = &Ask{}
						}
						next.Interval = time.Duration(rapid.Int64Range(1, 10).Draw(t, "interval")) * time.Second
						targets = append(targets, &next)
						there[target.Endpoint] = true
					}
				}
				ended(s.set(targets, now))
			},
			"": func(t *rapid.T) {
				waiting := 0
				for _, e := range s.entries {
					switch {
					case e.state == due:
						waiting++
					case e.place < 0 || s.times[e.place] != e:
						t.Fatalf("%s is %d and waits for no time", e.target.Address, e.state)
					case e.state == idle && e.at > now+int64(e.target.Interval)*3/2+1:
						t.Fatalf("%s has its next check in %v, with an interval of %v", e.target.Address, time.Duration(e.at-now), e.target.Interval)
					}
				}
				if s.under != len(under) || s.under > s.most || s.waiting != waiting || len(s.entries) != len(there) || len(s.times) != len(s.entries)-waiting {
					t.Fatalf("got %d under way, %d waiting, %d entries, %d times; want %d (at most %d), %d, %d, %d",
						s.under, s.waiting, len(s.entries), len(s.times), len(under), s.most, waiting, len(there), len(there)-waiting)
				}
			},
		})
	})
}
