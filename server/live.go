package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"reflect"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/admin"
	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/server/config"
	"github.com/relevo-proxy/relevo/server/revision"
	"github.com/relevo-proxy/relevo/systemd"
)

// live is the configuration in force, and how it changes: one change at a time, and none while another process loads what it
// is to go on with.
type live struct {
	// Static after New.
	origin *Origin
	store  *revision.Store
	began  *config.Config // what the process was built from
	turn   chan struct{}  // has an element while nobody changes anything; never closed
	// released has an element when release has not been noticed yet; never closed.
	released chan struct{}

	// Guarded by the turn.
	kept map[string]bool // the listeners whose sockets are systemd's, too
	spec *forwarder.Spec // what the road was built from last: the configuration in force, and the endpoints found by then

	// Atomic.
	now  atomic.Pointer[inForce]
	held atomic.Bool // another process is loading it
}

// inForce is a configuration that was applied. It is never changed.
type inForce struct {
	info     revision.Info // its number is 0 while it is no revision: it is the file, and could not be kept yet
	newest   uint64        // the number of the newest revision: its own, or that of the one that it takes the place of
	document *config.Document
	config   *config.Config
}

// newLive is a configuration that nobody may change yet: free allows it.
func newLive(o Options) (*live, error) {
	from := o.Origin
	if from == nil {
		var err error
		if from, err = originOf(o.Config); err != nil {
			return nil, err
		}
	}
	from.store.LogTo(o.Log)
	l := &live{
		origin: from, store: from.store, began: o.Config, turn: make(chan struct{}, 1), released: make(chan struct{}, 1),
		kept: make(map[string]bool),
	}
	first := &inForce{revision.Info{Author: revision.Author{Door: revision.DoorFile}}, from.decision.Newest, from.decision.Document, o.Config}
	if !from.decision.FromFile {
		newest, err := from.store.Get(from.decision.Newest)
		if err != nil {
			return nil, err
		}
		first.info = newest.Info
	}
	l.now.Store(first)
	return l, nil
}

// config is the tree in force.
func (s *Server) config() *config.Config { return s.live.now.Load().config }

// free gives the turn back.
func (l *live) free() { l.turn <- struct{}{} }

// take waits for the turn.
func (l *live) take(ctx context.Context) error {
	select {
	case <-l.turn:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for a change that is under way: %w", ctx.Err())
	}
}

// hold is upgrade.Giver.Hold.
func (l *live) hold(ctx context.Context) error {
	if err := l.take(ctx); err != nil {
		return err
	}
	l.held.Store(true)
	l.free()
	return nil
}

// release is upgrade.Giver.Release.
func (l *live) release() {
	l.held.Store(false)
	select {
	case l.released <- struct{}{}:
	default: // somebody is about to look
	}
}

// Current implements admin.Control.
func (s *Server) Current() (revision.Info, *config.Document, *config.Config) {
	now := s.live.now.Load()
	return now.info, now.document, now.config
}

// Revisions implements admin.Control.
func (s *Server) Revisions() *revision.Store { return s.live.store }

// changeTimeout bounds the wait for other changes.
const changeTimeout = 10 * time.Second

