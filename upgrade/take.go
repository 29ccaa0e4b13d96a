package upgrade

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/upgrade/handoff"
)

// ErrAborted says that the process before this one has taken the upgrade back, or died before there was anything to give:
// this one ends, and has nothing to say about it.
var ErrAborted = errors.New("the upgrade was taken back")

// Take takes the state from the process that started this one. When it returns without an error, this process is the proxy:
// the outcome is Done, or Orphaned if the old process died too early and all there is are its listeners. With an error this
// process owns nothing and ends, with status 0 if it is ErrAborted, else 1.
//
// The end of ctx makes it leave, as long as the old process can do without it. Behind that point it takes the state all the
// same, and Run returns at once.
func (g *Generation) Take(ctx context.Context, t Taker) (Outcome, error) {
	if g.parent == nil {
		return "", errors.New("taking the state: no process has started this one to hand it over")
	}
	d := &taker{g: g, hooks: t}
	stop := context.AfterFunc(ctx, func() { g.parent.interrupt(time.Unix(1, 0)) })
	defer stop()
	for d.left == nil && d.outcome == "" {
		d.step(ctx, d.next(ctx))
	}
	if d.left != nil {
		g.parent.close()
		close(g.settled)
		return "", d.left
	}
	return d.outcome, nil
}

// taker does what the machine of the new side says. All of it is Take's goroutine's.
type taker struct {
	g           *Generation
	hooks       Taker
	machine     newSide
	pending     []event
	stopped     bool
	version     uint // of the format
	descriptors int  // that will come, about
	report      Report
	outcome     Outcome // set when this process owns the state
	left        error   // set when it has left

	// What the last message brought.
	message handoff.Message
	files   []*os.File
	again   bool

	// What has come of listeners of which more follow.
	listeners []handoff.Listener
	sockets   []*os.File
}

// next waits for the next event.
func (d *taker) next(ctx context.Context) event {
	if len(d.pending) > 0 {
		e := d.pending[0]
		d.pending = d.pending[1:]
		return e
	}
	for {
		m, files, err := d.g.parent.receive()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil && !d.stopped:
			d.stopped = true
			d.g.parent.interrupt(time.Time{})
			return event{kind: evStop}
		case errors.Is(err, os.ErrDeadlineExceeded):
			d.g.parent.interrupt(time.Time{})
		case err != nil:
			return event{kind: evGone, dead: died(err), reason: err.Error()}
		default:
			if e, ok := d.heard(m, files); ok {
				return e
			}
		}
	}
}

// heard turns a message into an event.
func (d *taker) heard(m handoff.Message, files []*os.File) (event, bool) {
	closeFiles(d.files) // nobody has taken them
	d.message, d.files = m, files
	e := event{kind: evMessage, message: handoff.KindOf(m)}
	switch m := m.(type) {
	case *handoff.Unknown:
		return e, false
	case *handoff.Offer:
		version, err := handoff.Agree(m)
		d.version, e.reason = version, textOf(err)
		d.g.number = m.Generation + 1
		d.report = Report{
			ID: m.Upgrade, Outcome: Running, Step: StepWarm, Generation: d.g.number, From: m.PID, To: d.g.sys.pid,
			ReleaseFrom: m.Release, ReleaseTo: d.g.opts.Release, Started: time.Now().UTC().Truncate(time.Millisecond),
			Steps: map[string]float64{},
		}
		d.descriptors = m.Descriptors
		d.g.sys.makeRoom(m.Descriptors)
	case *handoff.Listeners: // the machine sees one message
		d.listeners, d.sockets, d.files = append(d.listeners, m.List...), append(d.sockets, files...), nil
		if m.More {
			return e, false
		}
		m.List, d.files = d.listeners, d.sockets
		d.listeners, d.sockets = nil, nil
	case *handoff.End:
		e.counts = m.Counts
	case *handoff.Commit:
		d.again = m.Again
	case *handoff.Abort:
		e.reason = m.Reason
	default:
	}
	return e, true
}

