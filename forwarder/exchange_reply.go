package forwarder

import (
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// hijack answers the exchange here, with a status, for a reason: a jump to phaseHijack.
func (b *batch) hijack(status wire.Status, reason string) {
	b.status, b.reason = status, reason
	b.x.phase = phaseHijack
}

// reply hands the reply's frame to the client, with the client's id.
func (b *batch) reply() {
	x := &b.x
	b.road().codec.PatchReply(b.frame.bytes, x.id)
	x.phase = phaseEnd // from here on it is answered, whatever happens
	d := x.down
	var v conn.Verdict
	if b.frame.owned {
		if v = d.conn.AppendOwned(b.frame.bytes); v == conn.Appended || v == conn.First {
			b.frame = frame{}
		}
	} else {
		v = d.conn.Append(b.frame.bytes)
	}
	switch v {
	case conn.Refused:
		d.listener.stats.dropped.add(ReasonDownstreamGone, 1)
	case conn.Full:
		d.conn.Close(conn.ReasonQueueFull)
		d.listener.stats.dropped.add(ReasonDownstreamGone, 1)
	default:
		b.owe(d.conn, v)
		b.debts.reply(x, b.msg.Status, b.now)
	}
	b.end()
}

// answer makes the local reply of a hijacked exchange. A one-way request gets none.
func (b *batch) answer() {
	x := &b.x
	x.phase = phaseEnd // as in reply
	l := x.down.listener
	switch {
	case x.kind == wire.Oneway:
		l.stats.dropped.add(ReasonOneway, 1)
	case b.reason == ReasonDownstreamGone:
		l.stats.dropped.add(ReasonDownstreamGone, 1)
	default:
		b.out = b.road().codec.AppendReply(b.out[:0], x.tag, x.id, b.status)
		if !b.toClient(x.down, b.out) {
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
	if b.reason != ReasonDownstreamGone {
		b.warnLocal()
	}
	b.end()
}

// warnLocal tells the operator, now and then, that exchanges end here, and what to look at.
func (b *batch) warnLocal() {
	x := &b.x
	l := x.down.listener
	about, clusterName, endpoint := l.name, "", ""
	if t := x.target; t != nil {
		about, clusterName = t.name, t.cluster.policy.Name()
		if x.endpoint >= 0 {
			endpoint = t.cluster.endpoints[x.endpoint].policy.Address()
		}
	}
	suppressed, ok := b.f.warn(about, b.reason)
	if !ok {
		return
	}
	b.f.log.Warn("request answered here",
		zap.String("reason", b.reason), zap.Stringer("status", b.status), zap.String("check", advice[b.reason]),
		zap.String("service", b.service()), zap.String("listener", l.name), zap.Stringer("client", x.down.client),
		zap.String("route", about), zap.String("cluster", clusterName), zap.String("endpoint", endpoint),
		zap.Bool("oneway", x.kind == wire.Oneway), zap.Uint64("suppressed", suppressed))
}

// serviceKey is the header that names the service, in Bolt as in its relatives.
var serviceKey = [][]byte{[]byte("service")}

// service is the request's service: from its frame where that is still at hand, else what its rule asks for.
func (b *batch) service() string {
	m := &b.msg
	var value [1][]byte
	if len(b.frame.bytes) > 0 && (m.Kind == wire.Request || m.Kind == wire.Oneway) &&
		b.road().codec.Headers(m, serviceKey, value[:]) == nil && value[0] != nil {
		return string(value[0])
	}
	if b.x.target != nil {
		return b.x.target.service
	}
	return ""
}

// end gives back what the exchange holds. Each exchange gets here once.
func (b *batch) end() {
	x := &b.x
	b.leaveEndpoint()
	if x.holds&holdsRequest != 0 {
		b.debts.release(x.target.cluster)
	}
	if x.holds&holdsStream != 0 {
		b.debts.closeStream(x.down)
	}
	x.holds = 0
	x.phase = phaseEnd
}
