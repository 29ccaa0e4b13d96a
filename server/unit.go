package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/systemd"
	"github.com/relevo-proxy/relevo/upgrade"
)

// unit is this process as a part of systemd's unit. It says what there is to say of the process that owns the state, and
// nothing of one that does not own it, for systemd takes whatever it hears last for the truth. A nil unit says nothing.
type unit struct {
	// Static after readWatchdog.
	log      *zap.Logger
	notify   systemd.Notifier
	watchdog time.Duration // how long systemd waits for a ping; 0: it does not
	poked    chan struct{} // never closed; one slot
	file     func() string // stands for what the unit's files say now
	begun    string        // what they said when systemd started the first process of the chain; empty: not known

	mu sync.Mutex
	// Guarded by mu.
	left  bool      // another process speaks
	until time.Time // when a process that stops has ended, whatever is stuck; zero: it does not stop
	warn  bool      // that systemd could not be told was logged
}

const (
	statusEvery = 5 * time.Second
	// extension is how much time a process that stops asks for, each time that it tells its status.
	extension = 3 * statusEvery
	// pings is how many of them there are in the time that systemd waits for one.
	pings = 3
	// lastCheck bounds the wait for a check that is under way at the end.
	lastCheck = time.Second

	lockHeld = "the check itself: a lock is held"
)

func newUnit(log *zap.Logger) *unit {
	name := systemd.UnitName()
	return &unit{
		log: log, notify: systemd.FromEnvironment(), poked: make(chan struct{}, 1), file: func() string { return systemd.UnitSum(name) },
	}
}

// unitVariable is the environment variable in which the first process of a chain leaves to its heirs, which inherit it, what the
// unit's files said when systemd started it: none of them gets another limit or sandbox.
const unitVariable = "RELEVO_UNIT"

// readFile notes what the unit's files said when the chain began.
func (u *unit) readFile(heir bool) error {
	switch {
	case !u.notify.Enabled():
		return nil
	case heir:
		u.begun = os.Getenv(unitVariable) // empty where a release was first that did not leave it
		return nil
	}
	u.begun = u.file()
	if err := os.Setenv(unitVariable, u.begun); err != nil {
		return fmt.Errorf("leaving word of the unit: %w", err)
	}
	return nil
}

// changed says whether the unit's files say something else than when the chain began.
func (u *unit) changed() bool {
	if u == nil || u.begun == "" {
		return false
	}
	now := u.file()
	return now != "" && now != u.begun
}

// readWatchdog is called when WATCHDOG_PID is this process's, if it is to be.
func (u *unit) readWatchdog() {
	if !u.notify.Enabled() {
		return
	}
	var err error
	if u.watchdog, err = systemd.Watchdog(); err != nil {
		u.log.Warn("systemd's watchdog is not understood", zap.Error(err))
	}
}

// poke has the status told soon.
func (u *unit) poke() {
	select {
	case u.poked <- struct{}{}:
	default: // it was poked already
	}
}

// say says something, unless another process speaks.
func (u *unit) say(what func(systemd.Notifier) error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.left {
		return
	}
	err := what(u.notify)
	if err != nil && !u.warn {
		u.log.Warn("systemd does not hear what it is told", zap.Error(err))
	}
	u.warn = err != nil
}

// leave is the last thing that happens: from here another process speaks.
func (u *unit) leave() {
	if u == nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.left = true
}

// ready says that the server serves, and which sockets are to survive the process.
func (u *unit) ready(s *Server) {
	u.say(func(n systemd.Notifier) error {
		var errs []error
		for _, p := range s.dropped { // first: the names may be the same
			errs = append(errs, n.Forget(p.storeName()))
		}
		for _, b := range s.stored {
			errs = append(errs, n.Store(b.storeName(), b.socket))
		}
		return errors.Join(append(errs, n.Ready(s.statusLine()))...)
	})
}

// stopping says that the server drains, and that nothing is to survive it.
func (u *unit) stopping(s *Server) {
	if u == nil {
		return
	}
	u.mu.Lock()
	u.until = time.Now().Add(s.stopLimit())
	u.mu.Unlock()
	u.say(func(n systemd.Notifier) error {
		var errs []error
		for _, p := range places(s.config()) {
			errs = append(errs, n.Forget(p.storeName()))
		}
		return errors.Join(append(errs, n.Stopping(s.statusLine()), n.Extend(min(extension, s.stopLimit())))...)
	})
}

