package bench

import (
	"context"
	"math"
	"time"
)

// minPause is the shortest sleep of the schedule: requests that are due within it are sent together.
const minPause = 50 * time.Microsecond

// dueAt is when request k of the schedule is due: they are spread evenly, and over the connections in turn.
func (r *run) dueAt(k int64) int64 { return int64(float64(k) * 1e9 / r.opts.Rate) }

// scheduled is the number of requests that are due before the given time; 0 in a closed loop.
func (r *run) scheduled(before int64) int64 {
	if r.opts.Rate == 0 {
		return 0
	}
	return int64(math.Min(math.Ceil(float64(before)*r.opts.Rate/1e9), math.MaxInt64/2))
}

// schedule sends by the clock until ctx ends or the schedule does. It never waits for a reply: what a client
// cannot send stays due. When it returns, all that was due until then has been handed out.
func (r *run) schedule(ctx context.Context) {
	s, err := newSleeper(ctx)
	if err != nil {
		s = coarseSleeper{ctx}
	}
	defer s.close()
	done, awake := int64(0), true
	for awake && done < r.limit {
		awake = ctx.Err() == nil // until may have been passed by then, and nothing would ever be due again
		if wait := time.Duration(r.dueAt(done) - r.now()); wait > 0 {
			awake = s.sleep(max(wait, minPause))
		}
		now := r.now()
		due := min(r.scheduled(min(now+1, r.until.Load())), r.limit)
		r.handOut(done, due, now)
		done = max(done, due)
	}
	// The schedule ends when the request after its last one would be due.
	for awake {
		wait := time.Duration(r.dueAt(r.limit) - r.now())
		if wait <= 0 {
			r.spendMu.Do(func() { close(r.spent) })
			return
		}
		awake = s.sleep(wait)
	}
}

// handOut gives requests [done, due) to their clients.
func (r *run) handOut(done, due, now int64) {
	n := int64(len(r.clients))
	for i := range min(due-done, n) {
		first := done + i
		r.clients[first%n].owe((due-1-first)/n+1, now)
	}
}

// owe makes n more of the client's requests due and sends what can be sent.
func (c *client) owe(n, now int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.target += n
	c.pay(now)
	c.tally.fold(&c.batch, now)
}

// due is when the client's request j is due.
func (c *client) due(j int64) int64 { return c.r.dueAt(j*int64(len(c.r.clients)) + c.index) }

// overrun gives up the next n requests that are due.
func (c *client) overrun(n int64) {
	for range n {
		if c.due(c.next) >= c.r.from {
			c.batch.overrun++
		}
		c.next++
	}
}

// forgive gives up what waited for a connection until it would have timed out.
func (c *client) forgive(now int64) {
	for c.next < c.target && c.due(c.next) < now-int64(c.r.opts.Timeout) {
		c.overrun(1)
	}
}

// pay sends what is due, however late, as far as the connection can bear it. What exceeds the cap is never
// sent.
func (c *client) pay(now int64) {
	room := int64(c.r.opts.InFlight)
	l := c.link
	if l == nil || l.dead {
		c.overrun(c.target - c.next - room)
		return
	}
	room -= int64(l.flight.n)
	if c.r.opts.Oneway {
		room = math.MaxInt64 // nothing is in flight
	}
	if len(l.pending) > max(maxPending, len(c.r.frame)) {
		room = 0
	}
	c.sendDue(l, min(c.target-c.next, room), now)
	if !l.dead {
		c.overrun(c.target - c.next)
	}
}

// sendDue sends the next n requests, each with the time it was due.
func (c *client) sendDue(l *link, n, now int64) {
	size := len(c.r.frame)
	for n > 0 && !l.dead {
		k := min(n, int64(len(l.frames)/size))
		for i := range int(k) {
			c.prepare(l, l.frames[i*size:(i+1)*size:(i+1)*size], now, c.due(c.next))
			c.next++
		}
		c.write(l, l.frames[:int(k)*size])
		n -= k
	}
}

// sleeper pauses the schedule.
type sleeper interface {
	// sleep returns false when the run has ended.
	sleep(d time.Duration) bool
	close()
}

// coarseSleeper sleeps on the runtime's timers, which an idle process serves up to a millisecond late.
type coarseSleeper struct{ ctx context.Context }

func (s coarseSleeper) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.ctx.Done():
		return false
	}
}

func (coarseSleeper) close() {}
