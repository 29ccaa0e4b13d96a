package forwarder

import (
	"cmp"
	"errors"
	"net/netip"
	"time"
)

// Side says which end of the road a connection is at.
type Side string

// The sides.
const (
	ClientSide Side = "client"
	ServerSide Side = "server"
)

// ConnectionFilter says which connections are wanted; what is zero does not matter.
type ConnectionFilter struct {
	Side              Side
	Listener          string       // which server connections have none of
	Cluster, Endpoint string       // which client connections have none of
	Client            netip.Prefix // of the peer of a client connection
	ClientPort        uint16
	After             uint64 // only ids above this
	Limit             int    // the lowest ids; at least 1
}

// ConnectionStatus is one connection.
type ConnectionStatus struct {
	ID                uint64 // of no other connection of the chain of processes
	Side              Side
	Listener          string
	Cluster, Endpoint string
	Local, Remote     string // addresses as the kernel has them, empty where it has none
	State             string
	Protocol          string        // empty until it is detected
	Age               time.Duration // since it was accepted or dialled, by whichever process; 0: not known
	Idle              time.Duration // since something was read
	RX, TX            uint64        // bytes read and written, the life of the connection long
	Queued            int64         // bytes that the kernel has not taken yet
	InFlight          int           // requests
	Draining          string        // why it takes no more requests
}

// The states of a client connection; those of a server connection are that of its state, or leased.
const (
	connReading   = "reading"
	connGated     = "gated"  // it is not read from
	connPaused    = "paused" // the road rests
	connDetecting = "detecting"
	connLeased    = "leased" // to an upload
)

// ErrNoConnection is what there is to say of an id that no open connection has.
var ErrNoConnection = errors.New("there is no such connection")

// open is a connection of either side.
type open struct {
	id   uint64
	down *downstream
	up   *upstream // nil: it is the other
}

// OpenConnections are those that the filter wants, at most Limit, in the order of their ids, which is that in which they were
// made. more says that there are others behind them.
func (f *Forwarder) OpenConnections(of ConnectionFilter) (list []ConnectionStatus, more bool) {
	found := least[open]{n: of.Limit + 1, compare: func(a, b open) int { return cmp.Compare(a.id, b.id) }}
	f.snap.Load().eachOpen(&of, found.add)
	all := found.sorted()
	if more = len(all) > of.Limit; more {
		all = all[:of.Limit]
	}
	for _, o := range all {
		list = append(list, f.describe(o))
	}
	return list, more
}

// eachOpen calls fn for the open connections that the filter wants, in no order, for client connections under their
// listener's lock.
func (s *snapshot) eachOpen(of *ConnectionFilter, fn func(open)) {
	for _, l := range s.listeners {
		if of.Side == ServerSide || of.Cluster != "" || of.Endpoint != "" || of.Listener != "" && of.Listener != l.name {
			continue
		}
		l.each(func(d *downstream) {
			if d.id > of.After && of.wants(d.client) && !d.conn.Closed() {
				fn(open{id: d.id, down: d})
			}
		})
	}
	if of.Side == ClientSide || of.Listener != "" || of.Client.IsValid() || of.ClientPort != 0 {
		return
	}
	for _, c := range s.clusters {
		if of.Cluster != "" && of.Cluster != c.spec.Name {
			continue
		}
		c.connections(func(u *upstream) {
			if u.id > of.After && (of.Endpoint == "" || of.Endpoint == u.endpoint.name()) && !u.conn.Closed() {
				fn(open{id: u.id, up: u})
			}
		})
	}
}

// wants says whether the filter wants the connections of a client.
func (of *ConnectionFilter) wants(client netip.AddrPort) bool {
	return (!of.Client.IsValid() || of.Client.Contains(client.Addr().Unmap())) && (of.ClientPort == 0 || of.ClientPort == client.Port())
}

// describe is what there is to say of a connection.
func (f *Forwarder) describe(o open) ConnectionStatus {
	now := f.now()
	age := func(opened int64) time.Duration {
		if opened == 0 {
			return 0
		}
		return time.Duration(now - opened)
	}
	if d := o.down; d != nil {
		s := ConnectionStatus{
			ID: o.id, Side: ClientSide, Listener: d.listener.name, Age: age(d.opened), Idle: time.Duration(now - d.conn.LastRead()),
			Queued: d.conn.Queued(), InFlight: int(max(d.inFlight.Load(), 0)), State: connReading,
		}
		s.Local, s.Remote = d.conn.Addresses()
		s.RX, s.TX = d.conn.Bytes()
		if codec := d.spoken.Load(); codec != nil {
			s.Protocol = (*codec).Name()
		}
		switch {
		case f.resting.Load():
			s.State = connPaused
		case d.conn.Gated():
			s.State = connGated
		case d.detecting.Load() > 0:
			s.State = connDetecting
		}
		return s
	}
	u := o.up
	s := ConnectionStatus{
		ID: o.id, Side: ServerSide, Cluster: u.endpoint.cluster().spec.Name, Endpoint: u.endpoint.name(), Protocol: u.codec.Name(),
		Age: age(u.opened), Idle: time.Duration(now - u.conn.LastRead()), Queued: u.conn.Queued(), InFlight: u.table.Len(),
	}
	s.Local, s.Remote = u.conn.Addresses()
	s.RX, s.TX = u.conn.Bytes()
	if why := u.drains.Load(); why != nil {
		s.Draining = *why
	}
	switch state := state(u.state.Load()); {
	case state == stateExported:
		s.State = connPaused
	case state == stateReady && u.lease.Load() == leased:
		s.State = connLeased
	default:
		s.State = state.String()
	}
	return s
}

// Connection is one connection, by its id. The error is ErrNoConnection.
func (f *Forwarder) Connection(id uint64) (ConnectionStatus, error) {
	o, ok := f.openWith(id)
	if !ok {
		return ConnectionStatus{}, ErrNoConnection
	}
	return f.describe(o), nil
}

// openWith finds an open connection.
func (f *Forwarder) openWith(id uint64) (found open, ok bool) {
	f.snap.Load().eachOpen(&ConnectionFilter{After: id - 1}, func(o open) {
		if o.id == id {
			found, ok = o, true
		}
	})
	return found, ok
}

// CloseConnection closes a client connection, as if its client had gone; or has a server connection drain, which closes once its
// replies are there, or closes it at once: then what was sent on it and has no reply is answered. It returns what the connection
// was. The error is ErrNoConnection, or ErrResting while the road is being handed over: who goes on with it has it then.
func (f *Forwarder) CloseConnection(id uint64, now bool) (ConnectionStatus, error) {
	if !f.applying.TryLock() {
		return ConnectionStatus{}, ErrResting
	}
	defer f.applying.Unlock()
	if f.abandoned.Load() {
		return ConnectionStatus{}, ErrResting
	}
	o, ok := f.openWith(id)
	if !ok {
		return ConnectionStatus{}, ErrNoConnection
	}
	was := f.describe(o)
	switch {
	case o.down != nil:
		o.down.conn.Close(ReasonAdminClosed)
	case now:
		o.up.conn.Close(ReasonAdminClosed)
	default:
		o.up.drain(ReasonAdminClosed)
		o.up.pool.replace()
	}
	return was, nil
}
