package cluster

import (
	"fmt"
	"sync"
	"testing"
	"time"
	"unsafe"

	"pgregory.net/rapid"
)

const ms = int64(time.Millisecond)

// mustPanic fails the test unless f panics.
func mustPanic(t *testing.T, what string, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Errorf("%s did not panic", what)
		}
	}()
	f()
}

// until is the end of an endpoint's back-off.
func until(e *Endpoint) int64 { return e.Health().Until }

func TestBackOffDoublesUpToItsBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := NewEndpoint(rapid.StringN(1, 20, -1).Draw(t, "address"), 1)
		now := rapid.Int64Range(0, 1<<60).Draw(t, "now")
		if !e.Usable() || e.Health() != (Health{}) {
			t.Fatalf("a new endpoint: usable %v, %+v, want true and nothing known", e.Usable(), e.Health())
		}
		e.Failed(now)
		for i, want := range []int64{100, 200, 400, 800, 1600, 2000, 2000, 2000} {
			end := until(e)
			if got, want := end-now, want*ms; got < want*4/5 || got > want*6/5 {
				t.Fatalf("back-off %d: got %v, want %v give or take a fifth", i, time.Duration(got), time.Duration(want))
			}
			e.Failed(now + rapid.Int64Range(0, end-now-1).Draw(t, "again"))
			if until(e) != end {
				t.Fatalf("a failure within the back-off moved its end from %d to %d", end, until(e))
			}
			if at, due := e.ProbeDue(); at != end || !due || e.Usable() {
				t.Fatalf("behind failure %d: usable %v, probe due %v at %d, want false, and one at %d", i, e.Usable(), due, at, end)
			}
			if e.Probe(end - 1) {
				t.Fatal("a probe began within the back-off, want none")
			}
			now = end + rapid.Int64Range(0, 1000*ms).Draw(t, "later")
			if !e.Probe(now) || e.Probe(now) {
				t.Fatal("got no probe behind the back-off, or two, want one at a time")
			}
			if _, due := e.ProbeDue(); due || e.Usable() || !e.Health().Probing {
				t.Fatalf("while it is probed: due %v, usable %v, %+v, want false, false and probing", due, e.Usable(), e.Health())
			}
			e.Failed(now + 10000*ms)
			if until(e) != end {
				t.Fatal("a failure elsewhere moved the back-off while a probe is under way")
			}
			if !e.ProbeFailed(now) || e.ProbeFailed(now) {
				t.Fatal("got no end of the probe, or two, want one")
			}
		}
		e.Probe(until(e))
		if !e.Connected() || !e.Usable() || e.Health() != (Health{}) {
			t.Fatalf("after Connected: usable %v, %+v, want true and nothing known", e.Usable(), e.Health())
		}
		if e.Connected() || e.ProbeFailed(now) || e.Trust() {
			t.Fatal("a probe ended that had ended before")
		}
		e.Failed(now)
		if got := until(e) - now; got > 120*ms {
			t.Fatalf("the first back-off after Connected: got %v, want about 100 ms", time.Duration(got))
		}
	})
}

// TestTrustIsNoProof: an endpoint that was only connected is usable, and its next failure costs the longer back-off.
func TestTrustIsNoProof(t *testing.T) {
	e := NewEndpoint("a", 1)
	e.Failed(0)
	e.Probe(1000 * ms)
	if !e.Trust() || !e.Usable() || e.Health().Failures != 1 {
		t.Fatalf("got usable %v, %+v, want usable with its failure remembered", e.Usable(), e.Health())
	}
	if _, due := e.ProbeDue(); due {
		t.Error("a probe is due though the endpoint is usable")
	}
	e.Failed(1001 * ms)
	if got := until(e) - 1001*ms; e.Usable() || got < 160*ms || got > 240*ms {
		t.Errorf("got usable %v and a back-off of %v, want false and about 200 ms", e.Usable(), time.Duration(got))
	}
}

// TestDrainedIsNotProbed, and what was known before is known after.
func TestDrainedIsNotProbed(t *testing.T) {
	e := NewEndpoint("a", 1)
	if !e.Drain(true) || e.Drain(true) || e.Usable() {
		t.Fatalf("got usable %v, want a drained endpoint not to be, and to be drained once", e.Usable())
	}
	e.Failed(0)
	if _, due := e.ProbeDue(); due || e.Probe(1000*ms) {
		t.Error("a probe is due for a drained endpoint")
	}
	if !e.Drain(false) || e.Usable() {
		t.Errorf("got usable %v behind the drain, want false: it has failed", e.Usable())
	}
	e.Probe(1000 * ms)
	e.Drain(true)
	e.Connected()
	if e.Usable() {
		t.Error("got a drained endpoint usable because it works")
	}
	if e.Drain(false); !e.Usable() || e.Health() != (Health{}) {
		t.Errorf("got usable %v, %+v, want nothing known", e.Usable(), e.Health())
	}
}

func TestSpread(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := NewEndpoint(rapid.String().Draw(t, "address"), 1)
		d, part, at := rapid.Int64Range(0, 1<<50).Draw(t, "d"), rapid.Int64Range(1, 20).Draw(t, "part"), rapid.Int64().Draw(t, "at")
		got := e.Spread(d, part, at)
		if got < d-d/part || got > d+d/part || got != e.Spread(d, part, at) {
			t.Fatalf("got %d for %d, want it within one part in %d, and the same each time", got, d, part)
		}
	})
}

