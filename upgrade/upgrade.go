// Package upgrade is the chain of generations: one process hands listeners, connections and requests in flight to the next
// one, or, if anything goes wrong, goes on as if nothing had happened.
//
// It knows when what is due and who owns the state. What the state is it does not know: the hooks (Giver, Taker) move it.
// The two sides are pure state machines, old.go and new.go, with all that can happen in one table of events; drive.go and
// take.go do what they say. Processes are started by tableflip, of which system.go alone knows.
//
// A program makes one Generation. If it is an heir, Take gets the state, else Ready says that it is built; then Run, as long
// as the process is the proxy; then Close. Goroutines belong to Run, but for the one that listens to the process before
// this one, which belongs to the Generation and ends with that process or with Close.
package upgrade

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/relevo-proxy/relevo/upgrade/handoff"
)

// Options are what a Generation is made from.
type Options struct {
	Log     *zap.Logger
	Release string
	// RuntimeDir is where the pid file and the report are. Empty: there are none.
	RuntimeDir string
	// Check says with which arguments the new binary checks the configuration that it would load, and what it reads from standard
	// input. Nil: no check.
	Check func() (args []string, input []byte)
	// ReadyTimeout is from the start of the new process until it is warm, HandoverTimeout from the beginning of the barrier
	// until the state is given away. Zero: 30 s and 2 s.
	ReadyTimeout, HandoverTimeout time.Duration
	// Linger is how long the old process stays when all is done, and ends with status 1 if the new one dies meanwhile. A second
	// under systemd, which must not find the pid file changed while the reload still runs.
	Linger time.Duration
	// Disabled is the reason why this process cannot be upgraded. Empty: it can.
	Disabled string
	// Observe is told of every upgrade: of each step of one that runs, by the process that takes it, and of its end, by the
	// process that owns the state then. An heir is told first of the one that made it, before its gates open. It must not
	// wait, and may be nil.
	Observe func(Report)
	// Moved is told of every transition of this process's side of an upgrade, in order. It must not wait, and may be nil.
	Moved func(from, to string)
	// Tap is a seam for tests, which kill processes at an exact point of a hand-over. It is nil in production.
	Tap Tap
}

// The limits that nobody configures.
const (
	settleTimeout  = 5 * time.Second
	startedTimeout = 500 * time.Millisecond
	hearTimeout    = 50 * time.Millisecond // behind startedTimeout, to hear what was said in time
	reapTimeout    = 2 * time.Second
	arriveTimeout  = 5 * time.Second
	sayTimeout     = time.Second // to say what nobody's gates wait for
	abortTimeout   = 10 * time.Millisecond
	lateSignals    = 20 * time.Millisecond // from reading a pid file to the signal
)

// Generation is this process in the chain.
type Generation struct {
	// Static after New.
	opts   Options
	log    *zap.Logger
	sys    *system
	asked  chan struct{} // never closed; one slot, as asking twice before the first is heard is asking once
	told   chan struct{} // closed when the process before this one says that somebody wants this one to stop
	closed chan struct{} // closed by Close
	alone  chan struct{} // closed when the process before this one has ended, in an heir that owns the state
	once   sync.Once

	// Static after Take or Ready, which no goroutine runs beside.
	number  uint64
	owner   bool          // it has taken the state
	parent  *link         // the process before this one, as long as it may say something; nil: there is none
	settled chan struct{} // closed when the report of the upgrade that made this process is final
	family  sync.WaitGroup

	untold []line // Owned by Take, and behind it by Run.

	mu sync.Mutex
	// Guarded by mu.
	spent   string // why no upgrade can be made any more; empty: it can
	program string // that the next upgrade is to start; empty: the one that this process was started as
	last    Report
	past    []Report // before last, the newest first
	running *attempt // what Close has to end, after Run
	given   bool     // its child has the state: Close lets go of the pid file
}

// New makes the Generation of this process: of a fresh one, or of an heir. It must be called before the process changes
// its working directory, and once.
//
// Where WATCHDOG_USEC is set, an heir sets WATCHDOG_PID to its own pid: it inherits that of its parent. It leaves the session
// of a terminal that its parent leads.
func New(o Options) (*Generation, error) {
	o.ReadyTimeout = cmp.Or(o.ReadyTimeout, 30*time.Second)
	o.HandoverTimeout = cmp.Or(o.HandoverTimeout, 2*time.Second)
	longest := o.ReadyTimeout + settleTimeout + o.HandoverTimeout + startedTimeout + reapTimeout + arriveTimeout
	sys, err := newSystem(longest + time.Minute)
	if err != nil {
		return nil, err
	}
	if sys.heir {
		if err := beHeir(sys.pid); err != nil {
			err = fmt.Errorf("preparing upgrades: %w", err)
			sys.giveUp("start", err)
			return nil, err
		}
	}
	return newGeneration(o, sys)
}

