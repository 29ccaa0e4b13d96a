// Package server is the composition root: it makes the road from a configuration, opens the HTTP doors beside
// it, and owns start, stop and signals. It is the only place that knows concrete codecs and balancers.
package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/admin"
	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/server/accesslog"
	"github.com/relevo-proxy/relevo/server/config"
	"github.com/relevo-proxy/relevo/upgrade"
)

// Options are what a Server is made from. All that are exported are needed, but Level, Origin and Tap.
type Options struct {
	Config *config.Config
	Log    *zap.Logger
	// Level is that of Log. Nil: it cannot be changed.
	Level *zap.AtomicLevel
	// Origin is where Config comes from. Nil: from nowhere, and its revisions are kept in memory.
	Origin *Origin
	Build  admin.BuildInfo
	// Tap is a seam for tests, which kill processes at an exact point of an upgrade. It is nil in production.
	Tap upgrade.Tap

	inherited  []inherited
	heir       bool
	generation uint64          // its number; 0 is the first
	askedLevel []byte          // of the log, by somebody who asked the process before this one
	found      []byte          // the endpoints that the process before this one has found
	reg        *stats.Registry // nil: a new one
}

// Server is one process's road and doors.
type Server struct {
	// Static after New.
	log         *zap.Logger
	live        *live
	reg         *stats.Registry
	events      *admin.Events
	level       *logLevel
	finder      *finder
	road        *forwarder.Forwarder
	access      *accesslog.Log // nil: none
	doors       []*door
	inherited   []inherited         // that nobody has claimed yet
	heir        bool                // it is made to take over from another process
	stored      []stored            // the sockets that systemd is to keep
	generation  *upgrade.Generation // nil: it makes no upgrades
	unit        *unit               // nil: nobody is told anything
	started     time.Time
	maxBuffered int64
	overrun     time.Duration // stopOverrun, but in tests
	number      uint64        // of its generation, from 1 on
	meter       *meter
	counted     chan struct{} // closed by countedOnce; nil: nothing is to come
	countedOnce func()

	// Static after Start.
	endAccess        func() error
	closeDoorsGently context.CancelFunc
	failed           chan error // how the doors ended
	dropped          []place    // that came, and are not in use

	// Owned by the hand-over.
	left []string // what stays behind, and why

	// Atomic.
	stage atomic.Int32 // a stage
}

// The names of the doors, as a socket unit may give them.
const (
	doorMetrics  = "metrics"
	doorAdmin    = "admin"
	doorAdminTCP = "admin-tcp"
)

// door is one HTTP address.
type door struct {
	name    string
	address config.Address
	socket  net.Listener
	server  *admin.Server
	came    bool // from another process, or from systemd
	kept    bool // systemd has it, too
}

// stage is where in its life the server is.
type stage int32

const (
	stageBuilt    stage = iota // bound, not accepting
	stageServing               // accepting
	stageStopping              // draining
	stageGone                  // another process has it all
)

// ConfigError says that a configuration is valid in itself and yet cannot be had on this machine.
type ConfigError struct{ Err error }

func (e *ConfigError) Error() string { return e.Err.Error() }

// Unwrap is the cause.
func (e *ConfigError) Unwrap() error { return e.Err }

// lasting makes a *ConfigError of what the operating system said of a file or folder where no time mends it: it is not there, it is
// something else, or this process may write nowhere near it.
func lasting(err error) error {
	for _, e := range []error{syscall.ENOENT, syscall.ENOTDIR, syscall.EISDIR, syscall.EROFS} {
		if errors.Is(err, e) {
			return &ConfigError{err}
		}
	}
	return err
}

// New builds the road and binds all addresses; nothing is accepted before Run. An error means that nothing is
// left open. It is a *ConfigError for what does not mend itself, nor with more permission, else what the
// operating system said, wrapped.
func New(o Options) (*Server, error) {
	s := &Server{
		log: o.Log, reg: cmp.Or(o.reg, stats.NewRegistry()), started: time.Now(), inherited: o.inherited, heir: o.heir,
		overrun: stopOverrun, number: cmp.Or(o.generation, 1),
	}
	s.events = admin.NewEvents(s.number, s.started)
	s.level = newLogLevel(o.Log, o.Level, s.events, o.Config.Log.Level)
	s.finder = newFinder(o.Log, s.reg)
	if err := s.build(o); err != nil {
		s.finder.close()
		closeInherited(s.inherited)
		return nil, err
	}
	return s, nil
}

