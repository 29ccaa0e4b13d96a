// Package fault is the filter that does to some requests what a bad network or server would: it delays them, or
// answers them here. It is for trying out what the callers make of that.
//
// A filter that only aborts never blocks. One that delays may block, so the exchanges that pass it run on workers,
// those that it leaves alone too.
package fault

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/route"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// Name is the filter's name.
const Name = "fault"

// ReasonFault is why a request is answered that the filter aborts.
const ReasonFault = "fault-abort"

// Config is what the filter does to which requests.
type Config struct {
	Match route.Match // the requests that may be chosen; the zero Match is all of them
	Delay Delay
	Abort Abort
	// Rand draws 64 random bits, and may be called by any number of goroutines at once; nil means the runtime's
	// generator, which takes no lock. Each request draws once for each of Delay and Abort that there is, in this
	// order, whether it matches or not.
	Rand func() uint64
}

// Delay holds a share of the requests for a time, and then lets them go on.
type Delay struct {
	Time    time.Duration
	Percent float64 // 0 means that there is no delay, 100 all requests
}

// Abort answers a share of the requests, after their delay if they have one.
type Abort struct {
	Status  wire.Status
	Percent float64 // 0 means that nothing is aborted, 100 all requests
}

// New makes the filter for this place: at a listener it acts before the route is known. The error names all that is wrong.
func New(c Config, at filter.Place) (filter.Filter, error) {
	f := &fault{draw: c.Rand, time: c.Delay.Time, status: c.Abort.Status}
	var errs [4]error
	f.delayed, errs[0] = chanceOf("delay", c.Delay.Percent)
	f.aborted, errs[1] = chanceOf("abort", c.Abort.Percent)
	if errs[1] == nil && c.Abort.Status >= wire.Other {
		errs[1] = fmt.Errorf("abort: there is no status %d", c.Abort.Status)
	}
	if errs[0] == nil && (f.delayed > 0) != (f.time > 0) {
		errs[2] = fmt.Errorf("delay: %v for %v %%: it needs a time and a share, both above 0", c.Delay.Time, c.Delay.Percent)
	}
	if errors.Join(errs[:]...) == nil && f.delayed == 0 && f.aborted == 0 {
		errs[2] = errors.New("it neither delays nor aborts")
	}
	table, err := route.New([]route.Match{c.Match})
	if err != nil {
		errs[3] = fmt.Errorf("match: %w", err)
	} else if len(table.Keys()) > 0 {
		f.match = table
	}
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	if f.draw == nil {
		f.draw = rand.Uint64
	}
	switch {
	case f.delayed > 0 && at == filter.AtListener:
		return delayBeforeRoute{f}, nil
	case f.delayed > 0:
		return delayAfterRoute{f}, nil
	case at == filter.AtListener:
		return abortBeforeRoute{f}, nil
	}
	return abortAfterRoute{f}, nil
}

// The forms of the filter: each has one method beside Name.
type (
	abortBeforeRoute struct{ *fault }
	abortAfterRoute  struct{ *fault }
	delayBeforeRoute struct{ *fault }
	delayAfterRoute  struct{ *fault }
)

func (f abortBeforeRoute) BeforeRoute(x *filter.Exchange) filter.Verdict { return f.abort(x) }
func (f abortAfterRoute) AfterRoute(x *filter.Exchange) filter.Verdict   { return f.abort(x) }

func (f delayBeforeRoute) BeforeRoute(ctx context.Context, x *filter.Exchange) filter.Verdict {
	return f.delay(ctx, x)
}

func (f delayAfterRoute) AfterRoute(ctx context.Context, x *filter.Exchange) filter.Verdict {
	return f.delay(ctx, x)
}

// fault is what the forms share. Static after New.
type fault struct {
	match            *route.Table // nil: all requests
	draw             func() uint64
	delayed, aborted chance
	time             time.Duration
	status           wire.Status
}

// Name implements filter.Filter.
func (*fault) Name() string { return Name }

// abort looks at the headers only of requests that the draw has chosen.
func (f *fault) abort(x *filter.Exchange) filter.Verdict {
	if f.aborted.hit(f.draw) && f.matches(x) {
		return filter.Stop(f.status, ReasonFault)
	}
	return filter.Continue
}

// delay waits for the request's turn to go on. A request whose time is over meanwhile is the forwarder's to answer.
func (f *fault) delay(ctx context.Context, x *filter.Exchange) filter.Verdict {
	held := f.delayed.hit(f.draw)
	stopped := f.aborted > 0 && f.aborted.hit(f.draw)
	if !held && !stopped || !f.matches(x) {
		return filter.Continue
	}
	if held && !wait(ctx, f.time-x.Elapsed) {
		return filter.Continue
	}
	if stopped {
		return filter.Stop(f.status, ReasonFault)
	}
	return filter.Continue
}

// wait says whether the time has passed before ctx ended.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// matches says whether the filter is meant for the request. A malformed header block matches nothing that asks for a
// header; what becomes of it the route decides.
func (f *fault) matches(x *filter.Exchange) bool {
	if f.match == nil {
		return true
	}
	values, err := x.Headers(f.match.Keys())
	return err == nil && f.match.Match(values) >= 0
}

// chance is a probability in units of 2^-53, the resolution of a float64 below 1.
type chance uint64

const certain chance = 1 << 53

func chanceOf(what string, percent float64) (chance, error) {
	if !(percent >= 0 && percent <= 100) { // so that not-a-number fails
		return 0, fmt.Errorf("%s: %v %% is not between 0 and 100 %%", what, percent)
	}
	c := chance(percent / 100 * float64(certain))
	if c == 0 && percent > 0 {
		c = 1
	}
	return c, nil
}

func (c chance) hit(draw func() uint64) bool { return chance(draw()>>11) < c }
