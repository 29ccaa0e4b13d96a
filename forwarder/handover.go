package forwarder

import (
	"context"
	"math"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// Handover is the state of a road at rest as plain data, for another process to go on with. Connections name each other by
// Ref, a number above 0; everything of the configuration is named by its name, because the next one may differ. Times are
// nanoseconds of CLOCK_MONOTONIC.
type Handover struct {
	Listeners   []ListenerState
	Endpoints   []EndpointState
	Downstreams []DownstreamState
	Upstreams   []UpstreamState
	Exchanges   []ExchangeState // that no connection's table has
	Left        []Left          // what stays behind
	Paused      int64           // when the gates were shut
	LastID      uint64          // given to a connection last
}

// Left is a connection that cannot be handed over, and why.
type Left struct{ Listener, Client, Reason string }

// ListenerState is what is known of a listener beside its socket.
type ListenerState struct {
	Name, Protocol string
	Limits         wire.Limits
	RX, TX         uint64 // bytes of connections that are gone
}

// EndpointState is what is known of an endpoint.
type EndpointState struct {
	Cluster, Address string
	Failures         int
	Since, Until     int64 // the first of the failures, the end of the back-off
	Trusted          bool
	Unproved         int
	RX, TX           uint64 // bytes of connections that are gone
	// Its slow start; 0: none.
	WarmSince, WarmUntil int64
	Unhealthy            bool
	CheckedAt            int64  // when its last health check ended; 0: there was none
	CheckResult          string // of it
	CheckRow             int    // results like it, those before it included

	EjectedUntil int64  // 0: it is not ejected
	Ejections    int    // that are remembered
	EjectedWhy   string // the last of them
	EjectedSince int64  // the end of the last of them, or of the last interval that made them fewer
	FailedInARow int    // of its tries
}

// DownstreamState is a client connection.
type DownstreamState struct {
	Ref       uint32
	Listener  string
	Client    string // ADDRESS:PORT, empty for a unix socket
	Codec     string // empty until it is detected
	Detecting int64  // when its first byte came while the codec is not known; else 0
	Frames    uint64 // whole frames seen
	Closing   string // why it closes when what is queued is sent; else empty
	Asked     bool   // its connection filters have let it in
	Opened    int64  // when it was accepted; 0: not known
	ID        uint64 // of no other connection; 0: it has none yet
	Conn      conn.Detached
	Upload    *UploadState
}

// UploadState is a request that is passed on in pieces and has not ended.
type UploadState struct {
	Head, Edited []byte // as it came, and as filters have made it, empty where that is the same; both empty once it is sent
	Left         int    // bytes behind the head that are still to come
	Upstream     uint32 // the connection that is leased to it; 0: none, what is to come is nobody's
	ID           uint32 // under which it was sent there; 0: one-way
	Rest         wire.Rest
	Exchange     ExchangeState // while no slot has it
}

// UpstreamState is a server connection.
type UpstreamState struct {
	Ref               uint32
	Cluster, Endpoint string
	Codec             string
	Pool              PoolKind
	LastID            uint32
	Slots             []SlotState
	Proved, Unasked   bool
	Draining          string // why it drains; empty if it does not
	RetireAt          int64
	LastBeat          int64
	Missed            int
	Leased            bool
	LeasedAt, LeaseBy int64
	Opened            int64  // when it was dialled; 0: not known
	ID                uint64 // as that of a client connection
	Conn              conn.Detached
}

// PoolKind says which of an endpoint's pools a connection is in.
type PoolKind uint8

// The pools of an endpoint, in the order of upEndpoint.pools.
const (
	PoolSmall PoolKind = iota
	PoolLarge
	PoolUploads
)

// SlotState is an exchange that waits for its reply.
type SlotState struct {
	ID       uint32 // under which the request was sent
	Exchange ExchangeState
	Until    int64  // when its try is over; 0: with the exchange's deadline
	Copy     []byte // the request's frame, as it may be sent again; empty: it may not
}

// ExchangeState is one request and its reply.
type ExchangeState struct {
	Downstream uint32 // 0: its client is gone
	Listener   string
	Tag        wire.Tag
	ID         uint32 // the client's
	Timeout    int32
	Oneway     bool
	Start      int64
	Deadline   int64 // 0: not known yet
	Attempts   uint8
	Retry      bool   // it is one of the cluster's retries
	Route      string // table/rule; empty: not known yet
	Cluster    string
	Service    string
	Method     string
	Record     *RecordState
	// Of an exchange in no table: the frame of its request, or of its reply, which a filter held.
	Frame      []byte
	Held       bool   // it is the reply's
	Endpoint   string // which gave it
	UpstreamID uint32
}

// RecordState is what the access log wants to know of an exchange.
type RecordState struct {
	Method, Service, Trace, RPC string
	Request                     int
	Sent                        int64
}

// ReasonHandedOver is why a connection stays behind that cannot be handed over: it is closed.
const ReasonHandedOver = "handed-over"

// The bounds of Settle: when little enough is buffered, and how often it looks.
const (
	littleBuffered = 32 << 20
	settleLook     = 2 * time.Millisecond
)

// Settle waits, as long as ctx, until a pause is short: until little is buffered, because all of that is copied in it, and
// until the connections that cannot be handed over have nothing under way; those it closes.
func (f *Forwarder) Settle(ctx context.Context) {
	tick := time.NewTicker(settleLook)
	defer tick.Stop()
	for {
		open := 0
		for _, l := range f.snap.Load().listeners {
			open += l.leave(func(d *downstream) bool { return d.immovable() && d.quiet(f.now()) }, (*downstream).immovable)
		}
		if open == 0 && f.buffers.Used() <= littleBuffered {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// immovable says whether the connection cannot be handed over: its filters keep a state of their own.
func (d *downstream) immovable() bool {
	return d.filters != nil && d.filters.stateful.Load()
}

// Pauses are how long each connection was not read: each adopted one, from the moment in which the other process shut the gates,
// when Start has returned; each of this process, when Resume has.
func (f *Forwarder) Pauses() []time.Duration { return f.pauses }

// How many copies of sockets are closed at once, and how long the processors are left to the other process then, which opens
// its gates; and for how long that is done. Behind it the other process waits for what this one has counted.
const (
	abandonAtOnce = 64
	abandonPause  = time.Millisecond
	abandonGently = 250 * time.Millisecond
)

// Abandon ends a road at rest whose state another process has: nothing is told to any peer, only this process's copies of
// the sockets are closed. What stayed behind is closed for good.
func (f *Forwarder) Abandon() {
	f.turn.Lock()
	defer f.turn.Unlock()
	f.abandoned.Store(true)
	snap := f.snap.Load()
	f.cancel()
	for _, l := range snap.listeners {
		l.stop()
	}
	gently := time.Now().Add(abandonGently)
	for i, d := range snap.downstreams() {
		if i%abandonAtOnce == abandonAtOnce-1 && time.Now().Before(gently) {
			time.Sleep(abandonPause)
		}
		d.conn.Close(ReasonHandedOver)
		if d.immovable() {
			d.listener.stats.closes.add(ReasonHandedOver, 1)
		}
	}
	// For the workers there is nothing to do any more: the exchanges are the other process's.
	ended := outcome{x: exchange{phase: phaseEnd}, now: f.now()}
	var over []lined
	part := func(x *exchange) {
		if x.errand != nil {
			over = append(over, lined{x.errand, ended})
		}
	}
	for _, c := range snap.clusters {
		for _, e := range c.endpoints {
			for _, p := range e.pools() {
				p.mu.Lock()
				for i := range p.waiting {
					part(&p.waiting[i].x)
				}
				p.closed, p.waiting = true, nil
				p.mu.Unlock()
			}
		}
		c.connections(func(u *upstream) {
			u.conn.Close(ReasonHandedOver)
			for _, e := range u.table.Close(nil) {
				part(&e.Value)
			}
		})
	}
	f.held.mu.Lock()
	for i := range f.held.list {
		part(&f.held.list[i].given.x)
	}
	f.held.list = nil
	f.held.mu.Unlock()
	for _, d := range f.later.close() {
		part(&d.x)
	}
	f.resting.Store(false)
	f.release(over)
	for e := range f.workers.Waiting(0, math.MaxInt) {
		e.given = ended
	}
	f.workers.Hold(false)
}