// beHeir takes leave of the parent: of its session, and of its pid in what systemd's watchdog goes by.
func beHeir(pid int) error {
	if err := leaveSession(); err != nil {
		return err
	}
	if os.Getenv("WATCHDOG_USEC") == "" {
		return nil
	}
	return os.Setenv("WATCHDOG_PID", strconv.Itoa(pid))
}

// GiveUp tells the process that has started this one to take over, if there is one, why it will not: for what goes wrong before
// there are Options to make a Generation from. The process ends behind it.
func GiveUp(step string, reason error) {
	if !IsHeir() {
		return // there is nobody to tell
	}
	if sys, err := newSystem(0); err == nil && sys.heir {
		sys.giveUp(step, reason)
	}
}

// giveUp is GiveUp where there is a system, of which a process has one.
func (s *system) giveUp(step string, reason error) {
	parent, err := s.inherit()
	if err != nil {
		return
	}
	defer parent.close()
	_ = parent.send(time.Now().Add(sayTimeout), &handoff.Failed{Step: step, Reason: cut(reason.Error(), maxReason)}) // or it sees the end alone
}

func newGeneration(o Options, sys *system) (*Generation, error) {
	g := &Generation{
		opts:    o,
		log:     o.Log,
		sys:     sys,
		asked:   make(chan struct{}, 1),
		told:    make(chan struct{}),
		closed:  make(chan struct{}),
		alone:   make(chan struct{}),
		settled: make(chan struct{}),
		number:  1,
	}
	sys.tap(o.Tap)
	if !sys.heir {
		close(g.settled)
		return g, nil
	}
	var err error
	g.parent, err = sys.inherit()
	return g, err
}

// Heir reports whether another process has started this one to hand its state over.
func (g *Generation) Heir() bool { return g.sys.heir }

// Number is the generation, counted from 1. That of an heir is known when Take has returned.
func (g *Generation) Number() uint64 { return g.number }

// Ready says that a fresh process is built: it writes the pid file and allows upgrades. Problems with files are logged; the
// proxy runs without them.
func (g *Generation) Ready() error {
	if g.sys.heir {
		return errors.New("an heir is ready when it has taken the state")
	}
	if dir := g.opts.RuntimeDir; dir != "" {
		g.claim(dir)
		r, err := ReadReport(dir)
		if err != nil {
			g.log.Warn("the last report of upgrades cannot be read: they are counted from 1", zap.Error(err))
		}
		g.mu.Lock()
		g.last = Report{ID: r.ID} // who waits for a report waits for a greater number
		g.mu.Unlock()
	}
	if err := g.sys.ready(); err != nil {
		return fmt.Errorf("allowing upgrades: %w", err)
	}
	return nil
}

// claim writes the pid file, and warns if it is another's.
func (g *Generation) claim(dir string) {
	switch pid, err := ReadPID(dir); {
	case err != nil:
		g.log.Warn("the pid file is overwritten", zap.Error(err))
	case pid != 0 && pid != g.sys.pid:
		if runs, _ := Runs(pid); runs {
			g.log.Warn("the pid file is overwritten, and the process that it names runs: do two have the same runtime_dir?",
				zap.Int("pid", pid))
		}
	}
	if err := writePID(dir, g.sys.pid); err != nil {
		g.log.Warn("there is no pid file", zap.Error(err))
	}
}

// Request asks for an upgrade, as SIGHUP does. It waits for nothing: what comes of it is in the report. A request during an
// upgrade is kept, and passed on to the new process. It may be called any time.
func (g *Generation) Request() {
	select {
	case g.asked <- struct{}{}:
	default:
	}
}

// Reports are those of the last upgrades along the chain, the newest first, also of one that runs.
func (g *Generation) Reports() []Report {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []Report
	if g.last.Outcome != "" {
		out = append(out, g.last.clone())
	}
	for _, r := range g.past {
		out = append(out, r.clone())
	}
	return out
}

// Last is the report of the last upgrade, also of one that runs. Its ID is 0 if there was none.
func (g *Generation) Last() Report {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.last.clone()
}

// Close ends what still listens, and lets go of the pid file: it becomes the heir's, and is removed where there is none. It is
// the last call, behind which the process ends, and twice is fine.
func (g *Generation) Close() {
	g.once.Do(func() {
		if g.parent != nil {
			g.awaitParent()
		}
		g.mu.Lock()
		a, given := g.running, g.given
		g.mu.Unlock()
		if given {
			g.pointTo(a.pid)
		}
		close(g.closed)
		if g.parent != nil {
			g.parent.close()
		}
		g.family.Wait() // PassOn has its last word before the socket is closed
		if a != nil {
			a.end()
		}
		if dir := g.opts.RuntimeDir; dir != "" {
			if err := removePID(dir, g.sys.pid); err != nil {
				g.log.Warn("the pid file stays", zap.Error(err))
			}
		}
	})
}

