package forwarder

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/cluster"
	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/route"
	"github.com/relevo-proxy/relevo/forwarder/stream"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// Adopt takes over the state of another process's road, before Start: it rebuilds everything and does all of it that can
// fail, but reads and writes nothing. What the configuration lacks becomes a leftover: its replies are delivered, it gets
// no new requests, and closes. The error is all that cannot be had; then the Forwarder is of no use, and Close ends it without
// a word to any peer.
func (f *Forwarder) Adopt(h *Handover) error {
	a := &adopter{
		f: f, h: h, snap: f.snap.Load().clone(),
		downs: make(map[uint32]*downstream), ups: make(map[uint32]*upstream), gone: make(map[string]*downstream),
		targets: make(map[targetName]*target),
	}
	// In this order: each names what those before it have made.
	f.snap.Store(a.snap)
	for i := range h.Listeners {
		a.listener(&h.Listeners[i])
	}
	for i := range h.Endpoints {
		a.endpoint(&h.Endpoints[i])
	}
	for i := range h.Downstreams {
		a.add(a.downstream(&h.Downstreams[i]))
	}
	for i := range h.Upstreams {
		a.add(a.upstream(&h.Upstreams[i]))
	}
	for i := range h.Downstreams {
		a.add(a.upload(&h.Downstreams[i]))
	}
	for i := range h.Exchanges {
		a.add(a.exchange(&h.Exchanges[i]))
	}
	if len(a.errs) > 0 {
		return fmt.Errorf("taking over: %w", errors.Join(a.errs...))
	}
	f.export()
	f.adopted = a
	return nil
}

// adopter rebuilds a road's state.
type adopter struct {
	f       *Forwarder
	h       *Handover
	snap    *snapshot
	downs   map[uint32]*downstream
	ups     map[uint32]*upstream
	gone    map[string]*downstream // by listener: what stands for its clients that have left
	targets map[targetName]*target
	waiting []adopted
	errs    []error
}

// adopted is an exchange that goes on when the road does.
type adopted struct {
	x     exchange
	frame []byte
	held  bool
}

type targetName struct{ listener, route, cluster string }

// maxAdoptErrors is how many errors are told: one defect can concern every connection.
const maxAdoptErrors = 8

func (a *adopter) add(err error) {
	if err != nil && len(a.errs) < maxAdoptErrors {
		a.errs = append(a.errs, err)
	}
}

// clone is a snapshot to which leftovers can be added while nobody reads it.
func (s *snapshot) clone() *snapshot {
	return &snapshot{
		listeners: append([]*listener(nil), s.listeners...), roads: append([]*road(nil), s.roads...),
		clusters: append([]*upCluster(nil), s.clusters...), leftover: s.leftover, leaveTimeout: s.leaveTimeout,
	}
}

// listener notes what a listener has counted. One that is not configured any more gets a place for its connections.
func (a *adopter) listener(s *ListenerState) {
	l := a.listenerNamed(s.Name)
	if l == nil {
		spec := a.snap.leftover.listener
		spec.Name = s.Name
		if s.Limits.MaxFrame > 0 {
			spec.Limits = s.Limits
		}
		l = &listener{slot: len(a.snap.roads)}
		l.init(a.f, &spec, nil, false)
		l.retire()
		a.snap.listeners = append(a.snap.listeners, l)
		a.snap.roads = append(a.snap.roads, leftoverRoad(&spec))
	}
	l.mu.Lock()
	l.closedRX += s.RX
	l.closedTX += s.TX
	l.mu.Unlock()
}

func (a *adopter) listenerNamed(name string) *listener {
	for _, l := range a.snap.listeners {
		if l.name == name {
			return l
		}
	}
	return nil
}

// leftoverRoad is a road on which every request is answered: its listener leaves.
func leftoverRoad(spec *ListenerSpec) *road {
	t, err := route.New(nil)
	if err != nil {
		panic(err) // a table without rules has nothing that could be wrong
	}
	r := &road{codecs: spec.Codecs, limits: spec.Limits, table: t, chain: filter.NewChain(nil, nil), maxStreams: never, maxTimeout: never}
	r.service, r.method = r.key(route.ServiceKey), r.key(route.MethodKey)
	return r
}

