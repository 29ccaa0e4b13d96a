package server

import (
	"context"
	"fmt"
	"syscall"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/upgrade"
	"github.com/relevo-proxy/relevo/upgrade/handoff"
)

// The bounds of one message: connections, exchanges, and about how many bytes.
const (
	connsAMessage     = 128
	exchangesAMessage = 1024
	bytesAMessage     = 1 << 20
)

// dictionary numbers what many exchanges have in common, from 1 on.
type dictionary struct {
	targets map[handoff.Target]uint32
	labels  map[handoff.Label]uint32

	targetList []handoff.Target // by number, less 1
	labelList  []handoff.Label
	recordList []handoff.Record
}

func newDictionary() dictionary {
	return dictionary{targets: make(map[handoff.Target]uint32), labels: make(map[handoff.Label]uint32)}
}

// target, label and record are the number of what an exchange has, 0 for none.
func (d *dictionary) target(x *forwarder.ExchangeState) uint32 {
	if x.Route == "" {
		return 0
	}
	return number(d.targets, &d.targetList, handoff.Target{Listener: x.Listener, Route: x.Route, Cluster: x.Cluster})
}

func (d *dictionary) label(x *forwarder.ExchangeState) uint32 {
	l := handoff.Label{Service: x.Service, Method: x.Method}
	if l == (handoff.Label{}) {
		return 0
	}
	return number(d.labels, &d.labelList, l)
}

func (d *dictionary) record(x *forwarder.ExchangeState) uint32 {
	if x.Record == nil {
		return 0
	}
	d.recordList = append(d.recordList, handoff.Record(*x.Record))
	return uint32(len(d.recordList))
}

// number is that of v in the list, where it is put unless it is known.
func number[T comparable](known map[T]uint32, list *[]T, v T) uint32 {
	n := known[v]
	if n == 0 {
		*list = append(*list, v)
		n = uint32(len(*list))
		known[v] = n
	}
	return n
}

// giver says a road's state.
type giver struct {
	ctx context.Context
	say upgrade.Say
	dictionary
	exchanges handoff.Exchanges
	said      said
	size      int
	conns     handoff.Conns
	downFiles []syscall.RawConn
	upFiles   []syscall.RawConn
	connSize  int
}

// said is how many of the dictionary's names have been said.
type said struct{ targets, labels, records int }

func (g *giver) all(h *forwarder.Handover) error {
	g.exchanges.Paused, g.exchanges.LastID = h.Paused, h.LastID
	for i := range h.Listeners {
		l := &h.Listeners[i]
		g.exchanges.Listeners = append(g.exchanges.Listeners, handoff.ListenerState{
			Name: l.Name, Protocol: l.Protocol, MaxFrame: l.Limits.MaxFrame, MaxHeader: l.Limits.MaxHeader, RX: l.RX, TX: l.TX,
		})
	}
	for i := range h.Endpoints {
		e := &h.Endpoints[i]
		g.exchanges.Endpoints = append(g.exchanges.Endpoints, handoff.Endpoint{
			Cluster: e.Cluster, Address: e.Address, Failures: e.Failures, Until: e.Until, Trusted: e.Trusted,
			Unproved: e.Unproved, RX: e.RX, TX: e.TX, Since: e.Since, WarmSince: e.WarmSince, WarmUntil: e.WarmUntil,
		})
	}
	for i := range h.Exchanges {
		g.exchanges.List = append(g.exchanges.List, g.exchange(&h.Exchanges[i]))
		g.size += len(h.Exchanges[i].Frame)
		if len(g.exchanges.List) >= exchangesAMessage || g.size >= bytesAMessage {
			if err := g.sayExchanges(); err != nil {
				return err
			}
		}
	}
	for i := range h.Downstreams {
		if err := g.downstream(&h.Downstreams[i]); err != nil {
			return err
		}
	}
	for i := range h.Upstreams {
		if err := g.upstream(&h.Upstreams[i]); err != nil {
			return err
		}
	}
	if err := g.sayConns(); err != nil {
		return err
	}
	return g.sayExchanges() // what the last connections have named
}

// sayExchanges says what has gathered, with the names that are new since the last time.
func (g *giver) sayExchanges() error {
	if err := g.ctx.Err(); err != nil {
		return err
	}
	m := &g.exchanges
	m.Targets, m.Labels, m.Records = g.targetList[g.said.targets:], g.labelList[g.said.labels:], g.recordList[g.said.records:]
	if err := g.say(m); err != nil {
		return err
	}
	g.said = said{len(g.targetList), len(g.labelList), len(g.recordList)}
	g.exchanges, g.size = handoff.Exchanges{}, 0
	return nil
}

