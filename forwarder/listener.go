package forwarder

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/filter"
)

// listener is one listening socket, its accept loop and the connections that came in through it.
type listener struct {
	// Static after init, the slot before.
	f           *Forwarder
	name        string
	slot        int // index of its road in every snapshot
	socket      net.Listener
	network, at string // as configured
	stats       *listenerStats

	inherited bool // the socket came from another process, or from twin
	rest      rest // of the accept loop

	// Atomic.
	config    atomic.Pointer[listenerConfig]
	stopped   atomic.Bool
	kept      atomic.Bool  // the socket's file is not ours to remove
	leaving   atomic.Bool  // it is not configured any more: what comes is answered, and its connections end
	since     atomic.Int64 // when it began to leave
	connected atomic.Int64 // len(open), for who must not wait for mu

	// Held by whoever changes the snapshot.
	twin *listener // whose socket this one shares and which it takes the place of; nil once it has

	// Guarded by mu.
	mu       sync.Mutex
	open     map[*downstream]struct{}
	closedRX uint64 // bytes of connections that are gone
	closedTX uint64
	closing  bool // closeAll was called: a connection that still comes is closed

	told string // Owned by the sweeper. The State that was told last.
}

// listenerConfig is what may change while a listener listens. A connection keeps what it came in under.
type listenerConfig struct {
	conn           conn.Config
	maxConnections int
	maxFrame       int
	filters        []filter.ConnectionFilter
	acceptRate     int
	rate           *rate.Limiter // nil: unbounded
}

func newListenerConfig(spec *ListenerSpec) *listenerConfig {
	c := &listenerConfig{
		conn: conn.Config{
			High: spec.QueueHigh, Low: spec.QueueLow, MaxQueued: spec.MaxQueued, WriteTimeout: spec.WriteTimeout,
			IdleTimeout: spec.IdleTimeout, ReadTimeout: spec.ReadTimeout, Class: conn.Requests,
		},
		maxConnections: spec.MaxConnections, maxFrame: spec.Limits.MaxFrame, filters: spec.Connection, acceptRate: spec.AcceptRate,
	}
	if spec.AcceptRate > 0 {
		c.rate = rate.NewLimiter(rate.Limit(spec.AcceptRate), max(1, spec.AcceptRate/10))
	}
	return c
}

// init makes the listener of a socket; nil for one that is not configured any more.
func (l *listener) init(f *Forwarder, spec *ListenerSpec, socket net.Listener, inherited bool) {
	l.f, l.name, l.network, l.at, l.socket, l.inherited = f, spec.Name, spec.Network, spec.Address, socket, inherited
	l.kept.Store(spec.Kept)
	l.stats = newListenerStats(f.reg, spec.Name)
	l.open = make(map[*downstream]struct{})
	l.config.Store(newListenerConfig(spec))
}

// configure puts another configuration into force. The bucket of the accept rate goes on where the rate is the same.
func (l *listener) configure(spec *ListenerSpec) {
	c, old := newListenerConfig(spec), l.config.Load()
	if c.acceptRate == old.acceptRate {
		c.rate = old.rate
	}
	l.config.Store(c)
}

// sharable says whether a listener of another name at the same address can have the socket. Where the kernel chooses the port,
// the same address is not the same place.
func (l *listener) sharable() bool {
	return !l.stopped.Load() && (l.network == "unix" || !strings.HasSuffix(l.at, ":0"))
}

// share is another descriptor of the socket, as a listener of its own.
func (l *listener) share() (net.Listener, error) {
	c, ok := l.socket.(syscall.Conn)
	if !ok {
		return nil, errors.New("the socket cannot be shared")
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("sharing the socket: %w", err)
	}
	fd := -1
	if controlErr := raw.Control(func(own uintptr) { fd, err = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) }); err != nil || controlErr != nil {
		return nil, fmt.Errorf("sharing the socket: %w", errors.Join(err, controlErr))
	}
	f := os.NewFile(uintptr(fd), l.at)
	defer f.Close()
	twin, err := net.FileListener(f)
	if u, ok := twin.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	return twin, err
}

