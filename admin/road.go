package admin

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/relevo-proxy/relevo/server/revision"
)

// Road is what the admin door shows of the road, and does to a connection. Its methods are called from any goroutine; what they
// return is the caller's. Lists are in the order of the configuration.
type Road interface {
	Listeners() []Listener
	// RuleCounts are by table/rule, then by cluster; a rule that answers has the cluster "".
	RuleCounts() map[string]map[string]RuleCounts
	// RuleLimits are the bounds of rules' requests in flight, by table/rule, where there is one.
	RuleLimits() map[string]Use
	Clusters() []Cluster
	// Connections are the first that the query wants, by their ids. more says that there are others behind them.
	Connections(q ConnectionQuery) (list []Connection, more bool)
	// Connection is one. The error is ErrNoConnection.
	Connection(id uint64) (Connection, error)
	// CloseConnection closes a client connection; or a server connection behind its last reply, unless that is to be now. The
	// error is ErrNoConnection, or wraps ErrBusy.
	CloseConnection(ctx context.Context, id uint64, now bool, by revision.Author) (Connection, error)
	Streams(q StreamQuery) Streams
}

// ErrNoConnection says that no open connection has this id.
var ErrNoConnection = errors.New("there is no such connection: it is closed")

// Listener is one listener, with all that is known of it.
type Listener struct {
	Name           string `json:"name"`
	Address        string `json:"address"` // as bound; empty where it listens no more
	Protocol       string `json:"protocol"`
	Routes         string `json:"routes"` // the name of its route table
	Accepting      bool   `json:"accepting"`
	Leaving        bool   `json:"leaving,omitempty"` // it is not configured any more; its connections end
	Connections    int    `json:"connections"`
	MaxConnections int    `json:"max_connections"`
	Gated          int    `json:"gated"` // connections that are not read from, because their clients do not read
	InFlight       int    `json:"in_flight"`
	MaxStreams     int    `json:"max_streams"` // requests in flight on one connection
	Requests       uint64 `json:"requests"`    // so far
	BytesRead      uint64 `json:"bytes_read"`
	BytesWritten   uint64 `json:"bytes_written"`
}

// RuleCounts is what a rule has counted so far.
type RuleCounts struct {
	Requests     uint64 `json:"requests"`
	Retries      uint64 `json:"retries"`
	LocalReplies uint64 `json:"local_replies"` // answered by Relevo itself
}

// Cluster is one cluster, with all that is known of it.
type Cluster struct {
	Name      string        `json:"name"`
	Protocol  string        `json:"protocol"`
	Balancer  string        `json:"balancer"`
	Leaving   bool          `json:"leaving,omitempty"` // it is not configured any more
	Panic     bool          `json:"panic,omitempty"`   // so few endpoints are usable that unhealthy and ejected ones get requests too
	Limits    ClusterLimits `json:"limits"`
	Discovery *Discovery    `json:"discovery,omitempty"` // where its endpoints are found; absent: they are configured
	Endpoints []Endpoint    `json:"endpoints"`
}

// Discovery is how the source of a cluster's endpoints is.
type Discovery struct {
	Source string `json:"source"` // file or dns
	Of     string `json:"of"`     // the path, or the name
	// State is ok; waiting before the source has told anything; or failing: then the last good set stays.
	State        string     `json:"state"`
	FailingSince *time.Time `json:"failing_since,omitempty"`
	Error        string     `json:"error,omitempty"`
	Updated      *time.Time `json:"updated,omitempty"` // when it last told a good set
	Endpoints    int        `json:"endpoints"`         // of the last good set
}

// ClusterLimits are the bounds of a cluster, and how far they are used.
type ClusterLimits struct {
	Requests Use `json:"requests"` // in flight
	// LowRequests is the part of them that low priority may take; absent while it gets what it asks for.
	LowRequests  *Use `json:"low_requests,omitempty"`
	Connections  Use  `json:"connections"`   // being dialled included
	Pending      Use  `json:"pending"`       // requests that wait for a connection
	PendingBytes Use  `json:"pending_bytes"` // theirs
}

// Use is how much of a bound is taken.
type Use struct {
	Used int  `json:"used"`
	Max  int  `json:"max"`
	Open bool `json:"open,omitempty"` // it is at its bound, or has refused something within the last second
}

// RuleLimits are the bounds of a rule.
type RuleLimits struct {
	Requests Use `json:"requests"` // in flight
}

