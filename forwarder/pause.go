package forwarder

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// shift is the time between two pauses: dials, and waits for what is not a peer, end with it.
type shift struct {
	ctx context.Context
	end context.CancelFunc
}

func (f *Forwarder) beginShift() {
	ctx, end := context.WithCancel(f.ctx)
	f.shift.Store(&shift{ctx, end})
}

// shiftCtx ends when Pause or Close is called.
func (f *Forwarder) shiftCtx() context.Context { return f.shift.Load().ctx }

// rest is whether a loop has come to rest because of a pause. The loop itself says so; who resumes it starts it again
// if it has, and else it notices by itself that the pause is over.
type rest struct{ resting atomic.Bool }

// begin says that the loop is about to end because the road rests. It reports false when that is over meanwhile and nobody
// else starts the loop again: then it goes on.
func (r *rest) begin(f *Forwarder) bool {
	r.resting.Store(true)
	return f.resting.Load() || !r.end()
}

// end says whether the loop had come to rest: then it must be started again.
func (r *rest) end() bool { return r.resting.CompareAndSwap(true, false) }

// held is the workers' exchanges that wait, between two phases, for the road to go on. It is one of the containers.
type held struct {
	mu   sync.Mutex
	list []lined
}

// hold takes an exchange over from its worker, which parks, until the road goes on.
func (f *Forwarder) hold(l lined) {
	f.held.mu.Lock()
	resting := f.resting.Load() && f.ctx.Err() == nil
	if resting {
		f.held.list = append(f.held.list, l)
	}
	f.held.mu.Unlock()
	if !resting {
		f.release([]lined{l})
	}
}

// release lets the workers of exchanges that were held go on.
func (f *Forwarder) release(list []lined) {
	if len(list) == 0 {
		return
	}
	b := f.batch()
	b.occupy()
	b.relay = append(b.relay, list...)
	b.start()
	b.done()
}

// pauseLook is how often Pause looks whether the workers have come to rest.
const pauseLook = 100 * time.Microsecond

// Pause brings the road to rest: nothing is accepted, connected, read, written, decided or given up on any more, every
// goroutine of the road has ended, and the workers are held between two phases. What comes meanwhile waits in the kernel.
// When that cannot be before ctx ends, everything goes on and the error says what did not come to rest. Resume undoes it,
// and Close ends it.
func (f *Forwarder) Pause(ctx context.Context) error {
	f.turn.Lock()
	defer f.turn.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(f.ctx, cancel)() // Close does not wait for a pause
	if !f.resting.Load() {
		f.applying.Lock()
	}
	f.resting.Store(true)
	f.pauses, f.pausedAt = nil, 0
	f.workers.Hold(true)
	f.shift.Load().end()
	err := f.pause(ctx)
	if f.ctx.Err() != nil {
		err = errors.New("the road is closed")
	}
	if err != nil {
		f.resume()
	}
	return err
}

func (f *Forwarder) pause(ctx context.Context) error {
	await := func(what string, g *group) error {
		if err := g.Wait(ctx); err != nil {
			return fmt.Errorf("waiting for %s to rest: %w", what, err)
		}
		return nil
	}
	snap := f.snap.Load()
	if err := await("the sweeper", &f.sweeping); err != nil {
		return err
	}
	if err := await("health checks", &f.checking); err != nil {
		return err
	}
	for _, l := range snap.listeners {
		l.setDeadline(past)
	}
	if err := errors.Join(await("the accept loops", &f.accepting), await("dials", &f.dialling)); err != nil {
		return err
	}
	f.pausedAt = f.now()
	for _, d := range snap.downstreams() {
		d.conn.Pause()
	}
	snap.upstreams(func(u *upstream) { u.conn.Pause() })
	for {
		if err := await("the read loops", &f.reading); err != nil {
			return err
		}
		if err := f.awaitWorkers(ctx); err != nil {
			return err
		}
		// Only now nobody begins a dial any more; those that were begun meanwhile have failed.
		if err := await("dials", &f.dialling); err != nil {
			return err
		}
		if !snap.bury() && f.reading.Len() == 0 {
			return nil
		}
	}
}

