package upgrade

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/upgrade/handoff"
)

// Ending is how Run ended.
type Ending struct {
	// Owner says that this process still owns the state and that somebody wants it to stop: it stops as it does without
	// upgrades. Otherwise it ends at once, with Status, and closes nothing in order: what it has is a copy at most.
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
	pending []event
	attempt *attempt // that runs; nil: none
	report  Report
	stepAt  time.Time
	ending  *Ending
}

// attempt is one upgrade: what belongs to it ends with it.
type attempt struct {
	// Static.
	done   chan struct{} // closed by end
	once   sync.Once
	wg     sync.WaitGroup
	since  int64 // in the kernel's ticks
	saying sync.Mutex

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

// expired is the end of the timer.
func (d *driver) expired() {
	if d.armed == timerReap {
		d.g.spent = "a process of an upgrade before was killed and does not end"
		d.g.log.Error("the new process was killed and does not end", zap.Uint64("upgrade", d.report.ID), zap.Int("pid", d.attempt.pid))
	}
	d.step(event{kind: evTimer, timer: d.armed})
}

func (d *driver) step(e event) {
	before := d.machine.state
	if e.kind == evReady { // if this process goes on all the same, it has started its last one
		d.g.spent = "a process of an upgrade before said that it was ready and was given nothing: tableflip starts no other one"
	}
	if e.kind == evMessage && e.message == handoff.KindWarm {
		d.attempt.pid, d.report.To, d.report.ReleaseTo = e.pid, e.pid, e.release
	}
	do := d.machine.Step(e)
	if now := d.machine.state; now != before {
		d.moved(before, now)
	}
	for _, a := range do {
		d.do(a)
	}
}

// moved notes a transition. The report of an upgrade that begins with it comes after it.
func (d *driver) moved(before, now oldState) {
	at := time.Now()
	if step := oldSteps[before]; step != "" && step != oldSteps[now] && d.report.Steps != nil {
		d.report.Steps[step] += at.Sub(d.stepAt).Seconds()
		d.stepAt = at
	}
	if step := oldSteps[now]; step != "" {
		d.report.Step = step
	}
	id := d.report.ID
	if now == oldPreflight {
		id = d.g.Last().ID + 1
	}
	d.g.log.Info("upgrade", zap.Uint64("upgrade", id), zap.Stringer("from", before), zap.Stringer("to", now))
}

func (d *driver) do(a action) {
	switch a.kind {
	case doReport:
		d.tell(a)
	case doPreflight:
		d.errand(func(ctx context.Context) (handoff.Counts, error) { return handoff.Counts{}, d.g.preflight(ctx) })
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
	d.armed = t
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
		d.attempt = &attempt{done: make(chan struct{}), cancel: func() {}}
		d.g.publish(d.report)
		return
	}
	d.report.Outcome, d.report.Step, d.report.Reason = a.outcome, a.step, a.reason
	d.report.Left, d.report.Oldest = d.attempt.left, d.attempt.oldest
	d.g.log.Warn("the upgrade did not succeed", zap.Uint64("upgrade", d.report.ID), zap.String("outcome", string(a.outcome)),
		zap.String("step", a.step), zap.String("reason", a.reason))
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

// errand runs work beside Run and reports its end.
func (d *driver) errand(work func(ctx context.Context) (handoff.Counts, error)) {
	a := d.attempt
	ctx, cancel := context.WithCancel(context.Background())
	a.cancel = cancel
	a.wg.Go(func() { // ends with its work, which ends with ctx; attempt.end waits for it
		defer cancel()
		counts, err := work(ctx)
		d.post(a, event{kind: evDone, counts: counts, dead: died(err), reason: textOf(err)})
	})
}

func textOf(err error) string {
	if err == nil {
		return ""
	}
	if text := err.Error(); text != "" {
		return text
	}
	return "no reason given"
}

// start starts the child and says what it needs to become warm.
func (d *driver) start() {
	a := d.attempt
	a.since = d.g.sys.ticks()
	until := time.Now().Add(d.g.opts.ReadyTimeout)
	offer := &handoff.Offer{
		Min: handoff.MinVersion, Max: handoff.Version, Release: d.g.opts.Release, PID: d.g.sys.pid,
		Upgrade: d.report.ID, Generation: d.g.number,
	}
	link, err := d.g.sys.pair()
	if err != nil {
		d.pending = append(d.pending, event{kind: evDone, reason: err.Error()}, event{kind: evExited})
		return
	}
	a.link = link
	listening := make(chan struct{})
	a.wg.Go(func() { // ends with the end of the socket
		defer close(listening)
		d.listen(a)
	})
	go func() { // ends with the child's end or its being ready, which are the machine's to see; a child that cannot be killed keeps it
		if err := d.g.sys.upgrade(); err != nil {
			link.hangUp()
			<-listening // what it has said of itself comes first
			d.post(a, event{kind: evExited, reason: err.Error()})
			return
		}
		link.release()
		d.post(a, event{kind: evReady})
	}()
	d.errand(func(context.Context) (handoff.Counts, error) {
		list, files, err := d.giver.Listeners()
		if err == nil {
			err = d.sayOn(a, until, offer)
		}
		if err == nil {
			err = d.sayOn(a, until, &list, files...)
		}
		return handoff.Counts{}, err
	})
}

// listen turns what the child says into events.
func (d *driver) listen(a *attempt) {
	for {
		m, files, err := a.link.receive()
		closeFiles(files) // a child has none to give
		if err != nil {
			d.post(a, event{kind: evGone, dead: died(err), reason: err.Error()})
			return
		}
		e := event{kind: evMessage, message: handoff.KindOf(m)}
		switch m := m.(type) {
		case *handoff.Unknown:
			continue
		case *handoff.Warm:
			e.pid, e.release = m.PID, m.Release
		case *handoff.Prepared:
			e.counts = m.Counts
		case *handoff.Failed:
			e.reason = because(m.Step, m.Reason)
		case *handoff.Follow:
			e.again, e.stop = m.Again, m.Stop
		default:
		}
		d.post(a, e)
	}
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // nobody asked for it
	}
}

func (d *driver) settle(ctx context.Context) (handoff.Counts, error) {
	if d.giver.Settle == nil {
		return handoff.Counts{}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	return handoff.Counts{}, d.giver.Settle(ctx)
}

// pause begins the barrier, and with it handover_timeout.
func (d *driver) pause() {
	a := d.attempt
	a.barrier, a.until = d.g.sys.monotonic(), time.Now().Add(d.g.opts.HandoverTimeout)
	d.errand(func(ctx context.Context) (handoff.Counts, error) {
		ctx, cancel := context.WithDeadline(ctx, a.until)
		defer cancel()
		err := d.giver.Pause(ctx)
		if stuck, ok := errors.AsType[*Stuck](err); ok {
			a.oldest = stuck.Oldest
		}
		return handoff.Counts{}, err
	})
}

func (d *driver) send(ctx context.Context) (handoff.Counts, error) {
	a := d.attempt
	ctx, cancel := context.WithDeadline(ctx, a.until)
	defer cancel()
	counts, err := d.giver.Send(ctx, func(m handoff.Message, files ...syscall.RawConn) error {
		return d.sayOn(a, a.until, m, files...)
	})
	if err == nil && d.giver.Left != nil {
		a.left = d.giver.Left()
	}
	return counts, err
}

// end says END. The child may still be at what came before.
func (d *driver) end(counts handoff.Counts) {
	a := d.attempt
	d.report.Carried = carried(counts)
	a.wg.Go(func() { // ends with handover_timeout, or with the socket
		if err := d.sayOn(a, a.until, &handoff.End{Counts: counts}); err != nil {
			d.post(a, event{kind: evMute, dead: died(err), reason: err.Error()})
		}
	})
}

// sayOn says one message on an attempt's socket. A hand-over ends with the child's death, not with a socket that is full.
func (d *driver) sayOn(a *attempt, until time.Time, m handoff.Message, files ...syscall.RawConn) error {
	a.saying.Lock()
	defer a.saying.Unlock()
	return a.link.send(until, m, files...)
}

// say says one small message, when no errand is saying anything.
func (d *driver) say(limit time.Duration, m handoff.Message) {
	if err := d.sayOn(d.attempt, time.Now().Add(limit), m); err != nil {
		d.pending = append(d.pending, event{kind: evMute, dead: died(err), reason: err.Error()})
	}
}

// abort tries to say ABORT. Where another message is on its way there is no room, and SIGKILL says the same.
func (d *driver) abort(reason string) {
	a := d.attempt
	if a.link == nil || !a.saying.TryLock() {
		return
	}
	defer a.saying.Unlock()
	_ = a.link.send(time.Now().Add(abortTimeout), &handoff.Abort{Reason: reason}) // the kill follows anyway
}

// farewell is behind STARTED: nothing here can be undone, and nothing that fails matters much.
func (d *driver) farewell() {
	a := d.attempt
	d.report.Left = a.left
	d.report.bound()
	part := legacy{Report: d.report.clone(), Barrier: a.barrier}
	d.errand(func(context.Context) (handoff.Counts, error) {
		d.giver.Gone()
		counters := &handoff.Counters{}
		if d.giver.Counters != nil {
			counters = d.giver.Counters()
		}
		var err error
		if counters.Report, err = json.Marshal(part); err == nil {
			err = d.sayOn(a, time.Now().Add(sayTimeout), counters)
		}
		if err != nil {
			d.g.log.Warn("the counters are lost", zap.Uint64("upgrade", part.Report.ID), zap.Error(err))
		}
		return handoff.Counts{}, nil
	})
}

// exit is the last act: the pid file becomes the new process's. What was asked for up to now is passed on; what comes later
// comes to a process that has gone.
func (d *driver) exit(a action) {
	d.g.mu.Lock()
	d.g.running = d.attempt
	d.g.mu.Unlock()
	if dir := d.g.opts.RuntimeDir; dir != "" && a.status == 0 && d.attempt.pid > 0 {
		if err := writePID(dir, d.attempt.pid); err != nil {
			d.g.log.Warn("the pid file still names this process", zap.Error(err))
		}
	}
	select {
	case <-d.g.asked:
		d.say(sayTimeout, &handoff.Follow{Again: true})
	default:
	}
	d.ending = &Ending{Status: a.status, Reason: d.report.Reason}
}
