// Package conn is one connection: reading through a gate, a bounded write queue, a flush that never waits, a
// writer that may, and the way out of this process and into another (Pause, Detach, Adopt).
//
// It knows no protocol and imports nothing of ours. The goroutine that calls Read is the connection's read
// loop and belongs to the caller. The only goroutine that this package starts is a connection's writer: it
// lives while the kernel takes less than is queued, and Finish, Release and Detach wait for it.
package conn

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Socket is what a Conn needs of the operating system: a *net.TCPConn, a *net.UnixConn or an *os.File made
// from a received descriptor. The Conn reads and writes through SyscallConn only, so that an adopted
// descriptor is no special case, and it never calls File or Fd, which would change the description that two
// processes share.
type Socket interface {
	SyscallConn() (syscall.RawConn, error)
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
	Close() error
}

// Config bounds a connection. Sizes are bytes.
type Config struct {
	// High and Low are the watermarks of the write queue: above High the connection's own read gate is
	// closed, from Low down it opens again.
	High, Low int
	// Drained, where it is set, is for a connection that many share: instead of the gate, it is called once
	// the queue has come down to Low after it was above High, by whoever flushes, with no lock held.
	Drained func()
	// MaxQueued is the most that may be queued already when another frame is appended.
	MaxQueued int
	// WriteTimeout is how long the peer may take no byte while some are queued.
	WriteTimeout time.Duration
	// ReadTimeout is how long the peer may send no byte of a frame that it has begun; 0 means for ever.
	ReadTimeout time.Duration
	// IdleTimeout is how long nothing may be read; 0 means for ever.
	IdleTimeout time.Duration
	// Class is what large frames that are read are for: it decides when there is memory for them.
	Class Class
}

// The reasons for which a connection is closed by this package, or by whoever acts on its verdicts. They are
// metric labels.
const (
	ReasonPeerClosed   = "peer-closed"   // end of file
	ReasonReset        = "reset"         // the kernel reported an error
	ReasonQueueFull    = "queue-full"    // more than MaxQueued is queued
	ReasonWriteTimeout = "write-timeout" // the peer took no byte for WriteTimeout
	ReasonReadTimeout  = "read-timeout"  // the peer sent no byte of a frame that it had begun for ReadTimeout
	ReasonIdle         = "idle-timeout"  // nothing was read for IdleTimeout
	ReasonNoMemory     = "no-memory"     // a frame larger than the whole share of the buffer budget
)

var (
	// ErrClosed is what Read returns once the connection is closed, from either side: Reason says why.
	ErrClosed = errors.New("connection closed")
	// ErrPaused is what Read returns while the connection is paused: the read loop must end.
	ErrPaused = errors.New("connection paused")
	// ErrLeaving is what Read returns, once, behind Leave when nothing is unread: the read loop may Finish.
	ErrLeaving = errors.New("connection asked to leave")
)

// gate is a set of reasons for not reading. Reading goes on while it is empty.
type gate uint32

const (
	gateQueue  gate = 1 << iota // the write queue is above, and nobody but this connection's peer fills it
	gateMemory                  // the process buffers too much; shut between frames only
	gateLeave                   // the read loop is asked to end; shut between frames only
	gatePause                   // the connection is being detached
	gateClosed                  // the connection is closed; never opens again
	gateFilter                  // a connection filter stopped the way in
	gateHeld                    // too much waits for a connection filter that stopped the way out

	// betweenFrames are the gates that let a frame pass of which something is read already.
	betweenFrames = gateMemory | gateLeave
)

