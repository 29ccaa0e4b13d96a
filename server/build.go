package server

import (
	"errors"
	"fmt"
	"slices"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/route"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
	"github.com/relevo-proxy/relevo/server/config"
)

// codecs are the protocols that there are.
var codecs = map[config.Protocol]func(verifyCRC bool) wire.Codec{
	config.Bolt: func(verify bool) wire.Codec { return bolt.Codec{VerifyCRC: verify} },
}

// balancers are the ways to choose an endpoint.
var balancers = map[config.Balancer]string{
	config.LeastRequest: forwarder.BalancerLeastRequest,
	config.RoundRobin:   forwarder.BalancerRoundRobin,
}

// retries are the conditions of a retry.
var retries = map[config.RetryOn]forwarder.RetryOn{
	config.ConnectFailure:  forwarder.RetryConnectFailure,
	config.ResetBeforeSend: forwarder.RetryResetBeforeSend,
}

// Spec translates a valid configuration into the road's own terms.
func Spec(c *config.Config) (*forwarder.Spec, error) {
	s := &forwarder.Spec{MaxTimeout: c.MaxTimeout.D()}
	var errs []error
	// A reply may be as large as the largest request that any listener takes: what may go one way may go the
	// other, and a frame that some client sends is worth reading from its server.
	var largest wire.Limits
	for i := range c.Listeners {
		l := &c.Listeners[i]
		network, address := l.Address.Split()
		codec, ok := codecs[l.Protocol]
		if !ok {
			errs = append(errs, fmt.Errorf("listener %s: there is no protocol %q", l.Name, l.Protocol))
			continue
		}
		limits := wire.Limits{MaxFrame: int(l.MaxFrame), MaxHeader: int(l.MaxHeader)}
		largest.MaxFrame = max(largest.MaxFrame, limits.MaxFrame)
		largest.MaxHeader = max(largest.MaxHeader, limits.MaxHeader)
		s.Listeners = append(s.Listeners, forwarder.ListenerSpec{
			Name: l.Name, Network: network, Address: address, Codec: codec(l.VerifyCRC), Limits: limits,
			Routes: l.Routes, MaxConnections: l.MaxConnections, MaxStreams: l.MaxStreams,
			AcceptRate: max(0, int(l.AcceptRate)), IdleTimeout: l.IdleTimeout.D(), ReadTimeout: l.ReadTimeout.D(), WriteTimeout: l.WriteTimeout.D(),
			QueueHigh: int(l.QueueHigh), QueueLow: int(l.QueueLow), MaxQueued: int(l.MaxQueued),
		})
	}
	for i := range c.Routes {
		s.Routes = append(s.Routes, routeSpec(&c.Routes[i]))
	}
	for i := range c.Clusters {
		k := &c.Clusters[i]
		codec, ok := codecs[k.Protocol]
		if !ok {
			errs = append(errs, fmt.Errorf("cluster %s: there is no protocol %q", k.Name, k.Protocol))
			continue
		}
		s.Clusters = append(s.Clusters, clusterSpec(k, codec(k.VerifyCRC), largest))
	}
	return s, errors.Join(errs...)
}

func routeSpec(t *config.RouteTable) forwarder.RouteSpec {
	out := forwarder.RouteSpec{Name: t.Name}
	for i := range t.Rules {
		r := &t.Rules[i]
		rule := forwarder.RuleSpec{
			Name: r.Name, Match: route.Match{Service: r.Match.Service}, Cluster: r.Cluster,
			Timeout: r.Timeout.D(), Attempts: r.Retry.Attempts,
		}
		for key, value := range r.Match.Header {
			rule.Match.Headers = append(rule.Match.Headers, route.Header{Key: key, Value: value})
		}
		slices.SortFunc(rule.Match.Headers, func(a, b route.Header) int {
			if a.Key < b.Key {
				return -1
			}
			return 1 // keys of a map differ
		})
		for _, on := range r.Retry.On {
			rule.RetryOn |= retries[on]
		}
		out.Rules = append(out.Rules, rule)
	}
	return out
}

func clusterSpec(k *config.Cluster, codec wire.Codec, limits wire.Limits) forwarder.ClusterSpec {
	out := forwarder.ClusterSpec{
		Name: k.Name, Codec: codec, Limits: limits, Balancer: balancers[k.Balancer],
		ConnectionsPerEndpoint: k.ConnectionsPerEndpoint, MaxConnections: k.MaxConnections,
		MaxPending: k.MaxPending, MaxPendingBytes: int(k.MaxPendingBytes), MaxRequests: k.MaxRequests,
		MaxQueued: int(k.MaxQueued), ConnectTimeout: k.ConnectTimeout.D(), ReadTimeout: k.ReadTimeout.D(), WriteTimeout: k.WriteTimeout.D(),
		HeartbeatInterval: k.HeartbeatInterval.D(), HeartbeatMisses: k.HeartbeatMisses,
	}
	for i := range k.Endpoints {
		network, address := k.Endpoints[i].Address.Split()
		out.Endpoints = append(out.Endpoints, forwarder.EndpointSpec{Network: network, Address: address, Weight: k.Endpoints[i].Weight})
	}
	return out
}
