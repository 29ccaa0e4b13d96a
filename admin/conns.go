package admin

import (
	"container/list"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"
)

// limitListener bounds the connections that are open. At the bound the one that has been without a request for longest
// makes room for a new one, but for those that have been so for less than grace: nobody is kept out by clients that say
// nothing, nor by a crowd of new ones. Where there is none such, the one makes room whose client has not taken what is written to it
// for longest, and for longer than patience. Any other connection with a request under way, or that has just come, makes no room: while
// there are only such, or too young ones, further connections wait in the kernel's queue. There may be one more than the bound.
type limitListener struct {
	net.Listener

	// Static after New.
	limit           int
	grace, patience time.Duration
	changed         chan struct{} // never closed; one slot: there may be room now
	done            chan struct{} // closed by close
	close           func() error  // once

	mu sync.Mutex
	// Guarded by mu.
	open    int
	idle    list.List // of *limitConn: those without a request, the longest first
	writing list.List // of *limitConn: those that are being written to, the longest first
}

func newLimitListener(l net.Listener, n int, grace, patience time.Duration) *limitListener {
	ll := &limitListener{Listener: l, limit: n, grace: grace, patience: patience, changed: make(chan struct{}, 1), done: make(chan struct{})}
	ll.close = sync.OnceValue(func() error {
		close(ll.done)
		return l.Close()
	})
	return ll
}

// Accept waits until there is room or can be made, then for a connection.
func (l *limitListener) Accept() (net.Conn, error) {
	for {
		wait, ok := l.room()
		if ok {
			break
		}
		if !l.await(wait) {
			return nil, net.ErrClosed
		}
	}
	raw, err := l.Listener.Accept()
	switch {
	case errors.Is(err, net.ErrClosed):
		return nil, err
	case err != nil:
		return nil, passing{err}
	}
	c := &limitConn{Conn: raw, listener: l}
	for _, old := range l.admit(c) {
		_ = old.Close() // it is given up
	}
	return c, nil
}

// passing is why one connection could not be accepted, in a form in which net/http says it and tries again behind a pause. By itself it
// does so where descriptors run out, and ends the door where memory does, or where a policy of the kernel forbids this connection; and
// a door that ends takes the process along.
type passing struct{ error }

// Timeout and Temporary make it a net.Error.
func (passing) Timeout() bool { return false }

// Temporary is explained at Timeout.
func (passing) Temporary() bool { return true }

func (p passing) Unwrap() error { return p.error }

// room says whether another connection can be had, or else when to look again; 0: when something changes.
func (l *limitListener) room() (wait time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open < l.limit {
		return 0, true
	}
	now := time.Now()
	if first := l.idle.Front(); first != nil {
		if wait = l.grace - now.Sub(first.Value.(*limitConn).since); wait <= 0 {
			return 0, true
		}
	}
	if first := l.writing.Front(); first != nil {
		left := l.patience - now.Sub(first.Value.(*limitConn).wrote)
		if left <= 0 {
			return 0, true
		}
		if wait == 0 || left < wait {
			wait = left
		}
	}
	return wait, false
}

// await waits for a change, or for as long as that; 0 is for ever. It says whether the listener is still open.
func (l *limitListener) await(wait time.Duration) bool {
	var passed <-chan time.Time
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		passed = t.C
	}
	select {
	case <-l.changed:
	case <-passed:
	case <-l.done:
		return false
	}
	return true
}

// admit adds a connection, and returns those that have to go for it. If the one that was to go has got a request meanwhile,
// there is one more than the bound, until one of them closes.
func (l *limitListener) admit(c *limitConn) (out []*limitConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	excess := l.open + 1 - l.limit
	for excess > 0 {
		first := l.idle.Front()
		if first == nil || now.Sub(first.Value.(*limitConn).since) < l.grace {
			break
		}
		old := first.Value.(*limitConn)
		old.work()
		if hasUnread(old.Conn) { // a request, for which this process had no time yet
			old.rest()
			continue
		}
		old.giveUp()
		out = append(out, old)
		excess--
	}
	for ; excess > 0; excess-- {
		first := l.writing.Front()
		if first == nil || now.Sub(first.Value.(*limitConn).wrote) < l.patience {
			break
		}
		old := first.Value.(*limitConn)
		old.giveUp()
		out = append(out, old)
	}
	l.open++
	c.rest()
	return out
}