// Change implements admin.Control. What it returns with an error is not in force, and nothing of it is.
func (s *Server) Change(ctx context.Context, e admin.Edit) (admin.Outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	if err := s.live.take(ctx); err != nil {
		return admin.Outcome{}, fmt.Errorf("%w: %w", admin.ErrBusy, err)
	}
	defer s.live.free()
	if s.live.held.Load() || stage(s.stage.Load()) != stageServing {
		return admin.Outcome{}, fmt.Errorf("%w: %w", admin.ErrBusy, forwarder.ErrResting)
	}
	old := s.live.now.Load()
	if err := e.Match(old.document); err != nil {
		return admin.Outcome{}, err
	}
	giveWay()
	document, err := e.Edit(old.document)
	if err != nil {
		return admin.Outcome{}, err
	}
	giveWay()
	c, err := document.Config()
	if err != nil {
		return admin.Outcome{}, err
	}
	if err := s.fixed(old.config, c); err != nil {
		return admin.Outcome{}, err
	}
	if !reflect.DeepEqual(old.config.Admin, c.Admin) {
		if err := CheckFiles(c); err != nil { // with which no upgrade would succeed
			return admin.Outcome{}, err
		}
	}
	if err := CheckMachine(c); err != nil && CheckMachine(old.config) == nil { // what is amiss already keeps nobody from changing something else
		return admin.Outcome{}, &admin.RefusedError{Reason: err.Error()}
	}
	if err := s.canOpen(old.config, c); err != nil {
		return admin.Outcome{}, &admin.RefusedError{Reason: err.Error()}
	}
	giveWay()
	spec, err := Spec(c)
	if err != nil {
		return admin.Outcome{}, &admin.RefusedError{Reason: err.Error()}
	}
	out := admin.Outcome{
		Revision: old.info.Number, DryRun: e.DryRun, Changes: old.document.Changes(document),
		NeedsUpgrade: needUpgrade(s.live.began, c), Cost: s.cost(old.config, c),
	}
	if e.DryRun || old.document.Equal(document) {
		return out, nil
	}
	giveWay()
	info, err := s.apply(ctx, old, &inForce{document: document, config: c}, spec, e)
	giveWay()
	out.Revision = info.Number
	if err == nil {
		s.tellConfig(info, out.Changes)
		s.log.Info("configuration changed", zap.Uint64("revision", info.Number), zap.Stringer("by", e.Author), zap.String("why", e.Why),
			zap.Int("changes", len(out.Changes.List)+out.Changes.More), zap.Strings("paths", changedPaths(out.Changes)))
	}
	return out, err
}

// changePause is how long a change gives way to requests between two of its steps.
const changePause = 300 * time.Microsecond

// giveWay lets requests pass. All of a change computes for a millisecond, and where the processors have just enough to do with
// requests, that is how long one waits that comes meanwhile; it waits for a step instead. docs/benchmarks.md has the difference.
func giveWay() { time.Sleep(changePause) }

// apply keeps a configuration as a revision and puts it into force, or does neither. The turn is the caller's.
func (s *Server) apply(ctx context.Context, old, next *inForce, spec *forwarder.Spec, e admin.Edit) (revision.Info, error) {
	follow, err := s.finder.prepare(next.config, old.config)
	if err != nil {
		return revision.Info{}, &admin.RefusedError{Reason: err.Error()}
	}
	follow.wait(ctx, firstSets)
	spec, _ = follow.sets().in(spec)
	var r revision.Revision
	var kept error
	err = s.road.Apply(spec, func() error {
		giveWay()
		r, kept = s.live.store.Append(ctx, old.newest, revision.Revision{
			Info:     revision.Info{When: time.Now(), Author: e.Author, Why: e.Why, FileSHA256: s.live.origin.hash(old.info.FileSHA256)},
			Document: next.document,
		})
		giveWay()
		return kept
	})
	if err != nil {
		follow.discard()
	}
	switch {
	case kept != nil:
		return revision.Info{}, kept
	case errors.Is(err, forwarder.ErrResting):
		return revision.Info{}, fmt.Errorf("%w: %w", admin.ErrBusy, err)
	case err != nil:
		return revision.Info{}, &admin.RefusedError{Reason: err.Error()}
	}
	follow.commit()
	s.live.spec = spec
	next.info, next.newest = r.Info, r.Number
	s.live.now.Store(next)
	s.level.configure(next.config.Log.Level)
	s.moveSockets(old.config, next.config)
	return r.Info, nil
}

// CheckFiles reads the files that a valid configuration names, and says what is wrong with them: a *config.Errors.
func CheckFiles(c *config.Config) error {
	if c.Admin == nil || c.Admin.TCP == nil {
		return nil
	}
	return admin.CheckFiles(c.Admin.TCP)
}

