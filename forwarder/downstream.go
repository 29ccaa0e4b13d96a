package forwarder

import (
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// downstream is one client connection.
type downstream struct {
	// Static after newDownstream.
	id       uint64
	opened   int64 // when it was accepted; 0: not known
	listener *listener
	config   *listenerConfig
	conn     *conn.Conn
	client   netip.AddrPort // zero for a unix socket
	filters  *connFilters   // nil without connection filters

	// Owned by the read loop; codec is not written any more once there is an exchange, whose holders read it.
	codec   wire.Codec // nil until it is detected
	frames  uint64     // whole frames seen
	begun   *upload    // a pause came in the middle of it
	closing string     // why it closes when all is sent; a pause came before it was
	rest    rest

	// Atomic.
	inFlight  atomic.Int64               // requests that have not ended
	spoken    atomic.Pointer[wire.Codec] // codec, for others than the read loop
	detecting atomic.Int64               // when the first byte of a connection came whose codec is not known yet; 0: not so
	busy      busy
}

func newDownstream(l *listener, config *listenerConfig, c *conn.Conn, peer net.Addr) *downstream {
	d := &downstream{id: l.f.connections.Add(1), opened: l.f.now(), listener: l, config: config, conn: c}
	if tcp, ok := peer.(*net.TCPAddr); ok {
		d.client = tcp.AddrPort()
	}
	if len(config.filters) > 0 {
		d.filters = newConnFilters(d)
	}
	c.Touch(l.f.now())
	return d
}

// speak makes codec what the client speaks.
func (d *downstream) speak(codec wire.Codec) {
	d.codec = codec
	d.spoken.Store(&codec)
}

// name is the client's address, for the log.
func (d *downstream) name() string {
	if !d.client.IsValid() {
		return "unix socket"
	}
	return d.client.String()
}

// idle says whether nothing is in flight, nothing is queued and no filter holds anything.
func (d *downstream) idle() bool {
	return d.inFlight.Load() == 0 && d.conn.Queued() == 0 && (d.filters == nil || d.filters.idle())
}

// quiet says whether the connection can be closed at this time without a call being lost.
func (d *downstream) quiet(now int64) bool {
	return d.idle() && now-d.conn.LastRead() >= drainQuiet
}

// run is the read loop. It ends when the connection is closed, or with the shift.
func (d *downstream) run() {
	for {
		d.loop()
		if d.conn.Closed() && d.begun == nil {
			break
		}
		d.conn.AwaitWriter()
		if !d.conn.Closed() && d.rest.begin(d.listener.f) {
			return // paused: whoever did that has the state now, and runs it again or hands it on
		}
	}
	d.release()
	d.listener.gone(d)
}

// resume undoes a pause.
func (d *downstream) resume() {
	d.conn.Resume()
	if d.rest.end() {
		d.listener.f.reading.Go(d.run) // ends when the connection is closed, or with the shift
	}
}

// end closes the connection for a reason when all that is queued is sent; a pause that comes first does not lose that.
func (d *downstream) end(reason string) {
	d.closing = reason
	_ = d.finish(reason) // paused: loop goes on with it
}

// loop reads until the connection is closed or paused.
func (d *downstream) loop() {
	f := d.listener.f
	need, err := 1, error(nil)
	if d.closing != "" {
		d.end(d.closing)
		return
	}
	if up := d.begun; up != nil {
		d.begun = nil
		if need, err = d.carry(up); !d.uploaded(err) {
			return
		}
	}
	for {
		data, err := d.read(need)
		if errors.Is(err, conn.ErrLeaving) {
			if !d.idle() {
				continue // a request came in meanwhile: Drain asks again when it has ended
			}
			d.end(ReasonDrained)
			return
		}
		if err != nil {
			return
		}
		b := f.batch()
		d.busy.begin(b.now)
		d.conn.Touch(b.now)
		if d.codec == nil {
			if need, err = d.detect(b, data); need > 0 {
				b.done()
				d.busy.end()
				continue
			}
		}
		if err == nil {
			need, err = b.requests(d, data)
		}
		if err != nil {
			d.refuse(b, err)
		}
		b.done()
		d.busy.end()
		if err != nil {
			d.end(reasonOf(err))
			return
		}
		if d.uploads(need) {
			if need, err = d.upload(need); !d.uploaded(err) {
				return
			}
		}
	}
}

// uploaded says whether the loop goes on behind an upload that ended with this error.
func (d *downstream) uploaded(err error) bool {
	if err == nil {
		return true
	}
	if _, bad := errors.AsType[*wire.DecodeError](err); bad {
		b := d.listener.f.batch()
		d.refuse(b, err)
		b.done()
		d.end(reasonOf(err))
	}
	return false // else closed, or paused
}

// reasonOf is the reason that a decode error closes a connection for.
func reasonOf(err error) string {
	if bad, ok := errors.AsType[*wire.DecodeError](err); ok {
		return bad.Reason
	}
	return wire.ReasonBadProtocol
}

// refuse answers, where that is possible, the frame that could not be decoded, and logs it.
func (d *downstream) refuse(b *batch, err error) {
	defer b.rescue()
	reason := reasonOf(err)
	l := d.listener
	switch b.msg.Kind {
	case wire.Request:
		b.debts.request(l.stats)
	case wire.Oneway:
		l.stats.oneways.Add(1)
	default:
	}
	if b.msg.Kind == wire.Request || b.msg.Kind == wire.Oneway {
		b.x = newExchange(d, &b.msg, b.now)
		if a := l.f.access; a != nil && a.Sample() {
			b.record()
		}
		b.hijack(wire.CodecException, reason)
		b.run()
	}
	if n, ok := l.f.warn(l.name, reason); ok {
		first := b.data[b.used:]
		l.f.log.Warn("closing a client connection: its bytes are not a frame",
			zap.String("listener", l.name), zap.String("client", d.name()), zap.String("reason", reason),
			zap.Error(err), zap.Uint64("frames_before", d.frames),
			zap.String("bytes", hex.EncodeToString(first[:min(len(first), 16)])),
			zap.String("check", advice[reason]), zap.Uint64("suppressed", n))
	}
}