// Endpoint is one endpoint of a cluster, with all that is known of it.
type Endpoint struct {
	Cluster string `json:"cluster"`
	Address string `json:"address"`
	Weight  int    `json:"weight"`
	// Share is the part of its weight that it gets in its slow start; 0 otherwise, when it gets all.
	Share float64 `json:"share,omitempty"`
	// State is usable; passed-over or probing behind failures; unhealthy because of its checks; ejected because of its requests;
	// draining while it has connections, and then drained.
	State    string `json:"state"`
	Leaving  bool   `json:"leaving,omitempty"` // it is not configured any more
	Failures int    `json:"failures"`          // in a row; 0 once it has worked
	// PassedOverSince is when the first of them was, NextProbe when it is asked whether it works.
	PassedOverSince *time.Time          `json:"passed_over_since,omitempty"`
	NextProbe       *time.Time          `json:"next_probe,omitempty"`
	LastFailure     *Failure            `json:"last_failure,omitempty"` // that this process has seen
	InFlight        int                 `json:"in_flight"`
	Waiting         int                 `json:"waiting"` // requests, for a connection
	Connections     EndpointConnections `json:"connections"`
	Requests        uint64              `json:"requests"` // sent so far
	BytesRead       uint64              `json:"bytes_read"`
	BytesWritten    uint64              `json:"bytes_written"`
}

// EndpointConnections are an endpoint's connections by state.
type EndpointConnections struct {
	Dialling int `json:"dialling"`
	Ready    int `json:"ready"`
	Leased   int `json:"leased"` // to a request that goes out in pieces
	Draining int `json:"draining"`
	Gated    int `json:"gated"` // of all of them, those that are not read from
}

// Failure is why an endpoint failed.
type Failure struct {
	Time   time.Time `json:"time"`
	Reason string    `json:"reason"`
	Detail string    `json:"detail,omitempty"`
}

// ConnectionQuery says which connections are wanted; what is zero does not matter.
type ConnectionQuery struct {
	Side, Listener, Cluster, Endpoint string
	Client                            netip.Prefix
	ClientPort                        uint16
	After                             uint64
	Limit                             int
}

// Connection is one connection. Times are in seconds.
type Connection struct {
	ID           uint64  `json:"id"`
	Side         string  `json:"side"` // client or server
	Listener     string  `json:"listener,omitempty"`
	Cluster      string  `json:"cluster,omitempty"`
	Endpoint     string  `json:"endpoint,omitempty"`
	Local        string  `json:"local,omitempty"`
	Remote       string  `json:"remote,omitempty"`
	State        string  `json:"state"`
	Draining     string  `json:"draining,omitempty"` // why it takes no more requests
	Protocol     string  `json:"protocol,omitempty"` // absent until it is detected
	Age          float64 `json:"age"`
	Idle         float64 `json:"idle"` // since something was read
	BytesRead    uint64  `json:"bytes_read"`
	BytesWritten uint64  `json:"bytes_written"`
	Queued       int64   `json:"queued"` // bytes that are not sent yet
	InFlight     int     `json:"in_flight"`
}

// StreamQuery says which requests in flight are wanted; what is empty does not matter.
type StreamQuery struct {
	Listener, Cluster, Endpoint, Service string
	Limit                                int
}

// Streams are requests in flight.
type Streams struct {
	Streams []Stream `json:"streams"` // the oldest, oldest first
	Total   int      `json:"total"`   // that the query wants
	// InFilters is how many more are inside filters that may block; what they are is not seen.
	InFilters int `json:"in_filters"`
}

// Stream is a request in flight. Times are in seconds; what is not known is absent.
type Stream struct {
	Phase            string  `json:"phase"` // in-flight, awaits-connection or awaits-worker
	Age              float64 `json:"age"`
	Left             float64 `json:"left,omitempty"` // to its deadline
	Listener         string  `json:"listener"`
	Client           string  `json:"client,omitempty"` // absent where it is gone
	ClientConnection uint64  `json:"client_connection,omitempty"`
	ID               uint32  `json:"id"` // as the client gave it
	Service          string  `json:"service,omitempty"`
	Method           string  `json:"method,omitempty"`
	Route            string  `json:"route,omitempty"`
	Cluster          string  `json:"cluster,omitempty"`
	Endpoint         string  `json:"endpoint,omitempty"`
	ServerConnection uint64  `json:"server_connection,omitempty"`
	ServerID         uint32  `json:"server_id,omitempty"` // under which it was sent
	Attempts         int     `json:"attempts"`
	Oneway           bool    `json:"oneway,omitempty"`
}
