package server

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/filter/fault"
	"github.com/relevo-proxy/relevo/forwarder/filter/header"
	"github.com/relevo-proxy/relevo/forwarder/filter/ratelimit"
	"github.com/relevo-proxy/relevo/forwarder/filter/source"
	"github.com/relevo-proxy/relevo/server/config"
)

// limitsBy are the ways to choose a token bucket.
var limitsBy = map[config.LimitBy]ratelimit.By{
	config.LimitByListener: ratelimit.ByListener,
	config.LimitByRoute:    ratelimit.ByRoute,
	config.LimitByHeader:   ratelimit.ByHeader,
}

// exchangeFilters makes the filters of a listener or rule, in their order. Each stands for itself: two rules with the
// same rate limit have two.
func exchangeFilters(list []config.Filter, at filter.Place) ([]filter.Filter, error) {
	var out []filter.Filter
	var errs []error
	for i := range list {
		f, err := exchangeFilter(&list[i], at)
		if err != nil {
			errs = append(errs, fmt.Errorf("filter %d: %w", i, err))
			continue
		}
		out = append(out, f)
	}
	return out, errors.Join(errs...)
}

func exchangeFilter(f *config.Filter, at filter.Place) (filter.Filter, error) {
	switch {
	case f.Headers != nil:
		return header.New(header.Config{Request: edits(&f.Headers.Request), Reply: edits(&f.Headers.Reply)}, at)
	case f.Fault != nil:
		return faultFilter(f.Fault, at)
	case f.RateLimit != nil:
		l := f.RateLimit
		return ratelimit.New(ratelimit.Config{
			Rate: float64(l.Rate), Burst: l.Burst, By: limitsBy[l.By], Header: l.Header, MaxBuckets: l.MaxBuckets,
		}, at)
	}
	return nil, errNoFilter
}

// errNoFilter is what a configuration is refused for that was not validated.
var errNoFilter = errors.New("no filter is named")

func faultFilter(f *config.FaultFilter, at filter.Place) (filter.Filter, error) {
	c := fault.Config{Match: routeMatch(&f.Match)}
	if f.Delay != nil {
		c.Delay = fault.Delay{Time: f.Delay.Time.D(), Percent: percent(f.Delay.Percent)}
	}
	if f.Abort != nil {
		status, ok := statuses[f.Abort.Status]
		if !ok {
			return nil, errNoStatus(f.Abort.Status)
		}
		c.Abort = fault.Abort{Status: status, Percent: percent(f.Abort.Percent)}
	}
	return fault.New(c, at)
}

// percent is p as a number from 0 to 100.
func percent(p config.Percent) float64 { return float64(p) / 100 }

// connectionFilters makes the connection filters of a listener, in their order.
func connectionFilters(list []config.ConnectionFilter) ([]filter.ConnectionFilter, error) {
	var out []filter.ConnectionFilter
	var errs []error
	for i := range list {
		s := list[i].Source
		if s == nil {
			errs = append(errs, fmt.Errorf("connection filter %d: %w", i, errNoFilter))
			continue
		}
		out = append(out, source.New(prefixes(s.Allow), prefixes(s.Deny)))
	}
	return out, errors.Join(errs...)
}

func prefixes(list []config.Prefix) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, p := range list {
		out[i] = p.Netip()
	}
	return out
}