func (g *giver) sayConns() error {
	if len(g.downFiles)+len(g.upFiles) == 0 {
		return nil
	}
	if err := g.ctx.Err(); err != nil {
		return err
	}
	if err := g.say(&g.conns, append(g.downFiles, g.upFiles...)...); err != nil {
		return err
	}
	g.conns, g.downFiles, g.upFiles, g.connSize = handoff.Conns{}, nil, nil, 0
	return nil
}

// connection notes that another connection has gathered, of this size.
func (g *giver) connection(c *conn.Detached, files *[]syscall.RawConn, size int) error {
	raw, err := c.Socket.SyscallConn()
	if err != nil {
		return fmt.Errorf("a connection's descriptor: %w", err)
	}
	*files = append(*files, raw)
	g.connSize += int(bytesOf(c)) + size
	if len(g.downFiles)+len(g.upFiles) >= connsAMessage || g.connSize >= bytesAMessage {
		return g.sayConns()
	}
	return nil
}

func (g *giver) downstream(d *forwarder.DownstreamState) error {
	m := handoff.Downstream{
		Ref: d.Ref, Listener: d.Listener, Client: d.Client, Protocol: d.Codec, Detecting: d.Detecting, Frames: d.Frames,
		Closing: d.Closing, Asked: d.Asked, Bytes: bytesGiven(&d.Conn), Opened: d.Opened, ID: d.ID,
	}
	if up := d.Upload; up != nil {
		m.Upload = &handoff.Upload{
			Head: up.Head, Edited: up.Edited, Left: uint64(max(up.Left, 0)), Upstream: up.Upstream, ID: up.ID,
			Rest: handoff.Rest(up.Rest), Exchange: g.exchange(&up.Exchange),
		}
	}
	g.conns.Downstreams = append(g.conns.Downstreams, m)
	return g.connection(&d.Conn, &g.downFiles, 0)
}

func (g *giver) upstream(u *forwarder.UpstreamState) error {
	m := handoff.Upstream{
		Ref: u.Ref, Cluster: u.Cluster, Endpoint: u.Endpoint, Protocol: u.Codec, Pool: uint8(u.Pool), LastID: u.LastID,
		Proved: u.Proved, Unasked: u.Unasked, Draining: u.Draining, RetireAt: u.RetireAt, LastBeat: u.LastBeat, Missed: u.Missed,
		Leased: u.Leased, LeasedAt: u.LeasedAt, LeaseBy: u.LeaseBy, Bytes: bytesGiven(&u.Conn), Opened: u.Opened, ID: u.ID,
	}
	for i := range u.Slots {
		s := &u.Slots[i]
		x := &s.Exchange
		m.Slots = handoff.AppendSlot(m.Slots, &handoff.Slot{
			ID: s.ID, Downstream: x.Downstream, Target: g.target(x), Label: g.label(x), Record: g.record(x), ClientID: x.ID,
			Timeout: x.Timeout, Deadline: x.Deadline, Start: x.Start, Tag: uint64(x.Tag), Attempts: x.Attempts,
		})
	}
	g.conns.Upstreams = append(g.conns.Upstreams, m)
	return g.connection(&u.Conn, &g.upFiles, len(m.Slots))
}

func (g *giver) exchange(x *forwarder.ExchangeState) handoff.Exchange {
	out := handoff.Exchange{
		Downstream: x.Downstream, Listener: x.Listener, Tag: uint64(x.Tag), ID: x.ID, Timeout: x.Timeout, Oneway: x.Oneway,
		Start: x.Start, Deadline: x.Deadline, Attempts: x.Attempts, Target: g.target(x), Label: g.label(x),
		Frame: x.Frame, Held: x.Held, Endpoint: x.Endpoint, UpstreamID: x.UpstreamID,
	}
	if x.Record != nil {
		out.Record = new(handoff.Record(*x.Record))
	}
	return out
}

func bytesGiven(c *conn.Detached) handoff.Bytes {
	b := handoff.Bytes{Unread: c.Unread, LastRead: c.LastRead, RX: c.RX, TX: c.TX}
	for _, q := range c.Unsent {
		b.Unsent = append(b.Unsent, handoff.Run(q))
	}
	return b
}

// bytesOf is the number of bytes of a connection that are in memory.
func bytesOf(c *conn.Detached) uint64 {
	n := len(c.Unread)
	for _, q := range c.Unsent {
		n += len(q.Frames) - q.Sent
	}
	return uint64(n)
}
