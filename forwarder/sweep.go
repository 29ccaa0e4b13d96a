package forwarder

import (
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/stream"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// never is a time that does not come.
const never = math.MaxInt64

// sweeper is the road's clockwork: it ends exchanges whose deadline has passed, closes connections that are
// overdue, sends heartbeats and takes the pressure off memory. It sleeps until the earliest deadline; a tick
// for the coarser duties exists only while connections do.
type sweeper struct {
	// Static after newSweeper.
	f    *Forwarder
	wake chan struct{} // never closed

	// Atomic.
	next   atomic.Int64  // when it will wake; never while it is awake, so that every poke then counts
	asleep atomic.Bool   // there was no connection when it looked
	retime atomic.Bool   // the timeouts are others
	rounds atomic.Uint64 // how often it came round

	changes atomic.Bool // a listener or an endpoint may have become another one (change.go)

	// Owned by run.
	tickAt    int64
	coolAt    int64 // when slow starts end
	trimmedAt int64
	lookedAt  int64 // when duties last looked
	tick      int64
	overdue   []overdue
	expired   []stream.Entry[exchange]
	waited    []waiter
	memory    memory
	judged    judged
	rest      rest
}

// The bounds of the time between two looks at all connections.
const (
	minTick       = int64(10 * time.Millisecond)
	maxTick       = int64(time.Second)
	trimEvery     = int64(5 * time.Second)
	deadlineGrain = int64(time.Millisecond) // deadlines this close together are swept together
)

func newSweeper(f *Forwarder) *sweeper {
	s := &sweeper{f: f, wake: make(chan struct{}, 1), tickAt: never, coolAt: never}
	s.next.Store(never)
	return s
}

// poke makes sure that the sweeper is awake at this time.
func (s *sweeper) poke(at int64) {
	if at < s.next.Load() {
		s.rouse()
	}
}

// connected tells the sweeper that there is a connection to look after.
func (s *sweeper) connected() {
	if s.asleep.Load() {
		s.rouse()
	}
}

func (s *sweeper) rouse() {
	select {
	case s.wake <- struct{}{}:
	default: // it is awake, or about to be
	}
}

// run is the sweeper's loop. It ends with the shift.
func (s *sweeper) run() {
	for {
		s.loop()
		if s.f.ctx.Err() != nil || s.rest.begin(s.f) {
			return
		}
	}
}

// loop sweeps until the shift ends.
func (s *sweeper) loop() {
	over := s.f.shiftCtx().Done()
	s.tick = s.tickTime()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		s.next.Store(never)
		s.asleep.Store(false)
		if s.retime.Swap(false) {
			s.tick = s.tickTime()
			s.tickAt = 0
		}
		now := s.f.now()
		next := s.deadlines(now)
		s.judge(now)
		s.duties(now)
		s.tell(now)
		next = max(min(next, s.tickAt, s.coolAt, s.probes(now), s.judged.wakes), now+deadlineGrain)
		s.next.Store(next)
		pressure := s.f.buffers.Pressure()
		if s.memory.pressed {
			pressure = nil // looked at by the tick
		}
		s.rounds.Add(1)
		timer.Reset(time.Duration(min(next-now, int64(time.Hour))))
		select {
		case <-over:
			return
		case <-s.wake:
		case <-timer.C:
		case <-pressure:
			s.tickAt = min(s.tickAt, s.lookedAt+pressureLook)
		}
	}
}

// tickTime is a quarter of the shortest timeout that the tick serves.
func (s *sweeper) tickTime() int64 {
	t := maxTick
	shortest := func(d time.Duration) {
		if d > 0 {
			t = min(t, int64(d)/4)
		}
	}
	snap := s.f.snap.Load()
	for _, l := range snap.listeners {
		if r := snap.roads[l.slot]; r.detect > 0 {
			shortest(time.Duration(r.detect))
		}
		config := &l.config.Load().conn
		shortest(config.IdleTimeout)
		shortest(config.WriteTimeout)
		shortest(config.ReadTimeout)
	}
	for _, c := range snap.clusters {
		shortest(c.spec.WriteTimeout)
		shortest(c.spec.ReadTimeout)
		shortest(c.spec.HeartbeatInterval)
		shortest(c.spec.MaxAge)
	}
	return max(t, minTick)
}

// deadlines ends what has passed its deadline, and returns the earliest one that has not.
func (s *sweeper) deadlines(now int64) int64 {
	earliest := int64(never)
	for _, c := range s.f.snap.Load().clusters {
		for _, e := range c.endpoints {
			for _, p := range e.pools() {
				waited, next := p.expired(now, s.waited[:0])
				earliest = min(earliest, next)
				s.waited = waited
				for batch := range slices.Chunk(waited, maxBatch) {
					b := s.f.batch()
					for i := range batch {
						b.readmit(&batch[i], phaseRetry, ReasonPendingTimeout)
					}
					b.done()
				}
				clear(waited)
				for _, u := range *p.conns.Load() {
					s.expire(u, now)
					earliest = min(earliest, u.table.Earliest())
				}
			}
		}
	}
	return earliest
}

