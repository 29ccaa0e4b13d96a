package forwarder

import (
	"time"

	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/route"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// Spec is the whole configuration of a Forwarder as plain data: names, numbers, and the concrete codecs and
// filters that the composition root chose. Every field is set: defaults are the configuration's business.
type Spec struct {
	Listeners  []ListenerSpec
	Routes     []RouteSpec
	Clusters   []ClusterSpec
	MaxTimeout time.Duration // the cap on any deadline
}

// ListenerSpec is one listener. Sizes are bytes.
type ListenerSpec struct {
	Name             string
	Network, Address string // as in net.Listen: tcp or unix
	Codec            wire.Codec
	Limits           wire.Limits
	Routes           string // name of the route table
	Filters          []filter.Filter
	MaxConnections   int
	MaxStreams       int // requests in flight on one connection
	AcceptRate       int // connections a second; 0 means no bound
	IdleTimeout      time.Duration
	ReadTimeout      time.Duration // for the next byte of a frame that has begun
	WriteTimeout     time.Duration
	QueueHigh        int
	QueueLow         int
	MaxQueued        int
}

// RouteSpec is one route table; the first rule that matches wins.
type RouteSpec struct {
	Name  string
	Rules []RuleSpec
}

// RuleSpec is one rule of a route table.
type RuleSpec struct {
	Name     string
	Match    route.Match
	Cluster  string
	Timeout  time.Duration
	Attempts int // tries in all; 1 means no retry
	RetryOn  RetryOn
}

// RetryOn is the set of outcomes after which a request is tried again. In each of them nothing of the request
// has reached a server.
type RetryOn uint8

// The retry conditions.
const (
	RetryConnectFailure  RetryOn = 1 << iota // no connection could be made
	RetryResetBeforeSend                     // the connection broke before the kernel took a byte of the request
)

// ClusterSpec is one cluster. Sizes are bytes.
type ClusterSpec struct {
	Name                   string
	Codec                  wire.Codec
	Limits                 wire.Limits // of replies
	Balancer               string      // BalancerLeastRequest or BalancerRoundRobin
	ConnectionsPerEndpoint int
	MaxConnections         int // over all endpoints
	MaxPending             int // exchanges that wait for a connection
	MaxPendingBytes        int
	MaxRequests            int // in flight
	MaxQueued              int // of one connection's write queue
	ConnectTimeout         time.Duration
	ReadTimeout            time.Duration
	WriteTimeout           time.Duration
	HeartbeatInterval      time.Duration // idle time before a heartbeat; 0 means none
	HeartbeatMisses        int
	Endpoints              []EndpointSpec
}

// EndpointSpec is one endpoint of a cluster.
type EndpointSpec struct {
	Network, Address string
	Weight           int
}