// endpoint notes what is known of an endpoint that is configured still. Others are made when something of them is adopted.
func (a *adopter) endpoint(s *EndpointState) {
	c := a.clusterNamed(s.Cluster)
	if c == nil {
		return
	}
	i := c.endpointNamed(s.Address)
	if i < 0 {
		return
	}
	e := c.endpoints[i]
	e.policy.Restore(cluster.Health{Failures: s.Failures, Until: s.Until, Trusted: s.Trusted, Drained: s.Drained})
	e.unproved.Store(int32(s.Unproved))
	e.mu.Lock()
	e.closedRX += s.RX
	e.closedTX += s.TX
	e.mu.Unlock()
}

func (a *adopter) clusterNamed(name string) *upCluster {
	for _, c := range a.snap.clusters {
		if c.policy.Name() == name {
			return c
		}
	}
	return nil
}

func (c *upCluster) endpointNamed(address string) int {
	for i, e := range c.endpoints {
		if e.address == address {
			return i
		}
	}
	return -1
}

// cluster is a cluster by name, a leftover where the configuration has none.
func (a *adopter) cluster(name, codec string) (*upCluster, error) {
	if c := a.clusterNamed(name); c != nil {
		return c, nil
	}
	spec := a.snap.leftover.cluster
	spec.Name = name
	if spec.Codec = a.codecNamed(codec); spec.Codec == nil {
		return nil, fmt.Errorf("cluster %s: there is no protocol %q", name, codec)
	}
	c := newUpCluster(a.f, &spec, nil)
	c.enter()
	a.snap.clusters = append(a.snap.clusters, c)
	return c, nil
}

// place is an endpoint by name. Where the configuration has none it is a leftover: behind those that the balancer knows.
func (a *adopter) place(name, address, codec string) (c *upCluster, i int, err error) {
	if c, err = a.cluster(name, codec); err != nil {
		return nil, 0, err
	}
	if i = c.endpointNamed(address); i < 0 {
		i = c.addLeftover(address)
	}
	return c, i, nil
}

func (a *adopter) codecNamed(name string) wire.Codec {
	for _, c := range a.snap.leftover.listener.Codecs {
		if c.Name() == name {
			return c
		}
	}
	return nil
}

// downstream rebuilds a client connection.
func (a *adopter) downstream(s *DownstreamState) error {
	l := a.listenerNamed(s.Listener)
	if l == nil {
		return fmt.Errorf("a connection of listener %s, of which nothing is known", s.Listener)
	}
	c, err := conn.Adopt(s.Conn, a.f.buffers, l.config.Load().conn)
	if err != nil {
		return fmt.Errorf("a connection of listener %s: %w", s.Listener, err)
	}
	d := newDownstream(l, l.config.Load(), c, nil)
	c.Touch(s.Conn.LastRead)
	if s.Client != "" {
		if d.client, err = netip.ParseAddrPort(s.Client); err != nil {
			return fmt.Errorf("a connection of listener %s: its client: %w", s.Listener, err)
		}
	}
	if len(d.config.filters) > 0 {
		d.filters = newConnFilters(d) // again: only now the client is known
		d.filters.made = s.Asked      // then they have nothing more to say
	}
	d.frames, d.closing = s.Frames, s.Closing
	d.detecting.Store(s.Detecting)
	if s.Codec != "" {
		for _, codec := range append(a.snap.roads[l.slot].codecs, a.snap.leftover.listener.Codecs...) {
			if codec.Name() == s.Codec {
				d.codec = codec
				break
			}
		}
		if d.codec == nil {
			return fmt.Errorf("a connection of listener %s: there is no protocol %q", s.Listener, s.Codec)
		}
	} else if r := a.snap.roads[l.slot]; r.detect == 0 {
		d.codec = r.codecs[0]
	}
	a.downs[s.Ref] = d
	l.mu.Lock()
	l.open[d] = struct{}{}
	l.connected.Add(1)
	l.mu.Unlock()
	return nil
}

