package forwarder

import (
	"errors"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// upload passes on a request frame that is too large to be gathered first: its head goes the road of every request, down
// to phaseSend, and its pieces follow as they come, on a connection that is leased to it alone until the last byte. So
// a slow upload holds a buffer of the read loop and a connection of its own, and one that breaks off breaks that
// connection, on which nobody else has anything.
//
// It runs on the client's read loop, which has nothing else to do: what the client sends behind the frame stands behind
// it. For the same reason it may wait there, and filters that block need no worker.
type upload struct {
	d    *downstream
	x    exchange
	came wire.Message // the head as it came, in a buffer of its own
	msg  wire.Message // the head as filters have made it: the same, or in another buffer
	left int          // bytes behind the head that are still to come

	broken bool // a piece found its connection closed
	u      *upstream
	rest   wire.Rest
	id     uint32 // under which the request was sent; 0: one-way
}

// uploads says whether the frame that has begun, of this size, is to be passed on in pieces.
func (d *downstream) uploads(size int) bool {
	above := d.listener.f.snap.Load().roads[d.listener.slot].pieces
	return above > 0 && size >= above && size > ownAbove
}

// upload carries the frame of this size that has begun to its end, and returns how many bytes the next read must bring
// at least: all of the frame where it is none to pass on in pieces. An error is one of conn's, or a *wire.DecodeError
// that ends the connection.
func (d *downstream) upload(size int) (need int, err error) {
	up := &upload{d: d}
	defer func() {
		if v := recover(); v != nil {
			err = up.recovered(v)
		}
	}()
	if begun, err := up.begin(); !begun || err != nil {
		return size, err
	}
	return d.carry(up)
}

// carry carries an upload whose head is here to the frame's end. When a pause comes first it returns conn.ErrPaused, and
// the read loop goes on with the upload behind it.
func (d *downstream) carry(up *upload) (need int, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = up.recovered(v)
		}
		if errors.Is(err, conn.ErrPaused) {
			d.begun = up
			return
		}
		up.free()
	}()
	d.inFrame(true)
	defer d.inFrame(false)
	if err = up.place(); err != nil {
		return 1, err
	}
	up.free()
	if up.u != nil {
		if err = up.pieces(); errors.Is(err, conn.ErrPaused) {
			return 1, err
		}
		up.end(err)
		up.u.pool.release(up.u)
		up.u = nil
	}
	if err == nil {
		err = up.discard()
	}
	return 1, err
}

// recovered ends a panic of the codec over the frame's bytes: both connections are closed.
func (up *upload) recovered(v any) error {
	b := up.d.listener.f.batch()
	defer b.done()
	b.decoding = true
	err := b.recovered(v)
	if up.u != nil {
		up.u.conn.Close(ReasonUploadBroken)
		up.u.pool.release(up.u)
		up.u = nil
	}
	return err
}

// begin reads the head and begins its exchange.
func (up *upload) begin() (begun bool, err error) {
	d := up.d
	f := d.listener.f
	limits := f.snap.Load().roads[d.listener.slot].limits
	whole, need := 0, 1
	for {
		data, err := d.read(need)
		if err != nil {
			return false, err
		}
		head := 0
		if head, whole, err = d.codec.Head(&up.came, data, limits); err != nil {
			return false, nil // Decode says so, too, and knows what to do
		}
		if head <= len(data) {
			break
		}
		need = head
	}
	if up.came.Kind != wire.Request && up.came.Kind != wire.Oneway {
		return false, nil
	}
	n := len(up.came.Frame)
	up.came.Frame = append(f.buffers.Get(n)[:0], up.came.Frame...)
	up.msg = up.came
	up.left = whole - n
	d.advance(n)
	d.frames++
	b := f.batch()
	d.conn.Touch(b.now)
	ls := d.listener.stats
	if up.came.Kind == wire.Request {
		b.debts.request(ls)
	} else {
		ls.oneways.Add(1)
	}
	up.carry(b, true, func() { b.begin(d) })
	return true, nil
}

