package forwarder

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"sync/atomic"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/stream"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// upstream is one server connection.
type upstream struct {
	// Static after newUpstream.
	id       uint64
	opened   int64 // when it was dialled; 0: not known
	pool     *pool
	endpoint *upEndpoint
	codec    wire.Codec
	conn     *conn.Conn
	table    *stream.Table[exchange]

	drained chan struct{} // of one for uploads: holds one when its queue has come down, or it has ended; never closed

	retireAt int64 // when it is too old; never without max_age

	// Owned by the read loop.
	proved bool // it has delivered a frame
	rest   rest

	// Owned by the sweeper.
	lastBeat int64 // when the last heartbeat was sent
	missed   int   // heartbeats since anything was read

	// Atomic.
	state    atomic.Uint32          // a state; written by become only
	drains   atomic.Pointer[string] // why it drains, once it does; set once
	unasked  atomic.Bool            // the next frame proves nothing new
	lease    atomic.Int32           // a lease
	leasedAt atomic.Int64           // when its last lease ended
	busy     busy
	leaseBy  atomic.Int64 // the deadline of the upload that has it, once its head was sent; else never

	// Guarded by endpoint.mu.
	counted bool // its bytes are in the endpoint's closedRX and closedTX
}

func newUpstream(p *pool, c net.Conn) (*upstream, error) {
	sock, ok := c.(conn.Socket)
	if !ok {
		_ = c.Close()
		return nil, fmt.Errorf("taking over a %T: it is not a socket of the operating system", c)
	}
	u := makeUpstream(p)
	var err error
	if u.conn, err = conn.New(sock, p.endpoint.cluster().f.buffers, u.connConfig()); err != nil {
		_ = c.Close()
		return nil, err
	}
	now := p.endpoint.cluster().f.now()
	u.conn.Touch(now)
	if age := p.endpoint.cluster().spec.MaxAge; age > 0 {
		u.retireAt = now + p.endpoint.policy.Spread(int64(age), 10, now)
	}
	return u, nil
}

// makeUpstream is an upstream that has no connection yet.
func makeUpstream(p *pool) *upstream {
	f := p.endpoint.cluster().f
	u := &upstream{
		id: f.connections.Add(1), opened: f.now(), pool: p, endpoint: p.endpoint, codec: p.endpoint.cluster().codec, retireAt: never,
		table: stream.New[exchange](math.MaxInt), // max_requests bounds what is in it, and may become another
	}
	u.leaseBy.Store(never)
	if p == p.endpoint.uploads {
		u.drained = make(chan struct{}, 1)
	}
	return u
}

// connConfig bounds its connection.
func (u *upstream) connConfig() conn.Config {
	spec := &u.endpoint.cluster().spec
	high := min(queueHigh, spec.MaxQueued)
	c := conn.Config{
		High: high, Low: high / 2, Drained: u.pool.serve, MaxQueued: spec.MaxQueued,
		WriteTimeout: spec.WriteTimeout, ReadTimeout: spec.ReadTimeout, Class: conn.Replies,
	}
	if u.drained != nil {
		c.Drained = u.wakeUpload
	}
	return c
}

// wakeUpload wakes the upload that waits for the connection to take more, if there is one, and else the first that waits for one.
func (u *upstream) wakeUpload() {
	select {
	case u.drained <- struct{}{}:
	default: // it was woken, and has not looked yet
	}
	u.pool.offer()
}

// run is the read loop. It ends when the connection is closed, or with the shift.
func (u *upstream) run() {
	for {
		u.loop()
		if u.conn.Closed() {
			u.end()
			return
		}
		u.conn.AwaitWriter()
		u.become(stateExported)
		if u.rest.begin(u.endpoint.cluster().f) {
			return // paused, as in downstream.run
		}
		u.restore()
	}
}

