package upgrade

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/upgrade/handoff"
)

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

// preflight holds what the new process will load, and checks it.
func (d *driver) preflight(ctx context.Context) (handoff.Counts, error) {
	if d.giver.Hold != nil {
		if err := d.giver.Hold(ctx); err != nil {
			return handoff.Counts{}, err
		}
	}
	return handoff.Counts{}, d.g.preflight(ctx, d.attempt.program)
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
	open, _, _ := d.g.sys.descriptors() // preflight has told of an error; here it is only a hint
	offer := &handoff.Offer{
		Min: handoff.MinVersion, Max: handoff.Version, Release: d.g.opts.Release, PID: d.g.sys.pid,
		Upgrade: d.report.ID, Generation: d.g.number, Descriptors: open,
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
		if err := d.g.sys.upgrade(a.program); err != nil {
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
			err = a.say(until, offer)
		}
		for err == nil && len(list.List) > handoff.MaxFiles {
			part := &handoff.Listeners{List: list.List[:handoff.MaxFiles], More: true}
			err = a.say(until, part, files[:handoff.MaxFiles]...)
			list.List, files = list.List[handoff.MaxFiles:], files[handoff.MaxFiles:]
		}
		if err == nil {
			err = a.say(until, &list, files...)
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
			if m.Version < handoff.MinVersion || m.Version > handoff.Version {
				e.message = handoff.KindFailed
				e.reason = because(StepWarm, fmt.Sprintf("it chose version %d of the format, and %d to %d were offered",
					m.Version, handoff.MinVersion, handoff.Version))
			}
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
		return a.say(a.until, m, files...)
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
		if err := a.say(a.until, &handoff.End{Counts: counts}); err != nil {
			d.post(a, event{kind: evMute, dead: died(err), reason: err.Error()})
		}
	})
}

// say says one message on the attempt's socket. A hand-over ends with the child's death, not with a socket that is full.
func (a *attempt) say(until time.Time, m handoff.Message, files ...syscall.RawConn) error {
	a.saying.Lock()
	defer a.saying.Unlock()
	return a.link.send(until, m, files...)
}

// say says one small message, when no errand is saying anything.
func (d *driver) say(limit time.Duration, m handoff.Message) {
	if err := d.attempt.say(time.Now().Add(limit), m); err != nil {
		d.pending = append(d.pending, event{kind: evMute, dead: died(err), reason: err.Error()})
	}
}

// abort tries to say ABORT, for a child that is not killed. Where another message is on its way there is no room.
func (d *driver) abort(reason string) {
	a := d.attempt
	if a.link == nil || !a.saying.TryLock() {
		return
	}
	defer a.saying.Unlock()
	_ = a.link.send(time.Now().Add(abortTimeout), &handoff.Abort{Reason: reason}) // as a rule nobody is left to hear it
}

// farewell is behind STARTED: nothing here can be undone, and nothing that fails matters much.
func (d *driver) farewell() {
	a := d.attempt
	d.report.Left = a.left
	d.report.bound()
	part := legacy{Report: d.report.clone(), Barrier: a.barrier, Past: d.g.Reports()[1:]} // the first is this one
	d.errand(func(context.Context) (handoff.Counts, error) {
		d.giver.Gone()
		counters := &handoff.Counters{}
		if d.giver.Counters != nil {
			counters = d.giver.Counters()
		}
		var err error
		if counters.Report, err = part.encode(); err == nil {
			err = a.sayCounters(counters)
		}
		if err != nil {
			d.g.log.Warn("the counters are lost", zap.Uint64("upgrade", part.Report.ID), zap.Error(err))
		}
		return handoff.Counts{}, nil
	})
}

// seriesAMessage is how many series one COUNTERS has, some 10 MiB: each of them has its own time to be said, and to be waited for.
const seriesAMessage = 1 << 16

// sayCounters says what was counted, with the first message all that is no series.
func (a *attempt) sayCounters(c *handoff.Counters) error {
	for series := c.Series; ; c = new(handoff.Counters) {
		n := min(len(series), seriesAMessage)
		c.Series, series = series[:n], series[n:]
		c.More = len(series) > 0
		if err := a.say(time.Now().Add(sayTimeout), c); err != nil || !c.More {
			return err
		}
	}
}