// takeFile has the listener look after the socket's file in place of its twin, which goes.
func (l *listener) takeFile() {
	if l.twin != nil {
		l.kept.Store(l.twin.kept.Swap(true))
		l.twin = nil
	}
}

// retire ends the listener, which is not configured any more: nothing is accepted, what still comes on its connections is
// answered, and they close when they are quiet, at the latest after leaveTimeout.
func (l *listener) retire() {
	l.since.Store(l.f.now())
	l.leaving.Store(true)
	l.stop()
}

// accept is the accept loop. It ends when the socket is closed, or with the shift.
func (l *listener) accept() {
	var pause time.Duration
	for {
		if l.f.resting.Load() && l.rest.begin(l.f) || l.stopped.Load() {
			return
		}
		if !l.f.overload.mayAccept() {
			if l.f.overload.awaitPlace(l.f.shiftCtx()); l.f.ctx.Err() != nil {
				return // stopping
			}
			continue
		}
		if rate := l.config.Load().rate; rate != nil {
			if rate.Wait(l.f.shiftCtx()) != nil {
				if l.f.ctx.Err() != nil {
					return // stopping
				}
				continue
			}
		}
		c, err := l.socket.Accept()
		switch {
		case err == nil:
			pause = 0
			l.f.overload.gate.places.Add(-1)
			l.admit(c)
		case errors.Is(err, os.ErrDeadlineExceeded): // a pause, or one that is over
			runtime.Gosched()
		default:
			if l.stopped.Load() {
				return
			}
			if pause = l.acceptFailed(err, pause); pause == 0 {
				return
			}
		}
	}
}

// setDeadline ends the wait for a connection at this time.
func (l *listener) setDeadline(t time.Time) {
	if s, ok := l.socket.(interface{ SetDeadline(time.Time) error }); ok {
		_ = s.SetDeadline(t) // it is closed: then nothing is accepted anyway
	}
}

// The pause behind a failed accept doubles between these, as while descriptors have run out.
const (
	minAcceptPause = 5 * time.Millisecond
	maxAcceptPause = time.Second
)

// acceptFailed counts a failed accept and waits before the next. It returns the pause it made; 0 means that
// the loop must end.
func (l *listener) acceptFailed(err error, pause time.Duration) time.Duration {
	if errors.Is(err, net.ErrClosed) {
		return 0
	}
	l.stats.acceptErr.Add(1)
	pause = min(max(2*pause, minAcceptPause), maxAcceptPause)
	if n, ok := l.f.warn(l.name, "accept"); ok {
		l.f.log.Warn("accepting a connection; trying on", zap.String("listener", l.name), zap.Error(err),
			zap.Duration("pause", pause), zap.Uint64("suppressed", n))
	}
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
		return pause
	case <-l.f.shiftCtx().Done():
		if l.f.ctx.Err() == nil {
			return pause
		}
		return 0
	}
}

// admit starts a connection's read loop, or closes it because there are too many.
func (l *listener) admit(c net.Conn) {
	sock, ok := c.(conn.Socket)
	if !ok {
		_ = c.Close() // not a socket of the operating system: cannot happen with the networks of a ListenerSpec
		return
	}
	config := l.config.Load()
	cc, err := conn.New(sock, l.f.buffers, config.conn)
	if err != nil {
		_ = c.Close()
		return
	}
	d := newDownstream(l, config, cc, c.RemoteAddr())
	if r := l.f.snap.Load().roads[l.slot]; r.detect == 0 {
		d.speak(r.codecs[0])
	}
	l.mu.Lock()
	switch {
	case l.closing:
		l.mu.Unlock()
		cc.Close(ReasonStopping)
		return
	case len(l.open) >= config.maxConnections:
		l.mu.Unlock()
		cc.Close(ReasonMaxConnections)
		l.stats.rejected.add(ReasonMaxConnections, 1)
		if n, ok := l.f.warn(l.name, ReasonMaxConnections); ok {
			l.f.log.Warn("connection refused: the listener has its most", zap.String("listener", l.name),
				zap.String("client", d.name()), zap.String("check", "max_connections of the listener, or clients that do not close"),
				zap.Int("max_connections", config.maxConnections), zap.Uint64("suppressed", n))
		}
		return
	}
	l.open[d] = struct{}{}
	l.connected.Add(1)
	l.mu.Unlock()
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetKeepAliveConfig(keepAlive())
	}
	l.stats.accepted.Add(1)
	l.f.log.Debug("client connected", zap.String("listener", l.name), zap.String("client", d.name()))
	l.f.sweep.connected()
	l.f.reading.Go(d.run) // ends when the connection is closed
}

