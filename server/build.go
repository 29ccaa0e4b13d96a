package server

import (
	"errors"
	"fmt"
	"runtime"
	"sync"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
	"github.com/relevo-proxy/relevo/server/config"
)

// codecs are the protocols that there are.
var codecs = map[config.Protocol]func(verifyCRC bool) wire.Codec{
	config.Bolt: func(verify bool) wire.Codec { return bolt.Codec{VerifyCRC: verify} },
}

// detected are the protocols that a listener with protocol auto tells apart, in the order in which they are asked.
var detected = []config.Protocol{config.Bolt}

// forwardings say who runs a listener's exchanges.
var forwardings = map[config.Forwarding]forwarder.Forwarding{
	config.ForwardAuto:   forwarder.ForwardAuto,
	config.ForwardInline: forwarder.ForwardInline,
	config.ForwardWorker: forwarder.ForwardWorker,
}

// balancers are the ways to choose an endpoint.
var balancers = map[config.Balancer]string{
	config.LeastRequest: forwarder.BalancerLeastRequest,
	config.RoundRobin:   forwarder.BalancerRoundRobin,
	config.Random:       forwarder.BalancerRandom,
	config.Maglev:       forwarder.BalancerMaglev,
}

// workersPerCPU is how many workers there are for each CPU when the configuration leaves it to the machine, and
// maxWorkers how many there are at most.
const (
	workersPerCPU = 256
	maxWorkers    = 65536
)

// Spec translates a valid configuration into the road's own terms. Its Access is left to the caller, who owns the
// log that it writes.
func Spec(c *config.Config) (*forwarder.Spec, error) {
	s := &forwarder.Spec{MaxTimeout: c.MaxTimeout.D(), Workers: workersSpec(&c.Workers)}
	var errs []error
	// A reply may be as large as the largest request that any listener takes: what may go one way may go the
	// other, and a frame that some client sends is worth reading from its server.
	var largest wire.Limits
	for i := range c.Listeners {
		l := &c.Listeners[i]
		largest.MaxFrame = max(largest.MaxFrame, int(l.MaxFrame))
		largest.MaxHeader = max(largest.MaxHeader, int(l.MaxHeader))
		spec, err := listenerSpec(l)
		if err != nil {
			errs = append(errs, fmt.Errorf("listener %s: %w", l.Name, err))
			continue
		}
		s.Listeners = append(s.Listeners, spec)
	}
	for i := range c.Routes {
		spec, err := routeSpec(&c.Routes[i])
		if err != nil {
			errs = append(errs, fmt.Errorf("route table %s: %w", c.Routes[i].Name, err))
			continue
		}
		s.Routes = append(s.Routes, spec)
	}
	for i := range c.Clusters {
		k := &c.Clusters[i]
		codec, ok := codecs[k.Protocol]
		if !ok {
			errs = append(errs, fmt.Errorf("cluster %s: %w", k.Name, errNoProtocol(k.Protocol)))
			continue
		}
		s.Clusters = append(s.Clusters, clusterSpec(k, codec(k.VerifyCRC), largest))
	}
	s.Overload = overloadSpec(&c.Overload)
	s.LeaveTimeout = c.Upgrade.DrainTimeout.D()
	s.LeftoverListener, s.LeftoverCluster = leftovers(largest)
	return s, errors.Join(errs...)
}

// defaults is read only: many share it.
var defaults = sync.OnceValue(config.Defaults)

// leftovers are what connections go on with that came from another process and whose listener or cluster is not configured
// any more: the defaults of a configuration.
func leftovers(largest wire.Limits) (forwarder.ListenerSpec, forwarder.ClusterSpec) {
	d := defaults()
	l, err := listenerSpec(&d.Listeners[0])
	if err != nil {
		panic(err) // the defaults are valid
	}
	l.Codecs = nil
	for _, p := range detected { // all that there are
		l.Codecs = append(l.Codecs, codecs[p](false))
	}
	l.Limits, l.DetectTimeout = largest, d.Listeners[0].DetectTimeout.D()
	return l, clusterSpec(&d.Clusters[0], nil, largest)
}

