//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
)

// One of two servers answers busy to everything, and every request may be tried again: without a budget the other one would
// get all of the load instead of half.
func TestRetryStorm(t *testing.T) {
	// It stays so however much it gets, else its own bound would be what is measured.
	shape := fleetShape{servers: 2, workers: 1000, delay: 100 * time.Millisecond, queue: 1000}
	const (
		rate     = 600.0
		duration = 5 * time.Second
		percent  = 20
		floor    = 3 // retries at once, however few requests there are
	)
	for _, c := range []struct {
		name, budget string
		check        func(s storm) error
	}{
		{"budget", "", func(s storm) error { // the default
			// At any moment at most a fifth of the requests are retries, and all that are under way are at the server that
			// works: so a fifth of what it gets, at most.
			bound := s.other*percent/100 + floor
			if s.retries > bound || s.retries == 0 {
				return fmt.Errorf("%d of the %d requests to the server that works are retries, want some, and at most %d", s.retries, s.other, bound)
			}
			return nil
		}},
		{"no bound", "retry_budget: {percent: 100%, min: 1000}, ", func(s storm) error {
			if s.retries < s.busy*9/10 || s.failed > 0 {
				return fmt.Errorf("%d of %d requests were tried again and %d failed; want nearly all tried, and none failed: or the budget bounds nothing", s.retries, s.busy, s.failed)
			}
			return nil
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // they mostly wait
			f := newFleet(t, shape, 0, 0, 0)
			listener := steadyAddress(t)
			p := newChain(t, os.Args[0], patientUpgrades, f.configuration(listener, policies{
				again: "idempotent: true, retry: {attempts: 3, on: [connect-failure, reset-before-send, busy]}, ", cluster: "balancer: round-robin, " + c.budget,
			}))
			f.board.tell(1, busy, shape.delay)
			var clients told
			r := clients.load(t, bench.Options{Addr: listener, Rate: rate, Duration: duration, Service: againService}).wait(t)
			s := storm{other: f.board.tries(0), busy: f.board.tries(1), failed: r.Sent - r.OK}
			s.retries = s.other + s.busy - r.Sent
			t.Logf("%s\nthe server that works got %d requests, of which %d are retries; the busy one %d", inShort(c.name, r), s.other, s.retries, s.busy)
			if err := errors.Join(c.check(s), s.consistent(r)); err != nil {
				t.Error(err)
			}
			p.until(t, func(m reading) error {
				return errors.Join(m.idle(), m.is(s.retries, "relevo_route_retries_total"))
			})
			p.stop(t)
		})
	}
}

// storm is what both servers got, and what came of it.
type storm struct{ other, busy, retries, failed uint64 }

// consistent says what does not add up.
func (s storm) consistent(r *bench.Report) error {
	if s.other != r.OK || s.busy == 0 {
		return fmt.Errorf("the server that works got %d requests, the other %d, and %d succeeded; want as many as the first, and some at the second", s.other, s.busy, r.OK)
	}
	return nil
}
