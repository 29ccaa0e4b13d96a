package server

import (
	"fmt"
	"os"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/upgrade/handoff"
)

// taker gathers a road's state from messages. What refers to names that come later is put together by whole.
type taker struct {
	dictionary
	h         forwarder.Handover
	exchanges []handoff.Exchange
	uploads   []taken[handoff.Upload]
	slots     []taken[handoff.Upstream]
}

// taken is what came with a connection of h and is put together later.
type taken[T any] struct {
	at int // in h
	of *T
}

// take takes one message and its descriptors.
func (t *taker) take(m handoff.Message, files []*os.File) error {
	switch m := m.(type) {
	case *handoff.Exchanges:
		t.names(m)
		return nil
	case *handoff.Conns:
		if len(files) != len(m.Downstreams)+len(m.Upstreams) {
			closeFiles(files)
			return fmt.Errorf("%d connections came with %d descriptors", len(m.Downstreams)+len(m.Upstreams), len(files))
		}
		for i := range m.Downstreams {
			t.downstream(&m.Downstreams[i], files[i])
		}
		for i := range m.Upstreams {
			t.upstream(&m.Upstreams[i], files[len(m.Downstreams)+i])
		}
		return nil
	default:
		closeFiles(files)
		return fmt.Errorf("a %T is no state", m)
	}
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // a copy; nobody can use its error
	}
}

func (t *taker) names(m *handoff.Exchanges) {
	t.targetList = append(t.targetList, m.Targets...)
	t.labelList = append(t.labelList, m.Labels...)
	t.recordList = append(t.recordList, m.Records...)
	t.exchanges = append(t.exchanges, m.List...)
	if m.Paused != 0 {
		t.h.Paused = m.Paused
	}
	t.h.LastID = max(t.h.LastID, m.LastID)
	for i := range m.Listeners {
		l := &m.Listeners[i]
		t.h.Listeners = append(t.h.Listeners, forwarder.ListenerState{
			Name: l.Name, Protocol: l.Protocol, Limits: wire.Limits{MaxFrame: l.MaxFrame, MaxHeader: l.MaxHeader}, RX: l.RX, TX: l.TX,
		})
	}
	for i := range m.Endpoints {
		e := &m.Endpoints[i]
		t.h.Endpoints = append(t.h.Endpoints, forwarder.EndpointState{
			Cluster: e.Cluster, Address: e.Address, Failures: e.Failures, Until: e.Until, Trusted: e.Trusted,
			Unproved: e.Unproved, RX: e.RX, TX: e.TX, Since: e.Since, WarmSince: e.WarmSince, WarmUntil: e.WarmUntil,
			Unhealthy: e.Unhealthy, CheckedAt: e.CheckedAt, CheckResult: e.CheckResult, CheckRow: e.CheckRow,
			EjectedUntil: e.EjectedUntil, Ejections: e.Ejections, FailedInARow: e.FailedInARow, EjectedWhy: e.EjectedWhy, EjectedSince: e.EjectedSince,
		})
	}
}

func (t *taker) downstream(m *handoff.Downstream, f *os.File) {
	if m.Upload != nil {
		t.uploads = append(t.uploads, taken[handoff.Upload]{len(t.h.Downstreams), m.Upload})
	}
	t.h.Downstreams = append(t.h.Downstreams, forwarder.DownstreamState{
		Ref: m.Ref, Listener: m.Listener, Client: m.Client, Codec: m.Protocol, Detecting: m.Detecting, Frames: m.Frames,
		Closing: m.Closing, Asked: m.Asked, Conn: bytesTaken(&m.Bytes, f), Opened: m.Opened, ID: m.ID,
	})
}

func (t *taker) upstream(m *handoff.Upstream, f *os.File) {
	if len(m.Slots) > 0 {
		t.slots = append(t.slots, taken[handoff.Upstream]{len(t.h.Upstreams), m})
	}
	t.h.Upstreams = append(t.h.Upstreams, forwarder.UpstreamState{
		Ref: m.Ref, Cluster: m.Cluster, Endpoint: m.Endpoint, Codec: m.Protocol, Pool: forwarder.PoolKind(m.Pool), LastID: m.LastID,
		Proved: m.Proved, Unasked: m.Unasked, Draining: m.Draining, RetireAt: m.RetireAt, LastBeat: m.LastBeat, Missed: m.Missed,
		Leased: m.Leased, LeasedAt: m.LeasedAt, LeaseBy: m.LeaseBy, Conn: bytesTaken(&m.Bytes, f), Opened: m.Opened, ID: m.ID,
	})
}