// Conn is one connection. Objects are never reused: appending to a closed one is a no-op that says so.
type Conn struct {
	// Static after New.
	sock    Socket
	raw     syscall.RawConn
	sys     system
	buffers *Buffers
	cfg     Config
	onRead  func(fd uintptr) bool // stored, because a fresh closure allocates
	onWrite func(fd uintptr) bool

	// Owned by the read loop.
	buf    []byte // nil while nothing is unread and the loop waits
	r, w   int    // buf[r:w] is unread
	most   int    // onRead leaves no more unread than this; 0 means what fits
	inside bool   // a frame has begun of which everything that is here has been taken: InFrame
	limit  int    // most is no more than this; 0 means no bound
	ahead  bool   // the peer sends more at a time than fits: the next read may take aheadSize
	readN  int    // what onRead saw
	readE  error

	// Owned by whoever set flushing.
	out    [maxIOV][]byte
	mayEnd bool // onWrite ends at EAGAIN; only the writer waits instead
	wrote  int  // what onWrite saw
	writeE error
	spent  [maxIOV][]byte // written, to be put back once no lock is held

	// Owned by the caller of Overdue.
	seenRX, seenTX uint64
	rxAt           int64 // when seenRX changed
	shortAt        int64 // the same, or later: when the peer last had no frame to go on with
	txAt           int64 // when seenTX changed, the peer took some of the kernel's bytes, or nothing was queued
	seenUnsent     int
	moved          uint64 // bytes that went either way since the call before
	movedAt        int64  // when some last did; at first when it was first called
	excused        int64  // when the connection was last seen busy or gated

	// Atomic.
	gates    atomic.Uint32 // a gate; changed only under mu
	lastRead atomic.Int64  // time of the last Touch
	held     atomic.Int64  // bytes of buffers that this connection holds
	got      atomic.Uint64 // bytes got from the kernel
	taken    atomic.Uint64 // bytes taken by the kernel
	backlog  atomic.Int64  // queued, for readers without the lock
	partial  atomic.Bool   // the read loop waits for the rest of a frame that the peer has begun
	above    atomic.Bool   // the queue went above High and has not come down to Low since; changed only under mu

	// Guarded by mu.
	mu       sync.Mutex
	cond     sync.Cond // something below, or a gate, changed
	queue    []chunk
	queued   int     // bytes in queue that the kernel has not taken
	lastSize int     // what the last flush found queued: the next first chunk's size
	noted    bool    // somebody has promised to call Flush
	flushing bool    // one goroutine writes
	again    bool    // a Flush came while another one was writing
	sealed   bool    // nobody may start to write: Pause
	hurried  bool    // the write deadline has passed, so that the writer ends: Pause
	finished bool    // the peer was told that no more follows: Finish
	ticket   *ticket // what the read loop waits for, when it waits for memory
	reason   string
}

// New returns a connection on sock and takes sock over: only the Conn closes it.
func New(sock Socket, buffers *Buffers, cfg Config) (*Conn, error) {
	return newConn(sock, osSystem, buffers, cfg)
}

func newConn(sock Socket, sys system, buffers *Buffers, cfg Config) (*Conn, error) {
	raw, err := sock.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("taking over a socket: %w", err)
	}
	c := &Conn{sock: sock, raw: raw, sys: sys, buffers: buffers, cfg: cfg}
	c.cond.L = &c.mu
	c.onRead = c.readOnce
	c.onWrite = c.writeOnce
	return c, nil
}

// unknown is a time that is not known.
const unknown = math.MinInt64

// Held is the number of bytes of buffers that the connection holds, for unread and for queued bytes.
func (c *Conn) Held() int64 { return c.held.Load() }

// Queued is the number of bytes that the kernel has not taken yet.
func (c *Conn) Queued() int64 { return c.backlog.Load() }

// Above says whether the write queue went above its high watermark and has not come down to the low one since.
func (c *Conn) Above() bool { return c.above.Load() }

// Bytes are the numbers of bytes got from the kernel and taken by it, the life of the connection long.
func (c *Conn) Bytes() (read, written uint64) { return c.got.Load(), c.taken.Load() }

// Gated says whether the read gate is closed.
func (c *Conn) Gated() bool { return c.gates.Load() != 0 }

// Closed says whether the connection is closed.
func (c *Conn) Closed() bool { return gate(c.gates.Load())&gateClosed != 0 }

// Reason is why the connection was closed, "" while it is open.
func (c *Conn) Reason() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reason
}

// Touch notes that bytes were read at this time, in nanoseconds on the caller's clock.
func (c *Conn) Touch(now int64) { c.lastRead.Store(now) }

// LastRead is the time of the last Touch.
func (c *Conn) LastRead() int64 { return c.lastRead.Load() }

// Overdue returns the reason for which the connection should be closed at this time, or "". A busy connection,
// one with requests in flight, is never idle, nor is one whose gate is shut; its time begins when that ends.
// One goroutine calls it, every now and then: a peer is given its time from the first call that saw it do
// nothing.
func (c *Conn) Overdue(now int64, busy bool) string {
	g := gate(c.gates.Load())
	c.moved = 0
	if rx := c.got.Load(); rx != c.seenRX {
		c.moved = rx - c.seenRX
		c.seenRX, c.rxAt, c.shortAt = rx, now, now
	}
	if !c.partial.Load() || g&^betweenFrames != 0 || c.shortAt == unknown {
		c.shortAt = now // it is not the peer who keeps the frame waiting
	}
	tx := c.taken.Load()
	c.moved += tx - c.seenTX
	switch {
	case c.backlog.Load() == 0:
		c.txAt, c.seenUnsent = 0, 0
	case tx != c.seenTX || c.txAt == 0:
		c.txAt = now
	default:
		if n := c.drained(); n > 0 {
			c.moved += n
			c.txAt = now
		}
	}
	c.seenTX = tx
	if c.moved > 0 || c.movedAt == 0 {
		c.movedAt = now
	}
	if busy || g != 0 {
		c.excused = now
	}
	idle := now - max(c.lastRead.Load(), c.rxAt, c.excused)
	switch {
	case c.txAt != 0 && now-c.txAt >= int64(c.cfg.WriteTimeout):
		return ReasonWriteTimeout
	case c.cfg.ReadTimeout > 0 && now-c.shortAt >= int64(c.cfg.ReadTimeout):
		return ReasonReadTimeout
	case c.cfg.IdleTimeout > 0 && idle >= int64(c.cfg.IdleTimeout):
		return ReasonIdle
	}
	return ""
}

