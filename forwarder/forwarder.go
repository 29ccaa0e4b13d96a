// Package forwarder is the road of a request: from a client's connection through the phases of an exchange to
// a server's connection, and back with the reply.
//
//	downstream.go   one client connection: its read loop
//	batch.go        what one read brought, and the scratch of the goroutine that carries it along the road
//	exchange.go     the life of one request as a list of phases
//	retry*.go       one more try, and the requests that wait for it
//	pool*.go        the connections to one endpoint, and the exchanges that wait for one
//	upstream.go     one server connection: its stream table and its read loop
//	sweep*.go       deadlines, timeouts, heartbeats, memory pressure, overload: the only clockwork
//	check.go        endpoints that are asked beside their requests whether they work
//	overload.go     what is done while the process uses nearly all that it is granted
//	breaker.go      which limits refuse      priority.go  who is refused first, and the limit of a rule
//	snapshot.go     one built, immutable configuration
//	watch.go        whether the road moves
//	pause.go        the barrier: the road at rest      handover*.go  its state, for another process and from one
//
// It chooses no codec, filter or address: Spec brings them. Its goroutines are one accept loop a listener, one
// read loop a connection, one dial at a time a pool, one sweeper, and one that checks endpoints; Close waits for all of them, and each read
// loop for its connection's writer. Pause ends them too, but for the workers, which it holds, and Resume starts
// them again.
package forwarder

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/forwarder/worker"
)

// Forwarder forwards. Create one with New, let it Run, end it with Drain or Close.
type Forwarder struct {
	// Static after New.
	log      *zap.Logger
	reg      *stats.Registry
	buffers  *conn.Buffers
	started  time.Time // the clock's zero, which is that of CLOCK_MONOTONIC
	sweep    *sweeper
	overload *overload
	checks   *checks
	warnings *stats.Throttle[warning]
	batches  sync.Pool
	panics   byReason
	workers  *worker.Pool[*errand]
	errands  sync.Pool
	gather   gather
	worked   *workerStats
	kept     sync.Pool
	access   AccessLog // nil: none
	changed  func(Change)
	failures *stats.Ring
	trace    func(*batch)    // nil but in tests: told of each step of each exchange, before it is taken
	ctx      context.Context // ends when Close is called
	cancel   context.CancelFunc

	// Every goroutine of the road but the workers, by what must be at rest before what.
	sweeping, checking, accepting, dialling, reading group

	// Atomic.
	snap      atomic.Pointer[snapshot]
	draining  atomic.Bool
	resting   atomic.Bool           // Pause was called, and Resume was not
	abandoned atomic.Bool           // another process has the state, and the sockets
	begun     atomic.Bool           // Start was called
	shift     atomic.Pointer[shift] // between two pauses
	blocking  atomic.Uint64         // lower half: exchanges inside filters that block; upper half: how often that changed
	taken     atomic.Uint64         // exchanges that workers have begun with and that had waited for one
	held      held

	connections atomic.Uint64 // the number given to a connection last: its id

	labels labels
	later  later

	turn sync.Mutex // held by who pauses, resumes or abandons the road
	// Held by whoever changes the snapshot, and from Pause to Resume.
	applying sync.Mutex

	// Guarded by mu, under which draining begins, and a snapshot enters while it has not.
	mu     sync.Mutex
	closed bool

	// Owned by whoever starts, pauses and hands over, one at a time.
	adopted  *adopter // between Adopt and Start
	pauses   []time.Duration
	pausedAt int64 // when Pause shut the gates; 0: it did not
}

// monotonic is the time in nanoseconds on CLOCK_MONOTONIC, which all processes of a machine share.
func monotonic() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0 // every kernel that Go runs on has it; else times just do not survive a hand-over
	}
	return time.Duration(t.Nano())
}

// warning is what warnings are throttled by.
type warning struct{ about, reason string }

// The throttle of warnings: one in this time for what it is about and the reason. It remembers up to this many such
// pairs, two for each of 32,000 endpoints that are all down, and four for each rule.
const (
	warnInterval = 10 * time.Second
	warnKeys     = 64 << 10
)