// pointTo makes the pid file the heir's, and leaves whoever has read it just before the time to send his signal.
func (g *Generation) pointTo(heir int) {
	dir := g.opts.RuntimeDir
	if dir == "" || heir <= 0 {
		return
	}
	if err := writePID(dir, heir); err != nil {
		g.log.Warn("the pid file still names this process", zap.Error(err))
	}
	time.Sleep(lateSignals)
}

// PassOn tells the heir what is asked of this process, which has handed over, from the end of Run to Close: to stop, when ctx
// ends, which it must not do for another reason before Close has returned; and to be upgraded. It waits for nothing.
func (g *Generation) PassOn(ctx context.Context) {
	g.mu.Lock()
	a := g.running
	g.mu.Unlock()
	ctx, cancel := g.stopped(ctx)
	g.family.Go(func() { // ends with Close
		defer cancel()
		g.passOn(ctx, a)
	})
}

func (g *Generation) passOn(ctx context.Context, a *attempt) {
	stop := ctx.Done()
	for closed := false; !closed; {
		var follow handoff.Follow
		select {
		case <-stop:
			stop = nil
		case <-g.asked:
			follow.Again = true
		case <-g.closed:
			closed = true
			select {
			case <-g.asked:
				follow.Again = true
			default:
			}
		}
		follow.Stop = ctx.Err() != nil // once more does no harm
		err := a.say(time.Now().Add(sayTimeout), &follow)
		// The last word, which may ask for nothing, shows whether the heir has stopped, and let go of the pid file before it
		// was pointed to: it closes the socket first.
		if dir := g.opts.RuntimeDir; closed && died(err) && dir != "" {
			if err := removePID(dir, a.pid); err != nil {
				g.log.Warn("the pid file stays", zap.Error(err))
			}
		}
	}
}

// awaitParent gives the process before this one the time to let go of the pid file: it has heard that this one stops.
func (g *Generation) awaitParent() {
	if !g.owner {
		return
	}
	t := time.NewTimer(sayTimeout)
	defer t.Stop()
	select {
	case <-g.alone:
	case <-t.C:
	}
}

// publish makes r the last report, in memory and in the file. A file that cannot be written stops no upgrade that is under way.
func (g *Generation) publish(r Report) {
	r.bound()
	r = r.clone()
	g.remember(r)
	if dir := g.opts.RuntimeDir; dir != "" {
		if err := writeReport(dir, r); err != nil {
			g.log.Warn("the report of the upgrade is in memory only", zap.Uint64("upgrade", r.ID), zap.Error(err))
		}
	}
	if g.opts.Observe != nil {
		g.opts.Observe(r.clone())
	}
}

// note is publish for a step on the way: it writes no file, because connections may be waiting.
func (g *Generation) note(r Report) {
	r = r.clone()
	g.remember(r)
	if g.opts.Observe != nil {
		g.opts.Observe(r.clone())
	}
}

// remember makes r the last report.
func (g *Generation) remember(r Report) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.last.ID != r.ID && g.last.Outcome.Final() {
		g.past = append([]Report{g.last}, g.past[:min(len(g.past), maxReports-2)]...)
	}
	g.last = r
}

// line is a line of the log that is still to be written, with the time at which it came to be.
type line struct {
	entry  *zapcore.CheckedEntry // nil: the log does not want it
	fields []zap.Field
}

// moved tells of a transition. While somebody waits for what comes next, the log has to wait: it may be one that nobody reads.
func (g *Generation) moved(id uint64, from, to fmt.Stringer, awaited bool) {
	g.untold = append(g.untold, line{
		g.log.Check(zap.InfoLevel, "upgrade"), []zap.Field{zap.Uint64("upgrade", id), zap.Stringer("from", from), zap.Stringer("to", to)},
	})
	if g.opts.Moved != nil {
		g.opts.Moved(from.String(), to.String())
	}
	if !awaited {
		g.logMoves()
	}
}

// logMoves writes what moved has kept back.
func (g *Generation) logMoves() {
	for _, l := range g.untold {
		l.entry.Write(l.fields...)
	}
	g.untold = nil
}

// spend says why no upgrade can be made any more.
func (g *Generation) spend(reason string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.spent = reason
}

// stopped is closed when somebody wants this process to stop, whichever way that came.
func (g *Generation) stopped(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	g.family.Go(func() { // ends with ctx, which cancel ends, or with told
		select {
		case <-g.told:
			cancel()
		case <-ctx.Done():
		}
	})
	return ctx, cancel
}
