package forwarder

import (
	"time"

	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/worker"
)

// errand is an exchange that a worker carries: its filters may block, or its listener wants workers. It is a pooled
// object and belongs to the worker from the submit until the exchange has ended. The exchange itself still lives in one
// container at a time: while it is in a stream table or a waiting list the worker is parked, and who takes it out tells the
// worker instead of going on with it.
type errand struct {
	worker *worker.Worker[*errand]
	batch  *batch    // with what its worker goes on: written by who wakes it
	small  [2][]byte // for frames up to smallFrame: the request and its reply, which a lying server sends before it has it
	given  outcome   // what it begins with, of one that waits for a worker
}

// outcome is what became of an exchange in its container: its phase says what is next.
type outcome struct {
	x          exchange
	msg        wire.Message
	frame      frame // owned, in the errand, or none
	upstreamID uint32
	status     wire.Status
	reason     string
	now        int64 // when that became of it: a look at the clock less for the worker
}

// smallFrame is the size in bytes up to which a frame is copied into the errand. Twice so much belongs to each worker, and
// to each place in the queue, beside max_buffered.
const smallFrame = 4 << 10

// mayHand says whether the exchange can go to a worker: it is with none yet, and its frame is whole.
func (b *batch) mayHand() bool { return b.x.errand == nil && b.head == 0 }

// hand gives the exchange and its frame to a worker, which goes on with it from its phase when the batch is done. If there
// is no worker for it, it is answered.
func (b *batch) hand() {
	if len(b.frame.bytes) > smallFrame && b.f.buffers.Used() > b.f.buffers.High() {
		b.noWorker()
		return
	}
	e := b.f.errands.Get().(*errand)
	b.x.errand = e
	if e.worker = b.f.workers.Claim(e); e.worker != nil {
		b.line(e)
		return
	}
	was := b.frame
	b.keep(e)
	e.given = b.outcome()
	w, fate := b.f.workers.Submit(e)
	switch fate {
	case worker.Running: // one has become idle meanwhile
		e.worker = w
		b.line(e)
	case worker.Waiting:
		b.gone()
	default:
		if !was.owned {
			b.putBack()
			b.frame, b.msg.Frame = was, was.bytes
		}
		b.x.errand = nil
		b.f.putErrand(e)
		b.noWorker()
	}
}

// gone says that the exchange and its frame are somebody else's.
func (b *batch) gone() {
	b.x.phase = phaseWaitNotify
	b.frame = frame{}
}

// noWorker answers an exchange that no worker can be had for.
func (b *batch) noWorker() {
	b.f.worked.refused.add(ReasonMaxWorkers, 1)
	b.hijack(wire.Busy, ReasonMaxWorkers)
}

// keep copies the frame under way to where the worker finds it when the batch is gone: into the errand, or, if it is
// larger, into a buffer of its own.
func (b *batch) keep(e *errand) {
	n := len(b.frame.bytes)
	if b.frame.owned || n == 0 {
		return
	}
	to := frame{}
	if n > smallFrame {
		to = frame{bytes: b.f.buffers.Get(n), owned: true}
	} else {
		small := &e.small[0]
		if b.msg.Kind == wire.Reply {
			small = &e.small[1]
		}
		if *small == nil {
			*small = make([]byte, smallFrame)
		}
		to.bytes = *small
	}
	to.bytes = to.bytes[:n]
	copy(to.bytes, b.frame.bytes)
	b.frame, b.msg.Frame = to, to.bytes
}

// outcome is the state of the exchange in the batch, to be given away.
func (b *batch) outcome() outcome {
	return outcome{b.x, b.msg, b.frame, b.upstreamID, b.status, b.reason, b.now}
}

// deliver tells the exchange's worker what became of it, when the batch is done. From here on the exchange is the worker's.
func (b *batch) deliver() { b.line(b.x.errand) }

// lined is an errand whose worker is to go on, and with what.
type lined struct {
	e     *errand
	given outcome
}

// line puts the exchange into the line of those whose workers go on one after another when the batch is done. Its frame
// stays where it was read, if that buffer can be lent.
func (b *batch) line(e *errand) {
	switch {
	case b.frame.owned || len(b.frame.bytes) == 0:
	case b.lends && !b.frame.edited:
		b.lent = true
	default:
		b.keep(e)
	}
	b.occupy()
	b.relay = append(b.relay, lined{e, b.outcome()})
	b.gone()
}

// occupy says that workers will be under way with what this batch brings.
func (b *batch) occupy() {
	if !b.counted {
		b.counted = true
		b.f.gather.expect(1)
	}
}

