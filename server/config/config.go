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
	Log         Log   `json:"log"`
}

// Protocol is what is spoken on a connection.
type Protocol string

// Bolt is both versions of the protocol.
const Bolt Protocol = "bolt"

// Listener is one address on which downstream connections are accepted.
type Listener struct {
	Name     string   `json:"name" cfg:"required" form:"name"`
	Address  Address  `json:"address" cfg:"required" form:"listen"`
	Protocol Protocol `json:"protocol" cfg:"required" oneof:"bolt"`
	// Routes names the route table. It may be left out of a file that has exactly one.
	Routes string `json:"routes"`

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
	// IdleTimeout closes a connection on which nothing was read or written for so long.
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
	Name  string `json:"name" cfg:"required" form:"name"`
	Rules []Rule `json:"rules" cfg:"required"`
}

// Rule leads the requests that it matches to a cluster.
type Rule struct {
	// Name is rule-N where the file gives none, N being the rule's place counted from 1.
	Name string `json:"name" cfg:"required" form:"name"`
	// Match is zero where the rule takes everything.
	Match   Match  `json:"match,omitzero"`
	Cluster string `json:"cluster" cfg:"required"`
	// Timeout is the deadline of a request whose frame gives none, and the most that a frame is granted.
	Timeout Duration `json:"timeout" default:"3s" min:"1ms" max:"24h"`
	Retry   Retry    `json:"retry"`
}

// Match is a condition on a request. All that it names must hold.
type Match struct {
	// Service is compared with the whole name; empty matches every one.
	Service string `json:"service,omitempty"`
	// Header maps a header key to the exact value that it must have.
	Header map[string]string `json:"header,omitempty"`
}

// RetryOn is a reason for which a request is tried again.
type RetryOn string

// The reasons. In both the request was not sent, so that it cannot run twice.
const (
	// ConnectFailure is a connection that could not be opened.
	ConnectFailure RetryOn = "connect-failure"
	// ResetBeforeSend is a connection that closed before it took the request.
	ResetBeforeSend RetryOn = "reset-before-send"
)

// Retry says when and how often a request is tried again.
type Retry struct {
	// Attempts counts all tries, so that 1 means no retry.
	Attempts int       `json:"attempts" default:"2" min:"1" max:"10"`
	On       []RetryOn `json:"on" default:"connect-failure, reset-before-send" oneof:"connect-failure reset-before-send"`
}

// Balancer is a way to choose an endpoint.
type Balancer string

// The balancers.
const (
	// LeastRequest takes two endpoints at random and of them the one with fewer requests in flight.
	LeastRequest Balancer = "least-request"
	// RoundRobin takes the endpoints in turn, each as often as its weight says.
	RoundRobin Balancer = "round-robin"
)

// Cluster is a set of endpoints that serve the same requests.
type Cluster struct {
	Name     string   `json:"name" cfg:"required" form:"name"`
	Protocol Protocol `json:"protocol" cfg:"required" oneof:"bolt"`
	Balancer Balancer `json:"balancer" default:"least-request" oneof:"least-request round-robin"`

	// ConnectionsPerEndpoint is the number of connections over which one endpoint's requests are spread.
	ConnectionsPerEndpoint int `json:"connections_per_endpoint" default:"1" min:"1" max:"1024"`
	// MaxConnections is the number of connections open at once, all endpoints together.
	MaxConnections int `json:"max_connections" default:"1024" min:"1" max:"1000000"`
	// MaxPending is the number of exchanges that wait for a connection.
	MaxPending int `json:"max_pending" default:"1024" min:"1" max:"1000000"`
	// MaxPendingBytes is the size of the exchanges that wait for a connection, in bytes.
	MaxPendingBytes Size `json:"max_pending_bytes" default:"64MiB" min:"64KiB" max:"64GiB"`
	// MaxRequests is the number of requests in flight.
	MaxRequests int `json:"max_requests" default:"100000" min:"1" max:"10000000"`
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

	Endpoints []Endpoint `json:"endpoints" cfg:"required"`
}

// Endpoint is one address of a cluster.
type Endpoint struct {
	Address Address `json:"address" cfg:"required" form:"dial"`
	// Weight is the endpoint's share of the requests, relative to the others of its cluster.
	Weight int `json:"weight" default:"100" min:"1" max:"1000"`
}

// Admin is the door of the REST API.
type Admin struct {
	// Address is a unix socket or a loopback address.
	Address Address `json:"address" cfg:"required" form:"loopback"`
}

// Metrics is the read-only door for scrapers.
type Metrics struct {
	Address Address `json:"address" cfg:"required" form:"listen"`
}

// LogLevel is the least severe level that is logged.
type LogLevel string

// The levels, from the most to the least talkative.
const (
	LevelDebug LogLevel = "debug"
	LevelInfo  LogLevel = "info"
	LevelWarn  LogLevel = "warn"
	LevelError LogLevel = "error"
)

// LogFormat is the form of a log line.
type LogFormat string

// The formats.
const (
	FormatJSON LogFormat = "json"
	FormatText LogFormat = "text"
)

// Log says what is logged, to standard error, and in which form.
type Log struct {
	Level  LogLevel  `json:"level" default:"info" oneof:"debug info warn error"`
	Format LogFormat `json:"format" default:"json" oneof:"json text"`
}
