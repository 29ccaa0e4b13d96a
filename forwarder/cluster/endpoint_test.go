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

func TestBackOffDoublesUpToItsBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := NewEndpoint(rapid.StringN(1, 20, -1).Draw(t, "address"), 1)
		now := rapid.Int64Range(0, 1<<60).Draw(t, "now")
		if !e.Usable(now) || e.PassedOverUntil() != 0 {
			t.Fatalf("a new endpoint: usable %v, passed over until %d, want true and 0", e.Usable(now), e.PassedOverUntil())
		}
		for i, want := range []int64{100, 200, 400, 800, 1600, 2000, 2000, 2000} {
			e.Failed(now)
			until := e.PassedOverUntil()
			if got, want := until-now, want*ms; got < want*4/5 || got > want*6/5 {
				t.Fatalf("back-off %d: got %v, want %v give or take a fifth", i, time.Duration(got), time.Duration(want))
			}
			e.Failed(now + rapid.Int64Range(0, until-now-1).Draw(t, "again"))
			if e.PassedOverUntil() != until {
				t.Fatalf("a failure within the back-off moved its end from %d to %d", until, e.PassedOverUntil())
			}
			if e.Usable(until-1) || !e.Usable(until) {
				t.Fatalf("usable before the end of the back-off %v, at its end %v, want false and true", e.Usable(until-1), e.Usable(until))
			}
			now = until + rapid.Int64Range(0, 1000*ms).Draw(t, "later")
		}
		e.Connected()
		if !e.Usable(now) || e.PassedOverUntil() != 0 {
			t.Fatalf("after Connected: usable %v, passed over until %d, want true and 0", e.Usable(now), e.PassedOverUntil())
		}
		e.Failed(now)
		if got := e.PassedOverUntil() - now; got > 120*ms {
			t.Fatalf("the first back-off after Connected: got %v, want about 100 ms", time.Duration(got))
		}
	})
}

func TestBackOffsDiffer(t *testing.T) {
	ends := map[int64]bool{}
	for i := range 100 {
		a, b := NewEndpoint(fmt.Sprint("10.0.0.", i), 1), NewEndpoint(fmt.Sprint("10.0.0.", i), 1)
		a.Failed(5)
		b.Failed(5)
		if a.PassedOverUntil() != b.PassedOverUntil() {
			t.Errorf("the same calls gave %d and %d", a.PassedOverUntil(), b.PassedOverUntil())
		}
		ends[a.PassedOverUntil()] = true
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
	if got := e.PassedOverUntil() - 1000; got > 120*ms {
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
