// Package echo is a Bolt server that answers every request with the request's own content: the upstream of
// trials, tests and benchmarks. It can be slow, fail, forget replies and close connections, on request.
//
// It is no model of a real server: it decodes no payload and has no worker pool. Without a delay each
// connection is one goroutine that reads what there is, builds all replies and writes them once; where replies are
// delayed, a second goroutine writes them when they are due. Run starts both and waits for them.
package echo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// The limits of what a client may ask for.
const (
	maxFrame     = 64 << 20
	writeTimeout = 10 * time.Second // a client that reads nothing for so long is closed
)

// Options say where to listen and how to answer. The zero value of each but Listen is the plain echo.
type Options struct {
	Listen string // host:port, TCP; port 0 takes any

	Delay       time.Duration // from a request's arrival to its reply, unless DelayHeader says otherwise
	Status      wire.Status   // of every reply; with another one than Success replies are empty
	CloseAfter  int           // close each connection after so many requests, one-way ones included; 0 never
	NoReplyRate float64       // the share of requests that get no answer, 0 to 1
	Seed        uint64        // which ones those are
	Audit       bool          // tell one-way requests apart by the stamps that begin their contents

	Log io.Writer // gets a line for each connection closed because of its input; nil for none
}

func (o *Options) check() error {
	var errs []error
	if o.Delay < 0 {
		errs = append(errs, fmt.Errorf("delay %v: want 0 or more", o.Delay))
	}
	if o.CloseAfter < 0 {
		errs = append(errs, fmt.Errorf("close after %d requests: want 0 or more", o.CloseAfter))
	}
	if !(o.NoReplyRate >= 0 && o.NoReplyRate <= 1) {
		errs = append(errs, fmt.Errorf("no-reply rate %v: want 0 to 1", o.NoReplyRate))
	}
	if o.Status >= wire.Other {
		errs = append(errs, fmt.Errorf("status %v: want one that Bolt defines", o.Status))
	}
	return errors.Join(errs...)
}

// Stats are totals since Listen, except Open.
type Stats struct {
	Accepted   uint64 `json:"accepted"`   // connections
	Open       int64  `json:"open"`       // connections now
	Requests   uint64 `json:"requests"`   // that want a reply
	Unanswered uint64 `json:"unanswered"` // of those, left without one on purpose
	Oneways    uint64 `json:"oneways"`
	// With Options.Audit, of the one-way requests: those with a stamp that had not been seen, those with one that had,
	// and those without one or for whose stamp there was no room.
	OnewaysDistinct  uint64 `json:"oneways_distinct"`
	OnewaysDuplicate uint64 `json:"oneways_duplicate"`
	OnewaysUnchecked uint64 `json:"oneways_unchecked"`

	Heartbeats uint64 `json:"heartbeats"`
	Ignored    uint64 `json:"ignored"`   // frames that are nothing to a server: replies, acks, GoAway
	Malformed  uint64 `json:"malformed"` // connections closed because of their input
	Stalled    uint64 `json:"stalled"`   // connections closed because the client did not read
	BytesIn    uint64 `json:"bytes_in"`
	BytesOut   uint64 `json:"bytes_out"`
}

// Server is a listening echo server. Listen makes one; Run serves, once.
type Server struct {
	// Static after Listen.
	opts     Options
	listener *net.TCPListener
	noReply  uint64        // a request whose hash is below this gets no answer
	patience time.Duration // for a client that does not read
	audit    *audit        // nil: none

	// Atomic.
	accepted, requests, unanswered, oneways, heartbeats atomic.Uint64
	ignored, malformed, stalled, bytesIn, bytesOut      atomic.Uint64
	open                                                atomic.Int64

	// Guarded by mu.
	mu      sync.Mutex
	closing bool
	conns   map[*conn]struct{}

	logMu sync.Mutex // orders the lines of Log
}

// Listen checks the options and opens the listening socket. Clients can connect from then on; Run serves them.
func Listen(o Options) (*Server, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return nil, fmt.Errorf("echo server: %w", err)
	}
	s := &Server{opts: o, listener: l.(*net.TCPListener), patience: writeTimeout, conns: make(map[*conn]struct{})}
	if o.Audit {
		s.audit = newAudit()
	}
	if o.NoReplyRate >= 1 {
		s.noReply = math.MaxUint64
	} else {
		s.noReply = uint64(o.NoReplyRate * (1 << 63) * 2)
	}
	return s, nil
}

// Addr is where the server listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Run serves until ctx ends, then closes the listener and every connection, waits for their goroutines and
// returns nil. It returns an error if the listener broke before that.
func (s *Server) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, s.close)
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer s.close()
	var pause time.Duration
	for {
		nc, err := s.listener.AcceptTCP()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			if !temporary(err) {
				return fmt.Errorf("echo server: %w", err)
			}
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			wait(ctx, pause)
			continue
		}
		pause = 0
		c := newConn(s, nc, s.accepted.Add(1))
		if !s.add(c) {
			_ = nc.Close()
			return nil
		}
		wg.Go(func() { // ends when the connection closes, which s.close does at the latest
			c.serve()
			s.remove(c)
		})
	}
}

// temporary tells an accept that can be tried again, such as one without a descriptor left.
func temporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary()
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func (s *Server) add(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	s.conns[c] = struct{}{}
	s.open.Add(1)
	return true
}

func (s *Server) remove(c *conn) {
	_ = c.nc.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	s.open.Add(-1)
}

// close closes the listener and all connections. A second call does nothing.
func (s *Server) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return
	}
	s.closing = true
	_ = s.listener.Close()
	for c := range s.conns {
		c.abort()
	}
}

// Close closes the listener of a server that was never run; after Run it does nothing.
func (s *Server) Close() error {
	s.close()
	return nil
}

// Stats may be called at any time, by any goroutine.
func (s *Server) Stats() Stats {
	n := Stats{
		Accepted: s.accepted.Load(), Open: s.open.Load(), Requests: s.requests.Load(),
		Unanswered: s.unanswered.Load(), Oneways: s.oneways.Load(), Heartbeats: s.heartbeats.Load(),
		Ignored: s.ignored.Load(), Malformed: s.malformed.Load(), Stalled: s.stalled.Load(),
		BytesIn: s.bytesIn.Load(), BytesOut: s.bytesOut.Load(),
	}
	if s.audit != nil {
		s.audit.addTo(&n)
	}
	return n
}

// report prints why a connection was closed.
func (s *Server) report(c *conn, reason string) {
	if s.opts.Log == nil {
		return
	}
	s.logMu.Lock()
	defer s.logMu.Unlock()
	fmt.Fprintf(s.opts.Log, "echo: closed %v after %d requests: %s\n", c.nc.RemoteAddr(), c.requests, reason)
}
