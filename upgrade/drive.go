package upgrade

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/upgrade/handoff"
)

// Ending is how Run ended.
type Ending struct {
	// Owner says that this process still owns the state and that somebody wants it to stop: it stops as it does without
	// upgrades. Otherwise it ends at once, with Status, and closes nothing in order: what it has is a copy at most. With
	// status 0 it has handed over, and PassOn follows.
	Owner  bool
	Status int
	Reason string // of a Status that is not 0
}

// Run makes the upgrades that are asked for, until ctx ends, which undoes a running one; or until this process has handed
// over, or its heir has died with the state. It is called once, by a process that owns the state and has opened its gates.
func (g *Generation) Run(ctx context.Context, giver Giver) Ending {
	ctx, cancel := g.stopped(ctx)
	defer cancel()
	d := &driver{g: g, giver: giver, events: make(chan event), timer: time.NewTimer(time.Hour), over: make(chan struct{})}
	d.timer.Stop()
	defer d.timer.Stop()
	defer close(d.over)
	return d.run(ctx)
}

// driver does what the machine of the old side says.
type driver struct {
	// Static.
	g      *Generation
	giver  Giver
	events chan event    // from errands, readers and tableflip; never closed
	over   chan struct{} // closed when Run returns
	timer  *time.Timer

	// Owned by Run.
	machine oldSide
	armed   timer
	late    bool // the armed timer has expired, and what was said before is heard first
	pending []event
	attempt *attempt // that runs; nil: none
	report  Report
	stepAt  time.Time
	ending  *Ending
}

// attempt is one upgrade: what belongs to it ends with it.
type attempt struct {
	// Static.
	program string        // that is to take over
	done    chan struct{} // closed by end
	once    sync.Once
	wg      sync.WaitGroup
	since   int64 // in the kernel's ticks
	saying  sync.Mutex

	// Owned by Run; link is written by the first errand, before its end is an event.
	link    *link
	cancel  context.CancelFunc // of the errand
	pid     int                // that the child says it has
	barrier int64              // when it began, CLOCK_MONOTONIC; 0: it did not
	until   time.Time          // the end of handover_timeout
	left    []string
	oldest  []string
}

// end closes the socket and waits for all that uses it.
func (a *attempt) end() {
	a.once.Do(func() { close(a.done) })
	if a.link != nil {
		a.link.close()
	}
	a.wg.Wait()
}

func (d *driver) run(ctx context.Context) Ending {
	stop := ctx.Done()
	var asked <-chan struct{} // nil until the report of the upgrade before is final
	settled := (<-chan struct{})(d.g.settled)
	for {
		for len(d.pending) > 0 && d.ending == nil {
			e := d.pending[0]
			d.pending = d.pending[1:]
			d.step(e)
		}
		if d.ending != nil {
			return *d.ending
		}
		select {
		case <-stop:
			stop = nil
			d.g.tellParent()
			d.step(event{kind: evStop})
		case <-settled:
			settled, asked = nil, d.g.asked
		case <-asked:
			d.step(event{kind: evAsked})
		case e := <-d.events:
			d.step(e)
		case <-d.timer.C:
			d.expired()
		}
	}
}

// expired is the end of the timer. Behind COMMIT it decides who lives: it may be this process that has stood still, beside a new one
// that said STARTED in time.
func (d *driver) expired() {
	if d.armed == timerStarted && !d.late {
		d.late = true
		d.timer.Reset(hearTimeout)
		return
	}
	if d.armed == timerReap {
		d.g.spend("a process of an upgrade before was killed and does not end")
		// Behind the step, which opens the gates.
		defer d.g.log.Error("the new process was killed and does not end", zap.Uint64("upgrade", d.report.ID), zap.Int("pid", d.attempt.pid))
	}
	d.step(event{kind: evTimer, timer: d.armed})
}

func (d *driver) step(e event) {
	if e.kind == evReady { // if this process goes on all the same, it has started its last one
		d.g.spend("a process of an upgrade before said that it was ready and was given nothing: tableflip starts no other one")
	}
	if e.kind == evMessage && e.message == handoff.KindWarm {
		d.attempt.pid, d.report.To, d.report.ReleaseTo = e.pid, e.pid, e.release
	}
	for _, a := range d.machine.Step(e) {
		d.do(a)
	}
}