// gone forgets a connection that ended.
func (l *listener) gone(d *downstream) {
	rx, tx := d.conn.Bytes()
	l.mu.Lock()
	delete(l.open, d)
	l.connected.Add(-1)
	l.closedRX += rx
	l.closedTX += tx
	l.mu.Unlock()
	l.stats.closes.add(d.conn.Reason(), 1)
	l.f.log.Debug("client connection closed", zap.String("listener", l.name), zap.String("client", d.name()),
		zap.String("reason", d.conn.Reason()))
}

// each calls fn for every open connection, under the listener's lock: fn takes no other.
func (l *listener) each(fn func(*downstream)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for d := range l.open {
		fn(d)
	}
}

// list appends the open connections for which keep says true.
func (l *listener) list(out []*downstream, keep func(*downstream) bool) []*downstream {
	l.each(func(d *downstream) {
		if keep(d) {
			out = append(out, d)
		}
	})
	return out
}

// connections counts the open connections and those of them that are not read from.
func (l *listener) connections() (open, gated int) {
	l.each(func(d *downstream) {
		open++
		if d.conn.Gated() {
			gated++
		}
	})
	return open, gated
}

// bytes are the bytes read from and written to all clients so far.
func (l *listener) bytes() (rx, tx uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	rx, tx = l.closedRX, l.closedTX
	for d := range l.open {
		r, t := d.conn.Bytes()
		rx += r
		tx += t
	}
	return rx, tx
}

// stop closes the listening socket, which ends the accept loop. It may be called twice.
func (l *listener) stop() {
	if !l.stopped.CompareAndSwap(false, true) || l.socket == nil {
		return
	}
	if a, ok := l.socket.Addr().(*net.UnixAddr); ok && l.owns() {
		_ = os.Remove(a.Name) // best effort: the next one that listens there finds that nobody does
	}
	_ = l.socket.Close()
	l.f.overload.gate.tell() // its loop may wait there
	l.f.sweep.change()
}

// owns says whether the socket's file is this process's alone: no other one has it now, or has it still.
func (l *listener) owns() bool {
	return !l.kept.Load() && !l.f.abandoned.Load() && (!l.inherited || l.f.begun.Load())
}

// leaveIdle asks the connections that have nothing in flight and nothing to write to end, and returns how many are open. A
// client that calls all the time gets answers, CONNECTION_CLOSED, until it pauses, because closing between two of its calls
// loses the one that is on its way; but not for longer than drainPatience.
func (l *listener) leaveIdle(now, begun int64) int {
	late := now-begun >= drainPatience
	return l.leave(func(d *downstream) bool { return d.quiet(now) || late && d.idle() }, func(*downstream) bool { return true })
}

// leave asks the connections to end for which may says true, and returns how many there are for which count says so.
func (l *listener) leave(may, count func(*downstream) bool) int {
	for _, d := range l.list(nil, may) {
		d.conn.Leave()
	}
	return len(l.list(nil, count))
}

// closeAll closes all connections, and those that still come.
func (l *listener) closeAll() {
	l.mu.Lock()
	l.closing = true
	l.mu.Unlock()
	for _, d := range l.list(nil, func(*downstream) bool { return true }) {
		d.conn.Close(ReasonStopping)
	}
}
