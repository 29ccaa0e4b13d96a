package forwarder

import (
	"slices"

	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// await puts the batch's exchange and its frame into the waiting list. It reports false when a connection has
// become ready meanwhile, true when the exchange is somebody else's now, or is to be answered.
func (b *batch) await(p *pool) bool {
	c := p.endpoint.cluster()
	held := b.held()
	switch {
	case b.f.resting.Load(): // it would not wait but for the pause, in which nothing comes that is not here already
		c.policy.Limits().Pending.Adopt(1)
		c.pendingBytes.Adopt(held)
	case b.f.buffers.Used() > b.f.buffers.High(), !c.admitPending(held):
		c.stats.rejected.add(ReasonMaxPending, 1)
		b.hijack(wire.Busy, ReasonMaxPending)
		return true
	}
	own := b.frame.bytes
	if !b.frame.owned {
		own = b.f.buffers.Get(held)[:len(own)]
		copy(own, b.frame.bytes)
	}
	w := waiter{x: b.x, frame: own, held: held}
	w.x.phase = phaseWaitNotify
	p.mu.Lock()
	usable := p.usable()
	if usable == nil && !p.closed && (p.wantDial() || p.staying() > 0) {
		p.waiting = append(p.waiting, w)
		p.mu.Unlock()
		b.x.phase = phaseWaitNotify
		b.frame = frame{}
		b.f.sweep.poke(w.x.deadline)
		return true
	}
	closed := p.closed
	p.mu.Unlock()
	c.releasePending(held)
	if !b.frame.owned {
		b.f.buffers.Put(own)
	}
	switch {
	case usable != nil:
		return false
	case closed:
		b.hijack(wire.ConnectionClosed, ReasonDraining)
	case p.endpoint.policy.Health().Drained:
		b.elsewhere()
	case !p.endpoint.policy.Reachable(): // it has failed since it was chosen
		b.fail(ReasonConnectFailure)
	default:
		c.stats.rejected.add(ReasonMaxConnections, 1)
		b.fail(ReasonMaxConnections)
	}
	return true
}

// held is what the frame under way takes up in memory while it waits.
func (b *batch) held() int {
	if b.frame.owned {
		return cap(b.frame.bytes)
	}
	return conn.Capacity(len(b.frame.bytes))
}

func (c *upCluster) admitPending(bytes int) bool {
	pending := c.policy.Limits().Pending
	if pending.TryAcquire(1) == 0 {
		return false
	}
	if n := c.pendingBytes.TryAcquire(bytes); n < bytes {
		if n > 0 {
			c.pendingBytes.Release(n)
			c.pendingBytes.Refuse()
		}
		pending.Release(1)
		return false
	}
	return true
}

func (c *upCluster) releasePending(bytes int) {
	c.policy.Limits().Pending.Release(1)
	c.pendingBytes.Release(bytes)
}

// serve sends what waits, as far as connections take it. Each exchange is tried once: one that must wait again
// goes to the end of the list.
func (p *pool) serve() {
	p.mu.Lock()
	rest := len(p.waiting)
	p.mu.Unlock()
	for rest > 0 {
		b := p.endpoint.cluster().f.batch()
		for n := 0; n < maxBatch && rest > 0; n++ {
			w, ok := p.pop()
			if !ok {
				rest = 0
				break
			}
			rest--
			b.readmit(&w, phaseSend, "")
		}
		b.done()
	}
}

// pop takes the first waiter out, if a connection is ready for it.
func (p *pool) pop() (w waiter, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.waiting) == 0 || p.usable() == nil {
		return w, false
	}
	w = p.waiting[0]
	p.waiting[0] = waiter{}
	if p.waiting = p.waiting[1:]; len(p.waiting) == 0 {
		p.waiting = nil
	}
	return w, true
}

// expired takes out the waiters whose deadline has passed, and tells the earliest of the others.
func (p *pool) expired(now int64, out []waiter) (_ []waiter, earliest int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	earliest = never
	kept := p.waiting[:0]
	for _, w := range p.waiting {
		if w.x.deadline <= now {
			out = append(out, w)
			continue
		}
		earliest = min(earliest, w.x.deadline)
		kept = append(kept, w)
	}
	clear(p.waiting[len(kept):])
	if p.waiting = kept; len(kept) == 0 {
		p.waiting = nil
	}
	return out, earliest
}

// remove forgets a connection that has ended. If somebody waits it dials another one; when that may not be, or the
// endpoint was given up and no connection is left to wait for, it returns those that waited.
func (p *pool) remove(u *upstream, givenUp bool) (waiting []waiter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	conns := slices.DeleteFunc(slices.Clone(*p.conns.Load()), func(o *upstream) bool { return o == u })
	p.conns.Store(&conns)
	if len(p.waiting) == 0 || !givenUp && p.wantDial() || p.staying() > 0 {
		return nil
	}
	waiting, p.waiting = p.waiting, nil
	return waiting
}

// replace dials in the place of a connection that takes no more streams, if somebody waits.
func (p *pool) replace() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.waiting) > 0 {
		p.wantDial()
	}
}

// readmit goes on with an exchange that waited, in a phase; reason is why, when that is phaseRetry. With
// phaseChooseEndpoint its endpoint drains.
func (b *batch) readmit(w *waiter, next phase, reason string) {
	defer b.rescue()
	w.x.target.cluster.releasePending(w.held)
	b.carry(w.x, w.frame)
	b.x.phase, b.reason = next, reason
	if next == phaseChooseEndpoint {
		b.elsewhere()
	}
	if b.now >= b.x.deadline {
		b.hijack(wire.Timeout, ReasonPendingTimeout)
	}
	b.resume()
	b.putBack()
}

// carry makes an exchange and its frame the batch's.
func (b *batch) carry(x exchange, bytes []byte) {
	b.x, b.frame, b.upstreamID = x, frame{bytes: bytes, owned: true}, 0
	if n, err := x.target.cluster.codec.Decode(&b.msg, bytes, wire.Limits{}); err != nil || n != len(bytes) {
		b.msg = wire.Message{} // it was decoded when it came, so this is a defect; nothing below depends on it
	}
}

// resumeAll goes on with exchanges that waited in vain.
func (f *Forwarder) resumeAll(waiting []waiter, next phase, reason string) {
	for batch := range slices.Chunk(waiting, maxBatch) {
		b := f.batch()
		for i := range batch {
			b.readmit(&batch[i], next, reason)
		}
		b.done()
	}
}

// concludeAll answers exchanges that waited.
func (f *Forwarder) concludeAll(waiting []waiter, status wire.Status, reason string) {
	for batch := range slices.Chunk(waiting, maxBatch) {
		b := f.batch()
		for i := range batch {
			w := &batch[i]
			w.x.target.cluster.releasePending(w.held)
			f.buffers.Put(w.frame)
			b.conclude(w.x, 0, status, reason)
		}
		b.done()
	}
}