// place carries the exchange until its head is sent, or it has ended.
func (up *upload) place() error {
	f := up.d.listener.f
	for {
		switch {
		case up.x.live() && up.d.conn.Closed(): // by a pause at the latest: what is to come of it never will
			b := f.batch()
			up.carry(b, false, func() {
				b.hijack(wire.ErrorComm, ReasonDownstreamGone)
				b.run()
			})
		case up.x.phase == phaseSend:
			u, reason := up.target().lease(up.x.deadline)
			if u == nil && reason == reasonResting {
				return conn.ErrPaused
			}
			b := f.batch()
			up.carry(b, false, func() { up.send(b, u, reason) })
		case !up.x.live():
			return nil
		case f.resting.Load() && f.ctx.Err() == nil: // before its filters
			return conn.ErrPaused
		default:
			b := f.batch()
			up.carry(b, false, b.run)
		}
	}
}

// free gives the head back.
func (up *upload) free() {
	if up.came.Frame == nil {
		return
	}
	buffers := up.d.listener.f.buffers
	if up.edited() {
		buffers.Put(up.msg.Frame)
	}
	buffers.Put(up.came.Frame)
	up.came.Frame, up.msg.Frame = nil, nil
}

// target is the pool of uploads of the endpoint that the exchange goes to.
func (up *upload) target() *pool { return up.x.endpoint.uploads }

// edited says whether a filter has changed the head.
func (up *upload) edited() bool { return &up.msg.Frame[0] != &up.came.Frame[0] }

// carry lets a batch go on with the exchange, and ends the batch.
func (up *upload) carry(b *batch, first bool, step func()) {
	func() {
		defer b.rescue()
		b.msg, b.frame = up.msg, frame{bytes: up.msg.Frame}
		b.head, b.whole = len(up.came.Frame), len(up.came.Frame)+up.left
		if !first {
			b.x = up.x
		}
		step()
	}()
	up.x = b.x
	if len(b.msg.Frame) > 0 && &b.msg.Frame[0] != &up.msg.Frame[0] {
		f := up.d.listener.f // a filter has edited the head, in memory of the batch
		edited := append(f.buffers.Get(len(b.msg.Frame))[:0], b.msg.Frame...)
		if up.edited() {
			f.buffers.Put(up.msg.Frame)
		}
		up.msg = b.msg
		up.msg.Frame = edited
	}
	b.done()
}

// send sends the head on the connection that was leased, or goes on without one.
func (up *upload) send(b *batch, u *upstream, reason string) {
	defer func() {
		if u != nil && up.u == nil {
			u.pool.release(u) // not sent, whyever
		}
	}()
	x := &b.x
	switch {
	case u == nil && reason == ReasonPendingTimeout:
		b.hijack(wire.Timeout, reason)
	case u == nil && reason == ReasonStopping:
		b.hijack(wire.ConnectionClosed, reason)
	case u == nil && reason == ReasonMaxPending:
		x.target.cluster.stats.rejected.add(reason, 1)
		b.hijack(wire.Busy, reason)
	case u == nil && reason == ReasonEndpointDrained:
		b.elsewhere()
	case u == nil:
		b.fail(reason) // which may be max-connections: another endpoint may have one
	case b.now >= x.deadline:
		b.hijack(wire.Timeout, ReasonPendingTimeout)
	default:
		if up.sendHead(b, u) {
			return
		}
	}
	b.run()
}

