package forwarder

import (
	"time"

	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/worker"
)

// errand is an exchange that a worker carries: its filters may block, or its listener wants workers. It is a pooled
// object and belongs to the worker from the submit until the exchange has ended. The exchange itself still lives in one
// container at a time: while it is in a stream table or a waiting list the worker is parked on notify, and who takes it
// out tells the worker instead of going on with it.
type errand struct {
	notify chan struct{} // holds one: there is one container, so one who takes the exchange out; never closed
	given  outcome       // what the worker goes on with: written before it is submitted, or notified
	small  [2][]byte     // for frames up to smallFrame: the request and its reply, which a lying server sends before it has it
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

// hand gives the exchange and its frame to a worker, which goes on with it from its phase. If there is no worker for it,
// it is answered.
func (b *batch) hand() {
	if len(b.frame.bytes) > smallFrame && b.f.buffers.Used() > b.f.buffers.High() {
		b.noWorker()
		return
	}
	e := b.f.errands.Get().(*errand)
	b.x.errand = e
	was := b.frame
	b.keep(e)
	e.given = b.outcome()
	b.occupy()
	fate := b.f.workers.Submit(e)
	if fate != worker.Running {
		b.f.gather.leave(nil, 0, 1, b.now) // whatever it waits for may need what has gathered
	}
	if fate != worker.Refused {
		b.x.phase = phaseWaitNotify
		b.frame = frame{}
		return
	}
	if !was.owned {
		b.putBack()
		b.frame, b.msg.Frame = was, was.bytes
	}
	b.x.errand = nil
	b.f.putErrand(e)
	b.noWorker()
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

// deliver tells the exchange's worker what became of it. From here on the exchange is the worker's.
func (b *batch) deliver() {
	e := b.x.errand
	b.keep(e)
	e.given = b.outcome()
	b.x.phase = phaseWaitNotify
	b.frame = frame{}
	b.occupy()
	e.notify <- struct{}{} // has room: see errand
}

// occupy says that a worker gets something to do, and that this batch may have more of it: what the workers of one
// batch send then goes out together.
func (b *batch) occupy() {
	if b.handed == 0 {
		b.handed = maxBatch + 1 // this batch is one of them
		b.f.gather.expect(b.handed)
	}
	b.handed--
}

// work is what a worker does with one exchange: it carries it until a container holds it, parks, and goes on when it is
// told to.
func (f *Forwarder) work(e *errand, waited bool) {
	b := f.batchAt(e.given.now)
	if waited {
		b.now = f.now()
		f.gather.expect(1)
		f.taken.Add(1)
		f.worked.queued.Observe(time.Duration(b.now - e.given.now))
	}
	for b.step(e) {
		b.rest()
		<-e.notify
		b = f.batchAt(e.given.now) // one that is warm in the processor's cache
	}
	b.rest()
	f.putErrand(e)
}

// step carries the exchange as far as it goes and says whether it is in a container now.
func (b *batch) step(e *errand) (parked bool) {
	defer func() {
		if v := recover(); v != nil {
			_ = b.recovered(v) // no connection is being read here that could be closed
			parked = b.x.phase == phaseWaitNotify
		}
	}()
	o := &e.given
	b.x, b.msg, b.frame = o.x, o.msg, o.frame
	b.upstreamID, b.status, b.reason = o.upstreamID, o.status, o.reason
	if b.awaited() && b.now >= b.latest() {
		b.hijack(wire.Timeout, ReasonWorkerTimeout)
	}
	b.run()
	if b.interrupted {
		b.hold(e)
	}
	b.putBack()
	return b.x.phase == phaseWaitNotify
}

// hold gives the exchange, which stays before its filters, to those that wait for the road to go on.
func (b *batch) hold(e *errand) {
	b.interrupted = false
	b.keep(e)
	e.given = b.outcome()
	b.x.phase = phaseWaitNotify
	b.frame = frame{}
	b.f.hold(e)
}

// awaited says whether a worker was what the exchange waited for last.
func (b *batch) awaited() bool {
	return b.x.phase == phaseDownFilter || b.x.phase == phaseDownFilterAfterRoute
}

// rest ends the batch before the worker parks, or takes another exchange.
func (b *batch) rest() {
	b.debts.giveBack()
	b.f.gather.leave(b.dirty, 1, 1, b.now)
	clear(b.dirty)
	b.dirty = b.dirty[:0]
	b.done()
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
		b.f.gather.leave(b.dirty, 0, 1, b.now)
		clear(b.dirty)
		b.dirty = b.dirty[:0]
	default:
		b.f.gather.expect(1)
		b.f.blocking.Add(1<<32 - 1)
	}
}

// putErrand gives an errand back.
func (f *Forwarder) putErrand(e *errand) {
	e.given = outcome{}
	f.errands.Put(e)
}
