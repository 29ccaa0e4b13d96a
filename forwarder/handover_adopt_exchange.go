package forwarder

import (
	"errors"
	"fmt"
	"strings"

	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// sentTo makes x, which was sent to an endpoint, hold what it must give back.
func (a *adopter) sentTo(x *exchange, s *ExchangeState, c *upCluster, endpoint int) error {
	if s.Route == "" || s.Cluster != c.policy.Name() {
		return fmt.Errorf("a request of route %q to cluster %q waits for its reply from cluster %s", s.Route, s.Cluster, c.policy.Name())
	}
	x.target = a.target(x.down.listener, s, c)
	x.endpoint, x.phase = c.endpoints[endpoint], phaseWaitNotify
	x.holds = holdsStream | holdsRequest | holdsEndpoint
	if s.Retry {
		x.holds |= holdsRetry
		c.limits.Retries.Adopt()
	}
	x.down.inFlight.Add(1)
	x.target.limit.adopt(x)
	c.policy.Limits().Requests.Adopt(1)
	c.endpoints[endpoint].policy.Acquire()
	return nil
}

// restore rebuilds an exchange, at its beginning. Its client speaks this protocol.
func (a *adopter) restore(s *ExchangeState, codec wire.Codec) (exchange, error) {
	x := exchange{
		start: s.Start, deadline: s.Deadline, tag: s.Tag, id: s.ID, timeout: s.Timeout,
		attempts: s.Attempts, kind: wire.Request, phase: phaseInit,
	}
	if s.Oneway {
		x.kind = wire.Oneway
	}
	if x.down = a.downs[s.Downstream]; x.down == nil && codec != nil {
		x.down = a.goneFrom(s.Listener, codec)
	}
	if x.down == nil || x.down.codec == nil {
		return x, fmt.Errorf("a request of listener %s in a protocol that is not known", s.Listener)
	}
	if s.Service != "" || s.Method != "" {
		x.label = a.f.labels.get([]byte(s.Service), []byte(s.Method))
	}
	if r := s.Record; r != nil && a.f.access != nil {
		x.kept = a.f.kept.Get().(*kept)
		x.kept.logged, x.kept.record = true, record{r.Method, r.Service, r.Trace, r.RPC, r.Request, r.Sent}
	}
	if s.Route != "" {
		x.holds = routed
	}
	if s.Retry {
		x.holds |= retried
	}
	return x, nil
}

// copied keeps the copy of a request that was sent, where its rule may still want to send it again, and returns when its try is
// over.
func (a *adopter) copied(x *exchange, s *SlotState) int64 {
	if len(s.Copy) == 0 || x.target.retryOn&retrySent == 0 {
		return x.deadline
	}
	if x.kept == nil {
		x.kept = a.f.kept.Get().(*kept)
	}
	x.kept.frame = append(a.f.buffers.Get(len(s.Copy))[:0], s.Copy...)
	x.target.cluster.retryBytes.Adopt(cap(x.kept.frame))
	if s.Until == 0 || x.target.perTry == 0 {
		return x.deadline
	}
	return s.Until
}

// goneFrom is what stands for the clients of a listener that have left, and that spoke this protocol.
func (a *adopter) goneFrom(name string, codec wire.Codec) *downstream {
	of := goneName{name, codec.Name()}
	d := a.gone[of]
	if d == nil {
		d = &downstream{listener: a.listener(name), conn: conn.Gone(conn.ReasonPeerClosed), codec: codec}
		a.gone[of] = d
	}
	return d
}

// target is the target by name of what was sent to a cluster, a leftover where the configuration has none.
func (a *adopter) target(l *listener, s *ExchangeState, c *upCluster) *target {
	name := targetName{l.name, s.Route, c}
	t := a.targets[name]
	if t == nil {
		if t = a.snap.roads[l.slot].targetNamed(s.Route, c); t == nil {
			table, rule, _ := strings.Cut(s.Route, "/")
			t = &target{
				name: s.Route, cluster: c, chain: filter.NewChain(nil, nil), timeout: never, attempts: 1, limit: a.snap.limits.named(s.Route),
				stats: newTargetStats(a.f.reg, table, rule, s.Cluster),
			}
		}
		a.targets[name] = t
	}
	return t
}

func (r *road) targetNamed(name string, to *upCluster) *target {
	for i := range r.rules {
		for _, t := range r.rules[i].targets {
			if t.name == name && t.cluster == to {
				return t
			}
		}
	}
	return nil
}

// upload rebuilds the request that a client connection passes on in pieces.
func (a *adopter) upload(s *DownstreamState) error {
	d := a.downs[s.Ref]
	if s.Upload == nil || d == nil {
		return nil
	}
	up := &upload{d: d, left: s.Upload.Left, rest: s.Upload.Rest, id: s.Upload.ID}
	d.begun = up
	if s.Upload.Upstream == 0 && len(s.Upload.Head) == 0 {
		up.x.phase = phaseEnd // what is left of it is nobody's
		return nil
	}
	x, err := a.restore(&s.Upload.Exchange, d.codec)
	if err != nil {
		return err
	}
	x.down, up.x = d, x
	if len(s.Upload.Head) > 0 {
		head := func(bytes []byte) (m wire.Message, err error) {
			own := append(a.f.buffers.Get(len(bytes))[:0], bytes...)
			n, _, err := d.codec.Head(&m, own, wire.Limits{})
			if err == nil && n != len(own) {
				err = errors.New("it is not whole")
			}
			m.Frame = own // with all of its capacity, which is given back
			return m, err
		}
		if up.came, err = head(s.Upload.Head); err == nil {
			if up.msg = up.came; len(s.Upload.Edited) > 0 {
				up.msg, err = head(s.Upload.Edited)
			}
		}
		if err != nil {
			return fmt.Errorf("the head of a request of listener %s: %w", s.Listener, err)
		}
		up.x.holds |= again
		return nil
	}
	if up.u = a.ups[s.Upload.Upstream]; up.u == nil {
		return fmt.Errorf("a request of listener %s goes out in pieces on connection %d, which is not there", s.Listener, s.Upload.Upstream)
	}
	c := up.u.endpoint.cluster()
	up.x.phase, up.x.target = phaseWaitNotify, a.target(d.listener, &s.Upload.Exchange, c)
	up.x.endpoint = up.u.endpoint
	a.leased[up.u] = true
	return nil
}

// endUploads sees to it that the sweeper closes, at its first look, what is leased to uploads whose clients were left behind.
func (a *adopter) endUploads() {
	for _, u := range a.ups {
		if u.lease.Load() == leased && !a.leased[u] {
			u.leaseBy.Store(0)
		}
	}
}

// exchange rebuilds one that no table had: a request begins again, a reply goes on to its filters.
func (a *adopter) exchange(s *ExchangeState) error {
	codec, _ := wire.DetectFirst(a.snap.leftover.listener.Codecs, s.Frame) // whoever sent it may have left
	x, err := a.restore(s, codec)
	if err == nil && s.Held {
		var c *upCluster
		var i int
		if c, i, err = a.place(s.Cluster, s.Endpoint, x.down.codec.Name()); err == nil {
			err = a.sentTo(&x, s, c, i)
		}
		x.phase = phaseUpFilter
	}
	if err != nil {
		return err
	}
	x.holds |= again
	frame := append(a.f.buffers.Get(len(s.Frame))[:0], s.Frame...)
	a.waiting = append(a.waiting, adopted{x, frame, s.UpstreamID})
	return nil
}
