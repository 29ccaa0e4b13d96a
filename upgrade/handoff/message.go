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
	KindFollow    Kind = 13 // both: a signal that the other one has to know of, behind STARTED
)

// Message is one of the structs below.
type Message interface{ kind() Kind }

// Offer is the first message of all.
type Offer struct {
	Min        uint   `cbor:"1,keyasint,omitempty"` // versions of the format
	Max        uint   `cbor:"2,keyasint,omitempty"`
	Release    string `cbor:"3,keyasint,omitempty"` // of the program
	PID        int    `cbor:"4,keyasint,omitempty"`
	Upgrade    uint64 `cbor:"5,keyasint,omitempty"` // its number, counted from 1 along the chain of generations
	Generation uint64 `cbor:"6,keyasint,omitempty"` // of the process that offers, counted from 1

	Descriptors int `cbor:"7,keyasint,omitempty"` // that it has open, so many about will come
}

// Listener is a listening socket. Address is as configured, so that the next configuration can ask for it.
type Listener struct {
	Name    string `cbor:"1,keyasint,omitempty"`
	Network string `cbor:"2,keyasint,omitempty"`
	Address string `cbor:"3,keyasint,omitempty"`
	Door    bool   `cbor:"4,keyasint,omitempty"` // of HTTP, not of the road
	Kept    bool   `cbor:"5,keyasint,omitempty"` // systemd listens there for itself: a socket's file is not ours to remove
}

// Listeners are listening sockets; the descriptors of the message are theirs, in the same order. Where one message cannot take
// all of them there are several, and all but the last one have nothing but a List and More.
type Listeners struct {
	List      []Listener `cbor:"1,keyasint,omitempty"`
	Revisions []byte     `cbor:"2,keyasint,omitempty"` // of the configuration, as the program writes them; none where both read them from a folder
	LogLevel  []byte     `cbor:"3,keyasint,omitempty"` // that somebody has asked for, as the program writes it; none where the configured one holds
	Discovery []byte     `cbor:"4,keyasint,omitempty"` // the endpoints that were found, as the program writes them; none where all are configured
	More      bool       `cbor:"5,keyasint,omitempty"` // another LISTENERS follows
}

// Warm says that the new process waits for the state.
type Warm struct {
	Version uint   `cbor:"1,keyasint,omitempty"` // that it reads: at most Offer.Max
	Release string `cbor:"2,keyasint,omitempty"`
	PID     int    `cbor:"3,keyasint,omitempty"`
}

// Bytes is what of a stream is in memory.
type Bytes struct {
	Unread   []byte `cbor:"1,keyasint,omitempty"` // read from the kernel and not used yet
	Unsent   []Run  `cbor:"2,keyasint,omitempty"` // not taken by the kernel yet
	LastRead int64  `cbor:"3,keyasint,omitempty"`
	RX       uint64 `cbor:"4,keyasint,omitempty"` // bytes got from the kernel and taken by it, the life of the connection long
	TX       uint64 `cbor:"5,keyasint,omitempty"`
}

// Run is a run of whole frames of a write queue, of which the kernel took the first Sent bytes.
type Run struct {
	Frames []byte `cbor:"1,keyasint,omitempty"`
	Sent   int    `cbor:"2,keyasint,omitempty"`
}

// Downstream is a client connection. Times are nanoseconds of CLOCK_MONOTONIC, here and below.
type Downstream struct {
	Ref       uint32  `cbor:"1,keyasint,omitempty"` // by which exchanges name it, unique in a hand-over
	Listener  string  `cbor:"2,keyasint,omitempty"`
	Client    string  `cbor:"3,keyasint,omitempty"` // ADDRESS:PORT, empty for a unix socket
	Protocol  string  `cbor:"4,keyasint,omitempty"` // empty until it is detected
	Detecting int64   `cbor:"5,keyasint,omitempty"` // when its first byte came while the protocol is not known; else 0
	Frames    uint64  `cbor:"6,keyasint,omitempty"` // whole frames seen
	Closing   string  `cbor:"7,keyasint,omitempty"` // it closes, for this reason, when what is unsent is sent; else empty
	Asked     bool    `cbor:"8,keyasint,omitempty"` // its connection filters have let it in
	Bytes     Bytes   `cbor:"9,keyasint,omitzero"`
	Upload    *Upload `cbor:"10,keyasint,omitempty"`
	Opened    int64   `cbor:"11,keyasint,omitempty"` // when it was accepted
	ID        uint64  `cbor:"12,keyasint,omitempty"` // its number, of no other connection of the chain
}

