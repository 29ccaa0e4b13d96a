// Package config is the configuration tree: its types, how a file becomes one, and what makes one valid.
//
// A tree that Parse or Load returned is complete: what the file leaves out holds its documented default, and
// every value has been checked, so that a reader of the tree checks nothing again. Everything that is wrong
// with a file is reported at once, each fault with its path.
//
// Each field says in its tags what docs/configuration.md says in words: its default, its bounds, whether
// `none` may stand for it. Decoding, validation and the tests of the document all read those tags.
//
// The package opens the file that it is told to load and nothing else. It starts no goroutine and keeps no state.
package config

import (
	"io/fs"
	"strconv"
)

// Config is the whole tree.
type Config struct {
	Listeners []Listener   `json:"listeners" cfg:"required"`
	Routes    []RouteTable `json:"routes" cfg:"required"`
	Clusters  []Cluster    `json:"clusters" cfg:"required"`
	// Admin is where the REST API answers; nil means nowhere.
	Admin *Admin `json:"admin,omitempty"`
	// Metrics is where metrics, liveness and readiness are served; nil means nowhere.
	Metrics *Metrics `json:"metrics,omitempty"`
	// StopTimeout is how long a stop waits for exchanges in flight. Zero waits for none.
	StopTimeout Duration `json:"stop_timeout" default:"30s" min:"0s" max:"1h"`
	// MaxTimeout caps the deadline of every exchange, whatever its frame and its route say.
	MaxTimeout Duration `json:"max_timeout" default:"10m" min:"1ms" max:"24h"`
	// MaxBuffered bounds the bytes that all connections together hold in queues and partial frames. Nil
	// means a quarter of the memory limit, which only the running process knows.
	MaxBuffered *Size `json:"max_buffered,omitempty" min:"1MiB" max:"1TiB"`
	// Workers bounds the workers, which carry the exchanges that may block.
	Workers Workers `json:"workers"`
	// Overload says what is done while the process uses nearly all that it is granted.
	Overload Overload `json:"overload"`
	// Upgrade bounds the hand-over to another process.
	Upgrade Upgrade `json:"upgrade"`
	// RuntimeDir and StateDir are absolute paths of folders; see RuntimeFolder and StateFolder.
	RuntimeDir string `json:"runtime_dir,omitempty" form:"folder" cfg:"none"`
	StateDir   string `json:"state_dir,omitempty" form:"folder" cfg:"none"`
	Log        Log    `json:"log"`
	// AccessLog is the log of exchanges; nil means that there is none.
	AccessLog *AccessLog `json:"access_log,omitempty"`
}

// Protocol is what is spoken on a connection.
type Protocol string

// The protocols.
const (
	// Bolt is both versions of the protocol.
	Bolt Protocol = "bolt"
	// DetectProtocol is the one, of those that there are, that a connection's first bytes show.
	DetectProtocol Protocol = "auto"
)

// Forwarding says who runs the exchanges of a listener.
type Forwarding string

// The forwardings.
const (
	// ForwardInline is the read loops; no filter may block then.
	ForwardInline Forwarding = "inline"
	// ForwardWorker is a worker for each exchange.
	ForwardWorker Forwarding = "worker"
	// ForwardAuto is the read loops, but a worker where a filter may block.
	ForwardAuto Forwarding = "auto"
)

