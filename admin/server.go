package admin

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"
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
	connections int           // open at once
	grace       time.Duration // that a connection without a request gets before it makes room for a new one
	patience    time.Duration // the same for one whose client does not take what is written to it
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
	grace:       100 * time.Millisecond,
	patience:    time.Second,
}

// Server is one door: a listener and what is behind it.
type Server struct {
	// Static after New.
	socket   net.Listener // as given
	listener *limitListener
	file     socketFile
	http     *http.Server
	handler  http.Handler // without the bound of bodies
	tls      *tls.Config  // nil: none
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
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // the file is removed here, or stays
	}
	s := &Server{
		socket:   l,
		listener: newLimitListener(l, lim.connections, lim.grace, lim.patience),
		file:     socketFileOf(l),
		shutdown: lim.shutdown,
		log:      log,
		leaving:  make(chan struct{}),
		handler:  handler,
		http: &http.Server{
			Handler:                      onlyOpen(limitBody(handler, lim.bodyBytes, lim.read)),
			ReadHeaderTimeout:            lim.readHeader,
			ReadTimeout:                  lim.read,
			WriteTimeout:                 lim.write,
			IdleTimeout:                  lim.idle,
			MaxHeaderBytes:               lim.headerBytes,
			ErrorLog:                     stdlog.New(&netLog{log, rate.Sometimes{First: 1, Interval: 10 * time.Second}}, "", 0),
			DisableGeneralOptionsHandler: true,
			ConnContext:                  withConn,
			ConnState:                    noteState,
			Protocols:                    new(http.Protocols),
		},
	}
	s.http.Protocols.SetHTTP1(true) // what is said here of a connection and its one request holds for no other
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
// under way get 2 s to finish; then their connections are closed. An error means that somebody else has
// closed the listener, or that something could not be closed. Run is called once.
func (s *Server) Run(ctx context.Context) error {
	select {
	case <-s.leaving: // nothing was accepted, and nothing is to be
		return s.Close()
	default:
	}
	served := make(chan error, 1) // never closed
	var l net.Listener = s.listener
	if s.tls != nil {
		l = tls.NewListener(l, s.tls)
	}
	go func() { served <- s.http.Serve(l) }() // ends when the listener is closed, by Shutdown or Close
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
func (s *Server) Documents() {
	s.http.Handler = onlyOpen(limitBody(s.handler, maxDocument, s.http.ReadTimeout))
}

// TLS has connections be encrypted. It is called before Run.
func (s *Server) TLS(c *tls.Config) { s.tls = c }

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

// netLog takes what net/http has to say. What clients can cause as often as they like is said once in 10 s.
type netLog struct {
	log *zap.Logger
	few rate.Sometimes
}

func (l *netLog) Write(text []byte) (int, error) {
	say := func() { l.log.Warn(strings.TrimSpace(string(text))) }
	if bytes.HasPrefix(text, []byte("http: panic")) {
		say()
	} else {
		l.few.Do(say)
	}
	return len(text), nil
}

// limitBody answers 413 to a request that announces a body of more than n bytes, and ends reading there
// for one that announces nothing. A body is waited for as long as d from when somebody begins to read it, and not at all where
// nobody does: net/http would read to its end before it answers, and who sends half a body would hold a connection that long.
func limitBody(next http.Handler, n int64, d time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength > n {
			w.Header().Set("Connection", "close")
			writeProblem(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the body has more than %d bytes", n))
			return
		}
		if r.ContentLength != 0 {
			c := http.NewResponseController(w)
			_ = c.SetReadDeadline(time.Now()) // a connection of net/http has deadlines, as below
			r.Body = &body{r.Body, sync.OnceFunc(func() { _ = c.SetReadDeadline(time.Now().Add(d)) })}
		}
		r.Body = http.MaxBytesReader(w, r.Body, n)
		next.ServeHTTP(w, r)
	})
}

// body is a request's, which the client has time for once somebody reads it.
type body struct {
	io.ReadCloser
	wanted func() // once
}

func (b *body) Read(p []byte) (int, error) {
	b.wanted()
	return b.ReadCloser.Read(p)
}
