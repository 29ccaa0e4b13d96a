package forwarder

import (
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder/cluster"
	"github.com/relevo-proxy/relevo/forwarder/stats"
)

// breaker is whether a limit refuses. It is open while the limit is at its bound, and for breakerMemory behind what it has
// refused; the sweeper looks.
type breaker struct {
	// Static after its limit is made.
	limit *cluster.Limit
	low   bool // it is about what has low priority

	// Atomic.
	seen atomic.Uint64 // refusals at the sweeper's last look
	at   atomic.Int64  // the look that found the last of them; 0: none has

	// Owned by the sweeper.
	told bool   // that it refuses
	from uint64 // refusals before it was told
}

// For how long a breaker stays open behind a refusal, and for how long nothing must have been refused when the log says that it
// has closed: a limit that is reached again and again makes few lines.
const (
	breakerMemory = int64(time.Second)
	breakerQuiet  = 10 * breakerMemory
)

// Use is how much of a bound is taken, and whether it refuses.
type Use struct {
	Used, Max int
	Open      bool // it is at its bound, or has refused something within the last second
}

func (b *breaker) refusals() uint64 {
	if b.low {
		return b.limit.RefusedLow()
	}
	return b.limit.Refused()
}

// status is the breaker at this time.
func (b *breaker) status(now int64) Use {
	s := Use{Used: b.limit.Used(), Max: b.limit.Max()}
	if b.low {
		s.Max = b.limit.MaxLow()
	}
	at := b.at.Load()
	s.Open = s.Used >= s.Max || b.refusals() != b.seen.Load() || at != 0 && now-at < breakerMemory
	return s
}

// look notes what was refused since the last look, and says in the log when that begins and has ended. It reports whether it
// must look again although nothing happens.
func (b *breaker) look(f *Forwarder, now int64, about func() []zap.Field) (again bool) {
	n := b.refusals()
	switch seen := b.seen.Load(); {
	case n != seen:
		b.at.Store(now) // first: who reads meanwhile finds it open
		b.seen.Store(n)
		if !b.told {
			b.told, b.from = true, seen
			s := b.status(now)
			f.log.Warn("a limit refuses: the breaker is open", append(about(), zap.Int("used", s.Used), zap.Int("max", s.Max))...)
		}
	case b.told && now-b.at.Load() >= breakerQuiet:
		b.told = false
		f.log.Info("the limit refuses no more: the breaker is closed", append(about(), zap.Uint64("refused", n-b.from))...)
	}
	return b.told
}

// The limits of a cluster that have a breaker, as the configuration calls them.
const (
	breakRequests = iota
	breakLowRequests
	breakConnections
	breakPending
	breakPendingBytes
	numBreakers
)

// limitMaxRequests is a rule's limit, too.
const limitMaxRequests = "max_requests"

var breakerNames = [numBreakers]string{limitMaxRequests, "max_requests_low", "max_connections", "max_pending", "max_pending_bytes"}

// newBreakers are a cluster's.
func newBreakers(l *cluster.Limits, pendingBytes *cluster.Limit) *[numBreakers]breaker {
	all := new([numBreakers]breaker)
	for i, limit := range [numBreakers]*cluster.Limit{l.Requests, l.Requests, l.Connections, l.Pending, pendingBytes} {
		all[i].limit = limit
	}
	all[breakLowRequests].low = true
	return all
}

// breakers looks at the limits of all clusters and rules. It reports whether it must look again although nothing happens.
func (s *sweeper) breakers(snap *snapshot, now int64) (again bool) {
	for _, c := range snap.clusters {
		for i := range c.breakers {
			if c.breakers[i].look(s.f, now, func() []zap.Field {
				return []zap.Field{zap.String("cluster", c.policy.Name()), zap.String("limit", breakerNames[i])}
			}) {
				again = true
			}
		}
	}
	for name, l := range snap.limits.bounds {
		if l.breaker.look(s.f, now, func() []zap.Field {
			return []zap.Field{zap.String("route", name), zap.String("limit", limitMaxRequests)}
		}) {
			again = true
		}
	}
	return again
}

// exportBreaker registers what a breaker shows at a scrape, as metrics of this beginning.
func (f *Forwarder) exportBreaker(prefix string, b *breaker, used bool, labels []stats.Label) {
	f.reg.FlagFunc(prefix+"_breaker_open", "1 while a limit is at its bound, or has refused something within the last second.",
		func() bool { return b.status(f.now()).Open }, labels...)
	f.reg.GaugeFunc(prefix+"_breaker_max", "The bound of a limit.", func() float64 { return float64(b.status(f.now()).Max) }, labels...)
	if used {
		f.reg.GaugeFunc(prefix+"_breaker_used", "How much of a limit is taken.", func() float64 { return float64(b.limit.Used()) }, labels...)
	}
}
