package forwarder

import (
	"net"
	"runtime"
	"slices"

	"github.com/relevo-proxy/relevo/forwarder/cluster"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// Step is one step of an exchange, as it is told before it is taken.
type Step struct {
	ID       uint32 // as the client gave it
	Phase    string
	Attempts int
	Worker   bool // it is with a worker, or on its way to one
	Pieces   bool // its frame is passed on in pieces
	OneWay   bool
	Batch    any         // who carries it: one at a time has it
	Reply    wire.Status // of the message under way; means something where that is the reply
	Status   wire.Status // and the reason: why it is answered here, or tried again
	Reason   string
}

// UnderWay is how many workers are under way or in filters that block.
func (f *Forwarder) UnderWay() int { return f.gather.active() + int(uint32(f.blocking.Load())) }

// CloseClients closes all client connections, as happens to those for which too much is queued.
func (f *Forwarder) CloseClients(reason string) {
	for _, d := range f.snap.Load().downstreams() {
		d.conn.Close(reason)
	}
}

// Trace has fn told of each step of each exchange, by whoever takes it. It is called before Start.
func (f *Forwarder) Trace(fn func(Step)) {
	f.trace = func(b *batch) {
		x := &b.x
		fn(Step{
			ID: x.id, Phase: x.phase.String(), Attempts: int(x.attempts), Worker: x.errand != nil, Pieces: b.head > 0,
			OneWay: x.kind == wire.Oneway, Batch: b, Reply: b.msg.Status, Status: b.status, Reason: b.reason,
		})
	}
}

// HoldPool locks the first pool until release is called.
func (f *Forwarder) HoldPool() (release func()) {
	p := f.snap.Load().clusters[0].endpoints[0].pools()[0]
	p.mu.Lock()
	return p.mu.Unlock
}

// Admit takes a client connection that the test has accepted.
func (f *Forwarder) Admit(c net.Conn) { f.snap.Load().listeners[0].admit(c) }

// Know makes h what is known of an endpoint of the first cluster, and waits until the sweeper has seen it.
func (f *Forwarder) Know(endpoint int, h cluster.Health) {
	f.snap.Load().clusters[0].endpoints[endpoint].policy.Restore(h)
	f.sweep.change()
	for round := f.sweep.rounds.Load(); f.sweep.rounds.Load() < round+2; f.sweep.rouse() {
		runtime.Gosched()
	}
}

// Now is the road's time.
func (f *Forwarder) Now() int64 { return f.now() }

// Connect gives a cluster's first pool a connection that the test has dialled.
func (f *Forwarder) Connect(cluster int, c net.Conn) error {
	p := f.snap.Load().clusters[cluster].endpoints[0].pools()[0]
	u, err := newUpstream(p, c)
	if err != nil {
		return err
	}
	p.endpoint.cluster().policy.Limits().Connections.TryAcquire(1) // as who dials does
	p.add(u)
	return nil
}

// FailedInARow is how many tries at an endpoint of the first cluster have failed since one succeeded.
func (f *Forwarder) FailedInARow(address string) int {
	list := f.snap.Load().clusters[0].endpoints
	return list[slices.IndexFunc(list, func(e *upEndpoint) bool { return e.address == address })].record.Load().InARow()
}
