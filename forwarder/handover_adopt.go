package forwarder

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
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
	built := f.snap.Load()
	shown := built.endpoints() // to show each once more would be most of a pause
	a := &adopter{
		f: f, h: h, snap: built.clone(),
		downs: make(map[uint32]*downstream), ups: make(map[uint32]*upstream), gone: make(map[goneName]*downstream),
		targets: make(map[targetName]*target), places: make(map[*upCluster]map[string]int), known: make(map[*upEndpoint]bool), leased: make(map[*upstream]bool),
	}
	f.connections.Store(max(f.connections.Load(), h.LastID))
	// In this order: each names what those before it have made.
	f.snap.Store(a.snap)
	for i := range h.Listeners {
		a.countListener(&h.Listeners[i])
	}
	for i := range h.Endpoints {
		a.endpoint(&h.Endpoints[i])
	}
	a.balance()
	for i := range h.Downstreams {
		a.add(a.downstream(&h.Downstreams[i]))
	}
	for i := range h.Upstreams {
		a.add(a.upstream(&h.Upstreams[i]))
	}
	for i := range h.Downstreams {
		a.add(a.upload(&h.Downstreams[i]))
	}
	a.endUploads()
	for i := range h.Exchanges {
		a.add(a.exchange(&h.Exchanges[i]))
	}
	if len(a.errs) > 0 {
		return fmt.Errorf("taking over: %w", errors.Join(a.errs...))
	}
	if a.namesakes(built) {
		shown = nil
	}
	f.export(shown)
	f.adopted = a
	return nil
}

// namesakes says that a leftover has the name of a cluster that was built: of the two the latter is shown.
func (a *adopter) namesakes(built *snapshot) bool {
	return slices.ContainsFunc(a.snap.clusters[len(built.clusters):], func(c *upCluster) bool { return built.clusterNamed(c.spec.Name) != nil })
}

// adopter rebuilds a road's state.
type adopter struct {
	f       *Forwarder
	h       *Handover
	snap    *snapshot
	downs   map[uint32]*downstream
	ups     map[uint32]*upstream
	gone    map[goneName]*downstream // what stands for clients that have left
	targets map[targetName]*target
	places  map[*upCluster]map[string]int // endpoints by address, of the clusters that were asked for
	known   map[*upEndpoint]bool          // that were there before
	leased  map[*upstream]bool            // by an upload that goes on
	waiting []adopted
	errs    []error
}

// adopted is an exchange that goes on when the road does.
type adopted struct {
	x     exchange
	frame []byte
	id    uint32 // under which it was sent; 0: it was not
}

type targetName struct {
	listener, route string
	cluster         *upCluster
}

type goneName struct{ listener, codec string }

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
		clusters: append([]*upCluster(nil), s.clusters...), limits: s.limits, leftover: s.leftover, leaveTimeout: s.leaveTimeout,
	}
}

// countListener notes what a listener has counted that is configured still. Others are made when something of them is adopted.
func (a *adopter) countListener(s *ListenerState) {
	if l := a.listenerNamed(s.Name); l != nil {
		l.count(s)
	}
}