// build is New; what it leaves of the inherited sockets is New's to close.
func (s *Server) build(o Options) (err error) {
	if s.maxBuffered, err = maxBuffered(o.Config); err != nil {
		return &ConfigError{err}
	}
	spec, err := Spec(o.Config)
	if err != nil {
		return &ConfigError{err}
	}
	if s.live, err = newLive(o); err != nil {
		return &ConfigError{err}
	}
	s.level.inherit(o.askedLevel)
	s.finder.inherit(o.found)
	follow, err := s.finder.prepare(o.Config, nil)
	if err != nil {
		return &ConfigError{err}
	}
	follow.commit()
	patience := firstSets
	if o.heir { // whom another process waits for
		patience = min(patience, o.Config.Upgrade.ReadyTimeout.D()/2)
	}
	follow.wait(context.Background(), patience)
	spec, _ = follow.sets().in(spec)
	s.live.spec, _ = sets(nil).in(spec) // without the sockets
	s.live.spec.Listeners = slices.Clone(spec.Listeners)
	spec.Changed = s.tellChange
	s.meter = newMeter(s.collectsNot)
	spec.Overload.Usage = s.meter.usage
	for i := range spec.Listeners {
		l := &spec.Listeners[i]
		l.Socket, l.Kept = s.claim(false, l.Name, l.Network, l.Address)
		s.live.kept[l.Name] = l.Kept
	}
	if err = s.openAccess(spec); err != nil {
		return err
	}
	if s.road, err = forwarder.New(spec, s.maxBuffered, s.reg, o.Log); err != nil {
		s.closeAccess()
		return fmt.Errorf("starting: %w", err)
	}
	s.noteStored(spec)
	if err = s.openDoors(o); err != nil {
		s.closeDoors()
		s.road.Close()
		s.closeAccess()
		return fmt.Errorf("starting: %w", err)
	}
	return nil
}

// openDoors binds the HTTP addresses.
func (s *Server) openDoors(o Options) error {
	if m := o.Config.Metrics; m != nil {
		if _, err := s.open(doorMetrics, m.Address, admin.SocketFile{}, admin.Metrics(s.reg, s, o.Build)); err != nil {
			return err
		}
	}
	a := o.Config.Admin
	if a == nil {
		return nil
	}
	if a.Address != "" {
		d, err := s.open(doorAdmin, a.Address, socketFile(a), admin.Admin(s.reg, s, s, o.Build, nil))
		if err != nil {
			return err
		}
		d.Documents()
	}
	if a.TCP != nil {
		guard, err := admin.NewGuard(a.TCP, s.reg, o.Log.With(zap.String("door", doorAdminTCP)))
		if err != nil {
			return &ConfigError{err}
		}
		d, err := s.open(doorAdminTCP, a.TCP.Address, admin.SocketFile{}, admin.Admin(s.reg, s, s, o.Build, guard))
		if err != nil {
			return err
		}
		d.Documents()
		d.TLS(guard.TLS())
	}
	return nil
}

// socketFile says who may open the admin socket.
func socketFile(a *config.Admin) admin.SocketFile {
	return admin.SocketFile{Mode: a.FileMode(), Group: a.Group}
}