// Upload is a request that is passed on in pieces and has not ended.
type Upload struct {
	Head     []byte   `cbor:"1,keyasint,omitempty"` // as it came
	Edited   []byte   `cbor:"2,keyasint,omitempty"` // as filters have made it; empty: unchanged
	Left     uint64   `cbor:"3,keyasint,omitempty"` // bytes behind the head that are still to come
	Upstream uint32   `cbor:"4,keyasint,omitempty"` // the Ref of the connection that is leased to it; 0: none, or none any more
	ID       uint32   `cbor:"5,keyasint,omitempty"` // under which it was sent there; 0: one-way
	Rest     Rest     `cbor:"6,keyasint,omitzero"`
	Exchange Exchange `cbor:"7,keyasint,omitzero"` // while no slot has it
}

// Rest is the codec's state in the middle of a frame.
type Rest struct {
	Left     int       `cbor:"1,keyasint,omitempty"`
	Checksum int       `cbor:"2,keyasint,omitempty"`
	Sums     [2]uint32 `cbor:"3,keyasint,omitzero"`
	Seen     [4]byte   `cbor:"4,keyasint,omitzero"`
}

// Upstream is a server connection.
type Upstream struct {
	Ref      uint32 `cbor:"1,keyasint,omitempty"`
	Cluster  string `cbor:"2,keyasint,omitempty"`
	Endpoint string `cbor:"3,keyasint,omitempty"`
	Protocol string `cbor:"4,keyasint,omitempty"`
	Pool     uint8  `cbor:"5,keyasint,omitempty"` // 0 small frames, 1 large frames, 2 uploads
	LastID   uint32 `cbor:"6,keyasint,omitempty"` // the id given out last
	Slots    []byte `cbor:"7,keyasint,omitempty"` // see AppendSlot
	Proved   bool   `cbor:"8,keyasint,omitempty"`
	Unasked  bool   `cbor:"9,keyasint,omitempty"`
	Draining string `cbor:"10,keyasint,omitempty"` // why it drains, empty if it does not
	RetireAt int64  `cbor:"11,keyasint,omitempty"`
	LastBeat int64  `cbor:"12,keyasint,omitempty"`
	Missed   int    `cbor:"13,keyasint,omitempty"`
	LeasedAt int64  `cbor:"14,keyasint,omitempty"`
	LeaseBy  int64  `cbor:"15,keyasint,omitempty"`
	Leased   bool   `cbor:"16,keyasint,omitempty"`
	Bytes    Bytes  `cbor:"17,keyasint,omitzero"`
	Opened   int64  `cbor:"18,keyasint,omitempty"` // when it was dialled
	ID       uint64 `cbor:"19,keyasint,omitempty"` // its number, as that of a Downstream
	Kept     []Kept `cbor:"20,keyasint,omitempty"` // of some of the slots
}

// Conns are connections; the descriptors of the message are theirs, downstreams first.
type Conns struct {
	Downstreams []Downstream `cbor:"1,keyasint,omitempty"`
	Upstreams   []Upstream   `cbor:"2,keyasint,omitempty"`
}

