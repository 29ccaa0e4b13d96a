package filter

import (
	"net/netip"
	"sync/atomic"
)

// ConnectionFilter makes what sees the bytes of each new connection. It is one object for all connections of a
// listener, so it is safe for concurrent use; what belongs to one connection is kept in what New returns.
//
// The filters of a listener form a chain. Bytes that the client sends pass it in the order of the configuration and
// before the codec sees them; bytes that go to the client pass it in the reverse order, behind everything else, so
// that transformations nest. A chain sees a stream, not frames: how the bytes are cut means nothing, and a filter may
// return other bytes than it was given, more, or fewer, and keep what it needs for the next call.
type ConnectionFilter interface {
	// Name is the filter's name in the configuration, in logs and in metrics.
	Name() string
	// New returns what acts for one connection: what it can do it says by its type, by having some of the methods of
	// OnNew, OnRead and OnWrite. Nil, or none of them, leaves the connection alone. It is called on the connection's
	// read loop, before anything is read.
	New(*Connection) any
}

// OnNew is asked once, before the first byte is read: also of a client that never sends one.
//
// None of the three methods blocks: who has to wait stops the chain (see Wait). A panic in one closes the connection.
type OnNew interface {
	OnNew() Next
}

// OnRead sees what the client sent. p is never empty; it is the filter's to change, until the method returns. What it
// returns, p or memory of its own, is the chain's until the next call. One goroutine at a time calls it.
type OnRead interface {
	OnRead(p []byte) ([]byte, Next)
}

// OnWrite sees what goes to the client, like OnRead. One goroutine at a time calls it, not always the same one and
// maybe while another is in OnRead. It is called under the connection's chain lock.
type OnWrite interface {
	OnWrite(p []byte) ([]byte, Next)
}

// Connection is one client connection, as its filters know it.
type Connection struct {
	// Listener is the name of the listener at which it came in.
	Listener string
	// Client is the address of its peer, zero for a unix socket.
	Client netip.AddrPort

	wake func()
}

// NewConnection returns a connection for its filters. The road calls it. wake is called for the first Resume of each
// Hold, by whoever resumes it, maybe from within a filter's method.
func NewConnection(listener string, client netip.AddrPort, wake func()) *Connection {
	return &Connection{Listener: listener, Client: client, wake: wake}
}

// Hold returns a hold with which the caller may stop the connection's chain, once: see Wait.
func (c *Connection) Hold() *Hold { return &Hold{connection: c} }

// Hold is one stop of a chain. It is an object of its own, and not the connection, so that each stop ends by its own
// Resume: one that comes late or twice never ends another stop.
type Hold struct {
	connection *Connection
	resumed    atomic.Bool
}

// Resume ends the stop: the chain goes on behind the filter that stopped it, with what that filter returned. Any
// goroutine may call it, at any time: before the method that stops has returned (then the chain does not stop), again,
// or when the connection is closed (then it does nothing). It never waits for the chain.
func (h *Hold) Resume() {
	if h.resumed.CompareAndSwap(false, true) {
		h.connection.wake()
	}
}

// Resumed says whether Resume was called.
func (h *Hold) Resumed() bool { return h.resumed.Load() }

// Next says how a chain goes on behind a filter: not at all, later, or, the zero Next, at once.
type Next struct {
	hold   *Hold
	reason string
}

// Pass goes on with the next filter.
var Pass Next

// Wait stops the chain until the hold is resumed. What the method returned beside it is kept. On the way in nothing
// more is read from the client meanwhile; on the way out, what is to be written waits in its order. The two ways stop
// each by itself; one hold may stop both. A stop of OnNew stops the way in. A chain that is not resumed in time is closed.
func Wait(h *Hold) Next {
	if h == nil {
		panic("filter: Wait without a hold")
	}
	return Next{hold: h}
}

// Close closes the connection for a reason: a constant, because it becomes the value of the metric label "reason". What
// the method returned beside it is dropped. It panics without a reason, because that would let pass what the filter
// means to end.
func Close(reason string) Next {
	if reason == "" {
		panic("filter: Close without a reason")
	}
	return Next{reason: reason}
}

// Hold is what the chain waits for, nil when it does not wait.
func (n Next) Hold() *Hold { return n.hold }

// Reason is why the connection is to be closed, "" when it is not.
func (n Next) Reason() string { return n.reason }
