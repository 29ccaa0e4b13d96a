package forwarder

import (
	"context"
	"errors"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder/cluster"
	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/route"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// exchange is one request and its reply. It is a value: it is built in the batch of the read loop that decoded
// the request, copied into the one container that holds it while it waits (a slot of a stream table, an
// endpoint's waiting list), and copied out again by whoever takes it. Taking it out is what gives the right to
// go on with it, or, where a worker carries it, the duty to tell the worker.
type exchange struct {
	down     *downstream
	target   *target     // nil before phaseMatchRoute is done
	label    *label      // nil before phaseMatchRoute is done
	errand   *errand     // nil: the read loops carry it; else a worker does
	kept     *kept       // nil: nothing is kept of it beside this
	endpoint *upEndpoint // tried last, nil before the first
	start    int64       // when the read ended that brought the request
	deadline int64       // 0 before phaseMatchRoute is done
	tag      wire.Tag
	id       uint32 // as the client gave it
	timeout  int32  // as the client gave it, then as its server was told; milliseconds
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
	holdsRetry                        // one of the cluster's retries

	holdsRule // one of its rule's requests

	again   // not a thing that is held: its filters are asked anew, because a pause has interrupted them
	routed  // likewise: its rule has counted it, in another process
	retried // likewise: one of the cluster's retries is to be taken, as in another process
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
	phaseRetry                      // a try failed: another one?
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
	return exchange{down: d, start: now, tag: m.Tag, id: m.ID, timeout: m.Timeout, kind: kind}
}

// live says whether the batch's exchange is the batch's to go on with.
func (x *exchange) live() bool {
	return x.down != nil && x.phase != phaseWaitNotify && x.phase != phaseEnd
}

// begin starts the exchange of the request in b.msg.
func (b *batch) begin(d *downstream) {
	b.x = newExchange(d, &b.msg, b.now)
	b.upstreamID = 0
	if a := b.f.access; a != nil && a.Sample() {
		b.record()
	}
	b.run()
}

// road is the road that the exchange's listener has in the batch's snapshot.
func (b *batch) road() *road { return b.snap.roads[b.x.down.listener.slot] }

// run carries the batch's exchange from its phase on, until a container holds it, a worker has it or it has ended. The
// frame is the request's up to phaseSend and the reply's from phaseUpFilter on.
func (b *batch) run() {
	x := &b.x
	for range maxSteps {
		if b.f.trace != nil {
			b.f.trace(b)
		}
		switch x.phase {
		case phaseInit:
			b.init()
		case phaseDownFilter:
			switch r := b.road(); {
			case r.worker && b.mayHand():
				b.hand()
			case r.chain.HasBeforeRoute():
				if !b.filter(r.chain, phaseMatchRoute) {
					return
				}
			default:
				x.phase = phaseMatchRoute
			}
		case phaseMatchRoute:
			b.matchRoute()
		case phaseDownFilterAfterRoute:
			switch t := x.target; {
			case t.worker && b.mayHand():
				b.hand()
			case t.chain.HasAfterRoute():
				if !b.filter(t.chain, phaseChooseEndpoint) {
					return
				}
			default:
				x.phase = phaseChooseEndpoint
			}
		case phaseChooseEndpoint:
			b.chooseEndpoint()
		case phaseSend:
			if b.head > 0 {
				return // upload sends it in pieces
			}
			b.send()
		case phaseUpFilter:
			switch t := x.target; {
			case !t.chain.HasOnReply():
				x.phase = phaseReply
			case t.worker && b.mayHand(): // an upload's reply, on its server's read loop
				b.hand()
			default:
				if !b.filter(t.chain, phaseReply) {
					return
				}
			}
		case phaseReply:
			b.reply()
		case phaseRetry:
			b.retry()
		case phaseHijack:
			b.answer()
		default: // phaseWaitNotify, phaseEnd: somebody else's, or over
			return
		}
	}
	panic("forwarder: an exchange went around too often") // attempts are bounded: a defect, and no endless loop
}

// resume goes on with the batch's exchange, which was just taken out of its container: here, or on its worker.
func (b *batch) resume() {
	if b.x.errand != nil {
		b.deliver()
		return
	}
	b.run()
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
	case b.f.draining.Load(), x.down.listener.leaving.Load():
		b.hijack(wire.ConnectionClosed, ReasonDraining)
	case b.msg.Kind == wire.Unknown:
		b.hijack(wire.NoProcessor, ReasonUnknownCommand)
	}
}

