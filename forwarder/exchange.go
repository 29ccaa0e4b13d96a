package forwarder

import (
	"time"

	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// exchange is one request and its reply. It is a value: it is built in the batch of the read loop that decoded
// the request, copied into the one container that holds it while it waits (a slot of a stream table, an
// endpoint's waiting list), and copied out again by whoever takes it. Taking it out is what gives the right to
// go on with it.
type exchange struct {
	down     *downstream
	target   *target // nil before phaseMatchRoute is done
	start    int64   // when the read ended that brought the request
	deadline int64   // 0 before phaseMatchRoute is done
	tag      wire.Tag
	id       uint32 // as the client gave it
	timeout  int32  // as the client gave it, milliseconds
	endpoint int32  // index in the cluster of the endpoint tried last, -1 before the first
	attempts uint8
	phase    phase
	kind     wire.Kind
	holds    holding
}

// holding is what an exchange has taken and must give back when it ends.
type holding uint8

const (
	holdsStream   holding = 1 << iota // one of the downstream's streams
	holdsRequest                      // one of the cluster's requests
	holdsEndpoint                     // a place in its endpoint's count of active requests
)

// phase is an exchange's program counter: what happens to it next.
type phase uint8

// The phases, in the order of the road.
const (
	phaseInit                 phase = iota
	phaseDownFilter                 // filters that see the request before its route is known
	phaseMatchRoute                 // which rule, which cluster, which deadline
	phaseDownFilterAfterRoute       // filters that see the request and its route
	phaseChooseEndpoint             // the next try goes to which endpoint
	phaseSend                       // into a stream table and a write queue, or into the waiting list
	phaseWaitNotify                 // a container holds the exchange
	phaseUpFilter                   // filters that see the reply
	phaseReply                      // into the client's write queue
	phaseRetry                      // a try failed before anything was sent: another one?
	phaseHijack                     // answered here
	phaseEnd                        // everything is given back
	numPhases
)

var phaseNames = [numPhases]string{
	"Init", "DownFilter", "MatchRoute", "DownFilterAfterRoute", "ChooseEndpoint", "Send", "WaitNotify", "UpFilter",
	"Reply", "Retry", "Hijack", "End",
}

func (p phase) String() string { return phaseNames[p] }

// maxAttempts bounds the tries of an exchange; with the number of phases it bounds the phase loop.
const (
	maxAttempts = 10
	maxSteps    = (maxAttempts + 1) * int(numPhases)
)

// newExchange is the exchange of a request that was just decoded.
func newExchange(d *downstream, m *wire.Message, now int64) exchange {
	kind := wire.Request
	if m.Kind == wire.Oneway {
		kind = wire.Oneway
	}
	return exchange{down: d, start: now, tag: m.Tag, id: m.ID, timeout: m.Timeout, kind: kind, endpoint: -1}
}

// live says whether the batch's exchange is the batch's to go on with.
func (x *exchange) live() bool {
	return x.down != nil && x.phase != phaseWaitNotify && x.phase != phaseEnd
}

// begin starts the exchange of the request in b.msg.
func (b *batch) begin(d *downstream) {
	b.x = newExchange(d, &b.msg, b.now)
	b.run()
}

// road is the road that the exchange's listener has in the batch's snapshot.
func (b *batch) road() *road { return b.snap.roads[b.x.down.listener.slot] }

// run carries the batch's exchange from its phase on, until a container holds it or it has ended. The frame is
// the request's up to phaseSend and the reply's from phaseUpFilter on.
func (b *batch) run() {
	x := &b.x
	for range maxSteps {
		switch x.phase {
		case phaseInit:
			b.init()
		case phaseDownFilter:
			if c := b.road().chain; c.HasBeforeRoute() {
				b.filtered(c.BeforeRoute(b.show()), phaseMatchRoute)
			} else {
				x.phase = phaseMatchRoute
			}
		case phaseMatchRoute:
			b.matchRoute()
		case phaseDownFilterAfterRoute:
			if c := b.road().chain; c.HasAfterRoute() {
				b.filtered(c.AfterRoute(b.show()), phaseChooseEndpoint)
			} else {
				x.phase = phaseChooseEndpoint
			}
		case phaseChooseEndpoint:
			b.chooseEndpoint()
		case phaseSend:
			b.send()
		case phaseUpFilter:
			if c := b.road().chain; c.HasOnReply() {
				b.filtered(c.OnReply(b.show()), phaseReply)
			} else {
				x.phase = phaseReply
			}
		case phaseReply:
			b.reply()
		case phaseRetry:
			b.retry()
		case phaseHijack:
			b.answer()
		case phaseWaitNotify, phaseEnd:
			return
		}
	}
	panic("forwarder: an exchange went around too often") // attempts are bounded: a defect, and no endless loop
}

// init admits a request.
func (b *batch) init() {
	x := &b.x
	x.phase = phaseDownFilter
	if x.kind == wire.Request {
		x.holds |= holdsStream
		if x.down.inFlight.Add(1) > b.road().maxStreams {
			b.hijack(wire.Busy, ReasonMaxStreams)
			return
		}
	}
	switch {
	case b.f.draining.Load():
		b.hijack(wire.ConnectionClosed, ReasonDraining)
	case b.msg.Kind == wire.Unknown:
		b.hijack(wire.NoProcessor, ReasonUnknownCommand)
	}
}

// show fills what a filter sees.
func (b *batch) show() *filter.Exchange {
	x := &b.x
	b.seen = filter.Exchange{
		Message: &b.msg, Codec: b.road().codec, Client: x.down.client, Listener: x.down.listener.name,
	}
	if x.target != nil {
		b.seen.Route, b.seen.Cluster = x.target.name, x.target.cluster.policy.Name()
	}
	return &b.seen
}

// filtered goes on to the next phase, or answers here.
func (b *batch) filtered(v filter.Verdict, next phase) {
	b.x.phase = next
	if v.Stopped() {
		b.hijack(v.Status, v.Reason)
	}
}

// matchRoute finds the rule, and with it the deadline: the smaller of the frame's timeout, the route's, and the
// cap of the process.
func (b *batch) matchRoute() {
	x, r := &b.x, b.road()
	values := b.values[:len(r.keys)]
	if len(r.keys) > 0 {
		if err := r.codec.Headers(&b.msg, r.keys, values); err != nil {
			b.hijack(wire.CodecException, reasonOf(err))
			return
		}
	}
	rule := r.table.Match(values)
	if rule < 0 {
		b.hijack(wire.NoProcessor, ReasonNoRoute)
		return
	}
	x.target = r.targets[rule]
	timeout := min(x.target.timeout, r.maxTimeout)
	if x.timeout > 0 {
		timeout = min(timeout, int64(x.timeout)*int64(time.Millisecond))
	}
	x.deadline = x.start + timeout
	b.debts.route(x.target)
	x.phase = phaseDownFilterAfterRoute
}

// chooseEndpoint picks where the next try goes.
func (b *batch) chooseEndpoint() {
	x := &b.x
	c := x.target.cluster
	if x.holds&holdsRequest == 0 && x.kind == wire.Request {
		if c.policy.Limits().Requests.TryAcquire(1) == 0 {
			c.stats.rejected.add(ReasonMaxRequests, 1)
			b.hijack(wire.Busy, ReasonMaxRequests)
			return
		}
		x.holds |= holdsRequest
	}
	i := c.policy.Pick(b.now, int(x.endpoint))
	if i < 0 {
		b.hijack(wire.ErrorComm, ReasonNoEndpoint)
		return
	}
	x.endpoint = int32(i)
	x.attempts++
	if x.kind == wire.Request {
		c.endpoints[i].policy.Acquire()
		x.holds |= holdsEndpoint
	}
	x.phase = phaseSend
}

// send hands the exchange and its frame to a connection of its endpoint, or to those that wait for one.
func (b *batch) send() {
	x := &b.x
	e := x.target.cluster.endpoints[x.endpoint]
	p := e.pool(len(b.frame.bytes))
	for range maxSends {
		u := p.ready()
		if u == nil {
			if !b.await(p) {
				continue // a connection has become ready meanwhile
			}
			return
		}
		if b.sendOn(u) {
			return
		}
	}
	b.fail(ReasonResetBeforeSend)
}

// maxSends is how many connections, each found closed at the last moment, a try takes in vain.
const maxSends = 4

// sendOn tries one connection. It reports whether the exchange is the connection's now, or somebody else's;
// when it reports false the exchange is still the batch's, and nothing of it was sent.
func (b *batch) sendOn(u *upstream) bool {
	x := &b.x
	frameTimeout := x.timeout
	var id uint32
	if x.kind == wire.Request {
		// A frame's timeout is what is left of the deadline, and never 0, which would mean "unspecified".
		frameTimeout = int32(max(1, (x.deadline-b.now)/int64(time.Millisecond)))
		x.phase = phaseWaitNotify
		var earlier, ok bool
		if id, earlier, ok = u.table.Insert(*x, x.deadline); !ok {
			x.phase = phaseSend
			return false
		}
		if earlier {
			b.f.sweep.poke(x.deadline)
		}
	} else {
		id = u.table.Draw()
	}
	// From here on the exchange is the table's: only who takes it out may go on with it.
	u.codec.PatchRequest(b.frame.bytes, id, frameTimeout)
	var v conn.Verdict
	if b.frame.owned && len(b.frame.bytes) > ownAbove {
		v = u.conn.AppendOwned(b.frame.bytes)
	} else {
		v = u.conn.Append(b.frame.bytes)
	}
	switch v {
	case conn.Appended, conn.First:
		if b.frame.owned && len(b.frame.bytes) > ownAbove {
			b.frame = frame{}
		}
		b.owe(u.conn, v)
		b.debts.sent(u.endpoint, x.kind)
		if x.kind == wire.Oneway {
			b.end()
		}
		return true
	}
	if x.kind == wire.Request {
		if _, mine := u.table.Take(id); !mine {
			return true // the connection's end took it, and answers it
		}
		x.phase = phaseSend
	}
	return false
}

// fail ends a try of which nothing was sent, for a reason.
func (b *batch) fail(reason string) {
	b.reason = reason
	b.x.phase = phaseRetry
}

// retry tries again, if the route wants that for this reason.
func (b *batch) retry() {
	x := &b.x
	on, status := RetryConnectFailure, wire.ErrorComm
	switch b.reason {
	case ReasonResetBeforeSend:
		on = RetryResetBeforeSend
	case ReasonMaxConnections: // no connection could be made here either, but because of our own limit
		status = wire.Busy
	}
	switch {
	case x.attempts >= x.target.attempts || x.target.retryOn&on == 0:
		b.hijack(status, b.reason)
	case x.down.conn.Closed() && x.kind == wire.Request:
		b.hijack(status, ReasonDownstreamGone)
	default:
		x.target.stats.retries.Add(1)
		b.leaveEndpoint()
		x.phase = phaseChooseEndpoint
	}
}

// leaveEndpoint gives back the place in the endpoint's count.
func (b *batch) leaveEndpoint() {
	if x := &b.x; x.holds&holdsEndpoint != 0 {
		x.holds &^= holdsEndpoint
		b.debts.leave(x.target.cluster.endpoints[x.endpoint])
	}
}