// Exchange is one request and its reply. Which fields are set depends on its form.
type Exchange struct {
	Downstream uint32  `cbor:"1,keyasint,omitempty"` // Ref; 0: its client is gone
	Listener   string  `cbor:"2,keyasint,omitempty"` // where it came in, where Downstream is 0
	Tag        uint64  `cbor:"3,keyasint,omitempty"` // the codec's
	ID         uint32  `cbor:"4,keyasint,omitempty"` // the client's
	Timeout    int32   `cbor:"5,keyasint,omitempty"`
	Oneway     bool    `cbor:"6,keyasint,omitempty"`
	Start      int64   `cbor:"7,keyasint,omitempty"`
	Deadline   int64   `cbor:"8,keyasint,omitempty"`
	Attempts   uint8   `cbor:"9,keyasint,omitempty"`
	Target     uint32  `cbor:"10,keyasint,omitempty"` // 0: no rule has matched it yet
	Label      uint32  `cbor:"11,keyasint,omitempty"`
	Record     *Record `cbor:"12,keyasint,omitempty"`
	Frame      []byte  `cbor:"13,keyasint,omitempty"` // of the request, or of the held reply
	// Of a held reply.
	Held       bool   `cbor:"14,keyasint,omitempty"`
	Endpoint   string `cbor:"15,keyasint,omitempty"`
	UpstreamID uint32 `cbor:"16,keyasint,omitempty"`

	Retry bool `cbor:"17,keyasint,omitempty"` // it is one of the cluster's retries
}

// Kept is what is kept of an exchange beside its slot, of which it has the ID.
type Kept struct {
	ID    uint32 `cbor:"1,keyasint,omitempty"`
	Copy  []byte `cbor:"2,keyasint,omitempty"` // the frame of its request, which may be sent again
	Until int64  `cbor:"3,keyasint,omitempty"` // when its try is over; 0: with the slot's deadline
	Retry bool   `cbor:"4,keyasint,omitempty"` // as in Exchange
}

// Target names a rule's target as the old process's configuration has it.
type Target struct {
	Listener string `cbor:"1,keyasint,omitempty"`
	Route    string `cbor:"2,keyasint,omitempty"`
	Cluster  string `cbor:"3,keyasint,omitempty"`
}

// Label is what a request asks for, as its client names it.
type Label struct {
	Service string `cbor:"1,keyasint,omitempty"`
	Method  string `cbor:"2,keyasint,omitempty"`
}

// Record is what the access log wants to know of an exchange.
type Record struct {
	Method  string `cbor:"1,keyasint,omitempty"`
	Service string `cbor:"2,keyasint,omitempty"`
	Trace   string `cbor:"3,keyasint,omitempty"`
	RPC     string `cbor:"4,keyasint,omitempty"`
	Request int    `cbor:"5,keyasint,omitempty"`
	Sent    int64  `cbor:"6,keyasint,omitempty"`
}

// Endpoint is what is known of an endpoint.
type Endpoint struct {
	Cluster  string `cbor:"1,keyasint,omitempty"`
	Address  string `cbor:"2,keyasint,omitempty"`
	Failures int    `cbor:"3,keyasint,omitempty"`
	Until    int64  `cbor:"4,keyasint,omitempty"` // the end of the back-off
	Trusted  bool   `cbor:"5,keyasint,omitempty"`
	Unproved int    `cbor:"7,keyasint,omitempty"` // 6 was whether it drains, which the configuration says
	RX       uint64 `cbor:"8,keyasint,omitempty"` // bytes of connections that are gone
	TX       uint64 `cbor:"9,keyasint,omitempty"`
	Since    int64  `cbor:"10,keyasint,omitempty"` // the first of the failures

	Unhealthy   bool   `cbor:"11,keyasint,omitempty"` // its health checks say so
	CheckedAt   int64  `cbor:"12,keyasint,omitempty"` // when the last of them ended
	CheckResult string `cbor:"13,keyasint,omitempty"` // of that: ok, or why it was not passed
	CheckRow    int    `cbor:"14,keyasint,omitempty"` // results like it, those before it included

	// What became of its requests. An endpoint is ejected until a time, the Ejections-th time less those that are forgiven.
	EjectedUntil int64  `cbor:"15,keyasint,omitempty"` // 0: it is not
	Ejections    int    `cbor:"16,keyasint,omitempty"`
	FailedInARow int    `cbor:"17,keyasint,omitempty"`
	EjectedWhy   string `cbor:"18,keyasint,omitempty"` // the last time
	EjectedSince int64  `cbor:"19,keyasint,omitempty"` // when that ended, or the last interval that was forgiven for
	WarmSince    int64  `cbor:"20,keyasint,omitempty"` // its slow start
	WarmUntil    int64  `cbor:"21,keyasint,omitempty"` // 0: none
}