// owned gives the last message's files to whoever closes them.
func (d *taker) owned() []*os.File {
	files := d.files
	d.files = nil
	return files
}

func (d *taker) step(ctx context.Context, e event) {
	for _, a := range d.machine.Step(e) {
		d.do(ctx, a)
	}
}

func (d *taker) do(ctx context.Context, a action) {
	switch a.kind {
	case doMoved:
		to := newState(a.to)
		d.g.moved(d.report.ID, newState(a.from), to, to.awaited())
	case doBuild:
		list, _ := d.message.(*handoff.Listeners) // the machine lets no other message lead here
		d.done(handoff.Counts{}, d.hooks.Build(ctx, list, d.owned(), d.descriptors))
	case doWarm:
		d.say(&handoff.Warm{Version: d.version, Release: d.g.opts.Release, PID: d.g.sys.pid})
	case doTake:
		if err := d.hooks.Take(d.message, d.owned()); err != nil {
			d.done(handoff.Counts{}, err)
		}
	case doPrepare:
		d.done(d.hooks.Prepare())
	case doPrepared:
		d.report.Carried = carried(a.counts)
		d.say(&handoff.Prepared{Counts: a.counts})
	case doStarted:
		d.say(&handoff.Started{})
	case doForget:
		d.hooks.Forget()
	case doOwn:
		d.own(a)
	case doFail:
		_ = d.g.parent.send(time.Now().Add(sayTimeout), &handoff.Failed{Step: a.step, Reason: cut(a.reason, maxReason)}) // this process ends anyway
	case doExit:
		closeFiles(append(d.owned(), d.sockets...))
		if a.status == 0 {
			d.left = ErrAborted
		} else {
			d.left = errors.New("taking the state: " + a.reason)
		}
		d.g.log.Info("this process leaves", zap.Uint64("upgrade", d.report.ID), zap.String("reason", a.reason))
	default: // of the old side
	}
}

func (d *taker) done(counts handoff.Counts, err error) {
	d.pending = append(d.pending, event{kind: evDone, counts: counts, reason: textOf(err)})
}

// say says one message; that it was said is an event, too.
func (d *taker) say(m handoff.Message) {
	err := d.g.parent.send(time.Now().Add(sayTimeout), m)
	if err != nil {
		d.pending = append(d.pending, event{kind: evMute, dead: died(err), reason: err.Error()})
		return
	}
	d.done(handoff.Counts{}, nil)
}

// own opens the gates. From here this process is the proxy, and nothing stops it from being that.
func (d *taker) own(a action) {
	d.report.Step = StepCommit
	d.g.note(d.report)
	d.hooks.Start()
	opened := d.g.sys.monotonic()
	d.outcome, d.g.owner = a.outcome, true
	d.report.Outcome, d.report.Step, d.report.Reason = a.outcome, a.step, a.reason
	err := d.g.sys.ready()
	d.g.logMoves()
	if err != nil { // the old process may be dead
		d.g.log.Info("nobody is told that this process is ready", zap.Uint64("upgrade", d.report.ID), zap.Error(err))
	}
	if d.again {
		d.g.Request()
	}
	h := &heritage{g: d.g, hooks: d.hooks, report: d.report, opened: opened}
	d.g.family.Go(h.listen) // ends with the old process, or with Close
}

// heritage is what still comes from the old process: its counters, its part of the report, and what is asked of it.
type heritage struct {
	g      *Generation
	hooks  Taker
	report Report
	opened int64 // the last gate, CLOCK_MONOTONIC
	final  bool
}