// expire answers the exchanges of one connection that have waited too long for their reply.
func (s *sweeper) expire(u *upstream, now int64) {
	s.expired = u.table.Expire(now, s.expired[:0])
	for batch := range slices.Chunk(s.expired, maxBatch) {
		b := s.f.batch()
		for i := range batch {
			b.conclude(batch[i].Value, batch[i].ID, wire.Timeout, ReasonTimeout)
		}
		b.done()
	}
	if len(s.expired) > 0 && u.drained != nil {
		u.pool.offer()
	}
	clear(s.expired)
}

// duties looks at all connections, when the tick is due.
func (s *sweeper) duties(now int64) {
	if now < s.tickAt && s.tickAt != never {
		return
	}
	s.lookedAt = now
	s.asleep.Store(true) // before the look: who connects behind it rouses us again
	snap := s.f.snap.Load()
	open := 0
	for _, l := range snap.listeners {
		l.each(func(d *downstream) {
			open++
			reason := d.overdue(now)
			if since := d.detecting.Load(); since > 0 && now-since >= snap.roads[l.slot].detect {
				reason = ReasonDetectTimeout
			}
			if reason != "" {
				s.overdue = append(s.overdue, overdue{d.conn, reason})
			}
		})
	}
	for _, c := range snap.clusters {
		c.connections(func(u *upstream) {
			open++
			s.tend(u, now)
		})
	}
	for _, l := range snap.listeners {
		if l.leaving.Load() && l.leaveIdle(now, l.since.Load()) > 0 && now-l.since.Load() >= int64(snap.leaveTimeout) {
			l.closeAll()
		}
	}
	for _, c := range snap.clusters {
		c.dismiss(now)
	}
	for _, o := range s.overdue {
		o.conn.Close(o.reason)
	}
	clear(s.overdue)
	s.overdue = s.overdue[:0]
	s.relieve(snap, now)
	again := s.breakers(snap, now)
	switch {
	case s.memory.pressed:
		s.tickAt = now + pressureLook
	case open > 0 || again:
		s.tickAt = now + s.tick
	default:
		s.tickAt = never
		s.f.buffers.Trim(true)
		s.f.workers.Trim()
		return
	}
	s.asleep.Store(false)
	if now-s.trimmedAt >= trimEvery {
		s.trimmedAt = now
		s.f.buffers.Trim(false)
		s.f.workers.Trim()
	}
}

// overdue is a connection that is to be closed, and why.
type overdue struct {
	conn   *conn.Conn
	reason string
}

// tend closes an overdue server connection, or sends it a heartbeat when it has been silent.
func (s *sweeper) tend(u *upstream, now int64) {
	switch state(u.state.Load()) {
	case stateFailed, stateExported:
		return // its end, or another process, looks after it
	case stateDraining:
		u.settle() // its last stream may have ended by its deadline, so that nothing was read since
	default:
		if now >= u.retireAt {
			u.pool.renew(u)
		}
	}
	if now >= u.leaseBy.Load() && u.lease.Load() == leased {
		s.overdue = append(s.overdue, overdue{u.conn, ReasonUploadBroken}) // by a client that is silent, and so does not look
		return
	}
	if u.retired(now) {
		s.overdue = append(s.overdue, overdue{u.conn, conn.ReasonIdle})
		return
	}
	if reason := u.conn.Overdue(now, true); reason != "" {
		s.overdue = append(s.overdue, overdue{u.conn, reason})
		return
	}
	spec := &u.endpoint.cluster().spec
	interval := int64(spec.HeartbeatInterval)
	if interval == 0 {
		return
	}
	read := max(u.conn.LastRead(), u.conn.LastByte())
	if read > u.lastBeat {
		u.missed = 0
	}
	if now-max(read, u.lastBeat) < interval {
		return
	}
	if u.missed >= spec.HeartbeatMisses {
		s.overdue = append(s.overdue, overdue{u.conn, ReasonHeartbeatTimeout})
		return
	}
	if u.conn.Queued() > 0 {
		return // it would be sent behind all that: whether the server takes bytes is Overdue's question
	}
	switch u.say(u.codec.AppendHeartbeat(nil, u.table.Draw())) {
	case conn.First:
		u.conn.Flush()
	case conn.Appended:
	default: // closed
		return
	}
	u.missed++
	u.lastBeat = now
	u.endpoint.stats.beats.Add(1)
}