// Listener is one address on which downstream connections are accepted.
type Listener struct {
	Name     string   `json:"name" cfg:"required,key" form:"name"`
	Address  Address  `json:"address" cfg:"required" form:"listen"`
	Protocol Protocol `json:"protocol" cfg:"required" oneof:"bolt auto"`
	// DetectTimeout is the time from a connection's first byte to its protocol, where that is to be detected.
	DetectTimeout Duration `json:"detect_timeout" default:"3s" min:"10ms" max:"1m"`
	// Routes names the route table. It may be left out of a file that has exactly one.
	Routes string `json:"routes"`
	// Forwarding says who runs the exchanges.
	Forwarding Forwarding `json:"forwarding" default:"auto" oneof:"inline worker auto"`
	// ConnectionFilters see connections and their bytes, in this order.
	ConnectionFilters []ConnectionFilter `json:"connection_filters,omitempty" most:"16"`
	// Filters see exchanges, in this order and before those of the rule.
	Filters []Filter `json:"filters,omitempty" most:"16"`
	// StreamAbove is the size of a request's frame from which on it is passed on in pieces; NoSize means never.
	StreamAbove Size `json:"stream_above" default:"1MiB" min:"64KiB" max:"256MiB" cfg:"none"`

	// MaxConnections is the number of connections open at once.
	MaxConnections int `json:"max_connections" default:"10000" min:"1" max:"1000000"`
	// MaxStreams is the number of requests in flight on one connection.
	MaxStreams int `json:"max_streams" default:"4096" min:"1" max:"1048576"`
	// MaxFrame is the size of one whole frame, in bytes.
	MaxFrame Size `json:"max_frame" default:"16MiB" min:"64KiB" max:"256MiB"`
	// MaxHeader is the size of one frame's header block, in bytes.
	MaxHeader Size `json:"max_header" default:"32767" min:"1" max:"65535"`
	// AcceptRate is the number of new connections per second.
	AcceptRate Rate `json:"accept_rate" default:"5000" min:"1" max:"1000000" cfg:"none"`
	// IdleTimeout closes a connection on which nothing was read for so long, and nothing is in flight or queued.
	IdleTimeout Duration `json:"idle_timeout" default:"15m" min:"1s" max:"168h" cfg:"none"`
	// ReadTimeout closes a connection whose peer has begun a frame and sends no byte of it for so long.
	ReadTimeout Duration `json:"read_timeout" default:"10s" min:"10ms" max:"10m"`
	// WriteTimeout closes a connection whose peer takes no byte for so long.
	WriteTimeout Duration `json:"write_timeout" default:"10s" min:"10ms" max:"10m"`
	// QueueLow is the length in bytes at which a connection's reply queue opens the read gate again.
	QueueLow Size `json:"queue_low" default:"512KiB" min:"1" max:"1GiB"`
	// QueueHigh is the length in bytes at which a connection's reply queue closes its own read gate.
	QueueHigh Size `json:"queue_high" default:"1MiB" min:"1" max:"1GiB"`
	// MaxQueued is the length in bytes at which a connection's reply queue closes the connection.
	MaxQueued Size `json:"max_queued" default:"16MiB" min:"64KiB" max:"1GiB"`
	// VerifyCRC checks the checksum of each frame that has one.
	VerifyCRC bool `json:"verify_crc" default:"false"`
}

// RouteTable is an ordered list of rules, of which the first that matches a request decides.
type RouteTable struct {
	Name  string `json:"name" cfg:"required,key" form:"name"`
	Rules []Rule `json:"rules" cfg:"required"`
}

// Rule leads the requests that it matches to a cluster, to one of several, or to an answer.
type Rule struct {
	// Name is rule-N where the file gives none, N being the rule's place counted from 1.
	Name string `json:"name" cfg:"required,key" form:"name"`
	// Match is zero where the rule takes everything.
	Match Match `json:"match,omitzero"`
	// Cluster, Clusters and Reply exclude each other; one of them is there.
	Cluster  string       `json:"cluster,omitempty" cfg:"one"`
	Clusters []Share      `json:"clusters,omitempty" cfg:"one" most:"100"`
	Reply    *DirectReply `json:"reply,omitempty" cfg:"one"`
	// Timeout is the deadline of a request whose frame gives none, and the most that a frame is granted.
	Timeout Duration `json:"timeout" default:"3s" min:"1ms" max:"24h"`
	Retry   Retry    `json:"retry"`
	// Idempotent says that a request may be run twice, so that it may be sent again after it was sent.
	Idempotent bool `json:"idempotent" default:"false"`
	// MaxRequests is the number of the rule's requests in flight, of all listeners together.
	MaxRequests Count `json:"max_requests" default:"none" min:"1" max:"10000000" cfg:"none"`
	// Priority says whose requests are refused first.
	Priority Priority `json:"priority" default:"normal" oneof:"high normal low"`
	// Headers changes the request each time that it is sent.
	Headers HeaderEdits `json:"headers,omitzero"`
	// Filters see the exchanges that the rule matched, in this order and behind those of the listener.
	Filters []Filter `json:"filters,omitempty" most:"16"`
}

// Priority is how much the requests of a rule matter when there is not room for all.
type Priority string

// The priorities.
const (
	// HighPriority is refused by the limits alone.
	HighPriority Priority = "high"
	// NormalPriority is refused when the process has hardly any memory left.
	NormalPriority Priority = "normal"
	// LowPriority is refused before that, and gets four fifths of a cluster's MaxRequests.
	LowPriority Priority = "low"
)

