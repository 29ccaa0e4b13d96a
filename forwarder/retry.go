package forwarder

import (
	"math/rand/v2"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// A try fails before anything of the request was sent, or behind that. In the former case the request is at hand and has cost
// no server anything: it is tried again at once. In the latter a copy of it must have been kept, and a server may have done the
// work already: so the route must want that, the cluster's budget must grant it, and it waits for a while first.

// retrySent are the conditions of requests that were sent.
const retrySent = RetryReset | RetryBusy | RetryTimeout

// spare is the copy of a request that may be sent again after it was sent.
type spare struct {
	frame []byte // as the filters have left it, in a buffer of its own; nil: there is none
	why   string // the try before has failed, while the exchange waits for the next one
}

// condition is the condition under which a try that failed for a reason may be followed by another one; 0: none is.
func condition(reason string) RetryOn {
	switch reason {
	case ReasonConnectFailure, ReasonMaxConnections: // no connection could be made here either, but because of our own limit
		return RetryConnectFailure
	case ReasonResetBeforeSend:
		return RetryResetBeforeSend
	case ReasonUpstreamClosed, ReasonUpstreamBroken:
		return RetryReset
	case ReasonUpstreamBusy:
		return RetryBusy
	case ReasonTryTimeout:
		return RetryTimeout
	default:
		return 0
	}
}

// failedWith is what an exchange is answered whose last try has failed for a reason.
func failedWith(reason string) wire.Status {
	switch reason {
	case ReasonMaxConnections, ReasonUpstreamBusy:
		return wire.Busy
	case ReasonTryTimeout:
		return wire.Timeout
	default:
		return wire.ErrorComm
	}
}

// fail ends a try, for a reason.
func (b *batch) fail(reason string) {
	b.reason = reason
	b.x.phase = phaseRetry
}

// retry tries again, if the route wants that for this reason.
func (b *batch) retry() {
	x, t := &b.x, b.x.target
	b.blameTry()
	on := condition(b.reason)
	switch {
	case x.attempts >= t.attempts || t.retryOn&on == 0 || on&retrySent != 0 && !x.copied():
		b.giveUp()
	case x.down.conn.Closed() && x.kind == wire.Request:
		b.hijack(failedWith(b.reason), ReasonDownstreamGone)
	case on&retrySent != 0:
		b.backOff()
	default:
		b.leaveEndpoint()
		x.phase = phaseChooseEndpoint
	}
}

// giveUp gives the client what the last try has brought: the server's reply where that is one, which is the frame under way
// then.
func (b *batch) giveUp() {
	if b.reason == ReasonUpstreamBusy {
		b.x.phase = phaseUpFilter
		return
	}
	b.hijack(failedWith(b.reason), b.reason)
}

// backOff has the exchange, whose request was sent, wait to be tried again, if the budget grants that and its deadline is not
// earlier.
func (b *batch) backOff() {
	x, c := &b.x, b.x.target.cluster
	at := b.now + x.target.backOff.after(x.attempts)
	if at >= x.deadline {
		b.giveUp()
		return
	}
	if x.holds&holdsRetry == 0 {
		if !c.limits.Retries.TryAcquire() {
			c.stats.refused.add(ReasonRetryBudget, 1)
			b.giveUp()
			return
		}
		x.holds |= holdsRetry
	}
	b.leaveEndpoint()
	x.kept.why = b.reason
	if !b.f.later.add(x, at) {
		b.hijack(wire.ConnectionClosed, ReasonDraining)
		return
	}
	// From here on it is the container's.
	x.phase = phaseWaitNotify
	if b.reason == ReasonUpstreamBusy { // which no client gets to see
		x.endpoint.stats.replies.add(b.msg.Status, 1)
	}
	b.f.sweep.poke(at)
}

// backOff is how long a request waits between two tries, in nanoseconds.
type backOff struct{ base, max int64 }

// after is the wait behind so many tries: anything up to base, doubled with each further try, but no more than max. It is
// spread over all of that, so that those that failed together do not come again together.
func (o backOff) after(tries uint8) int64 {
	return rand.Int64N(min(o.base<<min(tries-1, maxAttempts), o.max) + 1)
}

// until readies a try for another one behind it, and says when it must have brought something. A try that none can follow has
// all the time that is left.
func (b *batch) until() int64 {
	x, t := &b.x, b.x.target
	if x.kind != wire.Request {
		return x.deadline
	}
	if x.attempts >= t.attempts {
		b.dropCopy()
		return x.deadline
	}
	if !b.copyFrame() || t.perTry == 0 {
		return x.deadline
	}
	return min(x.deadline, b.now+t.perTry)
}

// copyFrame keeps a copy of the request's frame, if there is none yet, and says whether there is one now.
func (b *batch) copyFrame() bool {
	if b.x.copied() {
		return true
	}
	n, c := conn.Capacity(len(b.frame.bytes)), b.x.target.cluster
	switch {
	case b.f.buffers.Used() > b.f.buffers.High():
		c.stats.refused.add(ReasonBufferPressure, 1)
		return false
	case !c.retryBytes.TryAcquireAll(n):
		c.stats.refused.add(ReasonMaxRetryBytes, 1)
		return false
	}
	b.kept().frame = append(b.f.buffers.Get(n)[:0], b.frame.bytes...)
	return true
}

// copied says whether there is a copy of the exchange's request.
func (x *exchange) copied() bool { return x.kept != nil && x.kept.frame != nil }

// takeCopy takes the copy, which there is, out of the exchange.
func (x *exchange) takeCopy() []byte {
	frame := x.kept.frame
	x.kept.frame = nil
	x.target.cluster.retryBytes.Release(cap(frame))
	return frame
}

// dropCopy gives the copy back, if there is one.
func (b *batch) dropCopy() {
	if b.x.copied() {
		b.f.buffers.Put(b.x.takeCopy())
	}
}

// letGo gives back what is kept of the exchange.
func (b *batch) letGo() {
	b.dropCopy()
	k := b.x.kept
	b.x.kept = nil
	*k = kept{}
	b.f.kept.Put(k)
}

// lost goes on with an exchange that was taken out of a stream table, where it had this id, because its try has failed.
func (b *batch) lost(x exchange, id uint32, status wire.Status, reason string) {
	if x.target.retryOn&retrySent&condition(reason) == 0 {
		b.conclude(x, id, status, reason)
		return
	}
	defer b.rescue()
	b.x, b.frame, b.msg, b.upstreamID = x, frame{}, wire.Message{}, id
	b.fail(reason)
	b.resume()
}

// overdue goes on with an exchange that was taken out of a stream table, where it had this id, because its time was over, or
// that of its try.
func (b *batch) overdue(x exchange, id uint32) {
	if b.now < x.deadline {
		b.lost(x, id, wire.Timeout, ReasonTryTimeout)
		return
	}
	b.conclude(x, id, wire.Timeout, ReasonTimeout)
}

// again tries an exchange again whose back-off is over.
func (b *batch) again(x exchange) {
	defer b.rescue()
	x.target.cluster.retryWaits.Release(1)
	b.carry(x, x.takeCopy())
	b.x.phase, b.reason = phaseChooseEndpoint, x.kept.why
	switch {
	case b.now >= x.deadline:
		b.hijack(wire.Timeout, ReasonTimeout)
	case x.down.conn.Closed():
		b.hijack(failedWith(b.reason), ReasonDownstreamGone)
	}
	b.resume()
	b.putBack()
}

// perTry is RuleSpec.PerTryTimeout where it can mean something.
func (s *RuleSpec) perTry() time.Duration {
	if s.RetryOn&RetryTimeout == 0 {
		return 0
	}
	return s.PerTryTimeout
}