// loop reads until the connection is closed or paused.
func (u *upstream) loop() {
	f := u.endpoint.cluster().f
	need := 1
	for {
		data, err := u.conn.Read(need)
		if errors.Is(err, conn.ErrLeaving) {
			_ = u.conn.Finish(u.leaveReason()) // paused: it is asked again when it goes on
			return
		}
		if err != nil {
			return
		}
		b := f.batch()
		u.busy.begin(b.now)
		u.conn.Touch(b.now)
		need, err = b.replies(u, data)
		if err != nil {
			u.broken(b, err)
		}
		b.done()
		u.settle()
		if u.drained != nil {
			u.pool.offer()
		}
		u.busy.end()
	}
}

// replies carries what a server sent, like requests.
func (b *batch) replies(u *upstream, data []byte) (need int, err error) {
	b.own = u.endpoint.stats.own
	b.lends = true
	b.data, b.used, need = data, 0, 1
	defer func() {
		if v := recover(); v != nil {
			err = b.recovered(v)
		}
		u.conn.Advance(b.used)
		b.borrow(u.conn)
	}()
	limits := u.endpoint.cluster().spec.Limits
	for range maxBatch {
		b.decoding = true
		n, err := u.codec.Decode(&b.msg, b.data[b.used:], limits)
		b.decoding = false
		if err != nil {
			return 1, err
		}
		if n > len(b.data)-b.used {
			need = n
			break
		}
		if !u.unasked.Load() {
			u.prove()
		}
		b.used += n
		b.frames++
		b.frame = frame{bytes: b.msg.Frame}
		if n > ownAbove {
			b.takeOver(u.conn.Own(n))
		}
		b.outbound(u)
		b.putBack()
	}
	return need, nil
}

// outbound takes one frame that a server sent.
func (b *batch) outbound(u *upstream) {
	cs := u.endpoint.cluster().stats
	switch b.msg.Kind {
	case wire.Reply:
		x := &b.x
		if !u.table.Take(b.msg.ID, x) {
			cs.dropped.add(ReasonNoStream, 1)
			return
		}
		if r := u.endpoint.record.Load(); r != nil {
			b.judge(r, u.endpoint)
		}
		b.upstreamID = b.msg.ID
		x.phase = phaseUpFilter
		if b.msg.Status == wire.Busy && x.target.retryOn&RetryBusy != 0 {
			b.fail(ReasonUpstreamBusy)
		}
		b.resume()
	case wire.Ack: // that it came is all there is to know, and Touch has noted it
	case wire.Heartbeat:
		b.out = u.codec.AppendReply(b.out[:0], b.msg.Tag, b.msg.ID, wire.Success)
		b.owe(u.conn, u.say(b.out))
	case wire.Request, wire.Unknown:
		cs.dropped.add(ReasonServerPush, 1)
		b.out = u.codec.AppendReply(b.out[:0], b.msg.Tag, b.msg.ID, wire.NoProcessor)
		b.owe(u.conn, u.say(b.out))
	case wire.GoAway:
		u.drain(ReasonGoAway)
		u.pool.replace()
	default:
		cs.dropped.add(ReasonServerPush, 1)
	}
}

// broken closes the connection because its bytes are not frames, and logs them.
func (u *upstream) broken(b *batch, err error) {
	f, reason := u.endpoint.cluster().f, reasonOf(err)
	u.conn.Close(reason)
	if n, ok := f.warn(u.endpoint.address, reason); ok {
		bytes := b.data[b.used:]
		f.log.Warn("closing a server connection: its bytes are not a frame",
			zap.String("check", "what answers at the endpoint's address does not speak the cluster's protocol"),
			zap.String("cluster", u.endpoint.cluster().policy.Name()), zap.String("endpoint", u.endpoint.address),
			zap.String("reason", reason), zap.Error(err),
			zap.String("bytes", hex.EncodeToString(bytes[:min(len(bytes), 16)])), zap.Uint64("suppressed", n))
	}
}

// maxUnproved is how many connections in a row an endpoint may end without having delivered a frame, like a
// relay with nobody behind it: from then on it counts as failed, though it can be connected.
const maxUnproved = 3

