package forwarder

import (
	"time"

	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// debts are what a batch counted for others and has not told them yet. Neighbouring frames mostly concern the
// same route, endpoint and client, so each sum is kept while they do and told when they change, or at the
// batch's end: a few atomic additions a batch instead of a request.
type debts struct {
	requests sum[*listenerStats]
	routed   sum[*target]
	sentTo   sum[*upEndpoint]
	left     sum[*upEndpoint]
	released sum[*upCluster]
	streams  sum[*downstream]
	replies  replies
}

// sum is a count for one receiver.
type sum[K comparable] struct {
	to K
	n  uint64
}

// add counts one more for a receiver. When that is another one than before, the count of the former is
// returned, to be told.
func (s *sum[K]) add(to K) (former K, n uint64) {
	if s.to == to {
		s.n++
		return former, 0
	}
	former, n = s.to, s.n
	s.to, s.n = to, 1
	return former, n
}

// take empties the sum.
func (s *sum[K]) take() (K, uint64) {
	to, n := s.to, s.n
	*s = sum[K]{}
	return to, n
}

// replies counts replies from one endpoint to the requests of one target that came in through one listener.
type replies struct {
	target   *target
	listener *listenerStats
	endpoint *endpointStats
	status   [wire.NumStatus]uint32
	seen     uint32 // bit set of the statuses that are not 0
	total    stats.Local
}

func (d *debts) request(l *listenerStats) {
	if l, n := d.requests.add(l); n > 0 {
		l.requests.Add(n)
	}
}

func (d *debts) route(t *target) {
	if t, n := d.routed.add(t); n > 0 {
		t.stats.requests.Add(n)
	}
}

func (d *debts) sent(e *upEndpoint, kind wire.Kind) {
	if kind == wire.Oneway {
		e.stats.oneways.Add(1)
	} else if e, n := d.sentTo.add(e); n > 0 {
		e.stats.requests.Add(n)
	}
}

// leave, release and closeStream give back what an exchange holds.
func (d *debts) leave(e *upEndpoint) {
	if e, n := d.left.add(e); n > 0 {
		e.policy.Release(int(n))
	}
}

func (d *debts) release(c *upCluster) {
	if c, n := d.released.add(c); n > 0 {
		c.policy.Limits().Requests.Release(int(n))
	}
}

func (d *debts) closeStream(s *downstream) {
	if s, n := d.streams.add(s); n > 0 {
		s.inFlight.Add(-int64(n))
	}
}

// reply counts a reply that an endpoint gave.
func (d *debts) reply(x *exchange, s wire.Status, now int64) {
	r := &d.replies
	l, e := x.down.listener.stats, x.target.cluster.endpoints[x.endpoint].stats
	if r.target != x.target || r.listener != l || r.endpoint != e {
		r.pay()
		r.target, r.listener, r.endpoint = x.target, l, e
	}
	r.status[s]++
	r.seen |= 1 << s
	r.total.Observe(time.Duration(now - x.start))
}

func (r *replies) pay() {
	if r.seen == 0 {
		return
	}
	for s := range wire.NumStatus {
		if r.seen&(1<<s) != 0 {
			n := uint64(r.status[s])
			r.target.stats.replies.add(s, n)
			r.listener.replies.add(s, n)
			r.endpoint.replies.add(s, n)
			r.status[s] = 0
		}
	}
	both := r.total // Merge clears, and two want it
	r.target.stats.total.Merge(&r.total)
	r.endpoint.total.Merge(&both)
	r.seen, r.target, r.listener, r.endpoint = 0, nil, nil, nil
}

// giveBack tells who gets what was held back.
func (d *debts) giveBack() {
	if e, n := d.left.take(); n > 0 {
		e.policy.Release(int(n))
	}
	if c, n := d.released.take(); n > 0 {
		c.policy.Limits().Requests.Release(int(n))
	}
	if s, n := d.streams.take(); n > 0 {
		s.inFlight.Add(-int64(n))
	}
}

// pay tells what was counted.
func (d *debts) pay() {
	if l, n := d.requests.take(); n > 0 {
		l.requests.Add(n)
	}
	if t, n := d.routed.take(); n > 0 {
		t.stats.requests.Add(n)
	}
	if e, n := d.sentTo.take(); n > 0 {
		e.stats.requests.Add(n)
	}
	d.replies.pay()
}