// count adds what a listener has counted in another process.
func (l *listener) count(s *ListenerState) {
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

// listener is a listener by name, a leftover where the configuration has none. Of one that had left, nothing more may be known:
// then what is left of it is requests of clients that have left, too.
func (a *adopter) listener(name string) *listener {
	if l := a.listenerNamed(name); l != nil {
		return l
	}
	s, spec := new(ListenerState), a.snap.leftover.listener
	if i := slices.IndexFunc(a.h.Listeners, func(s ListenerState) bool { return s.Name == name }); i >= 0 {
		s = &a.h.Listeners[i]
	}
	spec.Name = name
	if s.Limits.MaxFrame > 0 {
		spec.Limits = s.Limits
	}
	l := &listener{slot: len(a.snap.roads)}
	l.init(a.f, &spec, nil, false)
	l.retire()
	l.count(s)
	a.snap.listeners = append(a.snap.listeners, l)
	a.snap.roads = append(a.snap.roads, leftoverRoad(&spec, s.Protocol))
	return l
}

// leftoverRoad is a road on which every request is answered: its listener leaves.
func leftoverRoad(spec *ListenerSpec, protocol string) *road {
	t, err := route.New(nil)
	if err != nil {
		panic(err) // a table without rules has nothing that could be wrong
	}
	r := &road{codecs: spec.Codecs, limits: spec.Limits, table: t, chain: filter.NewChain(nil, nil), maxStreams: never}
	r.maxTimeout = never / 2 // a time is added to it
	if protocol == detectProtocol {
		r.detect = int64(spec.DetectTimeout)
	}
	r.service, r.method = r.key(route.ServiceKey), r.key(route.MethodKey)
	return r
}

// leftoverRoadOf is such a road in the place of another one.
func leftoverRoadOf(r *road) *road {
	return leftoverRoad(&ListenerSpec{Codecs: r.codecs, Limits: r.limits, DetectTimeout: time.Duration(r.detect)}, r.protocol())
}

// endpoint notes what is known of an endpoint that is configured still. Others are made when something of them is adopted.
func (a *adopter) endpoint(s *EndpointState) {
	c := a.clusterNamed(s.Cluster, "")
	if c == nil {
		return
	}
	i, ok := a.placesOf(c)[s.Address]
	if !ok {
		return
	}
	e := c.endpoints[i]
	e.mu.Lock()
	e.closedRX += s.RX
	e.closedTX += s.TX
	e.mu.Unlock()
	if a.known[e] {
		return // of two at one place the first counts, as in byPlace: the other has left
	}
	a.known[e] = true
	known := cluster.Health{Failures: s.Failures, Since: s.Since, Until: s.Until, Trusted: s.Trusted, WarmSince: s.WarmSince, WarmUntil: s.WarmUntil}
	if e.check.Load() != nil { // it is checked here, too
		k := &checked{at: s.CheckedAt, reason: s.CheckResult, inARow: s.CheckRow}
		known.Unhealthy, known.Contrary = s.Unhealthy, k.contrary(s.Unhealthy)
		e.check.Store(k)
	}
	e.policy.Restore(known)
	e.unproved.Store(int32(s.Unproved))
	e.adoptOutlier(s)
}

// clusterNamed is a cluster that speaks a protocol, "" for any.
func (a *adopter) clusterNamed(name, codec string) *upCluster {
	for _, c := range a.snap.clusters {
		if c.policy.Name() == name && (codec == "" || c.codec.Name() == codec) {
			return c
		}
	}
	return nil
}

// placesOf is where a cluster has its endpoints, by address: all of them are looked for while nothing is forwarded.
func (a *adopter) placesOf(c *upCluster) map[string]int {
	places := a.places[c]
	if places == nil {
		places = make(map[string]int, len(c.endpoints))
		for i, e := range slices.Backward(c.endpoints) { // of two the first one
			places[e.address] = i
		}
		a.places[c] = places
	}
	return places
}

// cluster is a cluster by name, a leftover where the configuration has none that speaks the protocol.
func (a *adopter) cluster(name, codec string) (*upCluster, error) {
	if c := a.clusterNamed(name, codec); c != nil {
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
	places := a.placesOf(c)
	i, ok := places[address]
	if !ok {
		i = c.addLeftover(address)
		places[address] = i
	}
	return c, i, nil
}

// codecNamed is a codec by name: one of the codecs, or else of all that there are.
func (a *adopter) codecNamed(name string, codecs ...wire.Codec) wire.Codec {
	for _, c := range slices.Concat(codecs, a.snap.leftover.listener.Codecs) {
		if c.Name() == name {
			return c
		}
	}
	return nil
}

// downstream rebuilds a client connection.
func (a *adopter) downstream(s *DownstreamState) error {
	l := a.listener(s.Listener)
	c, err := conn.Adopt(s.Conn, a.f.buffers, l.config.Load().conn)
	if err != nil {
		return fmt.Errorf("a connection of listener %s: %w", s.Listener, err)
	}
	d := newDownstream(l, l.config.Load(), c, nil)
	c.Touch(s.Conn.LastRead)
	d.opened, d.id = s.Opened, cmp.Or(s.ID, d.id)
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
	switch r := a.snap.roads[l.slot]; {
	case s.Codec != "":
		codec := a.codecNamed(s.Codec, r.codecs...)
		if codec == nil {
			return fmt.Errorf("a connection of listener %s: there is no protocol %q", s.Listener, s.Codec)
		}
		d.speak(codec)
	case r.detect == 0:
		d.speak(r.codecs[0])
	default:
		d.detecting.Store(s.Detecting)
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
		x, err := a.restore(&slot.Exchange, c.codec)
		if err == nil {
			err = a.sentTo(&x, &slot.Exchange, c, i)
		}
		if err != nil {
			return err
		}
		entries = append(entries, stream.Entry[exchange]{ID: slot.ID, Deadline: a.copied(&x, slot), Value: x})
	}
	if err = u.table.Restore(s.LastID, entries); err != nil {
		return err
	}
	u.proved, u.lastBeat, u.missed = s.Proved, s.LastBeat, s.Missed
	u.opened, u.id = s.Opened, cmp.Or(s.ID, u.id)
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
	if e.policy.Health().Drained && draining == "" {
		draining = ReasonEndpointDrained // the configuration says so, or knows it no more
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