// end cleans up behind a closed connection: what was never sent may be tried again, what was sent is answered.
func (u *upstream) end() {
	e := u.endpoint
	f := e.cluster().f
	reason := u.conn.Reason()
	givenUp := reason == conn.ReasonWriteTimeout || reason == ReasonHeartbeatTimeout
	if !u.proved && u.drains.Load() == nil && !f.draining.Load() && reason != ReasonUploadBroken && reason != conn.ReasonIdle && reason != ReasonAdminClosed {
		givenUp = e.unproved.Add(1) >= maxUnproved || givenUp
	}
	if givenUp {
		e.note(f.now(), reason, "")
		e.failed(f.now()) // it is there, and yet it is not: pass it over before its requests go elsewhere
	}
	u.probeBroke(f.now())
	e.cluster().policy.Limits().Connections.Release(1) // first: whoever waits needs the place
	u.become(stateFailed)
	if u.drained == nil {
		u.retryUnsent() // else its queue holds pieces, not frames
	}
	e.mu.Lock()
	rx, tx := u.conn.Bytes()
	e.closedRX += rx
	e.closedTX += tx
	u.counted = true
	e.mu.Unlock()
	waiting := u.pool.remove(u, givenUp)
	status, why := wire.ErrorComm, ReasonUpstreamClosed
	switch reason {
	case conn.ReasonPeerClosed, conn.ReasonReset:
	case ReasonStopping:
		status, why = wire.ConnectionClosed, ReasonStopping
	default:
		why = ReasonUpstreamBroken
	}
	for batch := range slices.Chunk(u.table.Close(nil), maxBatch) {
		b := f.batch()
		for i := range batch {
			u.blameEnd(b.now, reason, why)
			b.lost(batch[i].Value, batch[i].ID, status, why)
		}
		b.done()
	}
	f.resumeAll(waiting, phaseRetry, ReasonResetBeforeSend)
	if u.drained != nil {
		u.wakeUpload()
	}
	e.stats.closes.add(reason, 1)
	f.log.Debug("endpoint connection closed", zap.String("cluster", e.cluster().policy.Name()),
		zap.String("endpoint", e.address), zap.String("reason", reason))
	u.conn.Release()
}

// retryUnsent takes the requests out of the write queue of which the kernel took no byte, and goes on with them.
func (u *upstream) retryUnsent() {
	b := u.endpoint.cluster().f.batch()
	u.conn.Unsent(func(frames []byte, sent int) {
		var m wire.Message
		for at := 0; at < len(frames); {
			n, err := u.codec.Decode(&m, frames[at:], wire.Limits{})
			if err != nil || n > len(frames)-at {
				return // only whole frames are queued, so this is a defect; the table's end answers them
			}
			if at >= sent {
				b.unsent(u, &m)
			}
			at += n
			if b.frames++; b.frames%maxBatch == 0 {
				b.done()
				b = u.endpoint.cluster().f.batch()
			}
		}
	})
	b.done()
}

// unsent takes one frame of a broken connection's queue that was never sent.
func (b *batch) unsent(u *upstream, m *wire.Message) {
	defer b.rescue()
	switch m.Kind {
	case wire.Request:
		if !u.table.Take(m.ID, &b.x) {
			return // its deadline has passed meanwhile
		}
		b.msg, b.frame, b.upstreamID = *m, frame{bytes: m.Frame}, 0
		b.fail(ReasonResetBeforeSend)
		if b.now >= b.x.deadline {
			b.hijack(wire.Timeout, ReasonTimeout)
		}
		b.resume()
	case wire.Oneway:
		u.endpoint.cluster().stats.dropped.add(ReasonOneway, 1)
	default: // a heartbeat, or our own answer to something that the server asked
	}
}

// conclude answers here an exchange that was taken out of its container: out of a stream table under this id, out of a
// waiting list with the id 0.
func (b *batch) conclude(x exchange, id uint32, status wire.Status, reason string) {
	defer b.rescue()
	b.x, b.frame, b.msg, b.upstreamID = x, frame{}, wire.Message{}, id
	b.hijack(status, reason)
	b.resume()
}