// upstream rebuilds a server connection and its table.
func (a *adopter) upstream(s *UpstreamState) error {
	c, i, err := a.place(s.Cluster, s.Endpoint, s.Codec)
	if err != nil {
		return err
	}
	if c.codec.Name() != s.Codec {
		return fmt.Errorf("a connection to endpoint %s of cluster %s: it speaks %s, and the cluster %s", s.Endpoint, s.Cluster, s.Codec, c.codec.Name())
	}
	e := c.endpoints[i]
	pools := e.pools()
	if int(s.Pool) >= len(pools) {
		return fmt.Errorf("a connection to endpoint %s of cluster %s: there is no pool %d", s.Endpoint, s.Cluster, s.Pool)
	}
	u := makeUpstream(pools[s.Pool])
	if u.conn, err = conn.Adopt(s.Conn, a.f.buffers, u.connConfig()); err != nil {
		return fmt.Errorf("a connection to endpoint %s of cluster %s: %w", s.Endpoint, s.Cluster, err)
	}
	entries := make([]stream.Entry[exchange], 0, len(s.Slots))
	for k := range s.Slots {
		slot := &s.Slots[k]
		x, err := a.restore(&slot.Exchange)
		if err == nil {
			err = a.sentTo(&x, c, i)
		}
		if err != nil {
			return err
		}
		entries = append(entries, stream.Entry[exchange]{ID: slot.ID, Deadline: slot.Exchange.Deadline, Value: x})
	}
	if err = u.table.Restore(s.LastID, entries); err != nil {
		return err
	}
	u.proved, u.lastBeat, u.missed = s.Proved, s.LastBeat, s.Missed
	u.unasked.Store(s.Unasked)
	u.leasedAt.Store(s.LeasedAt)
	if s.Leased {
		u.lease.Store(leased)
		u.leaseBy.Store(s.LeaseBy)
	}
	if c.spec.MaxAge > 0 {
		u.retireAt = min(s.RetireAt, a.f.now()+int64(c.spec.MaxAge))
	}
	draining := s.Draining
	if i >= len(c.policy.Endpoints()) && draining == "" {
		draining = ReasonEndpointDrained // it is not configured any more
	}
	u.become(stateReady)
	if draining != "" {
		u.drains.Store(&draining)
		u.become(stateDraining)
	}
	c.policy.Limits().Connections.Adopt(1)
	p := u.pool
	conns := append(*p.conns.Load(), u)
	p.conns.Store(&conns)
	a.ups[s.Ref] = u
	return nil
}

// sentTo makes x, which was sent to an endpoint, hold what it must give back.
func (a *adopter) sentTo(x *exchange, c *upCluster, endpoint int) error {
	if x.target == nil || x.target.cluster != c {
		return fmt.Errorf("a request of route %q waits for its reply from cluster %s", x.target.nameOr("-"), c.policy.Name())
	}
	x.endpoint, x.phase = c.endpoints[endpoint], phaseWaitNotify
	x.holds = holdsStream | holdsRequest | holdsEndpoint
	x.down.inFlight.Add(1)
	c.policy.Limits().Requests.Adopt(1)
	c.endpoints[endpoint].policy.Acquire()
	return nil
}

// nameOr is the target's name, or what stands for none.
func (t *target) nameOr(none string) string {
	if t == nil {
		return none
	}
	return t.name
}

// restore rebuilds an exchange, at its beginning.
func (a *adopter) restore(s *ExchangeState) (exchange, error) {
	x := exchange{
		start: s.Start, deadline: s.Deadline, tag: s.Tag, id: s.ID, timeout: s.Timeout,
		attempts: s.Attempts, kind: wire.Request, phase: phaseInit,
	}
	if s.Oneway {
		x.kind = wire.Oneway
	}
	if x.down = a.downs[s.Downstream]; x.down == nil {
		var err error
		if x.down, err = a.goneFrom(s.Listener); err != nil {
			return x, err
		}
	}
	if s.Service != "" || s.Method != "" {
		x.label = a.f.labels.get([]byte(s.Service), []byte(s.Method))
	}
	if r := s.Record; r != nil {
		x.record = a.f.records.Get().(*record)
		*x.record = record{r.Method, r.Service, r.Trace, r.RPC, r.Request, r.Sent}
	}
	if s.Route != "" {
		var err error
		if x.target, err = a.target(x.down.listener, s); err != nil {
			return x, err
		}
		x.holds = routed
	}
	return x, nil
}

// goneFrom is what stands for the clients of a listener that have left.
func (a *adopter) goneFrom(name string) (*downstream, error) {
	d := a.gone[name]
	if d == nil {
		l := a.listenerNamed(name)
		if l == nil {
			return nil, fmt.Errorf("a request of listener %s, of which nothing is known", name)
		}
		d = &downstream{listener: l, conn: conn.Gone(conn.ReasonPeerClosed), codec: a.snap.roads[l.slot].codecs[0]}
		a.gone[name] = d
	}
	return d, nil
}