// filter asks the chain's filters of the exchange's phase and goes on to the next one, or answers here. It reports false
// when the road rests: the exchange stays before its filters, which are asked anew when it goes on.
func (b *batch) filter(c *filter.Chain, next phase) bool {
	x := &b.x
	b.alone()
	ctx := context.Background() // of which filters that do not block know nothing
	if c.Blocks() {
		if b.f.resting.Load() && b.f.ctx.Err() == nil {
			b.interrupt()
			return false
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(b.f.shiftCtx(), b.f.started.Add(time.Duration(b.latest())))
		defer cancel()
		b.awaits(true)
		defer b.awaits(false)
	}
	b.seen.Begin()
	b.seen.Message, b.seen.Codec, b.seen.Head = &b.msg, x.down.codec, b.head > 0
	b.seen.MaxHeader = b.road().limits.MaxHeader
	b.seen.Client, b.seen.Listener = x.down.client, x.down.listener.name
	b.seen.Route, b.seen.Cluster = "", ""
	b.seen.Elapsed = 0
	if x.holds&again != 0 {
		b.seen.Elapsed = time.Duration(b.now - x.start)
	}
	if x.target != nil {
		b.seen.Route, b.seen.Cluster = x.target.name, x.target.clusterName()
	}
	var v filter.Verdict
	switch x.phase {
	case phaseDownFilter:
		v = c.BeforeRoute(ctx, &b.seen)
	case phaseDownFilterAfterRoute:
		v = c.AfterRoute(ctx, &b.seen)
	default: // phaseUpFilter
		v = c.OnReply(ctx, &b.seen)
	}
	if b.seen.Edited() {
		b.putBack()
		b.frame = frame{bytes: b.msg.Frame, edited: true} // the exchange's until the next but one edit
		b.account()
	}
	if errors.Is(ctx.Err(), context.Canceled) && b.f.ctx.Err() == nil {
		b.interrupt() // whatever they said
		return false
	}
	x.phase = next
	switch {
	case v.Stopped():
		b.hijack(v.Status, v.Reason)
	case ctx.Err() != nil:
		b.late()
	}
	return true
}

// interrupt leaves the exchange before its filters because the road rests.
func (b *batch) interrupt() {
	b.interrupted = true
	b.x.holds |= again
}

// account moves a frame that a filter has edited into memory that counts, unless it is small or only a head.
func (b *batch) account() {
	n := len(b.frame.bytes)
	if n <= smallFrame || b.head > 0 {
		return
	}
	buf := append(b.f.buffers.Get(n)[:0], b.frame.bytes...)
	b.frame, b.msg.Frame = frame{bytes: buf, owned: true}, buf
}

// late answers an exchange whose filter came back because its time, or the process's, was over.
func (b *batch) late() {
	if b.f.ctx.Err() != nil {
		b.hijack(wire.ConnectionClosed, ReasonStopping)
		return
	}
	b.hijack(wire.Timeout, ReasonFilterTimeout)
}

// latest is the exchange's deadline, or what is the latest that it may become.
func (b *batch) latest() int64 {
	x := &b.x
	if x.deadline != 0 {
		return x.deadline
	}
	timeout := b.road().maxTimeout
	if x.timeout > 0 {
		timeout = min(timeout, int64(x.timeout)*int64(time.Millisecond))
	}
	return x.start + timeout
}

// matchRoute finds the rule, and with it the deadline: the smaller of the frame's timeout, the route's, and the
// cap of the process.
func (b *batch) matchRoute() {
	x, r := &b.x, b.road()
	values := b.values[:len(r.keys)]
	if err := x.down.codec.Headers(&b.msg, r.keys, values); err != nil {
		b.hijack(wire.CodecException, reasonOf(err))
		return
	}
	x.label = b.labelled(values[r.service], values[r.method])
	i := r.table.Match(values[:len(r.table.Keys())])
	switch {
	case i >= 0:
	case x.down.listener.leaving.Load(): // since it was read
		b.hijack(wire.ConnectionClosed, ReasonDraining)
		return
	default:
		b.hijack(wire.NoProcessor, ReasonNoRoute)
		return
	}
	x.target = r.rules[i].pick()
	x.deadline = b.latest()
	x.deadline = min(x.deadline, x.start+x.target.timeout)
	if x.holds&routed == 0 {
		b.debts.route(x.target)
	}
	x.phase = phaseDownFilterAfterRoute
	switch t := x.target; {
	case b.now >= x.deadline: // a filter of the listener took as long, before anybody knew the rule's timeout
		b.hijack(wire.Timeout, ReasonFilterTimeout)
	case t.limit != nil, t.priority < b.refusing:
		b.admitByRule()
	}
}

// chooseEndpoint picks where the next try goes.
func (b *batch) chooseEndpoint() {
	x := &b.x
	c := x.target.cluster.latest()
	switch {
	case c == nil:
		b.hijack(x.target.reply, ReasonDirectReply)
		return
	case c.codec.Name() != x.down.codec.Name():
		b.hijack(wire.NoProcessor, ReasonOtherProtocol)
		return
	}
	if x.holds&holdsRequest == 0 && x.kind == wire.Request {
		priority := x.target.priority
		if x.holds&routed != 0 { // another process had admitted it
			priority = max(priority, PriorityNormal)
		}
		if reason := priority.acquire(c.policy.Limits().Requests); reason != "" {
			c.stats.rejected.add(reason, 1)
			b.hijack(wire.Busy, reason)
			return
		}
		x.holds |= holdsRequest
		if x.holds&retried != 0 {
			x.holds ^= retried | holdsRetry
			c.policy.Limits().Retries.Adopt()
		}
	}
	ask := cluster.Ask{Avoid: -1, Panic: c.panics.Load(), Now: b.now}
	if x.endpoint != nil {
		ask.Avoid = slices.Index(c.endpoints, x.endpoint)
	}
	if c.hashing != nil {
		ask.Hash = b.hash(c.hashing)
	}
	i := c.policy.Pick(ask)
	if i < 0 {
		reason := ReasonNoEndpoint
		if x.attempts > 0 {
			reason = b.reason // what became of the try before says more
		}
		b.hijack(failedWith(reason), reason)
		return
	}
	if x.attempts++; x.attempts > 1 {
		x.target.stats.retries.Add(1)
		if condition(b.reason) != 0 { // else its endpoint drains, or another process knows why
			c.stats.retries.add(b.reason, 1)
		}
	}
	x.endpoint = c.endpoints[i]
	if x.kind == wire.Request {
		x.endpoint.policy.Acquire()
		x.holds |= holdsEndpoint
	}
	x.phase = phaseSend
}

// send hands the exchange and its frame to a connection of its endpoint, or to those that wait for one.
func (b *batch) send() {
	x := &b.x
	p := x.endpoint.pool(len(b.frame.bytes))
	out := b.frame
	if edits := x.target.edits; len(edits) > 0 {
		var err error
		if b.edited, err = x.down.codec.AppendEdited(b.edited[:0], &b.msg, edits, b.road().limits.MaxHeader); err != nil {
			b.hijack(wire.CodecException, reasonOf(err))
			return
		}
		out = frame{bytes: b.edited}
	}
	for range maxSends {
		u := p.ready()
		if u == nil {
			if !b.await(p) {
				continue // a connection has become ready meanwhile
			}
			return
		}
		if b.sendOn(u, out) {
			return
		}
	}
	b.fail(ReasonResetBeforeSend)
}

// maxSends is how many connections, each found closed at the last moment, a try takes in vain.
const maxSends = 4

// sendOn tries one connection with what is to go out. It reports whether the exchange is the connection's now, or
// somebody else's; when it reports false the exchange is still the batch's, and nothing of it was sent.
func (b *batch) sendOn(u *upstream, out frame) bool {
	x, until := &b.x, b.x.deadline
	if x.target.retryOn&retrySent != 0 {
		until = b.until()
	}
	id, frameTimeout, ok := b.enter(u, until)
	if !ok {
		return false
	}
	u.codec.PatchRequest(out.bytes, id, frameTimeout)
	var v conn.Verdict
	owned := out.owned && len(out.bytes) > ownAbove
	if owned {
		v = u.conn.AppendOwned(out.bytes)
	} else {
		v = u.conn.Append(out.bytes)
	}
	switch v {
	case conn.Appended, conn.First:
		if owned {
			b.frame = frame{} // which out is then
		}
		b.owe(u.conn, v)
		b.debts.sent(u.endpoint, x.kind)
		if x.kind == wire.Oneway {
			b.forwarded()
		}
		return true
	default: // conn.Refused, conn.Full
	}
	if x.kind == wire.Request {
		if !u.table.Take(id, x) {
			return true // the connection's end took it, and answers it
		}
		x.phase = phaseSend
	}
	return false
}

// enter gets the exchange an id of the connection, until a time, and says which timeout its frame is to carry. From then on a
// request is the table's: only who takes it out may go on with it. Not ok means that the table takes no more, and the exchange
// is still the batch's.
func (b *batch) enter(u *upstream, until int64) (id uint32, timeout int32, ok bool) {
	x := &b.x
	if x.kind != wire.Request {
		return u.table.Draw(), x.timeout, true
	}
	x.phase = phaseWaitNotify
	// A frame's timeout is what is left, and never 0, which would mean "unspecified".
	x.timeout = int32(max(1, (until-b.now)/int64(time.Millisecond)))
	if x.kept != nil {
		x.kept.sent = b.now // here, because behind the insert it may be somebody else's
	}
	id, earlier, ok := u.table.Insert(x, until)
	if !ok {
		x.phase = phaseSend
		return 0, 0, false
	}
	if earlier {
		b.f.sweep.poke(until)
	}
	return id, x.timeout, true
}

// forwarded ends a one-way request that was sent.
func (b *batch) forwarded() {
	if b.x.logged() {
		b.tell(wire.Success.String(), "", 0)
	}
	b.end()
}

// leaveEndpoint gives back the place in the endpoint's count.
func (b *batch) leaveEndpoint() {
	if x := &b.x; x.holds&holdsEndpoint != 0 {
		x.holds &^= holdsEndpoint
		b.debts.leave(x.endpoint)
	}
}

// hijack answers the exchange here, with a status, for a reason: a jump to phaseHijack.
func (b *batch) hijack(status wire.Status, reason string) {
	b.status, b.reason = status, reason
	b.x.phase = phaseHijack
}

// reply hands the reply's frame to the client, with the client's id.
func (b *batch) reply() {
	x := &b.x
	x.down.codec.PatchReply(b.frame.bytes, x.id)
	x.phase = phaseEnd // from here on it is answered, whatever happens
	d := x.down
	size, reason := len(b.frame.bytes), ""
	var v conn.Verdict
	if b.frame.owned && len(b.frame.bytes) > ownAbove {
		if v = d.appendOwned(b.frame.bytes); v == conn.Appended || v == conn.First {
			b.frame = frame{}
		}
	} else {
		v = d.append(b.frame.bytes)
	}
	switch v {
	case conn.Refused:
		reason = ReasonDownstreamGone
		d.listener.stats.dropped.add(reason, 1)
	case conn.Full:
		d.conn.Close(conn.ReasonQueueFull)
		reason = ReasonDownstreamGone
		d.listener.stats.dropped.add(reason, 1)
	default:
		b.owe(d.conn, v)
		b.debts.reply(x, b.msg.Status, b.now)
	}
	if x.logged() || reason != "" || b.msg.Status != wire.Success {
		b.tell(b.msg.Status.String(), reason, size)
	}
	b.end()
}

// answer makes the local reply of a hijacked exchange. A one-way request gets none.
func (b *batch) answer() {
	x := &b.x
	x.phase = phaseEnd // as in reply
	l := x.down.listener
	size := 0
	switch {
	case x.kind == wire.Oneway:
		l.stats.dropped.add(ReasonOneway, 1)
	case b.reason == ReasonDownstreamGone:
		l.stats.dropped.add(ReasonDownstreamGone, 1)
	default:
		b.out = x.down.codec.AppendReply(b.out[:0], x.tag, x.id, b.status)
		size = len(b.out)
		if !b.toClient(x.down, b.out) {
			if b.reason != ReasonStopping {
				b.reason = ReasonDownstreamGone
			}
			l.stats.dropped.add(ReasonDownstreamGone, 1)
			break
		}
		l.stats.local.add(b.reason, 1)
		l.stats.replies.add(b.status, 1)
		if t := x.target; t != nil {
			t.stats.local.add(b.reason, 1)
			t.stats.replies.add(b.status, 1)
			t.stats.total.Observe(time.Duration(b.now - x.start))
		}
	}
	switch b.reason {
	case ReasonDownstreamGone, ReasonStopping, ReasonDirectReply:
	default:
		b.warnLocal()
	}
	b.tell(b.status.String(), b.reason, size)
	b.end()
}

// warnLocal tells the operator, now and then, that exchanges end here, and what to look at.
func (b *batch) warnLocal() {
	x := &b.x
	l := x.down.listener
	about := l.name
	if x.target != nil {
		about = x.target.name
	}
	suppressed, ok := b.f.warn(about, b.reason)
	if !ok {
		return
	}
	fields := make([]zap.Field, 0, 12)
	known := func(key, value string) {
		if value != "" {
			fields = append(fields, zap.String(key, value))
		}
	}
	known("reason", b.reason)
	known("status", b.status.String())
	check, ours := advice[b.reason]
	if !ours {
		check = "a filter of the listener or of the rule answers so"
	}
	known("check", check)
	known("service", b.service())
	known("listener", l.name)
	known("client", x.down.name())
	known("routes", b.road().name)
	if t := x.target; t != nil {
		known("route", t.name)
		known("cluster", t.clusterName())
		if x.endpoint != nil {
			known("endpoint", x.endpoint.address)
		}
		fields = append(fields, zap.Duration("deadline", time.Duration(x.deadline-x.start)))
	}
	fields = append(fields, zap.Duration("age", time.Duration(b.now-x.start)),
		zap.Bool("oneway", x.kind == wire.Oneway), zap.Uint64("suppressed", suppressed))
	b.f.log.Warn("request answered here", fields...)
}

// service is the request's service, "" while it is not known.
func (b *batch) service() string {
	if l := b.x.label; l != nil {
		return l.service
	}
	return b.requestHeader(route.ServiceKey)
}

// end gives back what the exchange holds. Each exchange gets here once.
func (b *batch) end() {
	x := &b.x
	b.leaveEndpoint()
	holds := x.holds
	x.holds = 0 // first: nothing is given back twice, whatever happens
	if holds&holdsRequest != 0 {
		b.debts.release(x.target.cluster)
	}
	if holds&holdsRule != 0 {
		x.target.limit.Release(1)
	}
	if holds&holdsStream != 0 {
		b.debts.closeStream(x.down)
	}
	if holds&holdsRetry != 0 {
		x.target.cluster.limits.Retries.Release()
	}
	x.phase = phaseEnd
	if x.kept != nil {
		b.letGo()
	}
}
