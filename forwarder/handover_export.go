package forwarder

import (
	"math"
	"slices"
	"syscall"

	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// Export returns the state of a road at rest: Pause has returned without an error. It shows the road's own memory, so it is
// valid until Resume or Abandon, and changes nothing.
func (f *Forwarder) Export() *Handover {
	e := &exporter{h: &Handover{Paused: f.pausedAt, LastID: f.connections.Load()}, downs: make(map[*downstream]uint32), ups: make(map[*upstream]uint32)}
	snap := f.snap.Load()
	snap.upstreams(func(u *upstream) { e.ups[u] = uint32(len(e.ups) + 1) })
	for _, l := range snap.listeners {
		e.listener(l, snap.roads[l.slot])
	}
	for _, c := range snap.clusters {
		for _, up := range c.endpoints {
			e.endpoint(up)
		}
	}
	f.later.mu.Lock()
	for i := range f.later.heap {
		x := &f.later.heap[i].x
		s := e.exchange(x)
		s.Frame = x.kept.frame
		e.h.Exchanges = append(e.h.Exchanges, s)
	}
	f.later.mu.Unlock()
	for task := range f.workers.Waiting(0, math.MaxInt) {
		e.carried(&task.given)
	}
	f.held.mu.Lock()
	defer f.held.mu.Unlock()
	for i := range f.held.list {
		e.carried(&f.held.list[i].given)
	}
	return e.h
}

// exporter gathers a Handover.
type exporter struct {
	h     *Handover
	downs map[*downstream]uint32
	ups   map[*upstream]uint32
}

func (e *exporter) listener(l *listener, r *road) {
	state := ListenerState{Name: l.name, Protocol: r.protocol(), Limits: r.limits}
	l.mu.Lock()
	state.RX, state.TX = l.closedRX, l.closedTX
	l.mu.Unlock()
	open := l.list(nil, func(*downstream) bool { return true })
	e.h.Downstreams = slices.Grow(e.h.Downstreams, len(open))
	for _, d := range open {
		if d.immovable() {
			e.h.Left = append(e.h.Left, Left{l.name, d.name(), "connection filters that see its bytes"})
			rx, tx := d.conn.Bytes()
			state.RX += rx
			state.TX += tx
			continue
		}
		detached, ok := d.conn.Detach()
		if !ok {
			continue // closed: bury has seen to it, or it is nobody's any more
		}
		e.downs[d] = uint32(len(e.downs) + 1)
		e.h.Downstreams = append(e.h.Downstreams, e.downstream(d, detached))
	}
	e.h.Listeners = append(e.h.Listeners, state)
}

func (e *exporter) downstream(d *downstream, c conn.Detached) DownstreamState {
	s := DownstreamState{
		Ref: e.downs[d], Listener: d.listener.name, Detecting: d.detecting.Load(), Frames: d.frames, Closing: d.closing, Opened: d.opened, ID: d.id, Conn: c,
		Asked: d.filters == nil || d.filters.let(),
	}
	if d.client.IsValid() {
		s.Client = d.client.String()
	}
	if d.codec != nil {
		s.Codec = d.codec.Name()
	}
	if up := d.begun; up != nil {
		s.Upload = e.upload(up)
	}
	return s
}

func (e *exporter) upload(up *upload) *UploadState {
	s := &UploadState{Left: up.left, ID: up.id, Rest: up.rest}
	if up.came.Frame != nil { // its head is not sent yet
		s.Head = up.came.Frame
		if up.edited() {
			s.Edited = up.msg.Frame
		}
	}
	if up.u != nil {
		s.Upstream = e.ups[up.u]
	}
	if s.Exchange = e.exchange(&up.x); s.Head != nil {
		s.Exchange = e.untried(&up.x)
	}
	return s
}

func (e *exporter) endpoint(up *upEndpoint) {
	h := up.policy.Health()
	state := EndpointState{
		Cluster: up.cluster().policy.Name(), Address: up.address,
		Failures: h.Failures, Since: h.Since, Until: h.Until, Trusted: h.Trusted, WarmSince: h.WarmSince, WarmUntil: h.WarmUntil, Unproved: int(up.unproved.Load()),
	}
	if k := up.check.Load(); k != nil {
		state.Unhealthy, state.CheckedAt, state.CheckResult, state.CheckRow = h.Unhealthy, k.at, k.reason, k.inARow
	}
	up.exportOutlier(&state)
	up.mu.Lock()
	state.RX, state.TX = up.closedRX, up.closedTX
	up.mu.Unlock()
	e.h.Endpoints = append(e.h.Endpoints, state)
	for kind, p := range up.pools() {
		for _, u := range *p.conns.Load() {
			if c, ok := u.conn.Detach(); ok {
				e.h.Upstreams = append(e.h.Upstreams, e.upstream(u, PoolKind(kind), c))
			}
		}
		for i := range p.waiting { // nobody else has the pool while the road rests
			w := &p.waiting[i]
			x := e.untried(&w.x)
			x.Frame = w.frame
			e.h.Exchanges = append(e.h.Exchanges, x)
		}
	}
}

func (e *exporter) upstream(u *upstream, kind PoolKind, c conn.Detached) UpstreamState {
	s := UpstreamState{
		Ref: e.ups[u], Cluster: u.endpoint.cluster().policy.Name(), Endpoint: u.endpoint.address, Codec: u.codec.Name(), Pool: kind,
		LastID: u.table.Last(), Proved: u.proved, Unasked: u.unasked.Load(), RetireAt: u.retireAt, LastBeat: u.lastBeat, Missed: u.missed,
		Leased: u.lease.Load() == leased, LeasedAt: u.leasedAt.Load(), LeaseBy: u.leaseBy.Load(), Opened: u.opened, ID: u.id, Conn: c,
		Slots: make([]SlotState, 0, u.table.Len()),
	}
	if why := u.drains.Load(); why != nil {
		s.Draining = *why
	}
	for entry := range u.table.All() {
		x := &entry.Value
		slot := SlotState{ID: entry.ID, Exchange: e.exchange(x)}
		if x.copied() {
			slot.Copy = x.kept.frame
		}
		if entry.Deadline < x.deadline {
			slot.Until = entry.Deadline
		}
		s.Slots = append(s.Slots, slot)
	}
	return s
}

// carried takes the exchange of a worker that waits for one, or is held by one between two phases.
func (e *exporter) carried(o *outcome) {
	x := e.exchange(&o.x)
	x.Frame = o.frame.bytes
	if o.x.phase == phaseUpFilter {
		x.Held, x.UpstreamID = true, o.upstreamID
		x.Endpoint = o.x.endpoint.address
	}
	e.h.Exchanges = append(e.h.Exchanges, x)
}

// untried is exchange for one whose request waits to be sent: it chooses again, and the try that is under way is none that
// failed.
func (e *exporter) untried(x *exchange) ExchangeState {
	s := e.exchange(x)
	if x.phase == phaseWaitNotify || x.phase == phaseSend {
		s.Attempts--
	}
	return s
}

func (e *exporter) exchange(x *exchange) ExchangeState {
	if x.down == nil {
		return ExchangeState{}
	}
	s := ExchangeState{
		Downstream: e.downs[x.down], Listener: x.down.listener.name, Tag: x.tag, ID: x.id, Timeout: x.timeout, Oneway: x.kind == wire.Oneway,
		Start: x.start, Deadline: x.deadline, Attempts: x.attempts, Retry: x.holds&(holdsRetry|retried) != 0,
	}
	if t := x.target; t != nil {
		s.Route, s.Cluster = t.name, t.clusterName()
	}
	if l := x.label; l != nil {
		s.Service, s.Method = l.service, l.method
	}
	if x.logged() {
		r := &x.kept.record
		s.Record = &RecordState{r.method, r.service, r.trace, r.rpc, r.request, r.sent}
	}
	return s
}

// Sockets are the listening sockets by the name of their listener.
func (f *Forwarder) Sockets() map[string]syscall.Conn {
	out := make(map[string]syscall.Conn)
	for _, l := range f.snap.Load().listeners {
		if s, ok := l.socket.(syscall.Conn); ok && !l.stopped.Load() {
			out[l.name] = s
		}
	}
	return out
}