// moved notes a transition: the time that a step took, and where the upgrade is now.
func (d *driver) moved(before, now oldState) {
	at := time.Now()
	if step := oldSteps[before]; step != "" && step != oldSteps[now] && d.report.Steps != nil {
		d.report.Steps[step] += at.Sub(d.stepAt).Seconds()
		d.stepAt = at
	}
	if step := oldSteps[now]; step != "" && step != d.report.Step {
		d.report.Step = step
		d.g.note(d.report)
	}
	d.g.moved(d.report.ID, before, now, now.awaited())
}

func (d *driver) do(a action) {
	switch a.kind {
	case doMoved:
		d.moved(oldState(a.from), oldState(a.to))
	case doReport:
		d.tell(a)
	case doPreflight:
		d.errand(d.preflight)
	case doStart:
		d.start()
	case doSettle:
		d.errand(d.settle)
	case doPause:
		d.pause()
	case doSend:
		d.errand(d.send)
	case doFarewell:
		d.farewell()
	case doCancel:
		d.attempt.cancel()
	case doEnd:
		d.end(a.counts)
	case doCommit:
		d.say(startedTimeout, &handoff.Commit{Again: a.again})
	case doAbort:
		d.abort(a.reason)
	case doKill:
		if err := d.g.sys.kill(d.attempt.pid, d.attempt.since); err != nil {
			d.g.log.Error("the new process could not be killed", zap.Uint64("upgrade", d.report.ID), zap.Error(err))
		}
	case doHangUp:
		d.attempt.link.hangUp()
	case doResume:
		d.giver.Resume()
		d.report.Pause = time.Duration(d.g.sys.monotonic() - d.attempt.barrier).Seconds()
		if d.giver.Pauses != nil {
			d.report.Pauses = d.giver.Pauses()
		}
	case doArm:
		d.arm(a.timer)
	case doFollow:
		d.say(sayTimeout, &handoff.Follow{Again: a.again, Stop: a.stop})
	case doLetStop:
		d.ending = &Ending{Owner: true}
	case doExit:
		d.exit(a)
	default: // of the new side
	}
}

func (d *driver) arm(t timer) {
	d.armed, d.late = t, false
	limits := map[timer]time.Duration{
		timerReady: d.g.opts.ReadyTimeout, timerHandover: d.g.opts.HandoverTimeout, timerStarted: startedTimeout,
		timerReap: reapTimeout, timerArrive: arriveTimeout, timerLinger: d.g.opts.Linger,
	}
	if t == timerNone {
		d.timer.Stop()
		return
	}
	d.timer.Reset(limits[t])
}

// tell begins the report of an upgrade, or ends it, and the upgrade with it.
func (d *driver) tell(a action) {
	if a.outcome == Running {
		d.stepAt = time.Now()
		d.report = Report{
			ID: d.g.Last().ID + 1, Outcome: Running, Step: StepPreflight, Generation: d.g.number, From: d.g.sys.pid,
			ReleaseFrom: d.g.opts.Release, Started: d.stepAt.UTC().Truncate(time.Millisecond), Steps: map[string]float64{},
		}
		d.attempt = &attempt{program: d.g.begin(d.report), done: make(chan struct{}), cancel: func() {}}
		d.g.publish(d.report)
		return
	}
	d.report.Outcome, d.report.Step, d.report.Reason = a.outcome, a.step, a.reason
	d.report.Left, d.report.Oldest = d.attempt.left, d.attempt.oldest
	d.g.log.Warn("the upgrade did not succeed", zap.Uint64("upgrade", d.report.ID), zap.String("outcome", string(a.outcome)),
		zap.String("step", a.step), zap.String("reason", a.reason))
	if a.outcome != Failed && d.giver.Release != nil {
		d.giver.Release() // who waits for the report may change the configuration
	}
	d.g.publish(d.report)
	if a.outcome == Failed {
		return // the end of this process
	}
	d.attempt.end()
	d.attempt = nil
	if a.outcome == RolledBack {
		d.g.sys.collect()
	}
}

// post hands an event to Run, as long as it and the attempt last.
func (d *driver) post(a *attempt, e event) {
	select {
	case d.events <- e:
	case <-a.done:
	case <-d.over:
	}
}

// exit leaves the attempt to Close. With status 0 there is an heir, to which PassOn speaks until then.
func (d *driver) exit(a action) {
	d.g.mu.Lock()
	d.g.running, d.g.given = d.attempt, a.status == 0
	d.g.mu.Unlock()
	d.ending = &Ending{Status: a.status, Reason: d.report.Reason}
}