// target is a rule's target by name, a leftover where the configuration has none.
func (a *adopter) target(l *listener, s *ExchangeState) (*target, error) {
	name := targetName{l.name, s.Route, s.Cluster}
	if t := a.targets[name]; t != nil {
		return t, nil
	}
	t := a.snap.roads[l.slot].targetNamed(s.Route, s.Cluster)
	if t == nil {
		table, rule, _ := strings.Cut(s.Route, "/")
		t = &target{name: s.Route, chain: filter.NewChain(nil, nil), timeout: never, attempts: 1, stats: newTargetStats(a.f.reg, table, rule, s.Cluster)}
		if s.Cluster != "" {
			codec := a.snap.leftover.listener.Codecs[0].Name()
			for i := range a.h.Upstreams {
				if a.h.Upstreams[i].Cluster == s.Cluster {
					codec = a.h.Upstreams[i].Codec
				}
			}
			var err error
			if t.cluster, err = a.cluster(s.Cluster, codec); err != nil {
				return nil, err
			}
		}
	}
	a.targets[name] = t
	return t, nil
}

func (r *road) targetNamed(name, to string) *target {
	for i := range r.rules {
		for _, t := range r.rules[i].targets {
			if t.name == name && t.clusterName() == to {
				return t
			}
		}
	}
	return nil
}

// upload rebuilds the request that a client connection passes on in pieces.
func (a *adopter) upload(s *DownstreamState) error {
	if s.Upload == nil || a.downs[s.Ref] == nil {
		return nil
	}
	d := a.downs[s.Ref]
	up := &upload{d: d, left: s.Upload.Left, rest: s.Upload.Rest, id: s.Upload.ID}
	d.begun = up
	if s.Upload.Upstream == 0 && len(s.Upload.Head) == 0 {
		up.x.phase = phaseEnd // what is left of it is nobody's
		return nil
	}
	x, err := a.restore(&s.Upload.Exchange)
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
		up.x.target = nil
		return nil
	}
	if up.u = a.ups[s.Upload.Upstream]; up.u == nil {
		return fmt.Errorf("a request of listener %s goes out in pieces on connection %d, which is not there", s.Listener, s.Upload.Upstream)
	}
	up.x.phase = phaseWaitNotify
	up.x.endpoint = up.u.endpoint
	return nil
}

// exchange rebuilds one that no table had: a request begins again, a reply goes on to its filters.
func (a *adopter) exchange(s *ExchangeState) error {
	x, err := a.restore(s)
	if err != nil {
		return err
	}
	if s.Held {
		c, i, err := a.place(s.Cluster, s.Endpoint, x.down.codec.Name())
		if err == nil {
			err = a.sentTo(&x, c, i)
		}
		if err != nil {
			return err
		}
		x.phase = phaseUpFilter
		x.holds |= again
	} else {
		x.target = nil
		x.holds |= again
	}
	frame := append(a.f.buffers.Get(len(s.Frame))[:0], s.Frame...)
	a.waiting = append(a.waiting, adopted{x, frame, s.Held})
	return nil
}

// goOn starts what Adopt has rebuilt.
func (f *Forwarder) goOn() {
	a := f.adopted
	f.adopted = nil
	if a == nil {
		return
	}
	// Both lists first: who goes on may connect others, which have their read loops from elsewhere.
	var ups []*upstream
	f.snap.Load().upstreams(func(u *upstream) { ups = append(ups, u) })
	downs := f.snap.Load().downstreams()
	for _, u := range ups {
		u.conn.Flush()
		u.settle()
		a.opens()
		f.reading.Go(u.run) // ends when the connection is closed, or with the shift
	}
	for _, d := range downs {
		d.conn.Flush()
		a.opens()
		f.reading.Go(d.run) // ends when the connection is closed, or with the shift
	}
	b := f.batch()
	for i := range a.waiting {
		a.begin(b, &a.waiting[i])
		if b.frames++; b.frames%maxBatch == 0 {
			b.done()
			b = f.batch()
		}
	}
	b.done()
}

// opens notes that the gate of a connection opens now.
func (a *adopter) opens() {
	if a.h.Paused > 0 {
		a.f.pauses = append(a.f.pauses, time.Duration(a.f.now()-a.h.Paused))
	}
}

// begin goes on with an exchange.
func (a *adopter) begin(b *batch, w *adopted) {
	defer b.rescue()
	b.x, b.frame, b.upstreamID = w.x, frame{bytes: w.frame, owned: true}, 0
	if n, err := w.x.down.codec.Decode(&b.msg, w.frame, wire.Limits{}); err != nil || n != len(w.frame) {
		b.msg = wire.Message{Kind: w.x.kind, Tag: w.x.tag, ID: w.x.id} // it was decoded when it came, so this is a defect
		b.hijack(wire.UnknownStatus, ReasonPanic)
	}
	b.run()
	b.putBack()
}
