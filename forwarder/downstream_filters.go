package forwarder

import (
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/filter"
)

// The reasons for which the chain of connection filters closes a connection by itself; filters add their own.
const (
	ReasonFilterStopped  = "filter-stopped"  // a connection filter stopped the chain and did not resume it in time
	ReasonFilterOverflow = "filter-overflow" // a connection filter returned more bytes than is allowed
)

// stopPatience bounds a stop where the listener has no read_timeout.
const stopPatience = time.Minute

// connFilters is the chain of connection filters of one client connection. It stands between the connection and
// everything that reads from it or writes to it (downstream_filters_read.go, downstream_filters_write.go). A listener
// without connection filters has none of these.
type connFilters struct {
	// Static after newConnFilters.
	d         *downstream
	conn      *conn.Conn
	handle    *filter.Connection
	growth    int   // bytes by which the chain may make what it is given longer
	patience  int64 // nanoseconds that one stop may take
	maxQueued int64
	high      int64

	// Atomic.
	stateful atomic.Bool           // a filter sees bytes, so that it may keep some
	stopped  [numWays]atomic.Int64 // when the way was stopped; 0: it is not
	held     atomic.Int64          // bytes that wait in the chain, on both ways

	// Owned by the read loop; writers is not changed any more once something may be written.
	made    bool
	news    []link
	readers []link
	writers []link // in the order in which they act: the reverse of the configuration's
	asked   int    // the first so many of news have been asked
	hold    *filter.Hold
	kept    []byte // what the filter in front of readers[at] returned when it stopped
	at      int
	buf     []byte // nil while nothing is unread
	r, w    int    // buf[r:w] is behind the chain, and unread
	inside  bool   // what inFrame said
	end     *ending
	told    bool // the end has been logged

	// Guarded by mu, the chain lock: the only lock under which a filter is called, and which no other code takes.
	mu        sync.Mutex
	halted    bool     // a filter stopped the way out, and nobody goes on with it yet
	behind    bool     // the way out was stopped, and what waits has not all passed: who comes waits behind it
	mid       []byte   // what the filter in front of writers[outAt] returned when it stopped
	outAt     int      // of mid
	waiting   [][]byte // what came meanwhile, in order
	finishing bool     // the read loop waits until the way out is empty
	broken    bool     // nothing goes out any more

	// Guarded by starting.
	starting sync.Mutex
	outHold  *filter.Hold // what the way out waits for; who takes it away must go on with the chain
	ended    bool         // the read loop is about to end: nobody goes on with anything
}

// The ways through a chain, of which each can stop.
const (
	wayNew = iota // OnNew
	wayIn
	wayOut
	numWays
)

// link is one filter of one way.
type link struct {
	name string
	act  func([]byte) ([]byte, filter.Next) // stored, because a method value allocates
}

// ending is why a chain closes its connection.
type ending struct {
	filter, reason string
	panicked       any
	stack          []byte
}

func newConnFilters(d *downstream) *connFilters {
	config := d.config
	c := &connFilters{
		d: d, conn: d.conn, growth: config.maxFrame,
		patience: int64(stopPatience), maxQueued: int64(config.conn.MaxQueued), high: int64(config.conn.High),
	}
	if t := config.conn.ReadTimeout; t > 0 {
		c.patience = int64(t)
	}
	c.handle = filter.NewConnection(d.listener.name, d.client, c.wake)
	return c
}

// make makes the chain's objects and sorts them by way.
func (c *connFilters) make() {
	c.made = true
	for _, f := range c.d.config.filters {
		var object any
		guard := link{f.Name(), func([]byte) ([]byte, filter.Next) {
			object = f.New(c.handle)
			return nil, filter.Pass
		}}
		if _, _, c.end = guard.call(nil, 0); c.end != nil {
			return
		}
		if o, ok := object.(filter.OnNew); ok {
			c.news = append(c.news, link{f.Name(), func([]byte) ([]byte, filter.Next) { return nil, o.OnNew() }})
		}
		if o, ok := object.(filter.OnRead); ok {
			c.readers = append(c.readers, link{f.Name(), o.OnRead})
		}
		if o, ok := object.(filter.OnWrite); ok {
			c.writers = append(c.writers, link{f.Name(), o.OnWrite})
		}
	}
	slices.Reverse(c.writers)
	c.stateful.Store(len(c.readers)+len(c.writers) > 0)
}

// call asks one filter. What it returns is at most limit bytes. A hold that is returned has not been resumed. The
// ending says that the connection must be closed.
func (l *link) call(p []byte, limit int) (out []byte, hold *filter.Hold, end *ending) {
	defer func() {
		if v := recover(); v != nil {
			out, hold, end = nil, nil, &ending{l.name, ReasonPanic, v, debug.Stack()}
		}
	}()
	out, next := l.act(p)
	switch {
	case next.Reason() != "":
		return nil, nil, &ending{filter: l.name, reason: next.Reason()}
	case len(out) > limit:
		return nil, nil, &ending{filter: l.name, reason: ReasonFilterOverflow}
	}
	if hold = next.Hold(); hold != nil && hold.Resumed() {
		hold = nil
	}
	return out, hold, nil
}

