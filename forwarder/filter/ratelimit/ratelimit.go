// Package ratelimit is the filter that bounds how many requests a second pass: each takes a token out of a bucket that
// fills at a steady rate, and one that finds none is answered here. It never blocks and allocates nothing for a request.
//
// It limits what passes this process; nothing is shared with others, nor with the process that an upgrade starts.
package ratelimit

import (
	"errors"
	"fmt"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// Name is the filter's name.
const Name = "rate_limit"

// ReasonLimited is why a request is answered, with status Busy, that finds no token.
const ReasonLimited = "rate-limited"

// By says which requests share a bucket.
type By uint8

// The ways.
const (
	ByListener By = iota // those of one listener
	ByRoute              // those of one rule
	ByHeader             // those with the same value of a header, whatever their listener and rule
)

// Config is what the filter allows.
type Config struct {
	Rate       float64 // tokens per second, MinRate to MaxRate
	Burst      int     // tokens in a full bucket, 1 to MaxBurst
	By         By
	Header     string // the key, with ByHeader
	MaxBuckets int    // 1 to MaxMaxBuckets; with ByHeader all of them are allocated by New, about 17 bytes each
	// Now is the time since some moment, never negative and never falling; it may be called by any number of goroutines
	// at once. Nil means the time since New.
	Now func() time.Duration
}

// The bounds of a Config.
const (
	MinRate       = 0.001
	MaxRate       = 1e6
	MaxBurst      = 1_000_000
	MaxMaxBuckets = 1_000_000
	maxFill       = 30 * 24 * time.Hour // of an empty bucket, so that no sum of times overflows
)

// New makes the filter for this place. At a listener it acts before the route is known, but by route. The error names all
// that is wrong.
func New(c Config, at filter.Place) (filter.Filter, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	now := c.Now
	if now == nil {
		start := time.Now()
		now = func() time.Duration { return time.Since(start) }
	}
	f := &limiter{now: now, limit: newLimit(c.Rate, c.Burst)}
	switch c.By {
	case ByHeader:
		f.take = (&byHeader{key: []byte(c.Header), table: newTable(c.MaxBuckets)}).take
	case ByRoute:
		f.take = newByName(func(x *filter.Exchange) string { return x.Route }, c.MaxBuckets).take
	default:
		f.take = newByName(func(x *filter.Exchange) string { return x.Listener }, c.MaxBuckets).take
	}
	if at == filter.AtListener && c.By != ByRoute {
		return beforeRoute{f}, nil
	}
	return afterRoute{f}, nil
}

func (c *Config) check() error {
	var errs []error
	if !(c.Rate >= MinRate && c.Rate <= MaxRate) { // so that not-a-number fails
		errs = append(errs, fmt.Errorf("a rate of %v a second is not between %v and %v", c.Rate, MinRate, MaxRate))
	}
	if c.Burst < 1 || c.Burst > MaxBurst {
		errs = append(errs, fmt.Errorf("a burst of %d is not between 1 and %d", c.Burst, MaxBurst))
	}
	if len(errs) == 0 && float64(c.Burst)/c.Rate > maxFill.Seconds() {
		errs = append(errs, fmt.Errorf("a bucket of %d takes longer than %v to fill at %v a second", c.Burst, maxFill, c.Rate))
	}
	if c.MaxBuckets < 1 || c.MaxBuckets > MaxMaxBuckets {
		errs = append(errs, fmt.Errorf("a number of buckets of %d is not between 1 and %d", c.MaxBuckets, MaxMaxBuckets))
	}
	switch {
	case c.By > ByHeader:
		errs = append(errs, fmt.Errorf("there is no way %d to choose a bucket", c.By))
	case c.By == ByHeader && c.Header == "":
		errs = append(errs, errors.New("by header: the header has no name"))
	case c.By != ByHeader && c.Header != "":
		errs = append(errs, fmt.Errorf("header %q is named, but the limit is not by header", c.Header))
	}
	return errors.Join(errs...)
}

// The forms of the filter: each has one method beside Name.
type (
	beforeRoute struct{ *limiter }
	afterRoute  struct{ *limiter }
)

func (f beforeRoute) BeforeRoute(x *filter.Exchange) filter.Verdict { return f.ask(x) }
func (f afterRoute) AfterRoute(x *filter.Exchange) filter.Verdict   { return f.ask(x) }

// limiter is what the forms share. Static after New.
type limiter struct {
	now   func() time.Duration
	limit limit
	take  func(x *filter.Exchange, l limit, now instant) bool // a token from the bucket of x
}

// Name implements filter.Filter.
func (*limiter) Name() string { return Name }

func (f *limiter) ask(x *filter.Exchange) filter.Verdict {
	if f.take(x, f.limit, instant(f.now())*fine) {
		return filter.Continue
	}
	return filter.Stop(wire.Busy, ReasonLimited)
}