// Match is a condition on a request. All that it names must hold.
type Match struct {
	// Service is the name of the service, the header "service".
	Service Text `json:"service,omitzero"`
	// Method is the name of the method, the header MethodKey.
	Method Text `json:"method,omitzero"`
	// Header maps a header key to what its value must be.
	Header map[string]Text `json:"header,omitempty" most:"8"`
}

// The header keys that Match.Service and Match.Method stand for.
const (
	ServiceKey = "service"
	MethodKey  = "sofa_head_method_name"
)

// Share is a cluster's share of a rule's requests: its weight of the sum of weights.
type Share struct {
	Cluster string `json:"cluster" cfg:"required,key"`
	Weight  int    `json:"weight" cfg:"required" min:"1" max:"10000"`
}

// DirectReply is an answer that no endpoint gives.
type DirectReply struct {
	Status Status `json:"status" cfg:"required" oneof:"SUCCESS ERROR SERVER_EXCEPTION UNKNOWN SERVER_THREADPOOL_BUSY ERROR_COMM NO_PROCESSOR TIMEOUT CLIENT_SEND_ERROR CODEC_EXCEPTION CONNECTION_CLOSED SERVER_SERIAL_EXCEPTION SERVER_DESERIAL_EXCEPTION"`
}

// Status is the name of the outcome that a reply carries.
type Status string

// RetryOn is a reason for which a request is tried again.
type RetryOn string

// The reasons. In the first two the request was not sent, so that it cannot run twice; the others are for idempotent ones.
const (
	// ConnectFailure is a connection that could not be opened.
	ConnectFailure RetryOn = "connect-failure"
	// ResetBeforeSend is a connection that closed before it took the request.
	ResetBeforeSend RetryOn = "reset-before-send"
	// Reset is a connection that ended while the reply was awaited.
	Reset RetryOn = "reset"
	// Busy is the reply SERVER_THREADPOOL_BUSY.
	Busy RetryOn = "busy"
	// TryTimeout is a try that has taken PerTryTimeout.
	TryTimeout RetryOn = "timeout"
)

// Retry says when and how often a request is tried again.
type Retry struct {
	// Attempts counts all tries, so that 1 means no retry.
	Attempts int       `json:"attempts" default:"2" min:"1" max:"10"`
	On       []RetryOn `json:"on" default:"connect-failure, reset-before-send" oneof:"connect-failure reset-before-send reset busy timeout"`
	// PerTryTimeout bounds a try that another one may follow, from when the request is sent.
	PerTryTimeout Duration `json:"per_try_timeout" default:"none" min:"1ms" max:"24h" cfg:"none"`
	BackOff       BackOff  `json:"back_off"`
}

// BackOff is how long a request that was sent waits before it is sent again: anything up to Base, which doubles with each further
// try up to Max.
type BackOff struct {
	Base Duration `json:"base" default:"25ms" min:"1ms" max:"10m"`
	Max  Duration `json:"max" default:"250ms" min:"1ms" max:"10m"`
}

// RetryBudget bounds the requests of a cluster that are tried again after they were sent: a share of its requests in flight, and
// Min whatever that is.
type RetryBudget struct {
	Percent Percent `json:"percent" default:"20%" min:"0%" max:"100%"`
	Min     int     `json:"min" default:"3" min:"0" max:"1000000"`
}

// Balancer is a way to choose an endpoint.
type Balancer string

// The balancers.
const (
	// LeastRequest takes two endpoints at random and of them the one with fewer requests in flight.
	LeastRequest Balancer = "least-request"
	// RoundRobin takes the endpoints in turn, each as often as its weight says.
	RoundRobin Balancer = "round-robin"
	// Random draws an endpoint, as likely as its weight says.
	Random Balancer = "random"
	// Maglev gives requests of one key to one endpoint.
	Maglev Balancer = "maglev"
)

