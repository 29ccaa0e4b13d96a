package conn

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"testing/synctest"
	"time"
)

// kernel is one socket of a kernel that lives in a synctest bubble: every wait in it is one that the bubble sees. The
// test is the peer.
type kernel struct {
	// Static.
	window int // bytes that it takes before the peer has taken some
	most   int // bytes that one write takes; 0 means all that the window allows

	// Guarded by mu.
	mu       sync.Mutex
	cond     sync.Cond
	in       []byte // sent by the peer, not yet read
	inErr    error  // EOF when errEOF
	out      []byte // written, not yet taken by the peer
	outErr   error
	closed   bool
	finished bool // told that no more is written
	deadline [2]time.Time
	timer    [2]*time.Timer
	inUse    [2]bool // one RawConn.Read and one RawConn.Write at a time, as in package poll
	calls    [2]int  // system calls
}

const (
	reading = iota
	writing
)

var errEOF = errors.New("end of file")

// fakeFD is a descriptor that no process has, so that a system call on it does no harm.
const fakeFD = ^uintptr(0)

func newKernel(window int) *kernel {
	k := &kernel{window: window}
	k.cond.L = &k.mu
	return k
}

func (k *kernel) system() system {
	return system{read: k.sysRead, write: k.sysWrite, unsent: k.sysUnsent, finish: k.sysFinish}
}

// conn returns a connection on k.
func (k *kernel) conn(t reporter, buffers *Buffers, cfg Config) *Conn {
	t.Helper()
	c, err := newConn(k, k.system(), buffers, cfg)
	if err != nil {
		t.Fatalf("connection on a socket of the test's kernel: %v", err)
	}
	return c
}

func (k *kernel) change(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f()
	k.cond.Broadcast()
}

// What the peer does.

func (k *kernel) send(p []byte) { k.change(func() { k.in = append(k.in, p...) }) }
func (k *kernel) fin()          { k.change(func() { k.inErr = errEOF }) }
func (k *kernel) reset() {
	k.change(func() { k.inErr, k.outErr = syscall.ECONNRESET, syscall.EPIPE })
}

// take is the peer reading up to n bytes.
func (k *kernel) take(n int) (p []byte) {
	k.change(func() {
		n = min(n, len(k.out))
		p = append(p, k.out[:n]...)
		k.out = k.out[n:]
	})
	return p
}

// takeAll is the peer reading until nothing comes any more.
func (k *kernel) takeAll() (all []byte) {
	for {
		synctest.Wait()
		p := k.take(1 << 30)
		if len(p) == 0 {
			return all
		}
		all = append(all, p...)
	}
}

// unread is the number of bytes that the peer has sent and the connection has not read.
func (k *kernel) unread() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.in)
}

func (k *kernel) callsOf(dir int) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.calls[dir]
}

func (k *kernel) isFinished() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.finished
}

// The two system calls.

func (k *kernel) sysRead(_ uintptr, p []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls[reading]++
	switch {
	case len(k.in) > 0:
		n := copy(p, k.in)
		k.in = k.in[n:]
		return n, nil
	case errors.Is(k.inErr, errEOF):
		return 0, nil
	case k.inErr != nil:
		return -1, k.inErr
	}
	return -1, syscall.EAGAIN
}

func (k *kernel) sysWrite(_ uintptr, bufs [][]byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls[writing]++
	if k.outErr != nil {
		return 0, k.outErr
	}
	if k.finished {
		return 0, syscall.EPIPE
	}
	room := k.window - len(k.out)
	if k.most > 0 {
		room = min(room, k.most)
	}
	n := 0
	for _, b := range bufs {
		part := b[:min(len(b), room-n)]
		k.out = append(k.out, part...)
		n += len(part)
	}
	if n == 0 {
		return 0, syscall.EAGAIN
	}
	return n, nil
}

// What a Socket is.

func (k *kernel) SyscallConn() (syscall.RawConn, error) { return rawKernel{k}, nil }
func (k *kernel) SetReadDeadline(t time.Time) error     { return k.setDeadline(reading, t) }
func (k *kernel) SetWriteDeadline(t time.Time) error    { return k.setDeadline(writing, t) }

func (k *kernel) setDeadline(dir int, t time.Time) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return net.ErrClosed
	}
	if k.timer[dir] != nil {
		k.timer[dir].Stop()
	}
	k.deadline[dir] = t
	if wait := time.Until(t); wait > 0 {
		k.timer[dir] = time.AfterFunc(wait, func() { k.change(func() {}) })
	}
	k.cond.Broadcast()
	return nil
}

func (k *kernel) Close() error {
	k.change(func() { k.closed = true })
	return nil
}

type rawKernel struct{ k *kernel }

func (r rawKernel) Read(f func(uintptr) bool) error  { return r.k.poll(reading, f) }
func (r rawKernel) Write(f func(uintptr) bool) error { return r.k.poll(writing, f) }

func (r rawKernel) Control(f func(uintptr)) error {
	r.k.mu.Lock()
	err := r.k.refusal(reading)
	r.k.mu.Unlock()
	if errors.Is(err, net.ErrClosed) {
		return err
	}
	f(fakeFD)
	return nil
}

// poll calls f until it has done its work, and waits between for the kernel, as package poll does.
func (k *kernel) poll(dir int, f func(uintptr) bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for k.inUse[dir] && !k.closed {
		k.cond.Wait()
	}
	if err := k.refusal(dir); err != nil {
		return err
	}
	k.inUse[dir] = true
	defer func() {
		k.inUse[dir] = false
		k.cond.Broadcast()
	}()
	for {
		k.mu.Unlock()
		done := f(fakeFD)
		k.mu.Lock()
		if done {
			return nil
		}
		for {
			if err := k.refusal(dir); err != nil {
				return err
			}
			if k.ready(dir) {
				break
			}
			k.cond.Wait()
		}
	}
}

func (k *kernel) refusal(dir int) error {
	if k.closed {
		return net.ErrClosed
	}
	if d := k.deadline[dir]; !d.IsZero() && !d.After(time.Now()) {
		return os.ErrDeadlineExceeded
	}
	return nil
}

func (k *kernel) ready(dir int) bool {
	if dir == reading {
		return len(k.in) > 0 || k.inErr != nil
	}
	return len(k.out) < k.window || k.outErr != nil
}

// call is a call that runs on a goroutine of its own.
type call[T any] struct {
	done  chan struct{} // closed when the call has returned
	value T
}

func start[T any](f func() T) *call[T] {
	c := &call[T]{done: make(chan struct{})}
	go func() { // ends with f
		defer close(c.done)
		c.value = f()
	}()
	return c
}

// settled says whether the call has returned once everybody waits for somebody else. No time passes meanwhile.
func (c *call[T]) settled() bool {
	synctest.Wait()
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// atOnce fails unless f returns without anybody else's help and without any time passing.
func atOnce(t reporter, what string, f func()) {
	t.Helper()
	if !start(func() bool { f(); return true }).settled() {
		t.Fatalf("%s waits, want it to return at once", what)
	}
}

// readResult is what Read returned, its bytes copied.
type readResult struct {
	bytes string
	err   error
}

// startRead reads once, marks all of it as read, and ends.
func startRead(c *Conn, need int) *call[readResult] {
	return start(func() readResult {
		p, err := c.Read(need)
		r := readResult{string(p), err}
		if err == nil {
			c.Advance(len(p))
		}
		return r
	})
}

func (k *kernel) sysFinish(uintptr) { k.change(func() { k.finished = true }) }

func (k *kernel) sysUnsent(uintptr) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.out)
}
