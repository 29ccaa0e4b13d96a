package health

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Checker checks targets while it runs.
type Checker struct {
	// Static after New.
	now func() int64

	mu sync.Mutex
	// Guarded by mu.
	targets []*Target // that Run has not taken yet; nil: none
	poller  *poller   // nil while it does not run

	// Atomic.
	underWay, waiting atomic.Int64
	since             atomic.Int64 // since when the first of them waits

	// Owned by Run.
	schedule *schedule
	names    *names
	sockets  []*entry // by the slot of their keys; nil: free
	free     []int32  // slots
	number   int32
	buf      []byte
	over     []*entry
}

// socketKey is by what the poller knows a socket: a place, and a number, because the place is used again.
type socketKey struct{ slot, number int32 }

// bellSlot is the slot of what wakes the poller.
const bellSlot = -1

// The bounds of one round.
const (
	maxReady  = 256                  // sockets that are looked after
	maxStarts = 64                   // checks that are begun, before others are looked after
	grain     = 5 * time.Millisecond // what is due this close together is done together
)

// The bounds of checks under way at once: each has a descriptor.
const (
	maxAtOnce      = 1024
	descriptorPart = 8 // of all that the process may have
)

// AtOnce is how many checks are under way at once, at most: an eighth of the descriptors that this process may have, or 1024.
func AtOnce() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 1
	}
	return int(max(min(limit.Cur/descriptorPart, maxAtOnce), 1))
}

// New returns a Checker for so many checks at once, which has no targets. now is the time in nanoseconds on a clock that never
// goes back.
func New(most int, now func() int64) *Checker {
	c := &Checker{now: now, schedule: newSchedule(most), buf: make([]byte, 4096)}
	c.names = newNames(c.wake)
	return c
}

// Set makes these targets all that there are. What is known of those that were there before stays; nothing more is told of those
// that were and are not, but for a result that is being told while Set is called.
func (c *Checker) Set(targets []*Target) {
	c.mu.Lock()
	c.targets = targets
	if targets == nil {
		c.targets = []*Target{}
	}
	c.mu.Unlock()
	c.wake()
}

// wake has Run look at what is new.
func (c *Checker) wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.poller != nil {
		c.poller.wake()
	}
}

// Stats are how much there is to do.
func (c *Checker) Stats() Stats {
	s := Stats{UnderWay: int(c.underWay.Load()), Waiting: int(c.waiting.Load())}
	if since := c.since.Load(); s.Waiting > 0 && since > 0 {
		s.Late = time.Duration(max(c.now()-since, 0))
	}
	return s
}

// Run checks until ctx ends, one caller at a time. Checks that are under way then are broken off without a result, and are due at
// once when it is called again. The error says why it could not go on; it may be called again all the same.
func (c *Checker) Run(ctx context.Context) error {
	p, err := newPoller()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	c.mu.Lock()
	c.poller = p
	c.mu.Unlock()
	defer c.rest(p)
	defer cancel() // first: helpers end with it
	defer context.AfterFunc(ctx, c.wake)()
	wait := time.Duration(0)
	for ctx.Err() == nil {
		ready, all, err := p.wait(wait)
		if err != nil {
			return err
		}
		now := c.now()
		c.change(now)
		for _, key := range ready {
			if e := c.at(key); e != nil {
				c.advance(e, now)
			}
		}
		for _, e := range c.names.take(now) {
			if e.state == underWay && e.check.phase == resolving && e.check.name != nil {
				c.resolved(e, now)
			}
		}
		if all { // else a result may lie there that has come in time
			c.over = c.schedule.advance(now, c.over[:0])
			for _, e := range c.over {
				c.expire(e, now)
			}
			clear(c.over)
		}
		wait = c.begin(ctx, now, all)
	}
	return nil
}

// begin begins the checks whose turn it is, and returns for how long there is nothing to do.
func (c *Checker) begin(ctx context.Context, now int64, all bool) time.Duration {
	for range maxStarts {
		e := c.schedule.begin(now)
		if e == nil {
			break
		}
		c.start(ctx, e, now)
	}
	since := int64(0)
	if first := c.schedule.first(); first != nil {
		since = first.since
	}
	c.underWay.Store(int64(c.schedule.under))
	c.waiting.Store(int64(c.schedule.waiting))
	c.since.Store(since)
	at, ok := c.schedule.next(now)
	switch {
	case !all, ok && at <= now:
		return 0
	case !ok:
		return math.MaxInt64 / 4
	}
	return max(time.Duration(at-now), grain)
}

// change takes over other targets.
func (c *Checker) change(now int64) {
	c.mu.Lock()
	targets := c.targets
	c.targets = nil
	c.mu.Unlock()
	if targets == nil {
		return
	}
	for _, e := range c.schedule.set(targets, now) {
		c.drop(e)
		e.check = check{fd: -1}
	}
	c.names.forget(now)
}

// hold keeps a connection for a check.
func (c *Checker) hold(e *entry, fd int) error {
	slot := int32(len(c.sockets))
	if n := len(c.free); n > 0 {
		slot = c.free[n-1]
	}
	c.number++
	key := socketKey{slot, c.number}
	if err := c.poller.add(fd, key); err != nil {
		return err
	}
	if n := len(c.free); n > 0 {
		c.free = c.free[:n-1]
		c.sockets[slot] = e
	} else {
		c.sockets = append(c.sockets, e)
	}
	e.check.fd, e.check.key = fd, key
	return nil
}

// at is the entry that a socket is of, nil where that is closed.
func (c *Checker) at(key socketKey) *entry {
	if e := c.sockets[key.slot]; e != nil && e.check.fd >= 0 && e.check.key == key {
		return e
	}
	return nil
}

// drop closes the connection of a check, if it has one.
func (c *Checker) drop(e *entry) {
	if e.check.fd < 0 {
		return
	}
	c.sockets[e.check.key.slot] = nil
	c.free = append(c.free, e.check.key.slot)
	_ = unix.Close(e.check.fd) // what it had to say is known
	e.check.fd = -1
}

// rest ends all that is under way.
func (c *Checker) rest(p *poller) {
	now := c.now()
	for _, e := range c.schedule.entries {
		if e.state == underWay {
			c.drop(e)
			e.check = check{fd: -1}
			c.schedule.again(e, now)
		}
	}
	c.names.rest()
	c.sockets, c.free = nil, nil
	c.underWay.Store(0)
	c.mu.Lock()
	c.poller = nil
	c.mu.Unlock()
	p.close()
}
