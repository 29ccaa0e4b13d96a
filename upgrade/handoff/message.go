// Package handoff is what one generation says to the next: the messages of a hand-over, how they are written, and the
// socket over which they and the descriptors go.
//
// It is a wire format and a transport. It decides nothing: when which message is due is package upgrade's, what the
// state means is the road's. docs/wire/handover.md describes it.
package handoff

// Version is the version of the format that this release writes, and MinVersion the oldest that it reads. Within a version,
// fields are added and never change their meaning: who does not know one passes it over, who misses one takes the zero.
const (
	Version    = 1
	MinVersion = 1
)

// Kind says what a message is.
type Kind uint8

// The kinds, and who sends them. The numbers are the format's.
const (
	KindOffer     Kind = 1  // old: who it is and which versions it writes
	KindListeners Kind = 2  // old: listeners, a descriptor each
	KindWarm      Kind = 3  // new: its configuration is built and bound, and this is its process
	KindConns     Kind = 4  // old: connections, a descriptor each; as many messages as it takes
	KindExchanges Kind = 5  // old: exchanges that no connection has, and names; as many messages as it takes
	KindEnd       Kind = 6  // old: that was all of the state, and so much it was
	KindPrepared  Kind = 7  // new: it has rebuilt so much, and all that can fail is done
	KindCommit    Kind = 8  // old: it is yours
	KindStarted   Kind = 9  // new: it is mine, the first gate opens now
	KindAbort     Kind = 10 // old: leave
	KindFailed    Kind = 11 // new: it cannot be, at which step and why
	KindCounters  Kind = 12 // old: what it has counted, behind STARTED
	KindFollow    Kind = 13 // old: a signal that came to the wrong process, behind STARTED
)

// Message is one of the structs below.
type Message interface{ kind() Kind }

// Offer is the first message of all.
type Offer struct {
	Min, Max   uint   // versions of the format
	Release    string // of the program
	PID        int
	Upgrade    uint64 // its number, counted from 1 along the chain of generations
	Generation uint64 // of the process that offers, counted from 1
}

// Listener is a listening socket. Address is as configured, so that the next configuration can ask for it.
type Listener struct {
	Name, Network, Address string
	Door                   bool // of HTTP, not of the road
}

// Listeners are listening sockets; the descriptors of the message are theirs, in the same order.
type Listeners struct{ List []Listener }

// Warm says that the new process waits for the state.
type Warm struct {
	Version uint // that it reads: at most Offer.Max
	Release string
	PID     int
}

// Bytes is what of a stream is in memory.
type Bytes struct {
	Unread   []byte // read from the kernel and not used yet
	Unsent   []Run  // not taken by the kernel yet
	LastRead int64
	RX, TX   uint64 // bytes got from the kernel and taken by it, the life of the connection long
}

// Run is a run of whole frames of a write queue, of which the kernel took the first Sent bytes.
type Run struct {
	Frames []byte
	Sent   int
}

// Downstream is a client connection. Times are nanoseconds of CLOCK_MONOTONIC, here and below.
type Downstream struct {
	Ref       uint32 // by which exchanges name it, unique in a hand-over
	Listener  string
	Client    string // ADDRESS:PORT, empty for a unix socket
	Protocol  string // empty until it is detected
	Detecting int64  // when its first byte came while the protocol is not known; else 0
	Frames    uint64 // whole frames seen
	Closing   string // it closes, for this reason, when what is unsent is sent; else empty
	Asked     bool   // its connection filters have let it in
	Bytes     Bytes
	Upload    *Upload
}

// Upload is a request that is passed on in pieces and has not ended.
type Upload struct {
	Head     []byte // as it came
	Edited   []byte // as filters have made it; empty: unchanged
	Left     uint64 // bytes behind the head that are still to come
	Upstream uint32 // the Ref of the connection that is leased to it; 0: none, or none any more
	ID       uint32 // under which it was sent there; 0: one-way
	Rest     Rest
	Exchange Exchange // while no slot has it
	Ended    bool     // nobody wants what is still to come
	Broken   bool
}

// Rest is the codec's state in the middle of a frame.
type Rest struct {
	Left, Checksum int
	Sums           [2]uint32
	Seen           [4]byte
}