// run tells the status and pings the watchdog, until end is called, which waits for that.
func (u *unit) run(s *Server) (end func()) {
	if u == nil || !u.notify.Enabled() {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { u.loop(ctx, s) }) // ends with ctx
	return func() {
		cancel()
		wg.Wait()
	}
}

func (u *unit) loop(ctx context.Context, s *Server) {
	status := time.NewTicker(statusEvery)
	defer status.Stop()
	var pulse <-chan time.Time // nil without a watchdog
	if u.watchdog > 0 {
		t := time.NewTicker(max(u.watchdog/pings, time.Millisecond))
		defer t.Stop()
		pulse = t.C
	}
	w := newWatchman(u, forwarder.NewWatch(s.road).Stuck)
	defer w.end()
	for {
		select {
		case <-ctx.Done():
			return
		case <-status.C:
			u.refresh(s, !w.alarmed)
		case <-u.poked:
			u.refresh(s, false)
		case <-pulse:
			w.begin()
		case stuck := <-w.found:
			w.judge(stuck)
		}
	}
}

// refresh tells the status. A process that stops and is not stuck asks for more time with it: how long it may take is
// stop_timeout's to say. It asks for none beyond its own bound, so that systemd ends a process that does not.
func (u *unit) refresh(s *Server, moves bool) {
	u.mu.Lock()
	more := min(extension, time.Until(u.until))
	u.mu.Unlock()
	u.say(func(n systemd.Notifier) error {
		err := n.Status(s.statusLine())
		if moves && more > 0 {
			err = errors.Join(err, n.Extend(more))
		}
		return err
	})
}

// watchman checks whether the road moves, and pings systemd's watchdog if it does.
type watchman struct {
	// Static.
	unit  *unit
	check func() []string
	found chan []string // one slot, so that a check never waits; never closed

	// Owned by the unit's loop.
	checking bool
	alarmed  bool
}

func newWatchman(u *unit, check func() []string) *watchman {
	return &watchman{unit: u, check: check, found: make(chan []string, 1)}
}

// begin checks on a goroutine of its own, because a road that is stuck may hold the locks that a check needs. If the check
// before has not ended, that is the finding.
func (w *watchman) begin() {
	if w.checking {
		w.alarm([]string{lockHeld})
		return
	}
	w.checking = true
	go func() { w.found <- w.check() }() // ends when the road's locks are free; end waits for it
}

// judge is behind a check.
func (w *watchman) judge(stuck []string) {
	w.checking = false
	if len(stuck) > 0 {
		w.alarm(stuck)
		return
	}
	if w.alarmed {
		w.alarmed = false
		w.unit.log.Warn("nothing is stuck any more")
	}
	w.unit.say(systemd.Notifier.Alive)
}

// alarm does not ping, and says why, with all stacks the first time.
func (w *watchman) alarm(stuck []string) {
	w.unit.log.Error("something is stuck: systemd is not told that this process lives", zap.Strings("stuck", stuck))
	if w.alarmed {
		return
	}
	w.alarmed = true
	logStacks(w.unit.log)
}

// end waits for a check that is under way; one that is stuck is left to the end of the process.
func (w *watchman) end() {
	if !w.checking {
		return
	}
	t := time.NewTimer(lastCheck)
	defer t.Stop()
	select {
	case <-w.found:
	case <-t.C:
	}
}

// statusLine is what "systemctl status" shows.
func (s *Server) statusLine() string {
	var b strings.Builder
	if stage(s.stage.Load()) == stageStopping {
		b.WriteString("stopping: ")
	}
	var last upgrade.Report
	if s.generation != nil {
		last = s.generation.Last()
	}
	fmt.Fprintf(&b, "generation %d, %d client connections", s.number, s.road.Connections())
	b.WriteString(upgradeLine(last))
	return b.String()
}

func upgradeLine(r upgrade.Report) string {
	switch r.Outcome {
	case "":
		return ""
	case upgrade.Running:
		return fmt.Sprintf("; upgrade %d is under way", r.ID)
	case upgrade.Done:
		return fmt.Sprintf("; upgrade %d done, pause %v", r.ID, time.Duration(r.Pause*float64(time.Second)).Round(time.Millisecond))
	default:
		return fmt.Sprintf("; upgrade %d %s at %s: %s", r.ID, r.Outcome, r.Step, r.Reason)
	}
}
