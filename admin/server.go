package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"
)

// limits bounds what clients of a door can hold.
type limits struct {
	readHeader  time.Duration // from the first byte, or the accept, to the end of the header
	read        time.Duration // to the end of the body
	write       time.Duration // from the end of the header to the end of the answer
	idle        time.Duration // between two requests on a connection
	shutdown    time.Duration // what requests under way get when the door closes
	headerBytes int
	bodyBytes   int64
	connections int // open at once; further ones wait in the kernel's queue
}

var defaultLimits = limits{
	readHeader:  5 * time.Second,
	read:        10 * time.Second,
	write:       30 * time.Second,
	idle:        60 * time.Second,
	shutdown:    2 * time.Second,
	headerBytes: 16 << 10,
	bodyBytes:   64 << 10,
	connections: 256,
}

// Server is one door: a listener and what is behind it.
type Server struct {
	// Static after New.
	socket   net.Listener // as given
	listener *limitListener
	file     socketFile
	http     *http.Server
	handler  http.Handler // without the bound of bodies
	shutdown time.Duration
	log      *zap.Logger
	leaving  chan struct{} // closed by Leave
	leave    func()        // once
	remove   func() error  // the socket file, unless it is another process's; once, while the listener is open
	close    func() error  // once

	// Atomic.
	left atomic.Bool // the socket file is not ours to remove
}

// NewServer returns a server of handler on l, which belongs to the server from now on: Run or Close closes
// it, and removes its socket file. Nothing is accepted before Run.
//
// l is from Listen, or from another process that had it from there: net.FileListener makes it from the
// descriptor that SyscallConn gives there. A process that is not yet to have the socket file calls Leave
// before Close.
func NewServer(l net.Listener, handler http.Handler, log *zap.Logger) *Server {
	return newServer(l, handler, log, defaultLimits)
}

func newServer(l net.Listener, handler http.Handler, log *zap.Logger, lim limits) *Server {
	log = log.With(zap.Stringer("address", l.Addr()))
	errorLog, err := zap.NewStdLogAt(log, zap.WarnLevel)
	if err != nil {
		panic(err) // only for a level that zap does not know
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // the file is removed here, or stays
	}
	s := &Server{
		socket:   l,
		listener: newLimitListener(l, lim.connections),
		file:     socketFileOf(l),
		shutdown: lim.shutdown,
		log:      log,
		leaving:  make(chan struct{}),
		handler:  handler,
		http: &http.Server{
			Handler:                      limitBody(handler, lim.bodyBytes),
			ReadHeaderTimeout:            lim.readHeader,
			ReadTimeout:                  lim.read,
			WriteTimeout:                 lim.write,
			IdleTimeout:                  lim.idle,
			MaxHeaderBytes:               lim.headerBytes,
			ErrorLog:                     errorLog,
			DisableGeneralOptionsHandler: true,
			ConnContext:                  withCaller,
		},
	}
	s.leave = sync.OnceFunc(func() {
		s.left.Store(true)
		close(s.leaving)
	})
	s.remove = sync.OnceValue(func() error {
		if s.left.Load() {
			return nil
		}
		return s.file.remove()
	})
	s.close = sync.OnceValue(func() error {
		fileErr := s.remove()
		return errors.Join(fileErr, s.http.Close(), s.listener.Close())
	})
	return s
}

// Run serves until ctx ends or Leave or Close is called, and returns nil then. When ctx ends, or at Leave, requests
// under way get 2 s to finish; then their connections are closed. An error means that the listener broke. Run is
// called once.
func (s *Server) Run(ctx context.Context) error {
	select {
	case <-s.leaving: // nothing was accepted, and nothing is to be
		return s.Close()
	default:
	}
	served := make(chan error, 1)                      // never closed
	go func() { served <- s.http.Serve(s.listener) }() // ends when the listener is closed, by Shutdown or Close
	select {
	case err := <-served:
		closeErr := s.Close()
		if !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve on %s: %w", s.listener.Addr(), err)
		}
		return closeErr
	case <-ctx.Done():
	case <-s.leaving:
	}
	// http.Server.Shutdown would drop a request that comes now on a connection that is open already.
	fileErr := s.remove()
	listenErr := s.listener.Close()
	err := <-served
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		err = nil // it was told to stop, and says so
	}
	s.http.SetKeepAlivesEnabled(false) // closes who is idle now, and each of the others after its answer
	if !s.listener.drained(s.shutdown) {
		s.log.Warn("closing connections with requests under way")
	}
	return errors.Join(fileErr, listenErr, err, s.Close())
}

// Close closes the listener and every connection at once, and removes the socket file. It does not wait for
// Run. Calling it again does nothing and returns the same.
func (s *Server) Close() error { return s.close() }

// Leave ends Run as the end of its context does, for the sake of a process that has the same socket: the socket file
// stays, and so does who waits in the socket's queue. It does not wait for Run. After Leave, Close leaves the file too.
// Calling it again does nothing.
func (s *Server) Leave() { s.leave() }

// Keep has the socket file stay when the server ends. It is called before Run.
func (s *Server) Keep() { s.left.Store(true) }

// Documents has requests carry whole configurations in their bodies. It is called before Run.
func (s *Server) Documents() { s.http.Handler = limitBody(s.handler, maxDocument) }

// maxDocument is the size in bytes of the largest configuration.
const maxDocument = 16 << 20

// SyscallConn gives the descriptor of the listening socket, for another process to have it too. Once that is closed, its
// Control says so.
func (s *Server) SyscallConn() (syscall.RawConn, error) {
	c, ok := s.socket.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("the listener on %s has no descriptor", s.socket.Addr())
	}
	return c.SyscallConn()
}

// limitBody answers 413 to a request that announces a body of more than n bytes, and ends reading there
// for one that announces nothing.
func limitBody(next http.Handler, n int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength > n {
			w.Header().Set("Connection", "close")
			writeProblem(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the body has more than %d bytes", n))
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, n)
		next.ServeHTTP(w, r)
	})
}

// limitListener accepts a connection only while fewer than cap(slots) are open.
type limitListener struct {
	net.Listener

	// Static after New.
	slots chan struct{} // one element an open connection; never closed
	done  chan struct{} // closed by close
	close func() error  // once
}

func newLimitListener(l net.Listener, n int) *limitListener {
	ll := &limitListener{Listener: l, slots: make(chan struct{}, n), done: make(chan struct{})}
	ll.close = sync.OnceValue(func() error {
		close(ll.done)
		return l.Close()
	})
	return ll
}

// Accept waits for a free place, then for a connection.
func (l *limitListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.done:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitConn{Conn: c, free: sync.OnceFunc(func() { <-l.slots })}, nil
}

// drained waits until the connections of a closed listener have been closed, and reports whether they were within d.
func (l *limitListener) drained(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	for range cap(l.slots) {
		select {
		case l.slots <- struct{}{}: // whoever has all places knows that nobody else has one
		case <-t.C:
			return false
		}
	}
	return true
}

// Close wakes Accept.
func (l *limitListener) Close() error { return l.close() }

// limitConn gives its place back when it is closed.
type limitConn struct {
	net.Conn

	// Static after New.
	free func() // once
}

// Close closes the connection, then frees its place.
func (c *limitConn) Close() error {
	defer c.free()
	return c.Conn.Close()
}