// Cluster is a set of endpoints that serve the same requests.
type Cluster struct {
	Name     string   `json:"name" cfg:"required,key" form:"name"`
	Protocol Protocol `json:"protocol" cfg:"required" oneof:"bolt"`
	Balancer Balancer `json:"balancer" default:"least-request" oneof:"least-request round-robin random maglev"`
	// HashHeader is the key of the header by whose value Maglev tells requests apart; empty, it is the client's address.
	HashHeader string `json:"hash_header,omitempty" when:"balancer=maglev" form:"key"`
	// SlowStart is how long the share of an endpoint grows that joins the cluster or is usable again.
	SlowStart Duration `json:"slow_start" default:"none" min:"100ms" max:"1h" cfg:"none"`
	// PanicThreshold is the share of usable endpoints below which unhealthy and ejected ones are used, too.
	PanicThreshold Percent `json:"panic_threshold" default:"50%" min:"0.01%" max:"100%" cfg:"none"`

	// ConnectionsPerEndpoint is the number of connections over which one endpoint's requests are spread.
	ConnectionsPerEndpoint int `json:"connections_per_endpoint" default:"1" min:"1" max:"1024"`
	// MaxConnections is the number of connections open at once, all endpoints together.
	MaxConnections int `json:"max_connections" default:"1024" min:"1" max:"1000000"`
	// MaxPending is the number of exchanges that wait for a connection.
	MaxPending int `json:"max_pending" default:"1024" min:"1" max:"1000000"`
	// MaxPendingBytes is the size of the exchanges that wait for a connection, in bytes.
	MaxPendingBytes Size `json:"max_pending_bytes" default:"64MiB" min:"64KiB" max:"64GiB"`
	// MaxRequests is the number of requests in flight.
	MaxRequests int         `json:"max_requests" default:"100000" min:"1" max:"10000000"`
	RetryBudget RetryBudget `json:"retry_budget"`
	// MaxRetryBytes is the size of the copies of requests that may be sent again, in bytes.
	MaxRetryBytes Size `json:"max_retry_bytes" default:"64MiB" min:"64KiB" max:"64GiB"`
	// ConnectTimeout bounds the opening of one connection.
	ConnectTimeout Duration `json:"connect_timeout" default:"1s" min:"1ms" max:"10m"`
	// HeartbeatInterval is how long a connection may be silent before a heartbeat is sent on it.
	HeartbeatInterval Duration `json:"heartbeat_interval" default:"30s" min:"10ms" max:"1h" cfg:"none"`
	// HeartbeatMisses is the number of unanswered heartbeats in a row that closes a connection.
	HeartbeatMisses int `json:"heartbeat_misses" default:"3" min:"1" max:"100"`
	// ReadTimeout closes a connection whose peer has begun a frame and sends no byte of it for so long.
	ReadTimeout Duration `json:"read_timeout" default:"10s" min:"10ms" max:"10m"`
	// WriteTimeout closes a connection whose peer takes no byte for so long.
	WriteTimeout Duration `json:"write_timeout" default:"10s" min:"10ms" max:"10m"`
	// MaxQueued is the length of a connection's write queue, in bytes.
	MaxQueued Size `json:"max_queued" default:"32MiB" min:"64KiB" max:"1GiB"`
	// VerifyCRC checks the checksum of each frame that has one.
	VerifyCRC bool `json:"verify_crc" default:"false"`

	// MaxAge is when a connection is replaced by a new one, give or take a tenth.
	MaxAge Duration `json:"max_age" default:"none" min:"1s" max:"168h" cfg:"none"`
	// MaxUploads is the number of requests that are passed on in pieces to one endpoint at once.
	MaxUploads int `json:"max_uploads" default:"16" min:"1" max:"1024"`

	// HealthCheck says how its endpoints are asked whether they work; nil means that they are not.
	HealthCheck *HealthCheck `json:"health_check,omitempty"`
	// OutlierDetection leaves out endpoints that fail where others do not; nil means that none is left out for that.
	OutlierDetection *OutlierDetection `json:"outlier_detection,omitempty"`

	// Endpoints and Discovery exclude each other; one of them is there.
	Endpoints []Endpoint `json:"endpoints,omitempty" cfg:"one"`
	Discovery *Discovery `json:"discovery,omitempty" cfg:"one"`
}

// CheckType is what an endpoint is asked.
type CheckType string

// The types of checks.
const (
	// CheckHeartbeat is a heartbeat, which is to be answered.
	CheckHeartbeat CheckType = "heartbeat"
	// CheckTCP is a connection, which is to come about.
	CheckTCP CheckType = "tcp"
)

