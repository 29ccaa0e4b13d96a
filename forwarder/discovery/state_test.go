package discovery

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func at(address string, weight int) Endpoint {
	return Endpoint{Network: "tcp", Address: address, Weight: weight}
}

func TestStateKeepsTheLastGoodSet(t *testing.T) {
	var s State
	now := time.Unix(1000, 0)
	timeout, refused := errors.New("timeout"), errors.New("refused")
	set := func(list ...Endpoint) Update { return Update{Endpoints: list} }
	for i, step := range []struct {
		update  Update
		outcome Outcome
		news    bool
		word    string
		has     int
		failing int // seconds since it fails
	}{
		{Update{Err: timeout}, Failed, true, "failing", 0, 0},
		{Update{Err: errors.New("timeout")}, Failed, false, "failing", 0, 1},
		{set(at("b", 1), at("a", 2)), Changed, true, "ok", 2, 0},
		{set(at("a", 2), at("b", 1)), Unchanged, false, "ok", 2, 0},
		{set(), Failed, true, "failing", 2, 0},
		{Update{Err: refused}, Failed, true, "failing", 2, 1},
		{Update{Err: refused}, Failed, false, "failing", 2, 2},
		{set(at("b", 1), at("a", 2)), Unchanged, true, "ok", 2, 0},
		{set(at("b", 1), at("a", 3)), Changed, false, "ok", 2, 0},
		{set(Endpoint{"tcp", "a", 3, true}, at("b", 1)), Changed, false, "ok", 2, 0},
		{set(at("a", 3)), Changed, false, "ok", 1, 0},
	} {
		now = now.Add(time.Second)
		outcome, news := s.Take(step.update, now)
		if outcome != step.outcome || news != step.news || s.Word() != step.word || len(s.Endpoints) != step.has {
			t.Errorf("step %d: it is %s, news %v, and the state is %s with %d endpoints; want %+v", i, outcome, news, s.Word(), len(s.Endpoints), step)
		}
		failing := 0
		if !s.FailingSince.IsZero() {
			failing = int(now.Sub(s.FailingSince) / time.Second)
		}
		if failing != step.failing || (s.Err == nil) != (step.word == "ok") {
			t.Errorf("step %d: it fails for %d s with %v, want %d s", i, failing, s.Err, step.failing)
		}
	}
	if s.Updated != now {
		t.Errorf("the last good set is of %v, want %v", s.Updated, now)
	}
}

func TestZeroStateWaits(t *testing.T) {
	if w := new(State).Word(); w != "waiting" {
		t.Errorf("a state that nobody has told anything is %s, want waiting", w)
	}
}

// A set is the same in every order, and has each address once.
func TestNormal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Endpoint {
			return Endpoint{
				Network: rapid.SampledFrom([]string{"tcp", "unix"}).Draw(t, "network"),
				Address: rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "address"),
				Weight:  rapid.IntRange(MinWeight, MaxWeight).Draw(t, "weight"), Drain: rapid.Bool().Draw(t, "drain"),
			}
		}), 0, 12).Draw(t, "set")
		other := slices.Clone(set)
		rand.Shuffle(len(other), func(i, j int) { other[i], other[j] = other[j], other[i] })
		one, two := Normal(slices.Clone(set)), Normal(other)
		if !slices.Equal(one, two) {
			t.Fatalf("in another order the set is %v, not %v", two, one)
		}
		seen := map[[2]string]bool{}
		for _, e := range one {
			if seen[[2]string{e.Network, e.Address}] || e.Weight > MaxWeight {
				t.Fatalf("%v stands there twice or weighs too much: %v", e, one)
			}
			seen[[2]string{e.Network, e.Address}] = true
		}
		for _, e := range set {
			if !seen[[2]string{e.Network, e.Address}] {
				t.Fatalf("%v is lost: %v", e, one)
			}
		}
	})
}

func TestBackOff(t *testing.T) {
	b := BackOff{First: time.Second, Most: 10 * time.Second}
	want := []time.Duration{1, 2, 4, 8, 10, 10}
	for i, w := range want {
		if got := b.Next(0); got != w*time.Second {
			t.Errorf("behind failure %d it waits %v, want %v", i+1, got, w*time.Second)
		}
	}
	if got := b.Next(1); got != 7500*time.Millisecond {
		t.Errorf("with all of the jitter it waits %v, want 7.5 s", got)
	}
	b.Reset()
	if got := b.Next(0); got != time.Second {
		t.Errorf("behind one that worked it waits %v, want 1 s", got)
	}
}
