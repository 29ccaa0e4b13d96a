package forwarder

import (
	"slices"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/cluster"
	"github.com/relevo-proxy/relevo/forwarder/stats"
)

// Status is what the road looks like now: what is configured, in its order, then what is not any more and has not ended.
type Status struct {
	Listeners []ListenerStatus
	Clusters  []ClusterStatus
}

// ListenerStatus is one listener.
type ListenerStatus struct {
	Name, Address, Protocol, Routes string
	Accepting                       bool
	Leaving                         bool // it is not configured any more
	Connections                     int
	MaxConnections                  int
	MaxStreams                      int // requests in flight on one connection
	Gated                           int // connections that are not read from
	InFlight                        int
	RX, TX                          uint64 // bytes read and written
	Requests                        uint64 // frames that asked for something, so far
}

// ClusterStatus is one cluster.
type ClusterStatus struct {
	Name, Protocol, Balancer                     string
	Leaving                                      bool // it is not configured any more
	Ejected                                      int  // of its endpoints
	Panic                                        bool // so few endpoints are usable that unhealthy and ejected ones get requests too
	Requests, Connections, Pending, PendingBytes Use
	Retries, RetryBytes                          Use // of Requests; copies of requests
	LowRequests                                  Use // of Requests, for what has low priority
	Endpoints                                    []EndpointStatus
}

// EndpointStatus is one endpoint of a cluster.
type EndpointStatus struct {
	Address      string // unix:/PATH, or HOST:PORT
	Weight       int
	Share        float64      // of its weight that it gets: 1, or less in a slow start
	Usable       bool         // nothing is known against it
	Condition    string       // Usable, PassedOver, Unhealthy, Ejected or Drained: the first of what is known against it
	Failures     int          // in a row; 0 once it has delivered a frame
	Since, Until time.Time    // since when it is passed over, and when the next probe is due; zero while it is not, or not known
	Probing      bool         // a probe is under way, behind failures
	Draining     bool         // the configuration says so, or knows it no more; it drains while it has connections, and then it is drained
	Leaving      bool         // it is not configured any more
	LastFailure  *Failure     // that this process has seen; nil: none
	EjectedUntil time.Time    // zero while it is not ejected
	EjectedWhy   string       // cluster.ByFailures or BySuccessRate: the last of its ejections, while those are remembered
	Ejections    int          // those that are remembered
	Check        *CheckStatus // nil: it is not checked
	Connections  int          // those that take requests
	// By state: Connections is the sum of the first two.
	Ready, Leased, Dialling, Drains int
	Gated                           int // of all of them, those that are not read from
	InFlight, Waiting               int // requests; Waiting is for a connection
	RX, TX                          uint64
	Requests                        uint64 // sent so far
}

// Failure is why an endpoint failed.
type Failure struct {
	At             time.Time
	Reason, Detail string // Detail is the operating system's word, or empty
}

// Status reports the road as it is now.
func (f *Forwarder) Status() Status {
	snap := f.snap.Load()
	var s Status
	for _, l := range snap.listeners {
		s.Listeners = append(s.Listeners, l.status(snap.roads[l.slot]))
	}
	for _, c := range snap.clusters {
		cs := c.status()
		if cs.Leaving && len(cs.Endpoints) == 0 {
			continue // nothing of it is left but for the next change to forget
		}
		s.Clusters = append(s.Clusters, cs)
	}
	return s
}