// hasUnread says whether something has come that nobody has read yet. It does not wait.
func hasUnread(c net.Conn) (unread bool) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return false
	}
	err = raw.Control(func(fd uintptr) {
		n, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		unread = err == nil && n > 0
	})
	return unread && err == nil
}

// poke has whoever waits look again.
func (l *limitListener) poke() {
	select {
	case l.changed <- struct{}{}:
	default: // it was poked already
	}
}

// drained waits until the connections of a closed listener have been closed, and reports whether they were within d.
// Accept has returned for the last time.
func (l *limitListener) drained(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		l.mu.Lock()
		open := l.open
		l.mu.Unlock()
		if open == 0 {
			return true
		}
		select {
		case <-l.changed:
		case <-t.C:
			return false
		}
	}
}

// Close wakes Accept.
func (l *limitListener) Close() error { return l.close() }

// limitConn gives its place back when it is closed.
type limitConn struct {
	net.Conn

	// Static after Accept.
	listener *limitListener
	peer     *caller // set before the first request; nil: not known

	// Guarded by the listener's mu.
	place   *list.Element // in idle; nil: it has a request
	since   time.Time     // when it was put there
	pen     *list.Element // in writing; nil: nothing is being written to it
	wrote   time.Time     // since when
	evicted bool          // it is being closed for another one
	closed  bool
}

// Write notes that the client is to take something, for as long as it does not.
func (c *limitConn) Write(p []byte) (int, error) {
	l := c.listener
	l.mu.Lock()
	if !c.closed && !c.evicted && c.pen == nil {
		c.wrote = time.Now()
		c.pen = l.writing.PushBack(c)
		if l.open >= l.limit {
			l.poke()
		}
	}
	l.mu.Unlock()
	n, err := c.Conn.Write(p)
	l.mu.Lock()
	c.wrapUp()
	l.mu.Unlock()
	return n, err
}

// wrapUp takes the connection from those that are being written to. The listener's lock is held.
func (c *limitConn) wrapUp() {
	if c.pen != nil {
		c.listener.writing.Remove(c.pen)
		c.pen = nil
	}
}

// Close closes the connection, then frees its place.
func (c *limitConn) Close() error {
	err := c.Conn.Close()
	l := c.listener
	l.mu.Lock()
	defer l.mu.Unlock()
	if !c.closed {
		c.closed = true
		c.work()
		c.wrapUp()
		l.open--
		l.poke()
	}
	return err
}

// giveUp takes the connection from wherever it stands: it is to be closed for another one. The listener's lock is held.
func (c *limitConn) giveUp() {
	c.work()
	c.wrapUp()
	c.evicted = true
}

// rest and work put the connection among those without a request, and take it from there. The listener's lock is held.
func (c *limitConn) rest() {
	c.since = time.Now()
	c.place = c.listener.idle.PushBack(c)
}

func (c *limitConn) work() {
	if c.place != nil {
		c.listener.idle.Remove(c.place)
		c.place = nil
	}
}

// limitOf is the connection below what net/http has; nil where it is none of a limitListener's.
func limitOf(c net.Conn) *limitConn {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	l, _ := c.(*limitConn)
	return l
}

// noteState is told by net/http whether a connection has a request: from the end of its header to the end of the answer.
func noteState(conn net.Conn, state http.ConnState) {
	c := limitOf(conn)
	if c == nil {
		return
	}
	c.listener.mu.Lock()
	defer c.listener.mu.Unlock()
	switch {
	case c.closed || c.evicted:
	case state == http.StateActive:
		c.work()
	case state == http.StateIdle && c.place == nil:
		c.rest()
		c.listener.poke()
	}
}

// onlyOpen runs no request of a connection that was given up at the moment at which the request came: its answer would not
// arrive, and so it must not do anything.
func onlyOpen(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c := connOf(r); c != nil && c.gone() {
			panic(http.ErrAbortHandler) // net/http's word for closing the connection without a word
		}
		next.ServeHTTP(w, r)
	})
}

func (c *limitConn) gone() bool {
	c.listener.mu.Lock()
	defer c.listener.mu.Unlock()
	return c.evicted
}
