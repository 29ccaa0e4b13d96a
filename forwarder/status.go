package forwarder

import (
	"slices"

	"github.com/relevo-proxy/relevo/forwarder/stats"
)

// Status is what the road looks like now.
type Status struct {
	Listeners []ListenerStatus
	Clusters  []ClusterStatus
}

// ListenerStatus is one listener.
type ListenerStatus struct {
	Name, Address, Protocol string
	Accepting               bool
	Connections             int
	Gated                   int // of them, those that are not read from
	InFlight                int
}

// ClusterStatus is one cluster.
type ClusterStatus struct {
	Name, Protocol    string
	InFlight, Pending int
	Endpoints         []EndpointStatus
}

// EndpointStatus is one endpoint of a cluster.
type EndpointStatus struct {
	Address     string
	Weight      int
	Usable      bool // false while it is passed over, or drained
	Failures    int  // in a row; 0 once it has delivered a frame
	Probing     bool // a probe is under way, behind failures
	Draining    bool // DrainEndpoint took it out; it drains while it has connections, and then it is drained
	Connections int  // those that take requests
	InFlight    int
}

// Status reports the road as it is now.
func (f *Forwarder) Status() Status {
	snap := f.snap.Load()
	var s Status
	for _, l := range snap.listeners {
		open, gated := l.connections()
		s.Listeners = append(s.Listeners, ListenerStatus{
			Name: l.name, Address: l.address(), Protocol: snap.roads[l.slot].protocol(),
			Accepting: !l.stopped.Load(), Connections: open, Gated: gated, InFlight: l.inFlight(),
		})
	}
	for _, c := range snap.clusters {
		limits := c.policy.Limits()
		cs := ClusterStatus{
			Name: c.policy.Name(), Protocol: c.codec.Name(),
			InFlight: limits.Requests.Used(), Pending: limits.Pending.Used(),
		}
		for _, e := range c.endpoints {
			n, health := e.connections(), e.policy.Health()
			cs.Endpoints = append(cs.Endpoints, EndpointStatus{
				Address: e.address, Weight: e.policy.Weight(), Usable: e.policy.Usable(), Failures: health.Failures,
				Probing: health.Probing, Draining: health.Drained, Connections: n.ready + n.leased, InFlight: e.policy.Active(),
			})
		}
		s.Clusters = append(s.Clusters, cs)
	}
	return s
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

// connectionCounts are an endpoint's connections by state. Those that are closed, or exported, are not counted.
type connectionCounts struct{ dialling, ready, leased, draining int }

// connections counts an endpoint's connections.
func (e *upEndpoint) connections() (n connectionCounts) {
	for _, p := range e.pools() {
		for _, u := range *p.conns.Load() {
			switch state(u.state.Load()) {
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
		p.mu.Unlock()
	}
	return n
}

// export registers what is read at the moment of a scrape.
func (f *Forwarder) export(old *snapshot) {
	snap := f.snap.Load()
	exported := make(map[*upEndpoint]bool)
	for _, c := range old.clusters {
		for _, e := range c.endpoints {
			exported[e] = true
		}
	}
	f.reg.GaugeFunc("relevo_buffered_bytes", "Bytes of buffers that connections hold.",
		func() float64 { return float64(f.buffers.Used()) })
	f.reg.GaugeFunc("relevo_buffered_limit_bytes", "The most that relevo_buffered_bytes may be: max_buffered.",
		func() float64 { return float64(f.buffers.Max()) })
	f.exportWorkers()
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
	gauge("relevo_cluster_pending_bytes", "Bytes of the exchanges that wait for a connection: max_pending_bytes bounds them.", c.pendingBytes.Used)
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
	f.reg.GaugeFunc("relevo_endpoint_passed_over", "1 while an endpoint is passed over because it failed.", func() float64 {
		if e.policy.Usable() || e.policy.Health().Failures == 0 {
			return 0
		}
		return 1
	}, labels...)
	f.reg.GaugeFunc("relevo_endpoint_drained", "1 while an endpoint gets no requests because it was drained.", func() float64 {
		if e.policy.Health().Drained {
			return 1
		}
		return 0
	}, labels...)
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