// ListenerState is what is known of a listener beside its socket.
type ListenerState struct {
	Name      string `cbor:"1,keyasint,omitempty"`
	Protocol  string `cbor:"2,keyasint,omitempty"`
	MaxFrame  int    `cbor:"3,keyasint,omitempty"`
	MaxHeader int    `cbor:"4,keyasint,omitempty"`
	RX        uint64 `cbor:"5,keyasint,omitempty"` // bytes of connections that are gone
	TX        uint64 `cbor:"6,keyasint,omitempty"`
}

// Exchanges are exchanges that no connection's slots have, and what connections and slots refer to.
type Exchanges struct {
	Targets   []Target        `cbor:"1,keyasint,omitempty"` // behind those of the messages before; they count from 1, 0 names none
	Labels    []Label         `cbor:"2,keyasint,omitempty"`
	Records   []Record        `cbor:"3,keyasint,omitempty"`
	Endpoints []Endpoint      `cbor:"4,keyasint,omitempty"`
	Listeners []ListenerState `cbor:"5,keyasint,omitempty"`
	List      []Exchange      `cbor:"6,keyasint,omitempty"`
	Paused    int64           `cbor:"7,keyasint,omitempty"` // when the gates were shut; in the first message
	LastID    uint64          `cbor:"8,keyasint,omitempty"` // the number given to a connection last
}

// Counts are how much there is of everything.
type Counts struct {
	Downstreams uint64 `cbor:"1,keyasint,omitempty"`
	Upstreams   uint64 `cbor:"2,keyasint,omitempty"`
	Streams     uint64 `cbor:"3,keyasint,omitempty"` // exchanges in slots
	Requests    uint64 `cbor:"4,keyasint,omitempty"` // unsent exchanges
	Replies     uint64 `cbor:"5,keyasint,omitempty"` // held replies
	Uploads     uint64 `cbor:"6,keyasint,omitempty"`
	Bytes       uint64 `cbor:"7,keyasint,omitempty"` // unread and unsent
}

// End ends the state.
type End struct {
	Counts Counts `cbor:"1,keyasint,omitzero"`
}

// Prepared answers End.
type Prepared struct {
	Counts Counts `cbor:"1,keyasint,omitzero"`
}

// Commit gives the state away.
type Commit struct {
	Again bool `cbor:"1,keyasint,omitempty"` // another upgrade was asked for meanwhile
}

// Started takes it.
type Started struct{}

// Abort takes it back.
type Abort struct {
	Reason string `cbor:"1,keyasint,omitempty"`
}

// Failed says what could not be done.
type Failed struct {
	Step   string `cbor:"1,keyasint,omitempty"`
	Reason string `cbor:"2,keyasint,omitempty"`
}

// Counters is what the old process has counted. Series are opaque here. Where they are too many for one message there are several, and all
// but the first one have nothing but Series and More.
type Counters struct {
	Series   []Series `cbor:"1,keyasint,omitempty"`
	Failures []byte   `cbor:"2,keyasint,omitempty"` // the ring of the last failures, as the program writes them
	Total    uint64   `cbor:"3,keyasint,omitempty"` // failures in all
	Report   []byte   `cbor:"4,keyasint,omitempty"` // of the upgrade, as package upgrade writes it
	More     bool     `cbor:"5,keyasint,omitempty"` // another COUNTERS follows
}

// Series is one metric: a counter's value, or a histogram's buckets and sum.
type Series struct {
	Name    string   `cbor:"1,keyasint,omitempty"`
	Help    string   `cbor:"2,keyasint,omitempty"`
	Labels  []string `cbor:"3,keyasint,omitempty"` // name, value, name, value ...
	Value   uint64   `cbor:"4,keyasint,omitempty"`
	Buckets []uint64 `cbor:"5,keyasint,omitempty"`
	Sum     uint64   `cbor:"6,keyasint,omitempty"`
}

// Follow passes on what a signal asked of the old process, which does not own the state any more. The new one says it of a
// stop, so that its end is not taken for a crash.
type Follow struct {
	Again bool `cbor:"1,keyasint,omitempty"` // upgrade
	Stop  bool `cbor:"2,keyasint,omitempty"` // drain and end
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