// HealthCheck says how endpoints are asked whether they work, each time on a connection made for it.
type HealthCheck struct {
	Type CheckType `json:"type" default:"heartbeat" oneof:"heartbeat tcp"`
	// Interval is the time from one check of an endpoint to the next, give or take a tenth.
	Interval Duration `json:"interval" default:"5s" min:"100ms" max:"1h"`
	// Timeout bounds a whole check. It is at most Interval.
	Timeout Duration `json:"timeout" default:"1s" min:"10ms" max:"1m"`
	// UnhealthyThreshold is the number of failures in a row that make an endpoint unhealthy.
	UnhealthyThreshold int `json:"unhealthy_threshold" default:"3" min:"1" max:"100"`
	// HealthyThreshold is the number of successes in a row that end that.
	HealthyThreshold int `json:"healthy_threshold" default:"2" min:"1" max:"100"`
}

// Endpoint is one address of a cluster.
type Endpoint struct {
	Address Address `json:"address" cfg:"required,key" form:"dial"`
	// Weight is the endpoint's share of the requests, relative to the others of its cluster.
	Weight int `json:"weight" default:"100" min:"1" max:"1000"`
	// Drain takes the endpoint out of use: it gets no new requests, and its connections close when those in flight have ended.
	Drain bool `json:"drain" default:"false"`
}

// Admin is the REST API's doors: a unix socket, or one over the network, or both.
type Admin struct {
	// Address is a unix socket; empty, there is none.
	Address Address `json:"address,omitempty" cfg:"some" form:"unix"`
	// Mode is the mode of the unix socket's file, and Group its group, by name or number. Empty is 0660,
	// and the group of the process.
	Mode  string `json:"mode,omitempty" form:"mode"`
	Group string `json:"group,omitempty" form:"name"`
	// Pprof serves profiles of the runtime at /debug/pprof/.
	Pprof bool `json:"pprof" default:"false"`
	// TCP is the door over the network; nil means that there is none.
	TCP *AdminTCP `json:"tcp,omitempty" cfg:"some"`
}

// AdminTCP is the door of the REST API over the network. With neither TokensFile nor a ClientCAFile it only reads.
type AdminTCP struct {
	// Address is a loopback address, unless a credential is asked for, over TLS.
	Address Address `json:"address" cfg:"required" form:"tcp"`
	TLS     *TLS    `json:"tls,omitempty"`
	// TokensFile lists those who may come, by the hashes of their tokens.
	TokensFile string `json:"tokens_file,omitempty" form:"file"`
}

// TLS is what a door has to show, and whom it believes.
type TLS struct {
	CertFile string `json:"cert_file" cfg:"required" form:"file"`
	KeyFile  string `json:"key_file" cfg:"required" form:"file"`
	// ClientCAFile has the authorities whose certificates let a client in; empty, none does.
	ClientCAFile string `json:"client_ca_file,omitempty" form:"file"`
}

// ReadOnly says that the door asks nobody who he is, so that nobody may change anything.
func (t *AdminTCP) ReadOnly() bool {
	return t.TokensFile == "" && (t.TLS == nil || t.TLS.ClientCAFile == "")
}

// FileMode is Mode as a number, 0 where it is empty.
func (a *Admin) FileMode() fs.FileMode {
	if a.Mode == "" {
		return 0
	}
	mode, err := strconv.ParseUint(a.Mode, 8, 32)
	if err != nil {
		panic("config: a mode that was not checked: " + a.Mode)
	}
	return fs.FileMode(mode)
}

// Metrics is the read-only door for scrapers.
type Metrics struct {
	Address Address `json:"address" cfg:"required" form:"listen"`
}

// Overflow says what happens to an exchange that needs a worker when all are busy.
type Overflow string

// The overflows.
const (
	// OverflowQueue lets it wait, in a queue that has a bound.
	OverflowQueue Overflow = "queue"
	// OverflowBusy answers it "busy".
	OverflowBusy Overflow = "busy"
)

// Workers bounds the goroutines that carry the exchanges that may block.
type Workers struct {
	// Max is the number of workers; one that waits for a reply counts. Nil means 256 for each CPU, whose
	// number only the running process knows.
	Max *int `json:"max,omitempty" min:"1" max:"65536"`
	// Queue is the number of exchanges that wait for a worker, with OverflowQueue.
	Queue    int      `json:"queue" default:"1024" min:"1" max:"1000000"`
	Overflow Overflow `json:"overflow" default:"queue" oneof:"queue busy"`
}
