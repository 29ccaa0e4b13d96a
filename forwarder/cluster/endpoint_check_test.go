package cluster

import (
	"testing"

	"pgregory.net/rapid"
)

// TestThresholds: so many failures in a row make an endpoint unhealthy, so many successes healthy again; and nothing less does.
func TestThresholds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := NewEndpoint("a", 1)
		th := Thresholds{rapid.IntRange(0, 5).Draw(t, "unhealthy"), rapid.IntRange(0, 5).Draw(t, "healthy")}
		unhealthy, last, inARow := false, true, 0 // the last result, and how many there are of it since the last change
		for range rapid.IntRange(0, 60).Draw(t, "checks") {
			passed := rapid.Bool().Draw(t, "passed")
			if passed != last {
				last, inARow = passed, 0
			}
			inARow++
			enough := max(th.Unhealthy, 1)
			if unhealthy {
				enough = max(th.Healthy, 1)
			}
			change := passed == unhealthy && inARow >= enough
			if got := e.Checked(passed, th); got != change {
				t.Fatalf("result %v, %d in a row, with %+v and unhealthy %v: changed %v, want %v", passed, inARow, th, unhealthy, got, change)
			}
			if change {
				unhealthy, inARow = !unhealthy, 0
			}
			if h := e.Health(); h.Unhealthy != unhealthy || e.Usable() == unhealthy || !e.Reachable() {
				t.Fatalf("got %+v, usable %v, want unhealthy %v, and reachable all the same", h, e.Usable(), unhealthy)
			}
			if !unhealthy && passed && e.Health() != (Health{}) {
				t.Fatalf("got %+v behind a success, want nothing known", e.Health())
			}
		}
		if got := e.Unchecked(); got != unhealthy || e.Health() != (Health{}) {
			t.Fatalf("without checks: was unhealthy %v, want %v; %+v, want nothing known", got, unhealthy, e.Health())
		}
	})
}

// TestMarksEndIndependently: what checks say ends no back-off, and a connection that works makes no endpoint healthy.
func TestMarksEndIndependently(t *testing.T) {
	e, once := NewEndpoint("a", 1), Thresholds{1, 1}
	e.Failed(0)
	if !e.Checked(false, once) || e.Usable() || e.Reachable() {
		t.Fatalf("got usable %v, reachable %v, want neither with both marks", e.Usable(), e.Reachable())
	}
	if !e.Checked(true, once) || e.Usable() || e.Reachable() {
		t.Errorf("got usable %v, reachable %v behind a check, want neither: its probe has the word", e.Usable(), e.Reachable())
	}
	e.Checked(false, once)
	e.Probe(1000 * ms)
	e.Connected()
	if e.Usable() || !e.Reachable() {
		t.Errorf("got usable %v, reachable %v behind a probe, want it reachable and unhealthy", e.Usable(), e.Reachable())
	}
	if !e.Checked(true, once) || !e.Usable() || e.Health() != (Health{}) {
		t.Errorf("got usable %v, %+v, want nothing known", e.Usable(), e.Health())
	}
}

// TestChecksAreRestored with what is half-way to a change.
func TestChecksAreRestored(t *testing.T) {
	e, th := NewEndpoint("a", 1), Thresholds{3, 2}
	for range 2 {
		e.Checked(false, th)
	}
	heir := NewEndpoint("a", 1)
	heir.Restore(e.Health())
	if heir.Health() != e.Health() || !heir.Usable() {
		t.Fatalf("got %+v, usable %v, want %+v and usable", heir.Health(), heir.Usable(), e.Health())
	}
	if !heir.Checked(false, th) || heir.Usable() {
		t.Error("got a third failure that changes nothing, want the two from before to count")
	}
}
