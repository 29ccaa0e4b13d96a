package forwarder

import (
	"net"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/route"
	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// Spec is the whole configuration of a Forwarder as plain data: names, numbers, and the concrete codecs and
// filters that the composition root chose. Every field is set: defaults are the configuration's business.
type Spec struct {
	Listeners  []ListenerSpec
	Routes     []RouteSpec
	Clusters   []ClusterSpec
	MaxTimeout time.Duration // the cap on any deadline
	Workers    WorkersSpec
	Access     AccessLog // nil: no access log
	// Changed is told of listeners and endpoints that change, by the sweeper, so it must not wait. Nil: nobody is told.
	Changed func(Change)
	// Overload says what is done when the process uses nearly all that it is granted.
	Overload OverloadSpec

	// What connections are adopted with whose listener or cluster is not among the above (see Adopt): all but names,
	// addresses, routes and filters. The listener's codecs are all that there are.
	LeftoverListener ListenerSpec
	LeftoverCluster  ClusterSpec
	LeaveTimeout     time.Duration // for such a listener's connections, from the start on
}

// WorkersSpec bounds the workers, which carry the exchanges that may block.
type WorkersSpec struct {
	Max   int // goroutines; one that waits for a reply counts
	Queue int // exchanges that wait for a worker; 0: they are answered busy, also while one is about to become idle
}

// AccessLog is told of exchanges.
type AccessLog interface {
	// Sample says whether the exchange that begins now is to be recorded. It is called once for each request.
	Sample() bool
	// Log takes the record of an exchange that Sample said yes to, once it has ended. It never waits.
	Log(stats.Record)
}

// ListenerSpec is one listener. Sizes are bytes.
type ListenerSpec struct {
	Name             string
	Network, Address string        // as in net.Listen: tcp or unix
	Socket           net.Listener  // that listens there already; nil: it is opened
	Kept             bool          // the socket's file stays when it is closed
	Codecs           []wire.Codec  // one, or those to detect, in the order in which they are asked
	DetectTimeout    time.Duration // from a connection's first byte to its protocol; 0 means that the first codec speaks it
	Limits           wire.Limits
	Routes           string // name of the route table
	Forwarding       Forwarding
	Connection       []filter.ConnectionFilter
	Filters          []filter.Filter
	StreamAbove      int // bytes of a request frame from which on it is passed on in pieces; 0 means never
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
	Clusters []Share // where to; none: it is answered with Reply
	Reply    wire.Status
	Headers  []wire.Edit // of the request, each time it is sent
	Filters  []filter.Filter
	Timeout  time.Duration
	Attempts int // tries in all; 1 means no retry
	RetryOn  RetryOn
	Priority Priority
	// MaxRequests bounds those in flight, of all listeners together; 0 means no bound.
	MaxRequests int
}

// Share is a cluster's share of a rule's requests: its weight of the sum of weights.
type Share struct {
	Cluster string
	Weight  int
}

// Forwarding says who runs the exchanges of a listener.
type Forwarding uint8

// The forwardings.
const (
	ForwardAuto   Forwarding = iota // the read loops, but a worker where a filter may block
	ForwardInline                   // the read loops; a filter that may block is refused
	ForwardWorker                   // a worker each
)

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
	Limits                 wire.Limits   // of replies
	Balancer               string        // one of those that are named Balancer...
	HashHeader             string        // with BalancerMaglev: the header that requests are told apart by; empty: their client's address is
	SlowStart              time.Duration // of endpoints that come, or are usable again; 0 means none
	PanicThreshold         int           // share of usable endpoints, in hundredths of a percent, below which all are used; 0: never
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
	MaxAge                 time.Duration // of a connection, give or take a tenth; 0 means none
	MaxUploads             int           // to one endpoint at a time, each on a connection leased to it
	Endpoints              []EndpointSpec
}

// EndpointSpec is one endpoint of a cluster.
type EndpointSpec struct {
	Network, Address string
	Weight           int
	Drain            bool // it gets no new requests, and its connections close when those in flight have ended
}
