package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
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
	listener net.Listener // bounded
	file     socketFile
	http     *http.Server
	shutdown time.Duration
	log      *zap.Logger
	close    func() error // once
}

// NewServer returns a server of handler on l, which belongs to the server from now on: Run or Close closes
// it, and removes its socket file. Nothing is accepted before Run.
func NewServer(l net.Listener, handler http.Handler, log *zap.Logger) *Server {
	return newServer(l, handler, log, defaultLimits)
}

func newServer(l net.Listener, handler http.Handler, log *zap.Logger, lim limits) *Server {
	log = log.With(zap.Stringer("address", l.Addr()))
	errorLog, err := zap.NewStdLogAt(log, zap.WarnLevel)
	if err != nil {
		panic(err) // only for a level that zap does not know
	}
	s := &Server{
		listener: newLimitListener(l, lim.connections),
		file:     socketFileOf(l),
		shutdown: lim.shutdown,
		log:      log,
		http: &http.Server{
			Handler:                      limitBody(handler, lim.bodyBytes),
			ReadHeaderTimeout:            lim.readHeader,
			ReadTimeout:                  lim.read,
			WriteTimeout:                 lim.write,
			IdleTimeout:                  lim.idle,
			MaxHeaderBytes:               lim.headerBytes,
			ErrorLog:                     errorLog,
			DisableGeneralOptionsHandler: true,
		},
	}
	s.close = sync.OnceValue(func() error {
		fileErr := s.file.remove() // while the listener is open
		return errors.Join(fileErr, s.http.Close(), s.listener.Close())
	})
	return s
}

// Run serves until ctx ends or Close is called, and returns nil then. When ctx ends, requests under way get
// 2 s to finish; then their connections are closed. An error means that the listener broke. Run is
// called once.
func (s *Server) Run(ctx context.Context) error {
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
	}
	fileErr := s.file.remove()
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.shutdown)
	defer cancel()
	if err := s.http.Shutdown(bound); err != nil {
		s.log.Warn("closing connections with requests under way", zap.Error(err))
	}
	closeErr := s.Close()
	err := <-served
	if errors.Is(err, http.ErrServerClosed) {
		err = nil // it was told to stop, and says so
	}
	return errors.Join(fileErr, closeErr, err)
}

// Close closes the listener and every connection at once, and removes the socket file. It does not wait for
// Run. Calling it again does nothing and returns the same.
func (s *Server) Close() error { return s.close() }

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