// wake goes on where a hold was resumed. It is called by filters, maybe under the chain lock, which it does not take.
func (c *connFilters) wake() {
	c.conn.GateFilter(false) // the read loop looks whether it was its hold
	c.starting.Lock()
	defer c.starting.Unlock()
	if c.outHold == nil || !c.outHold.Resumed() || c.ended {
		return
	}
	c.outHold = nil
	c.stopped[wayOut].Store(0)
	// Ends when nothing waits any more, the chain stops again or the connection has ended. The read loop lives still.
	c.d.listener.f.reading.Go(c.pump)
}

// now is the time of a stop.
func (c *connFilters) now() int64 { return max(c.d.listener.f.now(), 1) }

// idle says whether the chain holds nothing that is on its way.
func (c *connFilters) idle() bool {
	return c.held.Load() == 0 && c.stopped[wayIn].Load() == 0 && c.stopped[wayOut].Load() == 0
}

// overdue says whether the chain has been stopped for too long at this time.
func (c *connFilters) overdue(now int64) bool {
	for i := range c.stopped {
		if since := c.stopped[i].Load(); since > 0 && now-since >= c.patience {
			return true
		}
	}
	return false
}

// let says whether the filters have let the connection in, and need not be asked again: only the read loop, or whoever has
// stopped it, calls it.
func (c *connFilters) let() bool {
	return c.made && c.asked == len(c.news) && c.hold == nil && c.end == nil
}

// tell logs and counts why the chain ends.
func (c *connFilters) tell(e *ending) {
	f, l := c.d.listener.f, c.d.listener
	if e.panicked != nil {
		f.panics.add(ReasonPanic, 1)
	}
	n, ok := f.warn(l.name, e.reason)
	if !ok {
		return
	}
	fields := []zap.Field{
		zap.String("listener", l.name), zap.String("client", c.d.name()), zap.String("filter", e.filter),
		zap.String("reason", e.reason), zap.Uint64("suppressed", n),
	}
	if e.panicked != nil {
		f.log.Error("recovered a panic of a connection filter: the connection is closed, please report this",
			append(fields, zap.String("panic", fmt.Sprint(e.panicked)), zap.ByteString("stack", e.stack))...)
		return
	}
	f.log.Warn("client connection closed by a connection filter", fields...)
}

// release gives back what the chain holds. The read loop calls it on a closed connection, before it ends.
func (c *connFilters) release() {
	c.starting.Lock()
	c.ended, c.outHold = true, nil
	c.starting.Unlock()
	c.mu.Lock()
	c.broken = true
	waiting := append(c.waiting, c.mid)
	c.mid, c.waiting = nil, nil
	c.mu.Unlock()
	for _, buf := range append(waiting, c.kept, c.buf) {
		c.conn.Put(buf)
	}
	c.kept, c.buf, c.r, c.w = nil, nil, 0, 0
}

// What a downstream reads from, and writes to.

// read is conn.Read for the bytes behind the connection filters. So are advance, own and inFrame.
func (d *downstream) read(need int) ([]byte, error) {
	if d.filters == nil {
		return d.conn.Read(need)
	}
	return d.filters.read(need)
}

func (d *downstream) advance(n int) {
	if d.filters == nil || len(d.filters.readers) == 0 {
		d.conn.Advance(n)
		return
	}
	d.filters.advance(n)
}

func (d *downstream) own(n int) []byte {
	if d.filters == nil || len(d.filters.readers) == 0 {
		return d.conn.Own(n)
	}
	return d.filters.own(n)
}

func (d *downstream) inFrame(inside bool) {
	d.conn.InFrame(inside)
	if d.filters != nil {
		d.filters.inside = inside // the next read tells the connection
	}
}

// append is conn.Append through the connection filters, and appendOwned is conn.AppendOwned. What is to be written to a
// client goes through one of the two.
func (d *downstream) append(frame []byte) conn.Verdict {
	if d.filters == nil || len(d.filters.writers) == 0 {
		return d.conn.Append(frame)
	}
	return d.filters.append(frame, nil)
}

func (d *downstream) appendOwned(frame []byte) conn.Verdict {
	if d.filters == nil || len(d.filters.writers) == 0 {
		return d.conn.AppendOwned(frame)
	}
	return d.filters.append(frame, frame)
}

// finish is conn.Finish, behind what the connection filters hold.
func (d *downstream) finish(reason string) error {
	if d.filters == nil {
		return d.conn.Finish(reason)
	}
	return d.filters.finish(reason)
}

// release gives back what the closed connection holds.
func (d *downstream) release() {
	if d.filters != nil {
		d.filters.release()
	}
	d.conn.Release()
}

// overdue is the reason for which the connection must be closed at this time, or "".
func (d *downstream) overdue(now int64) string {
	reason := d.conn.Overdue(now, !d.idle())
	if reason == "" && d.filters != nil && d.filters.overdue(now) {
		return ReasonFilterStopped
	}
	return reason
}
