package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/admin"
	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/server/revision"
)

// Listeners implements admin.Road, as do those below.
func (s *Server) Listeners() []admin.Listener {
	var out []admin.Listener
	for _, l := range s.road.Status().Listeners {
		out = append(out, admin.Listener{
			Name: l.Name, Address: l.Address, Protocol: l.Protocol, Routes: l.Routes, Accepting: l.Accepting, Leaving: l.Leaving,
			Connections: l.Connections, MaxConnections: l.MaxConnections, Gated: l.Gated, InFlight: l.InFlight, MaxStreams: l.MaxStreams,
			Requests: l.Requests, BytesRead: l.RX, BytesWritten: l.TX,
		})
	}
	return out
}

// RuleCounts is explained at admin.Road.
func (s *Server) RuleCounts() map[string]map[string]admin.RuleCounts {
	out := make(map[string]map[string]admin.RuleCounts)
	for _, c := range s.road.Rules() {
		if out[c.Rule] == nil {
			out[c.Rule] = make(map[string]admin.RuleCounts)
		}
		out[c.Rule][c.Cluster] = admin.RuleCounts{Requests: c.Requests, Retries: c.Retries, LocalReplies: c.Local}
	}
	return out
}

// RuleLimits is explained at admin.Road.
func (s *Server) RuleLimits() map[string]admin.Use {
	out := make(map[string]admin.Use)
	for rule, use := range s.road.RuleLimits() {
		out[rule] = admin.Use(use)
	}
	return out
}

// Clusters is explained at admin.Road.
func (s *Server) Clusters() []admin.Cluster {
	var out []admin.Cluster
	open := func(u forwarder.Use) *admin.Use {
		if !u.Open {
			return nil
		}
		return new(admin.Use(u))
	}
	for _, c := range s.road.Status().Clusters {
		k := admin.Cluster{
			Name: c.Name, Protocol: c.Protocol, Balancer: c.Balancer, Leaving: c.Leaving, Panic: c.Panic,
			Limits: admin.ClusterLimits{
				Requests: admin.Use(c.Requests), LowRequests: open(c.LowRequests), Connections: admin.Use(c.Connections), Pending: admin.Use(c.Pending), PendingBytes: admin.Use(c.PendingBytes),
			},
		}
		if !c.Leaving {
			k.Discovery = s.discoveryOf(c.Name)
		}
		for i := range c.Endpoints {
			k.Endpoints = append(k.Endpoints, endpointOf(c.Name, &c.Endpoints[i]))
		}
		out = append(out, k)
	}
	return out
}

// discoveryOf is how the source of a cluster's endpoints is, nil where they are configured.
func (s *Server) discoveryOf(cluster string) *admin.Discovery {
	c, now := s.finder.state(cluster)
	if c == nil {
		return nil
	}
	out := &admin.Discovery{State: now.Word(), FailingSince: known(now.FailingSince), Updated: known(now.Updated), Endpoints: len(now.Endpoints)}
	out.Source, out.Of = c.Source()
	if now.Err != nil {
		out.Error = now.Err.Error()
	}
	return out
}

func endpointOf(cluster string, e *forwarder.EndpointStatus) admin.Endpoint {
	out := admin.Endpoint{
		Cluster: cluster, Address: e.Address, Weight: e.Weight, State: endpointState(e), Leaving: e.Leaving, Failures: e.Failures,
		PassedOverSince: known(e.Since), NextProbe: known(e.Until), InFlight: e.InFlight, Waiting: e.Waiting,
		Connections: admin.EndpointConnections{Dialling: e.Dialling, Ready: e.Ready, Leased: e.Leased, Draining: e.Drains, Gated: e.Gated},
		Requests:    e.Requests, BytesRead: e.RX, BytesWritten: e.TX,
	}
	if e.Share < 1 {
		out.Share = e.Share
	}
	if f := e.LastFailure; f != nil {
		out.LastFailure = &admin.Failure{Time: f.At, Reason: f.Reason, Detail: f.Detail}
	}
	return out
}