// start lets the workers of the batch's line go on, one after another, with another batch.
func (b *batch) start() {
	if b.next == len(b.relay) {
		return
	}
	r := b.f.batchAt(b.now)
	b.relay, r.relay = r.relay, b.relay
	b.next, r.next = 0, b.next
	b.loan, r.loan = nil, b.loan
	r.counted, b.counted = true, false
	r.pass()
}

// pass gives the batch to the next worker in its line, or ends it behind the last one.
func (b *batch) pass() {
	if b.next == len(b.relay) {
		b.rest()
		return
	}
	e := b.relay[b.next].e
	b.next++
	e.batch = b
	e.worker.Wake()
}

// work is what a worker does with one exchange: it carries it until a container holds it, parks, and goes on when it is
// told to.
func (f *Forwarder) work(w *worker.Worker[*errand], e *errand, waited bool) {
	b := e.batch
	if waited {
		b = f.batch()
		b.occupy()
	}
	for {
		var o *outcome
		if waited {
			o = &e.given
			e.worker = w
			f.taken.Add(1) // only now: it is under way
			b.now = f.now()
			f.worked.queued.Observe(time.Duration(b.now - o.now))
		} else {
			o = &b.relay[b.next-1].given
		}
		b.carried++
		if b.step(o) {
			b.pass()
			w.Wait()
			b, waited = e.batch, false
			continue
		}
		f.putErrand(e)
		more := false
		if b.carried < maxBatch {
			e, more = f.workers.Queued()
		}
		if !more {
			b.pass()
			return
		}
		waited = true
		b.debts.giveBack()
		b.renew() // the exchange before may have spent a while in a filter; this one may be of a listener that came meanwhile
	}
}

// step carries the exchange as far as it goes and says whether it is in a container now.
func (b *batch) step(o *outcome) (parked bool) {
	defer func() {
		if v := recover(); v != nil {
			_ = b.recovered(v) // no connection is being read here that could be closed
			parked = b.x.phase == phaseWaitNotify
		}
	}()
	b.x, b.msg, b.frame = o.x, o.msg, o.frame
	b.upstreamID, b.status, b.reason = o.upstreamID, o.status, o.reason
	*o = outcome{} // where it lies may be somebody else's from here on
	if b.awaited() && b.now >= b.latest() {
		b.hijack(wire.Timeout, ReasonWorkerTimeout)
	}
	b.run()
	if b.interrupted {
		b.hold()
	}
	b.putBack()
	return b.x.phase == phaseWaitNotify
}

// hold gives the exchange, which stays before its filters, to those that wait for the road to go on.
func (b *batch) hold() {
	b.interrupted = false
	e := b.x.errand
	b.keep(e)
	o := b.outcome()
	b.gone()
	b.f.hold(lined{e, o})
}

// awaited says whether a worker was what the exchange waited for last.
func (b *batch) awaited() bool {
	return b.x.phase == phaseDownFilter || b.x.phase == phaseDownFilterAfterRoute
}

// rest ends the batch of workers that have parked, or have nothing more to do.
func (b *batch) rest() {
	b.f.buffers.Put(b.loan)
	b.loan = nil
	b.debts.giveBack()
	b.leave()
	b.done()
}

// leave leaves to gather what the workers of the batch have sent.
func (b *batch) leave() {
	b.counted = false
	b.f.gather.leave(b.dirty, b.carried, 1, b.now)
	clear(b.dirty)
	b.dirty, b.carried = b.dirty[:0], 0
}

// awaits says that the worker is about to block, or has come back: others need not wait for its flushes meanwhile.
func (b *batch) awaits(blocking bool) {
	if !blocking {
		b.now = b.f.now()
	}
	switch {
	case b.x.errand == nil: // an upload's, on its client's read loop
	case blocking:
		b.f.blocking.Add(1<<32 + 1)
		b.debts.giveBack() // of those before it in its line
		b.leave()
	default:
		b.occupy()
		b.f.blocking.Add(1<<32 - 1)
	}
}

// alone says that the worker is about to ask filters, which may take their time: those behind it in its line go on
// without it.
func (b *batch) alone() {
	if b.x.errand == nil {
		return
	}
	b.keep(b.x.errand)
	if b.next < len(b.relay) {
		b.f.gather.expect(1)
		b.start()
		b.counted = true
		return
	}
	b.f.buffers.Put(b.loan)
	b.loan = nil
}

// putErrand gives an errand back.
func (f *Forwarder) putErrand(e *errand) {
	e.worker, e.batch = nil, nil
	f.errands.Put(e)
}