// drained is how many of the kernel's bytes the peer has taken since the last look. A slow peer's reads show there long
// before the kernel has room for more of ours.
func (c *Conn) drained() uint64 {
	unsent := 0
	if c.raw.Control(func(fd uintptr) { unsent = c.sys.unsent(fd) }) != nil {
		return 0 // closed
	}
	less := max(c.seenUnsent-unsent, 0)
	c.seenUnsent = unsent
	return uint64(less)
}

// Moved is how many bytes went either way between the last two calls of Overdue, those included that the peer took of the
// kernel's, and Still for how long, at this time, none have. Its caller calls them.
func (c *Conn) Moved() uint64 { return c.moved }

// Still is explained at Moved.
func (c *Conn) Still(now int64) int64 { return now - c.movedAt }

// LastByte is the time of the call of Overdue that last saw more bytes read than the one before.
func (c *Conn) LastByte() int64 { return c.rxAt }

// Stuck returns for how long, at this time, the connection has been in the middle of one frame; 0 when it is not.
func (c *Conn) Stuck(now int64) int64 {
	if !c.partial.Load() {
		return 0
	}
	return now - c.lastRead.Load()
}

// Close closes the connection for a reason, a constant, of which only the first is kept; it reports whether
// this was the first. From then on Read returns ErrClosed. What is queued stays for Unsent until Release.
func (c *Conn) Close(reason string) bool {
	c.mu.Lock()
	if c.Closed() {
		c.mu.Unlock()
		return false
	}
	c.reason = reason
	c.gates.Or(uint32(gateClosed))
	c.news()
	c.mu.Unlock()
	_ = c.sock.Close() // wakes a parked reader and writer; nobody can use its error
	return true
}

// Release gives every buffer back. The read loop calls it as its last act on a closed connection, behind
// Unsent where somebody wants what is queued. It waits for the writer, which a closed socket ends.
func (c *Conn) Release() {
	c.freeRead()
	c.Unsent(func([]byte, int) {})
}

// news wakes whoever waits for a change of the connection's state. Called with mu held.
func (c *Conn) news() {
	c.cond.Broadcast()
	if c.ticket != nil {
		c.ticket.call()
	}
}

// awaitFlush waits until nobody writes. Called with mu held.
func (c *Conn) awaitFlush() {
	for c.flushing {
		c.cond.Wait()
	}
}

// setGate adds or takes away reasons for not reading. Both wake the read loop at once: a deadline in the past
// ends its wait for the kernel, the broadcast its wait for the gate. Called with mu held, so that the state
// and the deadline change in the same order; a deadline costs no system call.
func (c *Conn) setGate(g gate, shut bool) {
	old := gate(c.gates.Load())
	now := old &^ g
	if shut {
		now = old | g
	}
	if now == old || old&gateClosed != 0 {
		return
	}
	c.gates.Store(uint32(now))
	switch {
	case c.finished && g != gatePause:
		// The deadline is discard's.
	case shut:
		_ = c.sock.SetReadDeadline(past)
	case now == 0:
		_ = c.sock.SetReadDeadline(time.Time{})
	}
	c.news()
}

// pass takes the deadline away with which a gate woke the read loop in the middle of a frame, which it lets pass.
func (c *Conn) pass() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if gate(c.gates.Load())&^betweenFrames == 0 {
		_ = c.sock.SetReadDeadline(time.Time{})
	}
}

// past is a deadline that has passed whatever the clock says.
var past = time.Unix(1, 0)

// GateMemory shuts or opens the read gate because the process buffers too much. A frame of which something is
// read already is read on, because half a frame would hold its memory for nothing.
func (c *Conn) GateMemory(shut bool) {
	c.mu.Lock()
	c.setGate(gateMemory, shut)
	c.mu.Unlock()
}

// Leave asks the read loop to end: its next Read that finds nothing unread returns ErrLeaving.
func (c *Conn) Leave() {
	c.mu.Lock()
	c.setGate(gateLeave, true)
	c.mu.Unlock()
}