// Upstream is a server connection.
type Upstream struct {
	Ref               uint32
	Cluster, Endpoint string
	Protocol          string
	Pool              uint8  // 0 small frames, 1 large frames, 2 uploads
	LastID            uint32 // the id given out last
	Slots             []byte // see AppendSlot
	Proved, Unasked   bool
	Draining          string // why it drains, empty if it does not
	RetireAt          int64
	LastBeat          int64
	Missed            int
	LeasedAt          int64
	LeaseBy           int64
	Leased            bool
	Bytes             Bytes
}

// Conns are connections; the descriptors of the message are theirs, downstreams first.
type Conns struct {
	Downstreams []Downstream
	Upstreams   []Upstream
}

// Exchange is one request and its reply. Which fields are set depends on its form.
type Exchange struct {
	Downstream uint32 // Ref; 0: its client is gone
	Listener   string // where it came in, where Downstream is 0
	Tag        uint64 // the codec's
	ID         uint32 // the client's
	Timeout    int32
	Oneway     bool
	Start      int64
	Deadline   int64
	Attempts   uint8
	Routed     bool // a rule has counted it
	Target     uint32
	Label      uint32
	Record     *Record
	Frame      []byte // of the request, or of the held reply
	// Of a held reply.
	Held       bool
	Endpoint   string
	UpstreamID uint32
}

// Target names a rule's target as the old process's configuration has it.
type Target struct{ Listener, Route, Cluster string }

// Label is what a request asks for, as its client names it.
type Label struct{ Service, Method string }

// Record is what the access log wants to know of an exchange.
type Record struct {
	Method, Service, Trace, RPC string
	Request                     int
	Sent                        int64
}

// Endpoint is what is known of an endpoint.
type Endpoint struct {
	Cluster, Address string
	Failures         int
	Until            int64 // the end of the back-off
	Trusted, Drained bool
	Unproved         int
	RX, TX           uint64 // bytes of connections that are gone
}

// ListenerState is what is known of a listener beside its socket.
type ListenerState struct {
	Name     string
	Protocol string
	MaxFrame int
	RX, TX   uint64 // bytes of connections that are gone
}

// Exchanges are exchanges that no connection's slots have, and what connections and slots refer to.
type Exchanges struct {
	Targets   []Target // from the index FirstTarget on; indexes count from 1, 0 names none
	Labels    []Label
	Records   []Record
	Endpoints []Endpoint
	Listeners []ListenerState
	List      []Exchange
}

// Counts are how much there is of everything.
type Counts struct {
	Downstreams, Upstreams uint64
	Streams                uint64 // exchanges in slots
	Requests               uint64 // unsent exchanges
	Replies                uint64 // held replies
	Uploads                uint64
	Bytes                  uint64 // unread and unsent
}

// End ends the state.
type End struct{ Counts Counts }

// Prepared answers End.
type Prepared struct{ Counts Counts }

// Commit gives the state away.
type Commit struct {
	Again bool // another upgrade was asked for meanwhile
}

// Started takes it.
type Started struct{}

// Abort takes it back.
type Abort struct{ Reason string }

// Failed says what could not be done.
type Failed struct{ Step, Reason string }

// Counters is what the old process has counted. Series are opaque here.
type Counters struct {
	Series   []Series
	Failures []byte // the ring of the last failures, as the road writes it
	Total    uint64 // failures in all
}

// Series is one metric: a counter's value, or a histogram's buckets and sum.
type Series struct {
	Name    string
	Help    string
	Labels  []string // name, value, name, value ...
	Value   uint64
	Buckets []uint64
	Sum     uint64
}

// Follow passes on what a signal asked of the old process, which does not own the state any more.
type Follow struct {
	Again bool // upgrade
	Stop  bool // drain and end
}

func (*Offer) kind() Kind     { return KindOffer }
func (*Listeners) kind() Kind { return KindListeners }
func (*Warm) kind() Kind      { return KindWarm }
func (*Conns) kind() Kind     { return KindConns }
func (*Exchanges) kind() Kind { return KindExchanges }
func (*End) kind() Kind       { return KindEnd }
func (*Prepared) kind() Kind  { return KindPrepared }
func (*Commit) kind() Kind    { return KindCommit }
func (*Started) kind() Kind   { return KindStarted }
func (*Abort) kind() Kind     { return KindAbort }
func (*Failed) kind() Kind    { return KindFailed }
func (*Counters) kind() Kind  { return KindCounters }
func (*Follow) kind() Kind    { return KindFollow }