func TestBackOffsDiffer(t *testing.T) {
	ends := map[int64]bool{}
	for i := range 100 {
		a, b := NewEndpoint(fmt.Sprint("10.0.0.", i), 1), NewEndpoint(fmt.Sprint("10.0.0.", i), 1)
		a.Failed(5)
		b.Failed(5)
		if until(a) != until(b) {
			t.Errorf("the same calls gave %d and %d", until(a), until(b))
		}
		ends[until(a)] = true
	}
	if len(ends) < 90 {
		t.Errorf("100 endpoints that failed together have %d different back-offs, want nearly as many", len(ends))
	}
}

// TestFailuresTogether: the connections of one endpoint break on several cores at once.
func TestFailuresTogether(t *testing.T) {
	e := NewEndpoint("a", 1)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { e.Failed(1000) })
	}
	wg.Wait()
	if got := until(e) - 1000; got > 120*ms {
		t.Errorf("eight failures at once cost %v, want about 100 ms", time.Duration(got))
	}
}

func TestEndpointCounts(t *testing.T) {
	e := NewEndpoint("10.0.0.1:80", 7)
	if e.Address() != "10.0.0.1:80" || e.Weight() != 7 {
		t.Errorf("got %q with weight %d, want 10.0.0.1:80 with 7", e.Address(), e.Weight())
	}
	e.Acquire()
	e.Acquire()
	e.Release(1)
	if e.Active() != 1 {
		t.Errorf("Active: got %d, want 1", e.Active())
	}
	mustPanic(t, "Release of more than is under way", func() { e.Release(2) })
	mustPanic(t, "Release of less than nothing", func() { e.Release(-1) })
	if e.Active() != 1 {
		t.Errorf("Active after a refused Release: got %d, want 1", e.Active())
	}
}

func TestWeightBounds(t *testing.T) {
	for given, want := range map[int]int{-5: 1, 0: 1, 1: 1, MaxWeight: MaxWeight, MaxWeight + 1: MaxWeight} {
		if got := NewEndpoint("a", given).Weight(); got != want {
			t.Errorf("weight %d: got %d, want %d", given, got, want)
		}
	}
}

func TestSharedCountersFillTheirCacheLine(t *testing.T) {
	if got := unsafe.Sizeof(Endpoint{}); got != 64 {
		t.Errorf("an Endpoint has %d bytes, want 64", got)
	}
	if got := unsafe.Sizeof(Limit{}); got != 64 {
		t.Errorf("a Limit has %d bytes, want 64", got)
	}
}

// TestRestore: what is known of an endpoint goes over; a probe that was under way is due again.
func TestRestore(t *testing.T) {
	old := NewEndpoint("a", 1)
	old.Failed(0)
	old.Probe(until(old))
	e := NewEndpoint("a", 1)
	e.Restore(old.Health())
	if at, due := e.ProbeDue(); e.Usable() || !due || at != until(old) || e.Health().Failures != 1 {
		t.Errorf("got usable %v, a probe due %v at %d, %+v; want what is known of the other", e.Usable(), due, at, e.Health())
	}
	for _, h := range []Health{{}, {Failures: 2, Since: 1, Until: 7, Trusted: true}, {Drained: true}, {Failures: 3, Since: 2, Until: 9, Drained: true}} {
		e := NewEndpoint("a", 1)
		e.Drain(h.Drained) // which is the configuration's to say
		e.Restore(Health{Failures: h.Failures, Since: h.Since, Until: h.Until, Trusted: h.Trusted, Drained: !h.Drained})
		if e.Health() != h || e.Usable() != (!h.Drained && (h.Failures == 0 || h.Trusted)) {
			t.Errorf("got %+v, usable %v, want %+v", e.Health(), e.Usable(), h)
		}
	}
	e = NewEndpoint("a", 1)
	e.Restore(Health{Failures: -1, Trusted: true})
	if !e.Usable() || e.Health().Failures != 0 || e.Health().Trusted {
		t.Errorf("got %+v of what cannot be, want nothing known", e.Health())
	}
}

// TestPostpone: a probe that came to nothing costs no back-off.
func TestPostpone(t *testing.T) {
	e := NewEndpoint("a", 1)
	if e.Postpone() {
		t.Error("got a probe postponed where there is none")
	}
	e.Failed(0)
	end := until(e)
	e.Probe(end)
	if !e.Postpone() || e.Postpone() || e.Usable() {
		t.Errorf("got usable %v, want the probe postponed once, and the endpoint passed over still", e.Usable())
	}
	if at, due := e.ProbeDue(); !due || at != end || e.Health().Failures != 1 || !e.Probe(end) {
		t.Errorf("got a probe due %v at %d with %d failures, want one at once, and no further failure", due, at, e.Health().Failures)
	}
}

// TestSince: an endpoint is passed over since the first of its failures in a row, or the first behind a probe that was trusted.
func TestSince(t *testing.T) {
	e := NewEndpoint("a", 1)
	since := func(want int64) {
		t.Helper()
		if got := e.Health().Since; got != want {
			t.Errorf("got it passed over since %d, want %d", got, want)
		}
	}
	e.Failed(5)
	e.Probe(until(e))
	e.ProbeFailed(1e9)
	since(5)
	e.Probe(until(e))
	e.Trust()
	e.Failed(5e9)
	since(5e9)
	e.Connected()
	e.Failed(6e9)
	since(6e9)
}