func (l *listener) status(r *road) ListenerStatus {
	s := ListenerStatus{
		Name: l.name, Address: l.address(), Protocol: r.protocol(), Routes: r.name, Accepting: !l.stopped.Load() && !l.f.overload.gate.shut.Load(), Leaving: l.leaving.Load(),
		MaxConnections: l.config.Load().maxConnections, MaxStreams: int(r.maxStreams),
		Requests: l.stats.requests.Value() + l.stats.oneways.Value(),
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s.Connections, s.RX, s.TX = len(l.open), l.closedRX, l.closedTX
	for d := range l.open {
		rx, tx := d.conn.Bytes()
		s.RX += rx
		s.TX += tx
		s.InFlight += int(max(d.inFlight.Load(), 0))
		if d.conn.Gated() {
			s.Gated++
		}
	}
	return s
}

func (c *upCluster) status() ClusterStatus {
	now := c.f.now()
	at := func(breaker int) Use { return c.breakers[breaker].status(now) }
	s := ClusterStatus{
		Name: c.spec.Name, Protocol: c.codec.Name(), Balancer: c.spec.Balancer, Leaving: c.gone.Load() > 0, Panic: c.panics.Load(),
		Requests: at(breakRequests), LowRequests: at(breakLowRequests), Connections: at(breakConnections), Pending: at(breakPending),
		PendingBytes: at(breakPendingBytes),
		Retries:      Use{Used: c.limits.Retries.Used(), Max: c.limits.Retries.Max()}, RetryBytes: Use{Used: c.retryBytes.Used(), Max: c.retryBytes.Max()},
	}
	for _, e := range c.endpoints {
		if e.left.Load() && e.over() {
			continue
		}
		es := e.status(c.f)
		if !es.EjectedUntil.IsZero() {
			s.Ejected++
		}
		s.Endpoints = append(s.Endpoints, es)
	}
	return s
}

func (e *upEndpoint) status(f *Forwarder) EndpointStatus {
	n, health := e.connections(), e.policy.Health()
	s := EndpointStatus{
		Address: e.name(), Weight: e.policy.Weight(), Share: e.policy.Share(f.now()), Usable: e.policy.Usable(), Condition: e.condition(), Failures: health.Failures, Probing: health.Probing,
		Draining: health.Drained, Leaving: e.left.Load(), InFlight: e.policy.Active(), Waiting: n.waiting,
		Connections: n.ready + n.leased, Ready: n.ready, Leased: n.leased, Dialling: n.dialling, Drains: n.draining, Gated: n.gated,
		Requests: e.stats.requests.Value() + e.stats.oneways.Value(),
	}
	s.RX, s.TX = e.bytes()
	at := func(ns int64) time.Time {
		if ns == 0 {
			return time.Time{}
		}
		return f.started.Add(time.Duration(ns))
	}
	if health.Failures > 0 && !health.Trusted && !health.Drained {
		s.Since = at(health.Since)
		if !health.Probing {
			s.Until = at(health.Until)
		}
	}
	s.Check = e.checkStatus(at)
	ejection := e.policy.Ejection()
	s.EjectedUntil, s.EjectedWhy, s.Ejections = at(ejection.Until), ejection.Why, ejection.Number
	if last := e.lastFailure.Load(); last != nil {
		s.LastFailure = &Failure{at(last.at), last.reason, last.detail}
	}
	return s
}

// RuleLimits are the limits of the rules that have one, by table/rule.
func (f *Forwarder) RuleLimits() map[string]Use {
	out, now := make(map[string]Use), f.now()
	for name, l := range f.snap.Load().limits.bounds {
		out[name] = l.breaker.status(now)
	}
	return out
}

// RuleCounts is what a rule of a route table has counted so far, for one of its clusters.
type RuleCounts struct {
	Rule, Cluster string // table/rule; Cluster is empty for a rule that answers
	Requests      uint64
	Retries       uint64
	Local         uint64 // answered here
}

// Rules are the counts of the rules that a listener leads to. Listeners of one table share them.
func (f *Forwarder) Rules() []RuleCounts {
	var out []RuleCounts
	snap, seen := f.snap.Load(), make(map[*stats.Counter]bool)
	for _, l := range snap.listeners {
		for _, r := range snap.roads[l.slot].rules {
			for _, t := range r.targets {
				if seen[t.stats.requests] {
					continue
				}
				seen[t.stats.requests] = true
				out = append(out, RuleCounts{t.name, t.clusterName(), t.stats.requests.Value(), t.stats.retries.Value(), t.stats.local.sum()})
			}
		}
	}
	return out
}

// Connections is the number of client connections. It waits for no lock.
func (f *Forwarder) Connections() (n int) {
	for _, l := range f.snap.Load().listeners {
		n += int(l.connected.Load())
	}
	return n
}

// inFlight is the number of requests of a listener's connections that have not ended.
func (l *listener) inFlight() int {
	n := int64(0)
	l.each(func(d *downstream) { n += d.inFlight.Load() })
	return int(max(n, 0))
}

// connectionCounts are an endpoint's connections by state, and of all those that are not read from, and the requests that wait for
// one. Connections that are closed, or exported, are not counted.
type connectionCounts struct{ dialling, ready, leased, draining, gated, waiting int }

// connections counts an endpoint's connections.
func (e *upEndpoint) connections() (n connectionCounts) {
	for _, p := range e.pools() {
		for _, u := range *p.conns.Load() {
			state := state(u.state.Load())
			if (state == stateReady || state == stateDraining) && u.conn.Gated() {
				n.gated++
			}
			switch state {
			case stateReady:
				if u.lease.Load() == leased {
					n.leased++
				} else {
					n.ready++
				}
			case stateDraining:
				n.draining++
			default:
			}
		}
		p.mu.Lock()
		if p.dialling {
			n.dialling++
		}
		n.dialling += p.leases.dialling
		n.waiting += len(p.waiting) + len(p.leases.waiting)
		p.mu.Unlock()
	}
	return n
}

// export registers what is read at the moment of a scrape, but for these endpoints, which are registered.
func (f *Forwarder) export(exported map[*upEndpoint]bool) {
	snap := f.snap.Load()
	f.reg.GaugeFunc("relevo_buffered_bytes", "Bytes of buffers that connections hold.",
		func() float64 { return float64(f.buffers.Used()) })
	f.reg.GaugeFunc("relevo_buffered_limit_bytes", "The most that relevo_buffered_bytes may be: max_buffered.",
		func() float64 { return float64(f.buffers.Max()) })
	f.exportWorkers()
	f.exportOverload()
	for name, l := range snap.limits.bounds {
		f.exportBreaker("relevo_route", &l.breaker, true, []stats.Label{{Name: "route", Value: name}, {Name: "limit", Value: limitMaxRequests}})
	}
	f.exportChecks()
	for _, l := range snap.listeners {
		f.exportListener(l)
	}
	for _, c := range slices.Backward(snap.clusters) { // a leftover may have the name of one that is configured, which is shown
		f.exportCluster(c)
		for _, e := range c.endpoints {
			if !exported[e] {
				f.exportEndpoint(c, e)
			}
		}
	}
}

func (f *Forwarder) exportWorkers() {
	count := func(state string, fn func(workers, idle, parked int) int) {
		f.reg.GaugeFunc("relevo_workers", "Workers, by state: at work, parked because their exchange's reply or a filter is awaited, or idle.", func() float64 {
			workers, idle, _ := f.workers.Stats()
			return float64(fn(workers, idle, max(workers-idle-f.gather.active(), 0)))
		}, stats.Label{Name: "state", Value: state})
	}
	count("busy", func(workers, idle, parked int) int { return workers - idle - parked })
	count("parked", func(_, _, parked int) int { return parked })
	count("idle", func(_, idle, _ int) int { return idle })
	f.reg.GaugeFunc("relevo_worker_queue", "Requests that wait for a worker: workers.queue bounds them.", func() float64 {
		_, _, queued := f.workers.Stats()
		return float64(queued)
	})
}

func (f *Forwarder) exportListener(l *listener) {
	labels := []stats.Label{{Name: "listener", Value: l.name}}
	connections := func(state string, fn func(open, gated int) int) {
		f.reg.GaugeFunc("relevo_listener_connections", "Client connections, by state; gated ones are not read from.",
			func() float64 { return float64(fn(l.connections())) }, with(labels, "state", state)...)
	}
	connections("reading", func(open, gated int) int { return open - gated })
	connections("gated", func(_, gated int) int { return gated })
	f.reg.GaugeFunc("relevo_listener_in_flight", "Requests that have not been answered yet.",
		func() float64 { return float64(l.inFlight()) }, labels...)
	const bytes, help = "relevo_listener_bytes_total", "Bytes read from and written to clients."
	f.reg.CounterFunc(bytes, help, func() float64 { rx, _ := l.bytes(); return float64(rx) }, with(labels, "direction", "read")...)
	f.reg.CounterFunc(bytes, help, func() float64 { _, tx := l.bytes(); return float64(tx) }, with(labels, "direction", "written")...)
}

func (f *Forwarder) exportCluster(c *upCluster) {
	labels := []stats.Label{{Name: "cluster", Value: c.policy.Name()}}
	limits := c.policy.Limits()
	gauge := func(name, help string, fn func() int) {
		f.reg.GaugeFunc(name, help, func() float64 { return float64(fn()) }, labels...)
	}
	gauge("relevo_cluster_in_flight", "Requests under way: max_requests bounds them.", limits.Requests.Used)
	gauge("relevo_cluster_connections", "Connections to all endpoints, being dialled included: max_connections bounds them.", limits.Connections.Used)
	gauge("relevo_cluster_pending", "Exchanges that wait for a connection: max_pending bounds them.", limits.Pending.Used)
	for i := range c.breakers {
		f.exportBreaker("relevo_cluster", &c.breakers[i], false, with(labels, "limit", breakerNames[i]))
	}
	gauge("relevo_cluster_pending_bytes", "Bytes of the exchanges that wait for a connection: max_pending_bytes bounds them.", c.pendingBytes.Used)
	gauge("relevo_cluster_retries_in_flight", "Requests under way that are tried again after they were sent: retry_budget bounds them.", limits.Retries.Used)
	gauge("relevo_cluster_retries_waiting", "Of those, the ones that wait until it is time.", c.retryWaits.Used)
	gauge("relevo_cluster_retry_bytes", "Bytes of copies of requests that may be sent again: max_retry_bytes bounds them.", c.retryBytes.Used)
	f.reg.FlagFunc("relevo_cluster_panic", "1 while so few endpoints are usable that unhealthy and ejected ones get requests too: panic_threshold.",
		c.panics.Load, labels...)
	gauge("relevo_cluster_slow_start", "Endpoints in their slow start.", func() int {
		now := f.now()
		return count(c.policy.Endpoints(), func(e *cluster.Endpoint) bool { return now < e.WarmUntil() })
	})
}

// count is how many of the list there are for which cond holds.
func count[T any](list []T, cond func(T) bool) (n int) {
	for _, v := range list {
		if cond(v) {
			n++
		}
	}
	return n
}

func (f *Forwarder) exportEndpoint(c *upCluster, e *upEndpoint) {
	labels := []stats.Label{{Name: "cluster", Value: c.policy.Name()}, {Name: "endpoint", Value: e.address}}
	connections := func(state string, fn func(connectionCounts) int) {
		f.reg.GaugeFunc("relevo_endpoint_connections", "Connections to an endpoint, by state.",
			func() float64 { return float64(fn(e.connections())) }, with(labels, "state", state)...)
	}
	connections("dialling", func(n connectionCounts) int { return n.dialling })
	connections("ready", func(n connectionCounts) int { return n.ready })
	connections("leased", func(n connectionCounts) int { return n.leased })
	connections("draining", func(n connectionCounts) int { return n.draining })
	f.reg.GaugeFunc("relevo_endpoint_in_flight", "Requests under way to an endpoint.",
		func() float64 { return float64(e.policy.Active()) }, labels...)
	f.reg.FlagFunc("relevo_endpoint_passed_over", "1 while an endpoint is passed over because it failed.",
		func() bool { return !e.policy.Reachable() && e.policy.Health().Failures > 0 }, labels...)
	f.reg.FlagFunc("relevo_endpoint_unhealthy", "1 while an endpoint does not pass its health checks.", func() bool { return e.policy.Health().Unhealthy }, labels...)
	f.reg.FlagFunc("relevo_endpoint_drained", "1 while an endpoint gets no requests because it was drained.", func() bool { return e.policy.Health().Drained }, labels...)
	f.reg.FlagFunc("relevo_endpoint_ejected", "1 while an endpoint is left out because of what became of its requests.", func() bool { return e.policy.Health().Ejected }, labels...)
	f.reg.GaugeFunc("relevo_endpoint_failures", "Failures of an endpoint in a row; 0 once it has delivered a frame.",
		func() float64 { return float64(e.policy.Health().Failures) }, labels...)
	const bytes, help = "relevo_endpoint_bytes_total", "Bytes read from and written to an endpoint."
	f.reg.CounterFunc(bytes, help, func() float64 { rx, _ := e.bytes(); return float64(rx) }, with(labels, "direction", "read")...)
	f.reg.CounterFunc(bytes, help, func() float64 { _, tx := e.bytes(); return float64(tx) }, with(labels, "direction", "written")...)
}

// address is where the listener listens, as bound; empty for one that is not configured any more.
func (l *listener) address() string {
	if l.socket == nil {
		return ""
	}
	return l.socket.Addr().String()
}
