package forwarder

import (
	"runtime/debug"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder/cluster"
	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/route"
	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// maxBatch is the number of frames that are carried between two flushes: what one read brings of frames of 1 KiB, so that the
// replies of one server connection to many clients go out in few writes.
const maxBatch = 256

// batch is the scratch of a goroutine while it carries frames along the road: what one read brought, what
// waited for a connection, what the sweeper found. It is taken from a pool for that long, so an idle
// connection has none. It reads the clock once, owes the flushes of what it appended, and adds up what it
// counted, until done.
type batch struct {
	// Static after newBatch.
	f *Forwarder

	// Set by Forwarder.batch.
	now      int64
	snap     *snapshot
	refusing Priority // requests of less than this priority are refused, for want of memory

	// What was read: data[:used] is done with, the frame under way included.
	data []byte
	used int

	decoding bool // the codec is at work: when it panics, nothing has been used

	// The exchange that is being carried, and its frame.
	x     exchange
	msg   wire.Message
	frame frame

	head  int // bytes of it that are here, when it is passed on in pieces; else 0
	whole int // bytes of it in all, likewise

	// Why the exchange is answered here; valid in phaseHijack.
	reason string
	status wire.Status

	upstreamID uint32 // under which the exchange was sent last; 0: never

	interrupted bool // the exchange stays before its filters, because the road rests

	// Owed to others until done.
	dirty   []*conn.Conn
	relay   []lined // the line: from next on, those whose workers go on when the batch is done
	next    int
	lends   bool   // what was read lies in a buffer that the connection can lend
	lent    bool   // frames in the line lie there
	loan    []byte // that buffer, once it was lent
	carried int64  // exchanges that workers have carried with this batch, since they left flushes last
	counted bool   // gather expects one to leave for this batch
	frames  uint64
	own     *stats.Histogram // where the time of this batch is counted, once a frame
	debts   debts

	// Reused.
	out    []byte
	edited []byte
	values [route.MaxKeys + 2][]byte
	seen   filter.Exchange
	label  *label // of the request before
}

// frame is the bytes of the message under way.
type frame struct {
	bytes  []byte
	owned  bool // bytes are a buffer of their own, to be handed on or put back; else they mostly lie in a read buffer
	edited bool // bytes lie where a filter has made them, in memory of the batch that its next exchanges use, too
}

func newBatch(f *Forwarder) *batch { return &batch{f: f} }

// batch begins a batch: one look at the clock, one at the configuration.
func (f *Forwarder) batch() *batch { return f.batchAt(f.now()) }

// batchAt is batch for who has looked at the clock.
func (f *Forwarder) batchAt(now int64) *batch {
	b := f.batches.Get().(*batch)
	b.now = now
	b.renew()
	return b
}

// renew has the batch go by what is configured, and by what is done about overload, now.
func (b *batch) renew() {
	b.snap = b.f.snap.Load()
	b.refusing = b.f.overload.refusing()
}

// done pays what the batch owes: places first, for who has its reply may ask again at once, then flushes, then
// counts. The batch goes back to its pool.
func (b *batch) done() {
	b.debts.giveBack()
	flush(b.dirty)
	b.dirty = b.dirty[:0]
	b.start()
	b.relay, b.next = b.relay[:0], 0
	b.debts.pay()
	if b.own != nil && b.frames > 0 {
		var l stats.Local
		l.ObserveN(time.Duration(b.f.now()-b.now), b.frames)
		b.own.Merge(&l)
	}
	b.own, b.frames, b.snap, b.interrupted = nil, 0, nil, false
	b.data, b.used, b.upstreamID = nil, 0, 0
	b.x, b.msg, b.frame = exchange{}, wire.Message{}, frame{}
	b.head, b.whole = 0, 0
	b.seen.Message = nil
	if cap(b.edited) > ownAbove {
		b.edited = nil
	}
	if b.seen.Size() > ownAbove {
		b.seen = filter.Exchange{}
	}
	b.f.batches.Put(b)
}

// flush flushes connections, and forgets them.
func flush(dirty []*conn.Conn) {
	for _, c := range dirty {
		c.Flush()
	}
	clear(dirty)
}

// owe notes that a connection must be flushed when the batch ends.
func (b *batch) owe(c *conn.Conn, v conn.Verdict) {
	if v == conn.First {
		b.dirty = append(b.dirty, c)
	}
}

// requests carries what a client sent: whole frames from the front of data, up to a batch of them. It returns
// how many unread bytes the next read must bring at least. The error is of type *wire.DecodeError and ends
// the connection; b.msg then says what is known of the frame, and b.data[b.used:] is what could not be decoded.
func (b *batch) requests(d *downstream, data []byte) (need int, err error) {
	r := b.snap.roads[d.listener.slot]
	b.own = d.listener.stats.own
	b.lends = d.filters == nil
	b.data, b.used, need = data, 0, 1
	defer func() {
		if v := recover(); v != nil {
			err = b.recovered(v)
		}
		d.advance(b.used)
		b.borrow(d.conn)
	}()
	for range maxBatch {
		b.decoding = true
		n, err := d.codec.Decode(&b.msg, b.data[b.used:], r.limits)
		b.decoding = false
		if err != nil {
			return 1, err
		}
		if n > len(b.data)-b.used {
			need = n
			break
		}
		b.used += n
		b.frames++
		d.frames++
		b.frame = frame{bytes: b.msg.Frame}
		if n > ownAbove {
			b.takeOver(d.own(n))
		}
		b.inbound(d)
	}
	return need, nil
}

// borrow takes the connection's read buffer where frames in it have been handed to workers.
func (b *batch) borrow(c *conn.Conn) {
	if b.lent {
		b.loan = c.Lend()
	}
	b.lends, b.lent = false, false
}

// ownAbove is the size above which a frame has a read buffer to itself, which is handed on instead of copied.
const ownAbove = 64 << 10

// takeOver makes the frame under way own its buffer, if it has one to itself (else buf is nil): nothing else is in data then.
func (b *batch) takeOver(buf []byte) {
	if buf != nil {
		b.frame = frame{bytes: buf, owned: true}
		b.data, b.used = nil, 0
	}
}

// putBack gives the frame's buffer back, if it has one of its own.
func (b *batch) putBack() {
	if b.frame.owned {
		b.f.buffers.Put(b.frame.bytes)
	}
	b.frame = frame{}
}

// inbound takes one frame that a client sent.
func (b *batch) inbound(d *downstream) {
	ls := d.listener.stats
	switch b.msg.Kind {
	case wire.Request:
		b.debts.request(ls)
		b.begin(d)
	case wire.Oneway:
		ls.oneways.Add(1)
		b.begin(d)
	case wire.Unknown:
		b.debts.request(ls)
		b.begin(d)
	case wire.Heartbeat:
		ls.heartbeat.Add(1)
		b.out = d.codec.AppendReply(b.out[:0], b.msg.Tag, b.msg.ID, wire.Success)
		b.toClient(d, b.out)
	default: // a reply, an ack or a GoAway: a forwarder has asked the client for nothing
		ls.dropped.add(ReasonUnexpectedFrame, 1)
	}
	b.putBack()
}

// toClient appends bytes to a client's write queue and says whether they were taken. A client that does not
// read is closed when too much is queued for it.
func (b *batch) toClient(d *downstream, bytes []byte) bool {
	switch v := d.append(bytes); v {
	case conn.Refused:
		return false
	case conn.Full:
		d.conn.Close(conn.ReasonQueueFull)
		return false
	default:
		b.owe(d.conn, v)
		return true
	}
}

// rescue ends a panic in code that carries one exchange; it is deferred.
func (b *batch) rescue() {
	if v := recover(); v != nil {
		_ = b.recovered(v) // no connection is being read here that could be closed
	}
}

// recovered is where every panic on the road ends: the exchange under way is answered UNKNOWN, the others go on.
// It returns an error when the panic came from decoding: then nothing of the bytes has been used, and the
// connection must be closed.
func (b *batch) recovered(v any) error {
	b.f.panics.add(ReasonPanic, 1)
	if n, ok := b.f.warn(b.x.phase.String(), ReasonPanic); ok {
		b.f.log.Error("recovered a panic: one exchange is lost, please report this", zap.Any("panic", v),
			zap.Stringer("phase", b.x.phase), zap.ByteString("stack", debug.Stack()), zap.Uint64("suppressed", n))
	}
	if b.decoding {
		b.decoding = false
		b.x, b.msg = exchange{}, wire.Message{}
		return errDecoderPanic
	}
	b.attempt(func() {
		if b.x.live() {
			b.head = 0 // what is to come of the frame finds nobody who wants it
			b.hijack(wire.UnknownStatus, ReasonPanic)
			b.run()
		}
	})
	b.attempt(func() {
		if b.x.phase == phaseEnd && b.x.holds != 0 { // it was answered, and then it panicked
			b.end()
		}
	})
	b.putBack()
	return nil
}

// attempt ends a panic behind a panic.
func (b *batch) attempt(fn func()) {
	defer func() {
		if v := recover(); v != nil {
			b.f.panics.add(ReasonPanic, 1)
		}
	}()
	fn()
}

// errDecoderPanic closes a connection whose bytes make a codec panic, which is a defect of the codec.
var errDecoderPanic = &wire.DecodeError{Reason: ReasonPanic}

// debts are what a batch counted for others and has not told them yet. Neighbouring frames mostly concern the
// same route, endpoint and client, so each sum is kept while they do and told when they change, or at the
// batch's end: a few atomic additions a batch instead of a request.
type debts struct {
	requests sum[*listenerStats]
	routed   sum[*target]
	sentTo   sum[*upEndpoint]
	left     sum[*upEndpoint]
	released sum[*upCluster]
	streams  sum[*downstream]
	worked   sum[*cluster.Record]
	replies  replies
}

// sum is a count for one receiver.
type sum[K comparable] struct {
	to K
	n  uint64
}

// add counts one more for a receiver. When that is another one than before, the count of the former is
// returned, to be told.
func (s *sum[K]) add(to K) (former K, n uint64) {
	if s.to == to {
		s.n++
		return former, 0
	}
	former, n = s.to, s.n
	s.to, s.n = to, 1
	return former, n
}

// take empties the sum.
func (s *sum[K]) take() (K, uint64) {
	to, n := s.to, s.n
	*s = sum[K]{}
	return to, n
}

// replies counts replies from one endpoint to the requests of one target that came in through one listener.
type replies struct {
	target   *target
	listener *listenerStats
	endpoint *endpointStats
	status   [wire.NumStatus]uint32
	seen     uint32 // bit set of the statuses that are not 0
	total    stats.Local
}

func (d *debts) request(l *listenerStats) {
	if l, n := d.requests.add(l); n > 0 {
		l.requests.Add(n)
	}
}

func (d *debts) route(t *target) {
	if t, n := d.routed.add(t); n > 0 {
		t.stats.requests.Add(n)
	}
}

func (d *debts) sent(e *upEndpoint, kind wire.Kind) {
	if kind == wire.Oneway {
		e.stats.oneways.Add(1)
	} else if e, n := d.sentTo.add(e); n > 0 {
		e.stats.requests.Add(n)
	}
}

// work counts a success of an endpoint whose cluster ejects outliers.
func (d *debts) work(r *cluster.Record) {
	if r, n := d.worked.add(r); n > 0 {
		r.Count(n)
	}
}

// leave, release and closeStream give back what an exchange holds.
func (d *debts) leave(e *upEndpoint) {
	if e, n := d.left.add(e); n > 0 {
		e.policy.Release(int(n))
	}
}

func (d *debts) release(c *upCluster) {
	if c, n := d.released.add(c); n > 0 {
		c.policy.Limits().Requests.Release(int(n))
	}
}

func (d *debts) closeStream(s *downstream) {
	if s, n := d.streams.add(s); n > 0 {
		s.inFlight.Add(-int64(n))
	}
}

// reply counts a reply that an endpoint gave.
func (d *debts) reply(x *exchange, s wire.Status, now int64) {
	r := &d.replies
	l, e := x.down.listener.stats, x.endpoint.stats
	if r.target != x.target || r.listener != l || r.endpoint != e {
		r.pay()
		r.target, r.listener, r.endpoint = x.target, l, e
	}
	r.status[s]++
	r.seen |= 1 << s
	r.total.Observe(time.Duration(now - x.start))
}

func (r *replies) pay() {
	if r.seen == 0 {
		return
	}
	for s := range wire.NumStatus {
		if r.seen&(1<<s) != 0 {
			n := uint64(r.status[s])
			r.target.stats.replies.add(s, n)
			r.listener.replies.add(s, n)
			r.endpoint.replies.add(s, n)
			r.status[s] = 0
		}
	}
	both := r.total // Merge clears, and two want it
	r.target.stats.total.Merge(&r.total)
	r.endpoint.total.Merge(&both)
	r.seen, r.target, r.listener, r.endpoint = 0, nil, nil, nil
}

// giveBack tells who gets what was held back.
func (d *debts) giveBack() {
	if e, n := d.left.take(); n > 0 {
		e.policy.Release(int(n))
	}
	if c, n := d.released.take(); n > 0 {
		c.policy.Limits().Requests.Release(int(n))
	}
	if s, n := d.streams.take(); n > 0 {
		s.inFlight.Add(-int64(n))
	}
}

// pay tells what was counted.
func (d *debts) pay() {
	if l, n := d.requests.take(); n > 0 {
		l.requests.Add(n)
	}
	if t, n := d.routed.take(); n > 0 {
		t.stats.requests.Add(n)
	}
	if e, n := d.sentTo.take(); n > 0 {
		e.stats.requests.Add(n)
	}
	if r, n := d.worked.take(); n > 0 {
		r.Count(n)
	}
	d.replies.pay()
}
