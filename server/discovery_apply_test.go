package server

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/discovery"
	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/server/config"
)

// What is found in a burst is applied together, the first of it at once.
func TestSetsEnterOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFinder(zap.NewNop(), stats.NewRegistry())
		began := time.Now()
		var at []time.Duration
		released := make(chan struct{}, 1)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { // ends with ctx
			defer close(done)
			f.run(ctx, released, func(context.Context) { at = append(at, time.Since(began)) })
		}()
		time.Sleep(5 * time.Second)
		for range 25 { // for 2.5 s
			f.poke()
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(5 * time.Second)
		released <- struct{}{}
		synctest.Wait()
		cancel()
		<-done
		if want := []time.Duration{5 * time.Second, 6 * time.Second, 7 * time.Second, 8 * time.Second, 12500 * time.Millisecond}; !slices.Equal(at, want) {
			t.Errorf("it is applied at %v, want %v", at, want)
		}
	})
}

// No balancer needs an endpoint: a cluster may have none yet, and get some, and lose them in a hand-over.
func TestBalancersWithoutEndpoints(t *testing.T) {
	for balancer := range balancers {
		c := config.Trial()
		c.Listeners[0].Address = "127.0.0.1:0"
		c.Clusters[0].Balancer = balancer
		spec, err := Spec(c)
		if err != nil {
			t.Fatal(err)
		}
		name := c.Clusters[0].Name
		some := sets{name: {{Network: "tcp", Address: "127.0.0.1:1", Weight: 1}, {Network: "tcp", Address: "127.0.0.1:2", Weight: 3, Drain: true}}}
		spec, _ = sets{name: nil}.in(spec)
		road, err := forwarder.New(spec, 1<<20, stats.NewRegistry(), zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		for i, s := range []sets{some, {name: nil}, some} {
			next, changed := s.in(spec)
			if err := road.Apply(next, func() error { return nil }); err != nil || !changed {
				t.Errorf("%s: set %d: %v, changed %v", balancer, i, err, changed)
			}
			spec = next
			n := 0
			for _, e := range road.Status().Clusters[0].Endpoints {
				if !e.Leaving {
					n++
				}
			}
			if n != len(s[name]) {
				t.Errorf("%s: with %d endpoints the road has %d", balancer, len(s[name]), n)
			}
		}
		road.Close()
	}
}

// A set in another order, or one of another cluster, is no change; and what is not about endpoints is the same object.
func TestSetsInASpec(t *testing.T) {
	c := config.Trial()
	spec, err := Spec(c)
	if err != nil {
		t.Fatal(err)
	}
	name := c.Clusters[0].Name
	set := func(weight int) sets {
		return sets{name: discovery.Normal([]discovery.Endpoint{{Network: "tcp", Address: "b:1", Weight: weight}, {Network: "tcp", Address: "a:1", Weight: 1}}), "other": nil}
	}
	first, changed := set(1).in(spec)
	if !changed || len(first.Clusters[0].Endpoints) != 2 || len(spec.Clusters[0].Endpoints) != 1 {
		t.Errorf("a first set changes %v: %v, and what there was: %v", changed, first.Clusters[0].Endpoints, spec.Clusters[0].Endpoints)
	}
	if _, changed = set(1).in(first); changed {
		t.Error("the same set is a change")
	}
	if _, changed = set(2).in(first); !changed {
		t.Error("another weight is no change")
	}
	if &first.Listeners[0] != &spec.Listeners[0] || &first.Routes[0] != &spec.Routes[0] {
		t.Error("listeners and routes are others")
	}
}