// CheckMachine says what of a valid configuration a start would stumble over on this machine, beside CheckFiles: buffers into which no whole
// frame fits, a group that nobody knows, the access log's folder.
func CheckMachine(c *config.Config) error {
	if err := CheckBuffers(c); err != nil {
		return err
	}
	if a := c.Admin; a != nil {
		if err := socketFile(a).Check(); err != nil {
			return &ConfigError{fmt.Errorf("admin.group: %w", err)}
		}
	}
	return checkAccess(c.AccessLog)
}

// canOpen says why a door could not be opened that only the new configuration has; nil: each could. The next process opens it.
func (s *Server) canOpen(old, now *config.Config) error {
	before := doorsOf(old)
	for address, file := range doorsOf(now) {
		if _, had := before[address]; had || slices.ContainsFunc(s.doors, func(d *door) bool { return d.address == address }) {
			continue
		}
		l, err := admin.Listen(string(address), file)
		if errors.Is(err, syscall.EADDRINUSE) && s.hasPort(address) {
			continue // of more addresses, or others: it is free once this process has ended
		}
		if err != nil {
			return err
		}
		_ = admin.NewServer(l, nil, s.log).Close() // nobody has come
	}
	return nil
}

// hasPort says whether a door or listener of this process has the port of an address, at whatever address.
func (s *Server) hasPort(of config.Address) bool {
	port := func(a config.Address) string {
		_, port, _ := net.SplitHostPort(string(a)) // of a unix socket it is the path, which is no port
		return port
	}
	has := func(a config.Address) bool { return port(a) == port(of) }
	return slices.ContainsFunc(s.doors, func(d *door) bool { return has(d.address) }) ||
		slices.ContainsFunc(s.live.now.Load().config.Listeners, func(l config.Listener) bool { return has(l.Address) })
}

// doorsOf are the addresses of a configuration's doors, and the rights of those that are files.
func doorsOf(c *config.Config) map[config.Address]admin.SocketFile {
	out := make(map[config.Address]admin.SocketFile)
	if m := c.Metrics; m != nil {
		out[m.Address] = admin.SocketFile{}
	}
	if a := c.Admin; a != nil && a.Address != "" {
		out[a.Address] = socketFile(a)
	}
	if a := c.Admin; a != nil && a.TCP != nil {
		out[a.TCP.Address] = admin.SocketFile{}
	}
	return out
}

// pathsLogged is how many changes a line of the log names.
const pathsLogged = 10

func changedPaths(c config.Changes) []string {
	out := []string{}
	for _, change := range c.List[:min(pathsLogged, len(c.List))] {
		out = append(out, change.Path)
	}
	return out
}

// hash is that of the file as it is now: what changes it from here on wins at a start. Where it cannot be read it is as it was at the
// last change, or at the start.
func (o *Origin) hash(last string) string {
	if o.path != "" {
		if data, err := config.ReadFile(o.path); err == nil {
			return revision.Sum(data)
		}
	}
	return cmp.Or(last, o.file.SHA256)
}

// moveSockets has systemd keep the sockets of the listeners that are new, and forget those of listeners that are gone.
func (s *Server) moveSockets(old, now *config.Config) {
	has := func(c *config.Config) map[string]place {
		out := make(map[string]place)
		for _, l := range c.Listeners {
			network, address := l.Address.Split()
			p := place{l.Name, network, address, false}
			out[p.storeName()] = p
		}
		return out
	}
	before, after := has(old), has(now)
	kept := make(map[string]bool)
	for name, p := range after {
		if b, ok := before[name]; ok {
			kept[p.name] = s.live.kept[b.name] // the socket is the same, whatever the listener is called
		}
	}
	s.live.kept = kept
	if s.unit == nil {
		return
	}
	sockets := s.road.Sockets()
	s.unit.say(func(n systemd.Notifier) error {
		var errs []error
		for name := range before {
			if _, ok := after[name]; !ok {
				errs = append(errs, n.Forget(name))
			}
		}
		for name, p := range after {
			if _, ok := before[name]; !ok && sockets[p.name] != nil {
				errs = append(errs, n.Store(name, sockets[p.name]))
			}
		}
		return errors.Join(errs...)
	})
}