// past is a deadline that has passed whatever the clock says.
var past = time.Unix(1, 0)

// awaitWorkers waits until no worker is under way: each is idle, or its exchange is in a container. None begins with one
// that waits for it, because the pool holds those; who has taken one before that is known by taken.
func (f *Forwarder) awaitWorkers(ctx context.Context) error {
	tick := time.NewTicker(pauseLook)
	defer tick.Stop()
	for {
		blocking := f.blocking.Load()
		if f.workers.Taken() == f.taken.Load() && uint32(blocking) == 0 && f.gather.active() == 0 && f.blocking.Load() == blocking {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the workers to rest, of which %d are at work and %d in filters that block: %w",
				f.gather.active(), uint32(f.blocking.Load()), ctx.Err())
		case <-tick.C:
		}
	}
}

// bury ends the connections that were closed after their read loop had come to rest, and says whether there were any: what
// of them goes on elsewhere may have given others something to do.
func (s *snapshot) bury() bool {
	found := false
	for _, d := range s.downstreams() {
		if d.conn.Closed() && d.rest.end() {
			found = true
			d.run()
		}
	}
	for _, u := range s.all() {
		if u.conn.Closed() && u.rest.end() {
			found = true
			u.run()
		}
	}
	return found
}

// Resume lets the road go on behind a Pause, also one that failed, as if there had been none.
func (f *Forwarder) Resume() {
	f.turn.Lock()
	defer f.turn.Unlock()
	if f.resting.Load() {
		f.resume()
	}
}

// resume is Resume with turn held.
func (f *Forwarder) resume() {
	defer f.applying.Unlock()
	f.beginShift()
	f.resting.Store(false)
	snap := f.snap.Load()
	for _, u := range snap.all() {
		u.resume()
		f.opens(f.pausedAt)
	}
	for _, d := range snap.downstreams() {
		d.resume()
		f.opens(f.pausedAt)
	}
	f.held.mu.Lock()
	list := f.held.list
	f.held.list = nil
	f.held.mu.Unlock()
	f.release(list)
	f.workers.Hold(false)
	for _, c := range snap.clusters {
		for _, e := range c.endpoints {
			for _, p := range e.pools() {
				p.rekindle()
			}
		}
	}
	for _, l := range snap.listeners {
		l.setDeadline(time.Time{})
		if l.rest.end() {
			f.accepting.Go(l.accept) // ends when its socket is closed, or with the shift
		}
	}
	if f.sweep.rest.end() {
		f.sweeping.Go(f.sweep.run) // ends with the shift
	}
	if f.checks.rest.end() {
		f.checking.Go(f.checks.run) // ends with the shift
	}
}

// opens notes that the gate of a connection opens now that was shut at that time; 0: it was not.
func (f *Forwarder) opens(shut int64) {
	if shut > 0 {
		f.pauses = append(f.pauses, time.Duration(f.now()-shut))
	}
}

// rekindle goes on with what a pause has left waiting for a connection.
func (p *pool) rekindle() {
	p.mu.Lock()
	var waiting []waiter
	if len(p.waiting) > 0 && !p.wantDial() && p.staying() == 0 {
		waiting, p.waiting = p.waiting, nil
	}
	p.mu.Unlock()
	p.endpoint.cluster().f.resumeAll(waiting, phaseRetry, ReasonConnectFailure)
	p.offer()
}

// downstreams are all client connections.
func (s *snapshot) downstreams() (all []*downstream) {
	for _, l := range s.listeners {
		all = l.list(all, func(*downstream) bool { return true })
	}
	return all
}

// all are all server connections.
func (s *snapshot) all() (all []*upstream) {
	s.upstreams(func(u *upstream) { all = append(all, u) })
	return all
}

// upstreams calls fn for every server connection. While it does connections may come and go.
func (s *snapshot) upstreams(fn func(*upstream)) {
	for _, c := range s.clusters {
		c.connections(fn)
	}
}