func (h *heritage) listen() {
	link := h.g.parent
	defer close(h.g.alone)
	defer link.close()
	link.interrupt(time.Now().Add(2 * sayTimeout))
	for {
		m, files, err := link.receive()
		closeFiles(files) // nothing has any
		switch m := m.(type) {
		case *handoff.Counters:
			if h.hooks.Counters != nil {
				h.hooks.Counters(m)
			}
			h.inherit(m.Report)
			if m.More {
				link.interrupt(time.Now().Add(2 * sayTimeout))
				continue
			}
			h.settle()
			link.interrupt(time.Time{})
		case *handoff.Follow:
			h.follow(m)
		}
		_, wrong := errors.AsType[*handoff.PayloadError](err)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			h.settle() // without the old process's part
			link.interrupt(time.Time{})
		case wrong: // to the old process the end of the socket would be this one's
			h.g.log.Warn("something that the old process says is lost", zap.Uint64("upgrade", h.report.ID), zap.Error(err))
		case err != nil:
			h.settle()
			if !died(err) && !errors.Is(err, os.ErrClosed) {
				h.g.log.Warn("nothing more that the old process says is understood", zap.Uint64("upgrade", h.report.ID), zap.Error(err))
				h.outlive()
			}
			h.succeed()
			if h.hooks.Alone != nil {
				h.hooks.Alone()
			}
			return
		}
	}
}

// outlive waits for the end of the old process where the socket does not show it any more, and stays open until then: to the old
// process its end would be this one's.
func (h *heritage) outlive() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	h.g.family.Go(func() { // ends with ctx, or with Close
		select {
		case <-h.g.closed:
			cancel()
		case <-ctx.Done():
		}
	})
	_ = h.g.sys.awaitParent(ctx) // that it has ended is all there is to know
}

// inherit takes over the old process's part of the report.
func (h *heritage) inherit(part []byte) {
	var l legacy
	if len(part) == 0 || len(part) > maxReport {
		return
	}
	if err := json.Unmarshal(part, &l); err != nil || l.Report.ID != h.report.ID {
		h.g.log.Warn("the old process's part of the report is not understood", zap.Uint64("upgrade", h.report.ID), zap.Error(err))
		return
	}
	h.report.Started, h.report.Left = l.Report.Started, l.Report.Left
	h.g.mu.Lock()
	h.g.past = l.Past[:min(len(l.Past), maxReports-1)]
	h.g.mu.Unlock()
	if l.Report.Steps != nil {
		h.report.Steps = l.Report.Steps
	}
	if l.Barrier > 0 {
		h.report.Pause = time.Duration(h.opened - l.Barrier).Seconds()
	}
}

// settle makes the report final, once.
func (h *heritage) settle() {
	if h.final {
		return
	}
	h.final = true
	if h.hooks.Pauses != nil {
		h.report.Pauses = h.hooks.Pauses()
	}
	if h.hooks.Left != nil {
		h.report.Left = append(h.report.Left, h.hooks.Left()...)
	}
	h.g.log.Info("upgraded", zap.Uint64("upgrade", h.report.ID), zap.Uint64("generation", h.report.Generation),
		zap.String("outcome", string(h.report.Outcome)), zap.Int("from", h.report.From), zap.Float64("pause", h.report.Pause))
	h.g.publish(h.report)
	close(h.g.settled)
}

// follow does what was asked of the old process.
func (h *heritage) follow(m *handoff.Follow) {
	if m.Again {
		h.g.Request()
	}
	if m.Stop {
		select {
		case <-h.g.told:
		default:
			close(h.g.told)
		}
	}
}

// succeed is behind the old process's end. Its last act was to let go of the pid file; if it died before, the file is taken.
func (h *heritage) succeed() {
	select {
	case <-h.g.closed:
		return
	default:
	}
	dir := h.g.opts.RuntimeDir
	if dir == "" {
		return
	}
	if pid, err := ReadPID(dir); err == nil && pid == h.g.sys.pid {
		return
	}
	if err := writePID(dir, h.g.sys.pid); err != nil {
		h.g.log.Warn("the pid file does not name this process", zap.Error(err))
	}
}

// tellParent says that somebody wants this process to stop, so that its end is not taken for a crash by the process before
// it, if that still watches.
func (g *Generation) tellParent() {
	if g.parent != nil {
		_ = g.parent.send(time.Now().Add(abortTimeout), &handoff.Follow{Stop: true}) // it has ended, as a rule
	}
}