// sendHead is sendOn for the head of a frame. False means that nothing was sent and the exchange is still the batch's,
// in the phase that says what is next.
func (up *upload) sendHead(b *batch, u *upstream) bool {
	x := &b.x
	out := append(b.edited[:0], b.msg.Frame...)
	if edits := x.target.edits; len(edits) > 0 {
		var err error
		if out, err = up.d.codec.AppendEdited(b.edited[:0], &b.msg, edits, b.road().limits.MaxHeader); err != nil {
			b.hijack(wire.CodecException, reasonOf(err))
			return false
		}
	}
	b.edited = out
	id, timeout, ok := b.enter(u, x.deadline)
	if !ok {
		b.fail(ReasonResetBeforeSend)
		return false
	}
	if x.kind == wire.Request {
		up.id = id
	}
	up.rest = u.codec.Follow(&up.came, out, id, timeout, b.whole)
	switch v := u.conn.Append(out); v {
	case conn.Appended, conn.First:
		up.u = u
		u.leaseBy.Store(x.deadline)
		b.owe(u.conn, v)
		b.debts.sent(u.endpoint, x.kind)
		x.phase = phaseWaitNotify // for its last byte, if it is one-way
		return true
	default: // closed
	}
	if x.kind == wire.Request {
		if !u.table.Take(up.id, x) {
			b.x.phase = phaseWaitNotify // the connection's end took it, and answers it
			return true
		}
	}
	b.fail(ReasonResetBeforeSend)
	return false
}

// end ends the upload behind its last piece, or breaks its connection off: then the exchange is answered here, unless it
// has ended already or the end of the server's connection answers it.
func (up *upload) end(err error) {
	f := up.d.listener.f
	b := f.batch()
	defer b.done()
	if up.left == 0 && err == nil && !up.broken {
		if up.x.kind == wire.Oneway {
			b.x = up.x
			b.forwarded()
		}
		return
	}
	status, reason := wire.ErrorComm, ReasonUploadBroken
	if bad, ok := errors.AsType[*wire.DecodeError](err); ok {
		status, reason = wire.CodecException, bad.Reason
	} else if b.now >= up.x.deadline {
		status, reason = wire.Timeout, ReasonTimeout // the sweeper would say so, but the connection closes now
	}
	x, mine := up.x, true
	if x.kind == wire.Request {
		mine = !up.u.conn.Closed() && up.u.table.Take(up.id, &x) // else its end tells why
	}
	if mine {
		b.conclude(x, up.id, status, reason)
	}
	up.u.conn.Close(ReasonUploadBroken)
}

// pieces passes on what follows the head. It ends early, without an error, when the server's connection has closed or the
// deadline has passed: what is left is then nobody's.
func (up *upload) pieces() error {
	d, u := up.d, up.u
	f := d.listener.f
	for up.left > 0 && !u.conn.Closed() && f.now() < up.x.deadline {
		data, err := d.read(1)
		if err != nil {
			return err
		}
		d.conn.Touch(f.now())
		piece := data[:min(len(data), up.left)]
		if err := u.codec.Pass(&up.rest, piece); err != nil {
			return err
		}
		v := u.conn.Append(piece)
		up.left -= len(piece)
		d.advance(len(piece))
		if v == conn.Refused || v == conn.Full {
			u.conn.Close(ReasonUploadBroken) // refused means that it is closed already
			up.broken = true
			return nil
		}
		u.conn.Flush()
		if err := up.await(); err != nil {
			return err
		}
	}
	return nil
}

// await waits while the server takes less than the client sends, until the deadline at the latest. The error is
// conn.ErrPaused.
func (up *upload) await() error {
	u, f := up.u, up.d.listener.f
	if !u.conn.Above() {
		return nil
	}
	timer := time.NewTimer(time.Duration(up.x.deadline - f.now()))
	defer timer.Stop()
	for u.conn.Above() && !u.conn.Closed() {
		select {
		case <-u.drained:
		case <-timer.C:
			return nil
		case <-f.shiftCtx().Done():
			return conn.ErrPaused
		}
	}
	return nil
}

// discard takes what is left of the frame, for nobody.
func (up *upload) discard() error {
	for up.left > 0 {
		data, err := up.d.read(1)
		if err != nil {
			return err
		}
		up.d.conn.Touch(up.d.listener.f.now())
		n := min(len(data), up.left)
		up.d.advance(n)
		up.left -= n
	}
	return nil
}