func (s *Server) open(name string, address config.Address, file admin.SocketFile, handler http.Handler) (*admin.Server, error) {
	network, at := address.Split()
	l, kept := s.claim(true, name, network, at)
	came := l != nil
	if !came {
		var err error
		if l, err = admin.Listen(string(address), file); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	} else if !kept { // what is systemd's, its unit says
		if err := admin.Grant(string(address), file); err != nil {
			_ = l.Close() // a copy
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	log := s.log.With(zap.String("door", name))
	d := &door{name, address, l, admin.NewServer(l, handler, log), came, kept}
	if kept {
		d.server.Keep()
	} else {
		s.stored = append(s.stored, stored{place{name, network, at, true}, d.server})
	}
	s.doors = append(s.doors, d)
	return d.server, nil
}

// closeUnused closes a server that was never started.
func (s *Server) closeUnused() {
	s.finder.close()
	s.closeDoors()
	s.road.Close()
	s.closeAccess()
	closeInherited(s.inherited)
}

// closeDoors closes the doors that a failed start has opened.
func (s *Server) closeDoors() {
	for _, d := range s.doors {
		if d.came {
			d.server.Leave() // the socket file is another process's still
		}
		_ = d.server.Close() // nothing has been accepted yet
	}
}

// Start accepts and forwards from now on; Run must follow. An heir is started by its Taker.
func (s *Server) Start() {
	if !s.heir { // else its Taker has, before anybody waited
		s.limitMemory()
	}
	s.endAccess = s.runAccess()
	s.road.Start()
	s.dropInherited() // only now: it writes to the log, and nobody may read that
	doors, closeDoors := context.WithCancel(context.Background())
	s.closeDoorsGently = closeDoors
	s.failed = make(chan error, len(s.doors)) // never closed; one slot a door, so no door waits
	for _, d := range s.doors {
		go func() { // ends with doors, or when it leaves; Run waits for it, an answer each
			err := d.server.Run(doors)
			if err != nil {
				err = fmt.Errorf("serving %s: %w", d.name, err)
			}
			s.failed <- err
		}()
	}
	s.stage.Store(int32(stageServing))
	s.logStart()
}

// Run waits until ctx ends. Then it stops accepting, lets the requests in flight finish for as long as stop_timeout, and
// closes everything. A server that belongs to a Generation also makes the upgrades that are asked for, and returns when this
// process has handed over. The error says what could not finish in time, which door failed, or that the new process has died
// with the state.
//
// It returns in time whatever is stuck. What that is keeps its goroutines then, so the process has to end behind it.
func (s *Server) Run(ctx context.Context) error {
	told := ctx // by whoever stops it; the one below ends with this function, too
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)                      // never closed; holds the one answer
	go func() { ended <- s.run(told, ctx, cancel) }() // ends within stopLimit behind ctx, or is given up
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	late := time.NewTimer(s.stopLimit() - lookTime)
	defer late.Stop()
	select {
	case err := <-ended:
		return err
	case <-late.C:
		return s.giveUp()
	}
}

// run is Run without its bound. However it comes to its end, it ends ctx first.
func (s *Server) run(told, ctx context.Context, cancel context.CancelFunc) error {
	returned := make(chan struct{})
	go func() { // ends with ctx; waited for below
		returnMemory(ctx, s.collectsNot)
		close(returned)
	}()
	defer func() { cancel(); <-returned; s.meter.end() }()
	endUnit := s.unit.run(s)
	defer endUnit()
	kept := make(chan struct{})
	go func() { // ends within appendTimeout; waited for below
		s.keepOrigin()
		close(kept)
	}()
	defer func() { <-kept }()
	levelled := make(chan struct{})
	go func() { // ends with ctx; waited for below
		defer close(levelled)
		s.level.run(ctx)
	}()
	defer func() { cancel(); <-levelled }()
	found := make(chan struct{})
	go func() { // ends with ctx; waited for below
		defer close(found)
		s.finder.run(ctx, s.live.released, s.applyFound)
	}()
	defer func() { cancel(); <-found; s.finder.close() }()
	ended := make(chan upgrade.Ending, 1) // never closed; holds the one answer
	go func() {                           // ends with ctx, or with the hand-over; waited for below
		if s.generation != nil {
			ended <- s.generation.Run(ctx, s.giver())
			return
		}
		<-ctx.Done()
		ended <- upgrade.Ending{Owner: true}
	}()

	waiting := len(s.doors)
	var broken error
	var ending upgrade.Ending
	for running := true; running; {
		select {
		case ending = <-ended:
			running = false
		case err := <-s.failed:
			waiting--
			if err != nil { // else another process has the door
				broken = err
				cancel()
			}
		}
	}
	cancel()
	errs := []error{broken}
	if ending.Owner {
		s.stage.Store(int32(stageStopping))
		s.unit.stopping(s)
		errs = append(errs, s.drain())
	} else if ending.Status != 0 {
		errs = append(errs, errors.New(ending.Reason))
	} else {
		s.generation.PassOn(told) // what follows takes its time
	}
	errs = append(errs, s.endAccess()) // the last records are those of the drain
	s.events.End("the process stops")  // unless another one has its doors
	s.closeDoorsGently()
	for range waiting {
		errs = append(errs, <-s.failed)
	}
	err := errors.Join(errs...)
	log := s.log.Info
	if err != nil {
		log = s.log.Warn
	}
	log("stopped", zap.Uint64("generation", s.number), zap.Duration("ran", time.Since(s.started).Round(time.Millisecond)), zap.Bool("handed_over", !ending.Owner), zap.Error(err))
	return err
}

// collectsNot says that no memory is to be given back: a collection amid a hand-over would be a part of the pause.
func (s *Server) collectsNot() bool {
	return s.live.held.Load() || stage(s.stage.Load()) != stageServing
}

// limitMemory lets the garbage collector know the machine's limit, unless somebody has told it already.
func (s *Server) limitMemory() {
	if limit, from := memoryLimit(); from != "GOMEMLIMIT" {
		debug.SetMemoryLimit(limit / 10 * 9)
	}
}

// logStart says what is served where, one line a listener.
func (s *Server) logStart() {
	for _, l := range s.config().Listeners {
		s.log.Info("listening", zap.String("listener", l.Name), zap.Stringer("address", s.Addresses()[l.Name]),
			zap.String("protocol", string(l.Protocol)), zap.String("routes", l.Routes))
	}
	for _, d := range s.doors {
		s.log.Info("listening", zap.String("door", d.name), zap.Stringer("address", d.socket.Addr()))
	}
	for _, w := range s.config().Warnings() {
		s.log.Warn("configuration", zap.String("path", w.Path), zap.String("warning", w.Message))
	}
	s.log.Info("serving", zap.Uint64("generation", s.number), zap.Stringer("max_buffered", config.Size(s.maxBuffered)))
}

// Addresses are the addresses of the listeners, as bound, by name.
func (s *Server) Addresses() map[string]net.Addr { return s.road.Addresses() }

// AdminAddress is where the admin door's unix socket is, nil where there is none.
func (s *Server) AdminAddress() net.Addr { return s.address(doorAdmin) }

// AdminTCPAddress is where the admin door is over the network, nil where it is not.
func (s *Server) AdminTCPAddress() net.Addr { return s.address(doorAdminTCP) }

// MetricsAddress is where metrics are served, nil where they are not.
func (s *Server) MetricsAddress() net.Addr { return s.address(doorMetrics) }

func (s *Server) address(name string) net.Addr {
	for _, d := range s.doors {
		if d.name == name {
			return d.socket.Addr()
		}
	}
	return nil
}

// Stats are the counters of everything.
func (s *Server) Stats() *stats.Registry { return s.reg }
