package dns

import (
	"context"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/relevo-proxy/relevo/forwarder/discovery"
)

// lookTimeout bounds one look, whatever it takes.
const lookTimeout = 20 * time.Second

// Behind a failure it looks again after firstWait, and less and less often, but no less often than every maxTTL.
const firstWait = time.Second

// look is the context of one look.
type look = context.Context

// found is what a look has brought.
type found struct {
	set []discovery.Endpoint
	ttl time.Duration // for how long that holds, as the servers say
}

// Run implements discovery.Source.
func (s *Source) Run(ctx context.Context, tell func(discovery.Update)) {
	failures := discovery.BackOff{First: firstWait, Most: max(firstWait, s.maxTTL)}
	s.had = make(map[uint16]bool)
	s.remember(s.known)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		within, cancel := context.WithTimeout(ctx, lookTimeout)
		f, err := s.lookup(s, within)
		cancel()
		switch {
		case ctx.Err() != nil:
			return // it was broken off
		case err != nil:
			tell(discovery.Update{Err: err})
			timer.Reset(failures.Next(s.random()))
		default:
			failures.Reset()
			s.remember(f.set)
			tell(discovery.Update{Endpoints: f.set})
			timer.Reset(s.refresh(f.ttl))
		}
	}
}

// refresh is the time to the next look at what holds for ttl: earlier by up to a quarter, but not below the lower bound.
func (s *Source) refresh(ttl time.Duration) time.Duration {
	ttl = min(max(ttl, s.minTTL), s.maxTTL)
	return max(discovery.Jitter(ttl, s.random()), s.minTTL)
}

// remember notes which types of addresses there are.
func (s *Source) remember(set []discovery.Endpoint) {
	for i := range set {
		if strings.HasPrefix(set[i].Address, "[") {
			s.had[dns.TypeAAAA] = true
		} else {
			s.had[dns.TypeA] = true
		}
	}
}
