package forwarder

import (
	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/health"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// The reasons of local replies, closes, rejections and drops: metric labels and log fields. docs/limits.md
// lists them all; filters and codecs add their own.
const (
	// Local replies.
	ReasonNoRoute          = "no-route"           // no rule matches
	ReasonUnknownCommand   = "unknown-command"    // a request frame whose command the protocol does not define
	ReasonMaxStreams       = "max-streams"        // the connection has too many requests in flight
	ReasonMaxRequests      = "max-requests"       // the cluster has too many requests in flight
	ReasonLowMaxRequests   = "low-max-requests"   // it has so many that what has low priority gets no more
	ReasonRouteMaxRequests = "route-max-requests" // the rule has too many requests in flight
	ReasonOverload         = "overload"           // the process has too little memory left for requests of this priority
	ReasonMaxPending       = "max-pending"        // too many exchanges, or bytes of them, wait for a connection
	ReasonMaxConnections   = "max-connections"    // the listener's, or the cluster's connections are used up
	ReasonNoEndpoint       = "no-endpoint"        // every endpoint is passed over, unhealthy, or drains
	ReasonConnectFailure   = "connect-failure"    // the endpoint could not be connected
	ReasonUpstreamClosed   = "upstream-closed"    // the server closed the connection with the request in flight
	ReasonUpstreamBroken   = "upstream-broken"    // Relevo closed it with the request in flight, for a reason of its own
	ReasonResetBeforeSend  = "reset-before-send"  // the connection broke before the request was sent
	ReasonUpstreamBusy     = "upstream-busy"      // the server was busy, and there is no other one for a further try
	ReasonTryTimeout       = "try-timeout"        // the time of a try passed while a reply was awaited, and there was no further try
	ReasonTimeout          = "timeout"            // the deadline passed while a reply was awaited
	ReasonPendingTimeout   = "pending-timeout"    // the deadline passed while a connection was awaited
	ReasonDraining         = "draining"           // the process is stopping
	ReasonPanic            = "panic"              // a defect of Relevo or of a filter, recovered
	ReasonMaxWorkers       = "max-workers"        // every worker is busy and the queue for one is full
	ReasonWorkerTimeout    = "worker-timeout"     // the deadline passed while a worker was awaited
	ReasonFilterTimeout    = "filter-timeout"     // the deadline passed while a filter blocked
	ReasonDirectReply      = "direct-reply"       // the rule answers by itself
	ReasonOtherProtocol    = "other-protocol"     // the rule leads to a cluster that does not speak the client's protocol

	// Closes, beside those of package conn and the decode errors of package wire.
	ReasonStopping         = "stopping"          // the process ended; also of a local reply, which hardly anybody gets
	ReasonBufferPressure   = "buffer-pressure"   // max_buffered was reached and this one held most
	ReasonHeartbeatTimeout = "heartbeat-timeout" // an upstream did not answer heartbeats
	ReasonGoAway           = "goaway"            // an upstream asked for it, and its last stream has ended
	ReasonUnknownProtocol  = "unknown-protocol"  // the first bytes are of no protocol that the listener speaks
	ReasonDetectTimeout    = "detect-timeout"    // the first bytes did not tell the protocol in time
	ReasonUploadBroken     = "upload-broken"     // a request that went out in pieces broke off, or came too slowly
	ReasonMaxAge           = "max-age"           // a server connection was replaced because of its age
	ReasonEndpointDrained  = "endpoint-drained"  // the endpoint was drained, and the connection's last stream has ended
	ReasonProbeTimeout     = "probe-timeout"     // an endpoint that had failed did not answer on the connection made to ask it
	ReasonAdminClosed      = "admin-closed"      // somebody asked for it at the admin door
	ReasonDrained          = "drained"           // the last request in flight ended while draining

	// Why a request is not tried again, or no copy of it is kept for that, beside buffer-pressure.
	ReasonRetryBudget   = "retry-budget"    // the cluster has too many retries under way
	ReasonMaxRetryBytes = "max-retry-bytes" // the cluster has too many bytes of copies

	// Drops: a frame, or an exchange's outcome, that nobody is told of.
	ReasonNoStream        = "reply-without-stream" // late, a duplicate, a one-way's, or of an id never given
	ReasonDownstreamGone  = "downstream-gone"      // the client closed before its reply came
	ReasonUnexpectedFrame = "unexpected-frame"     // a reply from a client, an ack nobody waits for
	ReasonServerPush      = "server-push"          // a server's request to its client, answered NO_PROCESSOR
	ReasonOneway          = "oneway-refused"       // a one-way request that could not be forwarded
)

// advice is what to look at when exchanges end for a reason; it stands in the warning that is logged.
var advice = map[string]string{
	ReasonNoRoute:              "no rule of the route table matches: compare the service with the rules",
	ReasonUnknownCommand:       "the client speaks an extension of the protocol that is not forwarded",
	ReasonMaxStreams:           "the listener's max_streams, a client that never waits, or a route that leads back to its own listener",
	ReasonMaxRequests:          "the cluster's max_requests, or servers that have become slow",
	ReasonLowMaxRequests:       "the cluster's max_requests, of which four fifths are taken, or servers that have become slow",
	ReasonRouteMaxRequests:     "the rule's max_requests, or servers that have become slow",
	ReasonOverload:             "the process's memory: see overload in /v1/status, and docs/overload.md",
	ReasonMaxPending:           "the cluster's max_pending and max_pending_bytes, or endpoints that cannot be connected",
	ReasonMaxConnections:       "the cluster's max_connections",
	ReasonNoEndpoint:           "relevo endpoints says what is against each: are the servers up, are the addresses right, do they speak the protocol? where discovery has found none, relevo clusters",
	ReasonProbeTimeout:         "is the server stuck, does it answer heartbeats? heartbeat_interval: none asks for none",
	ReasonConnectFailure:       "is the server up, is the endpoint's address right, does a firewall stand between?",
	ReasonUpstreamClosed:       "the server closed the connection with requests in flight: look at its log",
	ReasonUpstreamBroken:       "the server connection was closed here, see the endpoint's closes by reason: it sent no frames, or was silent or stuck",
	ReasonResetBeforeSend:      "the server closed the connection; retries were used up",
	ReasonUpstreamBusy:         "the server was busy, and there is no other endpoint: the servers' load",
	ReasonTryTimeout:           "the server did not answer within the rule's per_try_timeout: its load, the cluster's retry_budget",
	ReasonTimeout:              "the server did not answer in time: its load, or the route's timeout",
	ReasonPendingTimeout:       "no connection in time: the endpoint's reachability, or connect_timeout",
	ReasonDraining:             "this process is stopping",
	ReasonPanic:                "a defect: please report it with the stack that was logged",
	ReasonMaxWorkers:           "workers.max and workers.queue, filters that block for long, or servers that have become slow",
	ReasonWorkerTimeout:        "workers.max: every worker was busy for as long as the request may take",
	ReasonFilterTimeout:        "a filter that blocks for longer than the request may take",
	ReasonOtherProtocol:        "the rule's cluster does not speak what the client speaks",
	ReasonUnknownProtocol:      "what connects here speaks none of the listener's protocols",
	ReasonDetectTimeout:        "what connects here sends too little to tell its protocol",
	wire.ReasonBadHeaderBlock:  "the client sends a malformed header block",
	wire.ReasonFrameTooLarge:   "the listener's max_frame",
	wire.ReasonHeadersTooLarge: "the listener's max_header",
	wire.ReasonBadProtocol:     "what connects here does not speak the listener's protocol",
	wire.ReasonBadType:         "what connects here does not speak the listener's protocol",
	wire.ReasonBadChecksum:     "bytes were damaged on the way, or the client computes another checksum",
	ReasonBufferPressure:       "max_buffered, or peers that do not read or stop in the middle of frames",
	conn.ReasonQueueFull:       "the client does not read its replies",

	health.ReasonCannotConnect:  "is the server up, is the endpoint's address right?",
	health.ReasonConnectTimeout: "is the server's host up, does a firewall stand between, is the server stuck with its queue full?",
	health.ReasonNoAnswer:       "is the server stuck, does it answer heartbeats? health_check type tcp asks for none",
	health.ReasonClosed:         "does the server speak the cluster's protocol, does it take connections from here?",
	health.ReasonBadAnswer:      "the server does not speak the cluster's protocol",
	health.ReasonUnresolved:     "is the endpoint's name right, does the name server answer?",
	health.ReasonPostponed:      "this process's descriptors, ports and memory",
}
