package forwarder

import (
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder/conn"
)

// probe is a connection on which an endpoint that failed is to show that it works: it was sent a heartbeat, and any
// frame that comes on it, or on a new one, is the proof.
type probe struct {
	u     *upstream
	by    int64 // when it counts as failed
	fresh bool  // the connection was made for the probe, and closes with it
}

// The bounds of probes.
const (
	probesAtOnce = 16                           // of one cluster's endpoints
	probeTime    = int64(time.Second)           // from the connection to the proof
	probeGrain   = int64(10 * time.Millisecond) // probes this close together are begun together
)

// The results of probes, a label of a metric.
const (
	probeProved    = "proved"          // the endpoint has sent a frame
	probeConnected = "connected"       // the cluster has no heartbeats, so that the connection was all that could be asked
	probeRefused   = "connect-failure" // no connection could be made
	probeClosed    = "closed"          // the connection ended before there was a frame
	probeSilent    = "no-answer"       // nothing came in time
)

// probes begins the probes that are due, ends those whose time is over, and returns when to look again.
func (s *sweeper) probes(now int64) int64 {
	next := int64(never)
	if s.f.draining.Load() {
		return next
	}
	for _, c := range s.f.snap.Load().clusters {
		next = min(next, c.probe(now))
	}
	if next == never {
		return next
	}
	return (max(next, now+1) + probeGrain - 1) / probeGrain * probeGrain
}

// probe is probes for one cluster. It begins with the endpoint behind the one whose turn it was last, so that each gets
// its turn however many are down. Only the sweeper calls it.
func (c *upCluster) probe(now int64) (next int64) {
	next = never
	n, from := len(c.endpoints), c.probeFrom
	for i := range n {
		k := (from + i) % n
		e := c.endpoints[k]
		if p := e.probe.Load(); p != nil {
			if now < p.by {
				next = min(next, p.by)
			} else {
				e.unanswered(p, now)
			}
		}
		at, due := e.policy.ProbeDue()
		switch {
		case !due:
		case now < at:
			next = min(next, at)
		case c.probesLeft.TryAcquire(1) == 0:
			next = now
		case e.beginProbe(now):
			c.probeFrom = (k + 1) % n
		default: // there may be no more connections, or one is being made
			c.probesLeft.Release(1)
			next = now
		}
	}
	return next
}

// beginProbe asks on a connection that there is, or begins to make one. It says whether that can be.
func (e *upEndpoint) beginProbe(now int64) bool {
	for _, p := range []*pool{e.small, e.large} {
		if u := p.usable(); u != nil {
			if !e.policy.Probe(now) {
				return false
			}
			e.ask(u, false)
			return true
		}
	}
	p, limits := e.small, e.cluster().policy.Limits()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.takePlace(e.cluster().spec.ConnectionsPerEndpoint) {
		return false
	}
	if !e.policy.Probe(now) {
		limits.Connections.Release(1)
		return false
	}
	p.dialling = true
	e.cluster().f.dialling.Go(p.dialProbe) // ends within connect_timeout, or with the shift
	return true
}

// dialProbe makes the connection for a probe.
func (p *pool) dialProbe() {
	e := p.endpoint
	u, err := p.connect()
	if err != nil {
		p.failed(err)
		if errors.Is(err, errInterrupted) {
			if e.policy.Postpone() {
				e.cluster().probesLeft.Release(1)
			}
			e.pokeForProbe()
			return
		}
		e.probeFailed(e.cluster().f.now(), probeRefused)
		return
	}
	e.ask(u, true)
	p.add(u)
	p.serve() // where the connection was proof enough
}

// ask sends the heartbeat that is to bring the proof.
func (e *upEndpoint) ask(u *upstream, fresh bool) {
	f := e.cluster().f
	if e.cluster().spec.HeartbeatInterval == 0 {
		if e.policy.Trust() {
			f.sweep.change()
			e.probeEnded(probeConnected)
		}
		return
	}
	by := f.now() + probeTime
	p := &probe{u, by, fresh}
	e.probe.Store(p)
	if !e.policy.Health().Probing {
		e.probe.CompareAndSwap(p, nil) // a frame on an older connection has ended it: a late look must not take this one for it
		return
	}
	u.unasked.Store(false)
	if u.say(u.codec.AppendHeartbeat(nil, u.table.Draw())) == conn.First {
		u.conn.Flush()
	}
	e.stats.beats.Add(1)
	f.sweep.poke(by)
}

// prove notes that the endpoint works: it has delivered a frame on a connection that had not, or that was asked for one.
func (u *upstream) prove() {
	u.proved = true
	u.unasked.Store(true)
	e := u.endpoint
	e.unproved.Store(0)
	p, failures := e.probe.Load(), e.policy.Health().Failures
	probed := e.policy.Connected()
	if failures > 0 {
		e.cluster().f.sweep.change()
		e.cluster().f.log.Info("an endpoint that had failed works again",
			zap.String("cluster", e.cluster().policy.Name()), zap.String("endpoint", e.address), zap.Int("failures", failures))
	}
	if probed {
		e.probe.CompareAndSwap(p, nil)
		e.probeEnded(probeProved)
	}
}

// unanswered ends a probe whose time is over.
func (e *upEndpoint) unanswered(p *probe, now int64) {
	f := e.cluster().f
	if !e.probe.CompareAndSwap(p, nil) || !e.probeFailed(now, probeSilent) {
		return // it was answered at the last moment
	}
	e.note(now, ReasonProbeTimeout, "")
	if p.fresh {
		p.u.conn.Close(ReasonProbeTimeout)
	}
	if n, ok := f.warn(e.address, ReasonProbeTimeout); ok {
		f.log.Warn("an endpoint can be connected and does not answer", zap.String("check", advice[ReasonProbeTimeout]),
			zap.String("cluster", e.cluster().policy.Name()), zap.String("endpoint", e.address), zap.Uint64("suppressed", n))
	}
}

// probeBroke ends the probe that this connection was to bring the proof for, if there is one.
func (u *upstream) probeBroke(now int64) {
	e := u.endpoint
	if p := e.probe.Load(); p != nil && p.u == u && e.probe.CompareAndSwap(p, nil) {
		e.note(now, u.conn.Reason(), "")
		e.probeFailed(now, probeClosed)
	}
}

// failure is what was seen of an endpoint that failed. Never changed.
type failure struct {
	at             int64
	reason, detail string
}

// note remembers a failure, in the place of the one before.
func (e *upEndpoint) note(now int64, reason, detail string) {
	e.lastFailure.Store(&failure{now, reason, detail})
}

// failed passes the endpoint over until a probe has succeeded.
func (e *upEndpoint) failed(now int64) {
	e.policy.Failed(now)
	e.cluster().f.sweep.change()
	e.pokeForProbe()
}

// probeFailed ends a probe in vain. It reports false when there was none any more.
func (e *upEndpoint) probeFailed(now int64, result string) bool {
	if !e.policy.ProbeFailed(now) {
		return false
	}
	e.probeEnded(result)
	e.pokeForProbe()
	return true
}

// probeEnded counts a probe. Whoever ended it in the endpoint's policy calls it, so that it is counted once.
func (e *upEndpoint) probeEnded(result string) {
	e.cluster().probesLeft.Release(1)
	e.stats.probes.add(result, 1)
}

// pokeForProbe sees to it that the sweeper is awake for the next probe.
func (e *upEndpoint) pokeForProbe() {
	if at, due := e.policy.ProbeDue(); due {
		e.cluster().f.sweep.poke(at)
	}
}
