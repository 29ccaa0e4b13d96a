package forwarder

import (
	"cmp"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// byStatus is one counter a status, made when it first counts: ten thousand rules times fourteen statuses
// would be a scrape of mostly zeros.
type byStatus struct {
	// Static after creation.
	reg        *stats.Registry
	name, help string
	labels     []stats.Label

	// Atomic.
	counters [wire.NumStatus]atomic.Pointer[stats.Counter]
}

func (v *byStatus) add(s wire.Status, n uint64) {
	c := v.counters[s].Load()
	if c == nil {
		c = v.reg.Counter(v.name, v.help, with(v.labels, "status", s.String())...)
		v.counters[s].Store(c) // the registry gives the same counter to all who ask
	}
	c.Add(n)
}

// byReason is one counter a reason, made when it first counts. Reasons are constants, so they are few.
type byReason struct {
	// Static after creation.
	reg        *stats.Registry
	name, help string
	labels     []stats.Label
	label      string // what the reason is called; "" means reason

	// Atomic. The map is replaced, never changed.
	counters atomic.Pointer[map[string]*stats.Counter]
}

func (v *byReason) add(reason string, n uint64) {
	for {
		old := v.counters.Load()
		if old != nil {
			if c := (*old)[reason]; c != nil {
				c.Add(n)
				return
			}
		}
		grown := map[string]*stats.Counter{}
		if old != nil {
			maps.Copy(grown, *old)
		}
		grown[reason] = v.reg.Counter(v.name, v.help, with(v.labels, cmp.Or(v.label, "reason"), reason)...)
		v.counters.CompareAndSwap(old, &grown)
	}
}

// sum is the count over all reasons.
func (v *byReason) sum() (n uint64) {
	if all := v.counters.Load(); all != nil {
		for _, c := range *all {
			n += c.Value()
		}
	}
	return n
}

// with returns labels and one more.
func with(labels []stats.Label, name, value string) []stats.Label {
	return append(slices.Clip(labels), stats.Label{Name: name, Value: value})
}

// listenerStats are the handles of one listener.
type listenerStats struct {
	accepted  *stats.Counter
	requests  *stats.Counter
	oneways   *stats.Counter
	heartbeat *stats.Counter
	replies   byStatus
	local     byReason
	closes    byReason
	rejected  byReason
	dropped   byReason
	own       *stats.Histogram
	acceptErr *stats.Counter
}

func newListenerStats(reg *stats.Registry, name string) *listenerStats {
	l := []stats.Label{{Name: "listener", Value: name}}
	const requests, requestsHelp = "relevo_listener_requests_total", "Frames received from clients that ask for something, by kind."
	return &listenerStats{
		accepted:  reg.Counter("relevo_listener_connections_total", "Client connections accepted.", l...),
		requests:  reg.Counter(requests, requestsHelp, with(l, "kind", "request")...),
		oneways:   reg.Counter(requests, requestsHelp, with(l, "kind", "oneway")...),
		heartbeat: reg.Counter(requests, requestsHelp, with(l, "kind", "heartbeat")...),
		replies:   byStatus{reg: reg, name: "relevo_listener_replies_total", help: "Replies sent to clients, by status.", labels: l},
		local:     byReason{reg: reg, name: "relevo_listener_local_replies_total", help: "Requests answered by Relevo itself, by reason.", labels: l},
		closes:    byReason{reg: reg, name: "relevo_listener_closes_total", help: "Client connections closed, by reason.", labels: l},
		rejected:  byReason{reg: reg, name: "relevo_listener_rejections_total", help: "Client connections refused at accept, by reason.", labels: l},
		dropped:   byReason{reg: reg, name: "relevo_listener_dropped_total", help: "Frames and outcomes of which no client is told, by reason.", labels: l},
		own: reg.Histogram("relevo_listener_own_seconds",
			"Time that Relevo itself adds to a request: from the read that brought it to the flush that passed it on.", l...),
		acceptErr: reg.Counter("relevo_listener_accept_errors_total", "Failed accepts, as when descriptors run out.", l...),
	}
}

// workerStats are the handles of the workers.
type workerStats struct {
	refused byReason
	queued  *stats.Histogram
}

func newWorkerStats(reg *stats.Registry) *workerStats {
	return &workerStats{
		refused: byReason{reg: reg, name: "relevo_worker_rejections_total", help: "Requests for which no worker could be had, by reason."},
		queued:  reg.Histogram("relevo_worker_queue_seconds", "Time that requests waited for a worker, those that did."),
	}
}

// targetStats are the handles of one rule of a route table.
type targetStats struct {
	requests *stats.Counter
	retries  *stats.Counter
	replies  byStatus
	local    byReason
	total    *stats.Histogram
}

func newTargetStats(reg *stats.Registry, routes, rule, cluster string) *targetStats {
	l := []stats.Label{{Name: "route", Value: routes + "/" + rule}, {Name: "cluster", Value: cluster}}
	return &targetStats{
		requests: reg.Counter("relevo_route_requests_total", "Requests that a rule matched, one-way ones included.", l...),
		retries:  reg.Counter("relevo_route_retries_total", "Further tries of requests.", l...),
		replies:  byStatus{reg: reg, name: "relevo_route_replies_total", help: "Replies to the requests of a rule, by status.", labels: l},
		local:    byReason{reg: reg, name: "relevo_route_local_replies_total", help: "Requests of a rule answered by Relevo itself, by reason.", labels: l},
		total: reg.Histogram("relevo_route_request_seconds",
			"Time from the read that brought a request to the read that brought its reply.", l...),
	}
}

// clusterStats are the handles of one cluster.
type clusterStats struct {
	rejected  byReason
	dropped   byReason
	checks    byReason
	retries   byReason
	refused   byReason
	ejections byReason
	refusals  byReason
}

func newClusterStats(reg *stats.Registry, name string) *clusterStats {
	l := []stats.Label{{Name: "cluster", Value: name}}
	return &clusterStats{
		ejections: byReason{
			reg: reg, name: "relevo_outlier_ejections_total", labels: l, label: "reason",
			help: "Endpoints that were ejected because of what became of their requests, by why.",
		},
		refusals: byReason{
			reg: reg, name: "relevo_outlier_refusals_total", labels: l,
			help: "Ejections that were not made because of what is left then, by reason.",
		},
		rejected: byReason{reg: reg, name: "relevo_cluster_rejections_total", help: "Requests refused because a limit of the cluster was reached, by reason.", labels: l},
		dropped:  byReason{reg: reg, name: "relevo_cluster_dropped_total", help: "Frames and outcomes of which no client is told, by reason.", labels: l},
		checks:   byReason{reg: reg, name: "relevo_health_checks_total", help: "Health checks of a cluster's endpoints, by result.", labels: l, label: "result"},
		retries:  byReason{reg: reg, name: "relevo_cluster_retries_total", help: "Further tries of requests, by what has become of the try before.", labels: l},
		refused: byReason{
			reg: reg, name: "relevo_cluster_retry_refusals_total", labels: l,
			help: "Requests that could not be tried again, or of which no copy was kept for that, by reason.",
		},
	}
}

// endpointStats are the handles of one endpoint.
type endpointStats struct {
	dials    *stats.Counter
	failures *stats.Counter
	probes   byReason
	requests *stats.Counter
	oneways  *stats.Counter
	beats    *stats.Counter
	replies  byStatus
	closes   byReason
	total    *stats.Histogram
	own      *stats.Histogram
}

func newEndpointStats(reg *stats.Registry, cluster, address string) *endpointStats {
	l := []stats.Label{{Name: "cluster", Value: cluster}, {Name: "endpoint", Value: address}}
	const requests, requestsHelp = "relevo_endpoint_requests_total", "Frames sent to an endpoint that ask for something, by kind."
	return &endpointStats{
		dials:    reg.Counter("relevo_endpoint_connections_total", "Connections made to an endpoint.", l...),
		failures: reg.Counter("relevo_endpoint_connect_failures_total", "Connections to an endpoint that could not be made.", l...),
		probes: byReason{
			reg: reg, name: "relevo_endpoint_probes_total", labels: l, label: "result",
			help: "Probes of an endpoint that had failed, by result.",
		},
		requests: reg.Counter(requests, requestsHelp, with(l, "kind", "request")...),
		oneways:  reg.Counter(requests, requestsHelp, with(l, "kind", "oneway")...),
		beats:    reg.Counter(requests, requestsHelp, with(l, "kind", "heartbeat")...),
		replies:  byStatus{reg: reg, name: "relevo_endpoint_replies_total", help: "Replies received from an endpoint, by status.", labels: l},
		closes:   byReason{reg: reg, name: "relevo_endpoint_closes_total", help: "Connections to an endpoint that were closed, by reason.", labels: l},
		total: reg.Histogram("relevo_endpoint_request_seconds",
			"Time from the read that brought a request to the read that brought the endpoint's reply.", l...),
		own: reg.Histogram("relevo_endpoint_own_seconds",
			"Time that Relevo itself adds to a reply: from the read that brought it to the flush that passed it on.", l...),
	}
}