func bytesTaken(b *handoff.Bytes, f *os.File) conn.Detached {
	c := conn.Detached{Socket: f, Unread: b.Unread, LastRead: b.LastRead, RX: b.RX, TX: b.TX}
	for _, r := range b.Unsent {
		c.Unsent = append(c.Unsent, conn.Queued(r))
	}
	return c
}

// whole puts together what has come, once all of it has.
func (t *taker) whole() error {
	for i := range t.exchanges {
		x, err := t.exchange(&t.exchanges[i])
		if err != nil {
			return err
		}
		t.h.Exchanges = append(t.h.Exchanges, x)
	}
	for i := range t.uploads {
		up := t.uploads[i].of
		x, err := t.exchange(&up.Exchange)
		if err != nil {
			return err
		}
		t.h.Downstreams[t.uploads[i].at].Upload = &forwarder.UploadState{
			Head: up.Head, Edited: up.Edited, Left: int(up.Left), Upstream: up.Upstream, ID: up.ID, Rest: wire.Rest(up.Rest), Exchange: x,
		}
	}
	for i := range t.slots {
		if err := t.fill(&t.h.Upstreams[t.slots[i].at], t.slots[i].of); err != nil {
			return err
		}
	}
	return nil
}

// fill gives a connection its slots.
func (t *taker) fill(u *forwarder.UpstreamState, m *handoff.Upstream) error {
	slots, err := handoff.Slots(m.Slots)
	if err != nil {
		return fmt.Errorf("a connection to endpoint %s of cluster %s: %w", m.Endpoint, m.Cluster, err)
	}
	kept := make(map[uint32]*handoff.Kept, len(m.Kept))
	for i := range m.Kept {
		kept[m.Kept[i].ID] = &m.Kept[i]
	}
	for s := range slots {
		x := forwarder.ExchangeState{
			Downstream: s.Downstream, Tag: wire.Tag(s.Tag), ID: s.ClientID, Timeout: s.Timeout, Start: s.Start, Deadline: s.Deadline, Attempts: s.Attempts,
		}
		if err := t.lookUp(&x, s.Target, s.Label, s.Record); err != nil {
			return err
		}
		slot := forwarder.SlotState{ID: s.ID, Exchange: x}
		if k := kept[s.ID]; k != nil {
			slot.Copy, slot.Until, slot.Exchange.Retry = k.Copy, k.Until, k.Retry
		}
		u.Slots = append(u.Slots, slot)
	}
	return nil
}

func (t *taker) exchange(m *handoff.Exchange) (forwarder.ExchangeState, error) {
	x := forwarder.ExchangeState{
		Downstream: m.Downstream, Listener: m.Listener, Tag: wire.Tag(m.Tag), ID: m.ID, Timeout: m.Timeout, Oneway: m.Oneway,
		Start: m.Start, Deadline: m.Deadline, Attempts: m.Attempts, Frame: m.Frame, Held: m.Held, Endpoint: m.Endpoint, UpstreamID: m.UpstreamID, Retry: m.Retry,
	}
	if m.Record != nil {
		x.Record = new(forwarder.RecordState(*m.Record))
	}
	return x, t.lookUp(&x, m.Target, m.Label, 0)
}

// lookUp gives an exchange the names behind the numbers.
func (t *taker) lookUp(x *forwarder.ExchangeState, target, label, record uint32) error {
	if int64(target) > int64(len(t.targetList)) || int64(label) > int64(len(t.labelList)) || int64(record) > int64(len(t.recordList)) {
		return fmt.Errorf("an exchange names target %d, label %d and record %d: there are %d, %d and %d",
			target, label, record, len(t.targetList), len(t.labelList), len(t.recordList))
	}
	if target > 0 {
		to := &t.targetList[target-1]
		x.Route, x.Cluster = to.Route, to.Cluster
		if x.Listener == "" {
			x.Listener = to.Listener
		}
	}
	if label > 0 {
		x.Service, x.Method = t.labelList[label-1].Service, t.labelList[label-1].Method
	}
	if record > 0 {
		x.Record = new(forwarder.RecordState(t.recordList[record-1]))
	}
	return nil
}

// forget closes and forgets what was taken.
func (t *taker) forget() {
	for i := range t.h.Downstreams {
		_ = t.h.Downstreams[i].Conn.Socket.Close() // a copy; nobody can use its error
	}
	for i := range t.h.Upstreams {
		_ = t.h.Upstreams[i].Conn.Socket.Close()
	}
	*t = taker{dictionary: newDictionary()}
}