// endpointState is the state of an endpoint in a word.
func endpointState(e *forwarder.EndpointStatus) string {
	switch {
	case e.Draining && e.Connections+e.Drains+e.Dialling+e.InFlight > 0:
		return "draining"
	case e.Draining:
		return "drained"
	case e.Probing:
		return "probing"
	}
	return e.Condition
}

func known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// Connections is explained at admin.Road.
func (s *Server) Connections(q admin.ConnectionQuery) (list []admin.Connection, more bool) {
	open, more := s.road.OpenConnections(forwarder.ConnectionFilter{
		Side: forwarder.Side(q.Side), Listener: q.Listener, Cluster: q.Cluster, Endpoint: q.Endpoint,
		Client: q.Client, ClientPort: q.ClientPort, After: q.After, Limit: q.Limit,
	})
	for i := range open {
		list = append(list, connectionOf(&open[i]))
	}
	return list, more
}

func connectionOf(c *forwarder.ConnectionStatus) admin.Connection {
	return admin.Connection{
		ID: c.ID, Side: string(c.Side), Listener: c.Listener, Cluster: c.Cluster, Endpoint: c.Endpoint, Local: c.Local, Remote: c.Remote,
		State: c.State, Draining: c.Draining, Protocol: c.Protocol, Age: c.Age.Seconds(), Idle: c.Idle.Seconds(),
		BytesRead: c.RX, BytesWritten: c.TX, Queued: c.Queued, InFlight: c.InFlight,
	}
}

// Connection is explained at admin.Road.
func (s *Server) Connection(id uint64) (admin.Connection, error) {
	c, err := s.road.Connection(id)
	if err != nil {
		return admin.Connection{}, roadError(err)
	}
	return connectionOf(&c), nil
}

// CloseConnection is explained at admin.Road. It waits for its turn among the changes of the configuration.
func (s *Server) CloseConnection(ctx context.Context, id uint64, now bool, by revision.Author) (admin.Connection, error) {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	if err := s.live.take(ctx); err != nil {
		return admin.Connection{}, fmt.Errorf("%w: %w", admin.ErrBusy, err)
	}
	defer s.live.free()
	c, err := s.road.CloseConnection(id, now)
	if err != nil {
		return admin.Connection{}, roadError(err)
	}
	s.log.Info("connection closed by hand", zap.Uint64("id", id), zap.String("side", string(c.Side)), zap.String("listener", c.Listener),
		zap.String("cluster", c.Cluster), zap.String("endpoint", c.Endpoint), zap.String("local", c.Local), zap.String("remote", c.Remote),
		zap.Int("in_flight", c.InFlight), zap.Bool("now", now || c.Side == forwarder.ClientSide), zap.Stringer("by", by))
	return connectionOf(&c), nil
}

// roadError is a road's error as the admin door knows it.
func roadError(err error) error {
	switch {
	case errors.Is(err, forwarder.ErrNoConnection):
		return admin.ErrNoConnection
	case errors.Is(err, forwarder.ErrResting):
		return fmt.Errorf("%w: %w", admin.ErrBusy, err)
	}
	return err
}

// Streams is explained at admin.Road.
func (s *Server) Streams(q admin.StreamQuery) admin.Streams {
	list, total := s.road.Streams(forwarder.StreamFilter{Listener: q.Listener, Cluster: q.Cluster, Endpoint: q.Endpoint, Service: q.Service, Limit: q.Limit})
	out := admin.Streams{Total: total, InFilters: s.road.InFilters()}
	for i := range list {
		x := &list[i]
		out.Streams = append(out.Streams, admin.Stream{
			Phase: x.Phase, Age: x.Age.Seconds(), Left: x.Left.Seconds(), Listener: x.Listener, Client: x.Client, ClientConnection: x.ClientConnection,
			ID: x.ID, Service: x.Service, Method: x.Method, Route: x.Route, Cluster: x.Cluster, Endpoint: x.Endpoint,
			ServerConnection: x.ServerConnection, ServerID: x.ServerID, Attempts: x.Attempts, Oneway: x.Oneway,
		})
	}
	return out
}