func errNoProtocol(p config.Protocol) error { return fmt.Errorf("there is no protocol %q", p) }

func workersSpec(w *config.Workers) forwarder.WorkersSpec {
	s := forwarder.WorkersSpec{Max: min(workersPerCPU*runtime.GOMAXPROCS(0), maxWorkers), Queue: w.Queue}
	if w.Max != nil {
		s.Max = *w.Max
	}
	if w.Overflow == config.OverflowBusy {
		s.Queue = 0
	}
	return s
}

func overloadSpec(o *config.Overload) forwarder.OverloadSpec {
	share := func(p config.Percent) float64 { return float64(p) / 10000 }
	s := forwarder.OverloadSpec{
		StopReading: share(o.StopReading), StopAccepting: share(o.StopAccepting), RefuseLow: share(o.RefuseLow), RefuseNormal: share(o.RefuseNormal),
	}
	if o.MemoryLimit != nil {
		s.MemoryLimit = int64(*o.MemoryLimit)
	}
	if o.DescriptorReserve != nil {
		s.Reserve = int(*o.DescriptorReserve)
	}
	return s
}

func listenerSpec(l *config.Listener) (forwarder.ListenerSpec, error) {
	network, address := l.Address.Split()
	s := forwarder.ListenerSpec{
		Name: l.Name, Network: network, Address: address,
		Limits: wire.Limits{MaxFrame: int(l.MaxFrame), MaxHeader: int(l.MaxHeader)},
		Routes: l.Routes, Forwarding: forwardings[l.Forwarding], StreamAbove: max(0, int(l.StreamAbove)),
		MaxConnections: l.MaxConnections, MaxStreams: l.MaxStreams, AcceptRate: max(0, int(l.AcceptRate)),
		IdleTimeout: l.IdleTimeout.D(), ReadTimeout: l.ReadTimeout.D(), WriteTimeout: l.WriteTimeout.D(),
		QueueHigh: int(l.QueueHigh), QueueLow: int(l.QueueLow), MaxQueued: int(l.MaxQueued),
	}
	protocols := []config.Protocol{l.Protocol}
	if l.Protocol == config.DetectProtocol {
		protocols = detected
		s.DetectTimeout = l.DetectTimeout.D()
	}
	for _, p := range protocols {
		codec, ok := codecs[p]
		if !ok {
			return s, errNoProtocol(p)
		}
		s.Codecs = append(s.Codecs, codec(l.VerifyCRC))
	}
	var err, connErr error
	s.Connection, connErr = connectionFilters(l.ConnectionFilters)
	s.Filters, err = exchangeFilters(l.Filters, filter.AtListener)
	return s, errors.Join(connErr, err)
}

func clusterSpec(k *config.Cluster, codec wire.Codec, limits wire.Limits) forwarder.ClusterSpec {
	out := forwarder.ClusterSpec{
		Name: k.Name, Codec: codec, Limits: limits, Balancer: balancers[k.Balancer],
		HashHeader: k.HashHeader, SlowStart: k.SlowStart.D(), PanicThreshold: max(0, int(k.PanicThreshold)),
		ConnectionsPerEndpoint: k.ConnectionsPerEndpoint, MaxConnections: k.MaxConnections,
		MaxPending: k.MaxPending, MaxPendingBytes: int(k.MaxPendingBytes), MaxRequests: k.MaxRequests,
		MaxQueued: int(k.MaxQueued), ConnectTimeout: k.ConnectTimeout.D(), ReadTimeout: k.ReadTimeout.D(), WriteTimeout: k.WriteTimeout.D(),
		HeartbeatInterval: k.HeartbeatInterval.D(), HeartbeatMisses: k.HeartbeatMisses,
		MaxAge: k.MaxAge.D(), MaxUploads: k.MaxUploads,
	}
	for i := range k.Endpoints {
		network, address := k.Endpoints[i].Address.Split()
		out.Endpoints = append(out.Endpoints, forwarder.EndpointSpec{Network: network, Address: address, Weight: k.Endpoints[i].Weight, Drain: k.Endpoints[i].Drain})
	}
	return out
}
