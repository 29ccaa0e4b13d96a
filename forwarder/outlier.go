package forwarder

import (
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder/cluster"
	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// What becomes of the tries at an endpoint is told to its record, where its cluster ejects outliers: a reply by whoever reads it,
// and the end of a try without one by who finds it. Each try is told once. See docs/outlier-detection.md.

// fairTimeout is the time in milliseconds that a try must have been given, or half of what its rule gives where that is less, for
// its end without a reply to count: what a client in a hurry, or the wait for something of our own, has left of it says nothing of
// the server.
const fairTimeout = 100

// gentleReturn is for how long at most, in nanoseconds, the share of an endpoint grows that was ejected, where its cluster has no slow
// start: what made it fail may have been its load. It is no longer than the shortest ejection, else those that return often never
// get their share.
const gentleReturn = int64(10 * time.Second)

// judge tells what a reply says of its endpoint.
func (b *batch) judge(r *cluster.Record, e *upEndpoint) {
	switch b.msg.Status.Outcome() {
	case wire.Good:
		r.Worked()
		b.debts.work(r)
	case wire.Bad:
		e.blame(b.now, b.msg.Status.String())
	default: // wire.Neutral
	}
}

// blame tells that a try at the endpoint has failed, for a reason or with a status.
func (e *upEndpoint) blame(now int64, what string) {
	r := e.record.Load()
	if r == nil {
		return
	}
	c := e.cluster()
	if c.outliers == nil {
		return // it is not configured since a moment ago
	}
	if v := c.outliers.Failed(r, now); v.Endpoint != nil {
		c.judged(v, what)
	}
}

// blameTry tells that a try has failed of which nothing was sent.
func (b *batch) blameTry() {
	switch b.reason {
	case ReasonConnectFailure, ReasonResetBeforeSend:
		b.x.endpoint.blame(b.now, b.reason)
	default: // for want of something of our own
	}
}

// blameTimeout tells that an exchange has got no reply in time, if it was given a fair time.
func (u *upstream) blameTimeout(now int64, x *exchange) {
	if u.lease.Load() == leased {
		return // it is not sent to its end: who knows whom that waits for
	}
	given := x.target.timeout
	if t := x.target.perTry; t > 0 {
		given = min(given, t)
	}
	if fair := min(fairTimeout, given/2/int64(time.Millisecond)); int64(x.timeout) >= fair {
		u.endpoint.blame(now, ReasonTimeout)
	}
}

// blameEnd tells that the connection has ended with a request in flight, if not for a reason of our own.
func (u *upstream) blameEnd(now int64, closed, why string) {
	switch closed {
	case ReasonStopping, ReasonAdminClosed, ReasonBufferPressure, ReasonUploadBroken, ReasonHandedOver, conn.ReasonIdle:
	default:
		u.endpoint.blame(now, why)
	}
}

// judged makes known that an endpoint was ejected, or should have been. Last is what the last of its failures was.
func (c *upCluster) judged(v cluster.Verdict, last string) {
	fields := make([]zap.Field, 0, 10)
	fields = append(fields, zap.String("cluster", c.spec.Name), zap.String("endpoint", v.Endpoint.Address()), zap.String("why", v.Why))
	switch v.Why {
	case cluster.ByFailures:
		fields = append(fields, zap.Int("failures", v.Failures), zap.String("last", last))
	default:
		fields = append(fields, zap.Float64("success_rate", v.Rate), zap.Float64("threshold", v.Threshold), zap.Int("requests", v.Requests))
	}
	if v.Refused != "" {
		c.stats.refusals.add(v.Refused, 1)
		if n, ok := c.f.warn(v.Endpoint.Address(), v.Refused); ok {
			c.f.log.Warn("an endpoint should be ejected, and may not be", append(fields, zap.String("refused", v.Refused), zap.Uint64("suppressed", n))...)
		}
		return
	}
	c.stats.ejections.add(v.Why, 1)
	until := c.f.started.Add(time.Duration(v.Ejection.Until))
	c.f.log.Warn("an endpoint is ejected", append(fields, zap.Time("until", until), zap.Int("ejections", v.Ejection.Number))...)
	c.f.sweep.change()
}

// outliers ends ejections and intervals, and returns when to look again.
func (s *sweeper) outliers(now int64) int64 {
	next := int64(never)
	for _, c := range s.f.snap.Load().clusters {
		if c.outliers != nil {
			next = min(next, c.lookAtOutliers(now))
		}
	}
	return next
}

func (c *upCluster) lookAtOutliers(now int64) (next int64) {
	verdicts, returned, next := c.outliers.Look(now)
	for _, v := range verdicts {
		c.judged(v, "")
	}
	for _, e := range returned {
		if c.spec.SlowStart == 0 { // else tell does it, as for all that are usable again
			gently := gentleReturn
			if rules := c.spec.Outliers; rules != nil {
				gently = min(gently, rules.Time)
			}
			e.Warm(now, now+gently)
		}
		c.f.log.Info("an endpoint that was ejected is back", zap.String("cluster", c.spec.Name), zap.String("endpoint", e.Address()),
			zap.Int("ejections", e.Ejection().Number))
	}
	if len(returned) > 0 {
		c.f.sweep.change()
	}
	return next
}

// watchOutliers has the cluster eject outliers as its configuration says. Before is the cluster whose place it takes, nil for none.
func (c *upCluster) watchOutliers(policies []*cluster.Endpoint, before *upCluster) {
	var was *cluster.Outliers
	if before != nil {
		was = before.outliers
	}
	if c.spec.Outliers == nil && was == nil {
		return
	}
	c.outliers = cluster.NewOutliers(c.spec.Outliers, policies, was)
	for i := range policies {
		c.endpoints[i].record.Store(c.outliers.Record(i))
	}
}

// exportOutlier adds what became of an endpoint's tries to what another process is told of it.
func (e *upEndpoint) exportOutlier(s *EndpointState) {
	ejection := e.policy.Ejection()
	s.EjectedUntil, s.Ejections, s.EjectedWhy, s.EjectedSince = ejection.Until, ejection.Number, ejection.Why, ejection.Since
	if r := e.record.Load(); r != nil {
		s.FailedInARow = r.InARow()
	}
}

// adoptOutlier is the other way round.
func (e *upEndpoint) adoptOutlier(s *EndpointState) {
	c := e.cluster()
	if r := e.record.Load(); r != nil && c.outliers != nil {
		known := cluster.Ejection{Until: s.EjectedUntil, Number: s.Ejections, Why: s.EjectedWhy, Since: s.EjectedSince}
		c.outliers.Restore(r, known, s.FailedInARow, c.f.now())
	}
}