// New builds the road for a spec and binds its listeners; nothing is accepted before Start. An error means
// that nothing is left open. maxBuffered bounds the bytes that all connections buffer together.
func New(spec *Spec, maxBuffered int64, reg *stats.Registry, log *zap.Logger) (*Forwarder, error) {
	rules := 0
	for i := range spec.Routes {
		rules += len(spec.Routes[i].Rules)
	}
	f := &Forwarder{
		log:      log,
		reg:      reg,
		buffers:  conn.NewBuffers(maxBuffered),
		started:  time.Now().Add(-monotonic()),
		warnings: stats.NewThrottle[warning](warnInterval, warnKeys+4*rules),
		access:   spec.Access,
		changed:  spec.Changed,
		failures: stats.NewRing(failuresKept),
		panics:   byReason{reg: reg, name: "relevo_recovered_panics_total", help: "Panics recovered on the road, each a defect, by reason."},
	}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	f.beginShift()
	f.batches.New = func() any { return newBatch(f) }
	f.errands.New = func() any { return new(errand) }
	f.kept.New = func() any { return new(kept) }
	f.gather.since.Store(never)
	f.worked = newWorkerStats(reg)
	f.workers = worker.New(spec.Workers.Max, spec.Workers.Queue, f.work)
	f.sweep = newSweeper(f)
	f.overload = newOverload(f, &spec.Overload)
	f.checks = newChecks(f)
	snap, err := f.build(spec, &snapshot{})
	if err != nil {
		f.cancel()
		return nil, err
	}
	for _, c := range snap.clusters {
		c.enter()
	}
	f.snap.Store(snap)
	f.export(nil)
	return f, nil
}

// Start begins to accept and to sweep, and goes on with what Adopt has taken over.
func (f *Forwarder) Start() {
	f.begun.Store(true)
	f.sweep.judge(f.now()) // nobody sweeps yet; it says who may come
	f.goOn()               // first: it starts the read loop of every connection that there is
	for _, l := range f.snap.Load().listeners {
		if l.socket != nil {
			f.accepting.Go(l.accept) // ends when its socket is closed, or with the shift
		}
	}
	f.checks.configure(f.snap.Load())
	f.sweep.change()
	f.sweeping.Go(f.sweep.run) // ends with the shift
}

// now is the time in nanoseconds on CLOCK_MONOTONIC, so that times mean the same to the process that goes on.
func (f *Forwarder) now() int64 { return int64(time.Since(f.started)) }

// Drain stops accepting, answers what clients still send with CONNECTION_CLOSED, lets the requests in flight
// finish and closes each connection as soon as it has none. It returns when no connection is left, or with
// ctx's error. Close must follow.
func (f *Forwarder) Drain(ctx context.Context) error {
	f.mu.Lock()
	f.draining.Store(true)
	f.mu.Unlock()
	snap := f.snap.Load()
	for _, l := range snap.listeners {
		l.stop()
	}
	tick := time.NewTicker(drainLook)
	defer tick.Stop()
	began := f.now()
	for {
		open := 0
		for _, l := range snap.listeners {
			open += l.leaveIdle(f.now(), began)
		}
		if open == 0 && f.busyWorkers() == 0 && snap.unsent() == 0 { // in this order: workers send
			if open = snap.leave(); open == 0 {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %d connections to finish: %w", open, ctx.Err())
		case <-tick.C:
		}
	}
}

// drainLook is how often Drain looks for connections that have finished; drainQuiet is for how long one that has
// nothing in flight must have sent nothing to be taken for finished, in nanoseconds.
const (
	drainLook  = 5 * time.Millisecond
	drainQuiet = int64(100 * time.Millisecond)
	// A client that never pauses is answered for so long; then it is closed between two of its calls, each of which it is
	// told the same about anyway.
	drainPatience = int64(3 * time.Second)
)

// Close closes everything and waits for every goroutine of the road. It may be called twice.
func (f *Forwarder) Close() {
	f.mu.Lock()
	first := !f.closed
	f.closed = true
	f.draining.Store(true)
	f.mu.Unlock()
	if first {
		f.cancel()
		snap := f.snap.Load()
		for _, l := range snap.listeners {
			l.stop()
			l.closeAll()
		}
		for _, c := range snap.clusters {
			c.close()
		}
		f.endRetries()
	}
	f.Resume() // who is held goes on, to its end
	for _, g := range []*group{&f.sweeping, &f.checking, &f.accepting, &f.dialling, &f.reading} {
		_ = g.Wait(context.Background()) // all end with f.ctx, or with their connection
	}
	f.workers.Close()
}

// busyWorkers is the number of exchanges that a worker carries or that wait for one.
func (f *Forwarder) busyWorkers() int {
	workers, idle, queued := f.workers.Stats()
	return workers - idle + queued
}

// Addresses are the listeners' addresses by name, as bound.
func (f *Forwarder) Addresses() map[string]net.Addr {
	out := make(map[string]net.Addr)
	for _, l := range f.snap.Load().listeners {
		if l.socket != nil {
			out[l.name] = l.socket.Addr()
		}
	}
	return out
}

// Buffered is the number of bytes that the connections' buffers hold.
func (f *Forwarder) Buffered() int64 { return f.buffers.Used() }

// warn says whether a warning about something, for a reason, is due, and how many were held back before it.
func (f *Forwarder) warn(about, reason string) (suppressed uint64, ok bool) {
	return f.warnings.Allow(warning{about, reason}, f.now())
}
