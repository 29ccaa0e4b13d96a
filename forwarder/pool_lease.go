package forwarder

import (
	"errors"
	"slices"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/conn"
)

// leases are the connections of an endpoint's pool of uploads. Each is leased to one frame that goes out in pieces, until
// its last byte, and not before the reply to the one before has come: when an upload breaks off, its connection is of no
// more use, and nobody else may have something on it.
type leases struct {
	// Guarded by the pool's mu.
	dialling int
	waiting  []chan struct{} // who waits for a connection, first come first served; each holds one, never closed
}

// lease is whether a connection of a pool of uploads is in the middle of a frame.
type lease = int32

// The leases. Talking is short: it keeps an upload from beginning while a frame of our own is appended.
const (
	free lease = iota
	leased
	talking
)

// say appends a whole frame of our own, a heartbeat or its ack, unless an upload is in the middle of its frame: then it
// is left unsaid, which is no loss where bytes flow. It reports what became of it.
func (u *upstream) say(frame []byte) conn.Verdict {
	if u.pool != u.endpoint.uploads {
		return u.conn.Append(frame)
	}
	if !u.lease.CompareAndSwap(free, talking) {
		return conn.Refused
	}
	v := u.conn.Append(frame)
	u.lease.Store(free)
	u.pool.offer()
	return v
}

// reasonResting is why there is no connection while the road rests. It is told nobody: the upload asks again.
const reasonResting = "resting"

// lease takes a connection for one frame, dials it if there may be one more, or waits for one until the deadline. It
// returns none with the reason why.
func (p *pool) lease(deadline int64) (u *upstream, reason string) {
	e := p.endpoint
	f, limits := e.cluster().f, e.cluster().policy.Limits()
	var timer *time.Timer
	var turn chan struct{}
	for {
		if f.resting.Load() && f.ctx.Err() == nil {
			p.leave(turn)
			return nil, reasonResting
		}
		u, what := p.idle(turn)
		switch what {
		case leaseHad:
			return u, ""
		case leaseDial:
			return p.dialLease()
		case leaseNever:
			p.leave(turn)
			e.cluster().stats.rejected.add(ReasonMaxConnections, 1)
			return nil, ReasonMaxConnections
		case leaseLater:
		}
		switch {
		case e.policy.Health().Drained:
			p.leave(turn)
			return nil, ReasonEndpointDrained
		case !e.policy.Reachable():
			p.leave(turn)
			return nil, ReasonConnectFailure
		}
		if turn == nil { // the first time around
			if f.buffers.Used() > f.buffers.High() || limits.Pending.TryAcquire(1) == 0 {
				return nil, ReasonMaxPending // what is read of the frame is held meanwhile
			}
			defer limits.Pending.Release(1)
			timer = time.NewTimer(time.Duration(deadline - f.now()))
			defer timer.Stop()
			turn = make(chan struct{}, 1)
			turn <- struct{}{} // something may have come free before we stood in the line; nobody else knows turn yet
			p.mu.Lock()
			p.leases.waiting = append(p.leases.waiting, turn)
			p.mu.Unlock()
		}
		select {
		case <-turn:
		case <-timer.C:
			p.leave(turn)
			return nil, ReasonPendingTimeout
		case <-f.shiftCtx().Done():
			p.leave(turn)
			if f.ctx.Err() == nil {
				return nil, reasonResting
			}
			return nil, ReasonStopping
		}
	}
}

// found is what idle has found.
type found uint8

// The findings.
const (
	leaseHad   found = iota // a connection
	leaseDial               // that one may be dialled; the place for it is taken
	leaseLater              // that one will come free
	leaseNever              // that all of the cluster's connections are used up, and none of them is for uploads here
)

// idle takes a connection that nobody has leased and that awaits no reply, or says what else there is to be done. turn is
// the caller's place in the line, nil if it is in none; it is left with what the caller gets.
func (p *pool) idle(turn chan struct{}) (u *upstream, what found) {
	c := p.endpoint.cluster()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.leases.waiting) > 0 && p.leases.waiting[0] != turn {
		return nil, leaseLater // others were first
	}
	open := p.leases.dialling
	for _, o := range *p.conns.Load() {
		open++
		if o.takes() && o.table.Len() == 0 && o.lease.CompareAndSwap(free, leased) {
			if !o.takes() { // settle has not seen the lease, or we see that it drains
				o.lease.Store(free)
				continue
			}
			u = o
			break
		}
	}
	switch {
	case u != nil:
		what = leaseHad
	case p.closed, !p.endpoint.policy.Reachable(), open >= c.spec.MaxUploads:
		return nil, leaseLater
	case c.takeConnection():
		p.leases.dialling++
		what = leaseDial
	case open > 0:
		return nil, leaseLater
	default:
		return nil, leaseNever
	}
	p.leaveLine(turn)
	return u, what
}

// dialLease dials a connection and leases it.
func (p *pool) dialLease() (*upstream, string) {
	var u *upstream
	var err error
	done := make(chan struct{})
	p.endpoint.cluster().f.dialling.Go(func() { // ends within connect_timeout, or with the shift
		defer close(done)
		if u, err = p.connect(); err == nil {
			u.lease.Store(leased) // nobody else knows it yet
			p.add(u)
		}
	})
	<-done
	switch {
	case err == nil:
		return u, ""
	case errors.Is(err, errInterrupted):
		p.failed(err)
		return nil, reasonResting
	}
	p.failed(err)
	p.offer()
	return nil, ReasonConnectFailure
}

// release ends a lease.
func (p *pool) release(u *upstream) {
	u.leasedAt.Store(p.endpoint.cluster().f.now())
	u.leaseBy.Store(never)
	u.lease.Store(free)
	p.offer()
}

// retired says whether the connection is one for uploads that none has needed for a while.
func (u *upstream) retired(now int64) bool {
	return u.pool == u.endpoint.uploads && u.table.Len() == 0 && now-u.leasedAt.Load() >= keepLeased &&
		u.lease.CompareAndSwap(free, talking) // for good: it closes
}

// keepLeased is for how long a connection for uploads is kept that none needs, in nanoseconds.
const keepLeased = int64(time.Minute)

// offer lets the first in the line look for a connection.
func (p *pool) offer() {
	p.mu.Lock()
	p.leases.wakeFirst()
	p.mu.Unlock()
}

// wakeFirst is offer with the pool's mu held.
func (l *leases) wakeFirst() {
	if len(l.waiting) > 0 {
		select {
		case l.waiting[0] <- struct{}{}:
		default: // it is about to look
		}
	}
}

// leave gives a place in the line up.
func (p *pool) leave(turn chan struct{}) {
	p.mu.Lock()
	p.leaveLine(turn)
	p.mu.Unlock()
}

// leaveLine is leave with mu held. Who is first then looks whether there is more to be had.
func (p *pool) leaveLine(turn chan struct{}) {
	i := slices.Index(p.leases.waiting, turn)
	if turn == nil || i < 0 {
		return
	}
	p.leases.waiting = slices.Delete(p.leases.waiting, i, i+1)
	p.leases.wakeFirst()
}
