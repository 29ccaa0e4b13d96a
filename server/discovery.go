package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder/discovery"
	"github.com/relevo-proxy/relevo/forwarder/discovery/dns"
	"github.com/relevo-proxy/relevo/forwarder/discovery/file"
	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/server/config"
)

// sources are the ways to find endpoints, by the kind that config.Discovery says. known is the last good set of another Source that
// looked at the same; nil: there is none.
var sources = map[string]func(d *config.Discovery, known []discovery.Endpoint) (discovery.Source, error){
	"file": func(d *config.Discovery, _ []discovery.Endpoint) (discovery.Source, error) {
		return file.New(file.Options{Path: d.File, Parse: parseEndpoints}), nil
	},
	"dns": func(d *config.Discovery, known []discovery.Endpoint) (discovery.Source, error) {
		o := dns.Options{Name: d.DNS, MinTTL: d.MinTTL.D(), MaxTTL: d.MaxTTL.D(), Known: known}
		for _, text := range d.Servers {
			at, err := netip.ParseAddrPort(text)
			if err != nil {
				return nil, err
			}
			o.Servers = append(o.Servers, at)
		}
		return dns.New(o)
	},
}

// parseEndpoints makes a set of a file, or says on one line what is wrong with it.
func parseEndpoints(data []byte) ([]discovery.Endpoint, error) {
	list, err := config.ParseEndpoints(data)
	if faults, ok := errors.AsType[*config.Errors](err); ok && len(faults.Faults) > 1 {
		err = fmt.Errorf("%s, and %d more", faults.Faults[0], len(faults.Faults)-1)
	}
	if err != nil {
		return nil, err
	}
	return setOf(list), nil
}

// setOf are endpoints as a configuration has them.
func setOf(list []config.Endpoint) []discovery.Endpoint {
	set := make([]discovery.Endpoint, len(list))
	for i := range list {
		network, address := list[i].Address.Split()
		set[i] = discovery.Endpoint{Network: network, Address: address, Weight: list[i].Weight, Drain: list[i].Drain}
	}
	return set
}

// MissingFiles warns of files of endpoints that cannot be looked at now, or in which something is wrong. Names are not asked for.
func MissingFiles(c *config.Config) (warnings []config.Fault) {
	for i := range c.Clusters {
		k := &c.Clusters[i]
		if k.Discovery == nil || k.Discovery.File == "" {
			continue
		}
		if err := file.Check(k.Discovery.File, parseEndpoints); err != nil {
			warnings = append(warnings, config.Fault{
				Path: fmt.Sprintf("clusters[%d] (%s).discovery.file", i, k.Name), Pointer: fmt.Sprintf("/clusters/%d/discovery/file", i),
				Message: fmt.Sprintf("%v: until it is there and right, requests are answered ERROR_COMM", err),
			})
		}
	}
	return warnings
}

// finder finds the endpoints of the clusters whose configuration says where from, and remembers the last good sets. It knows
// nothing of the road: whoever puts sets into force asks it.
type finder struct {
	// Static after newFinder.
	log     *zap.Logger
	reg     *stats.Registry
	changed chan struct{} // never closed; one slot

	mu sync.Mutex
	// Guarded by mu.
	followed map[string]*followed    // by cluster
	came     map[string]inheritedSet // from the process before this one, until they are asked for
}

// followed is a cluster whose endpoints are found.
type followed struct {
	// Static after follow.
	cluster string
	config  *config.Discovery
	cancel  context.CancelFunc
	done    chan struct{} // closed when its source has ended
	good    chan struct{} // closed with its source's first good set
	known   bool          // its source's last good set came from the process before this one
	updates map[discovery.Outcome]*stats.Counter

	// Guarded by the finder's mu.
	state discovery.State
	ended bool
}

func newFinder(log *zap.Logger, reg *stats.Registry) *finder {
	return &finder{
		log: log, reg: reg, changed: make(chan struct{}, 1),
		followed: make(map[string]*followed), came: make(map[string]inheritedSet),
	}
}

// plan is what is followed with another configuration. It ends with commit or discard.
type plan struct {
	finder *finder
	next   map[string]*followed
	begun  []*followed // of next, those that are new
}

// prepare begins to follow what a configuration adds to another one, nil for none. A cluster whose source changes goes on with the set
// that it has until the new source has told one, and so does one whose endpoints were configured.
func (f *finder) prepare(c, before *config.Config) (*plan, error) {
	p := &plan{finder: f, next: make(map[string]*followed)}
	for i := range c.Clusters {
		k := &c.Clusters[i]
		if k.Discovery == nil {
			continue
		}
		f.mu.Lock()
		was := f.followed[k.Name]
		f.mu.Unlock()
		if was != nil && reflect.DeepEqual(was.config, k.Discovery) {
			p.next[k.Name] = was
			continue
		}
		w, err := f.follow(k, was, configured(before, k.Name))
		if err != nil {
			p.discard()
			return nil, fmt.Errorf("cluster %s: discovery: %w", k.Name, err)
		}
		p.next[k.Name] = w
		p.begun = append(p.begun, w)
	}
	return p, nil
}

// configured are the endpoints that a configuration has for a cluster.
func configured(c *config.Config, cluster string) []discovery.Endpoint {
	if c == nil {
		return nil
	}
	i := slices.IndexFunc(c.Clusters, func(k config.Cluster) bool { return k.Name == cluster })
	if i < 0 {
		return nil
	}
	return discovery.Normal(setOf(c.Clusters[i].Endpoints))
}

// follow begins to follow the source of one cluster, which was followed otherwise or had these endpoints before.
func (f *finder) follow(k *config.Cluster, was *followed, had []discovery.Endpoint) (*followed, error) {
	w := &followed{
		cluster: k.Name, config: k.Discovery, done: make(chan struct{}), good: make(chan struct{}), updates: make(map[discovery.Outcome]*stats.Counter),
	}
	told := false // that source itself has told what is known
	f.mu.Lock()
	if was != nil {
		w.state.Endpoints = was.state.Endpoints
		told = sourceText(was.config) == sourceText(k.Discovery) && !was.state.Updated.IsZero()
	} else if came, ok := f.came[k.Name]; ok {
		w.known = came.Source == sourceText(k.Discovery)
		w.state = came.state(w.known)
		told = w.known && !came.Updated.IsZero()
		delete(f.came, k.Name)
	} else {
		w.state.Endpoints = had
	}
	f.mu.Unlock()
	var known []discovery.Endpoint
	if told {
		known = w.state.Endpoints
	}
	kind, _ := k.Discovery.Source()
	source, err := sources[kind](k.Discovery, known)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	labels := w.labels()
	for _, o := range []discovery.Outcome{discovery.Changed, discovery.Unchanged, discovery.Failed} {
		w.updates[o] = f.reg.Counter("relevo_discovery_updates_total", "What the source of a cluster's endpoints has told, by outcome.",
			append(slices.Clone(labels), stats.Label{Name: "outcome", Value: string(o)})...)
	}
	go func() { // ends with ctx; end waits for it
		defer close(w.done)
		source.Run(ctx, func(u discovery.Update) { f.take(w, u) })
	}()
	return w, nil
}

// sourceText tells sources apart.
func sourceText(d *config.Discovery) string {
	kind, of := d.Source()
	return kind + " " + of
}

// labels are those of a cluster's metrics that are about its source, and of no others.
func (w *followed) labels() []stats.Label {
	kind, _ := w.config.Source()
	return []stats.Label{{Name: "cluster", Value: w.cluster}, {Name: "source", Value: kind}}
}

// take is what a source tells.
func (f *finder) take(w *followed, u discovery.Update) {
	f.mu.Lock()
	if w.ended {
		f.mu.Unlock()
		return
	}
	before := w.state
	outcome, news := w.state.Take(u, time.Now())
	now := w.state
	if outcome != discovery.Failed {
		select {
		case <-w.good:
		default:
			close(w.good)
		}
	}
	f.mu.Unlock()
	w.updates[outcome].Add(1)
	log := f.log.With(zap.String("cluster", w.cluster), zap.String("source", sourceText(w.config)), zap.Int("endpoints", len(now.Endpoints)))
	switch {
	case outcome == discovery.Failed && news:
		log.Warn("discovery fails: the last good set stays", zap.Error(now.Err))
	case outcome != discovery.Failed && news:
		log.Info("discovery works again", zap.Duration("failed_for", time.Since(before.FailingSince).Round(time.Second)))
	}
	if outcome == discovery.Changed {
		added, removed := difference(before.Endpoints, now.Endpoints)
		log.Info("discovery has found other endpoints", zap.Int("added", added), zap.Int("removed", removed))
		f.poke()
	}
}

// difference counts the addresses that only one of two normal sets has.
func difference(before, now []discovery.Endpoint) (added, removed int) {
	for i, j := 0, 0; i < len(before) || j < len(now); {
		order := 0
		switch {
		case i == len(before):
			order = 1
		case j == len(now):
			order = -1
		default:
			order = cmp.Or(cmp.Compare(before[i].Network, now[j].Network), cmp.Compare(before[i].Address, now[j].Address))
		}
		switch {
		case order < 0:
			removed++
			i++
		case order > 0:
			added++
			j++
		default:
			i++
			j++
		}
	}
	return added, removed
}

// poke says that there is something to be put into force.
func (f *finder) poke() {
	select {
	case f.changed <- struct{}{}:
	default: // somebody is about to look
	}
}

// firstSets is how long is waited for the first sets of clusters that have none.
const firstSets = 3 * time.Second

// wait waits a bounded time for a good set of each source that is new.
func (p *plan) wait(ctx context.Context, patience time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, w := range p.begun {
		if w.known {
			continue
		}
		select {
		case <-w.good:
		case <-ctx.Done():
		}
	}
	p.finder.mu.Lock()
	defer p.finder.mu.Unlock()
	for _, w := range p.begun {
		if len(w.state.Endpoints) == 0 {
			p.finder.log.Warn("no endpoint of a cluster has been found in time: its requests are answered ERROR_COMM until there is one",
				zap.String("cluster", w.cluster), zap.String("source", sourceText(w.config)))
		}
	}
}

// sets are the last good sets, by cluster.
func (p *plan) sets() sets { return p.finder.setsOf(p.next) }

// commit follows what is planned, and nothing else.
func (p *plan) commit() {
	f := p.finder
	f.mu.Lock()
	was := f.followed
	f.followed = p.next
	clear(f.came) // what nobody has asked for is of clusters that are gone
	f.mu.Unlock()
	gone := make(map[string]*followed)
	for name, w := range was {
		if p.next[name] != w {
			gone[name] = w
		}
	}
	f.endAll(gone)
	for name, w := range gone {
		if now := p.next[name]; now == nil || !reflect.DeepEqual(now.labels(), w.labels()) {
			f.reg.Forget(w.labels()...)
		}
	}
	for _, w := range p.begun {
		f.export(w)
	}
}

// discard ends what was begun.
func (p *plan) discard() {
	f := p.finder
	begun := make(map[string]*followed)
	for _, w := range p.begun {
		begun[w.cluster] = w
	}
	f.endAll(begun)
	for _, w := range p.begun {
		f.mu.Lock()
		was := f.followed[w.cluster]
		f.mu.Unlock()
		if was == nil || !reflect.DeepEqual(was.labels(), w.labels()) {
			f.reg.Forget(w.labels()...)
		}
	}
}

// endMost bounds the wait for sources that end. One can be stuck in the kernel, in a file on a server that is gone, and neither a
// change of the configuration nor the end of the process is to wait with it.
const endMost = time.Second

// endAll ends sources and waits for them, for as long as endMost. One that takes longer goes on, and nobody hears it any more.
func (f *finder) endAll(all map[string]*followed) {
	f.mu.Lock()
	for _, w := range all {
		w.ended = true
	}
	f.mu.Unlock()
	for _, w := range all {
		w.cancel()
	}
	patience := time.NewTimer(endMost)
	defer patience.Stop()
	for _, w := range all {
		select {
		case <-w.done:
			continue
		default:
		}
		select {
		case <-w.done:
		case <-patience.C:
			patience.Reset(0) // the others have had the time, too
			f.log.Warn("the source of a cluster's endpoints does not end: it is left behind",
				zap.String("cluster", w.cluster), zap.String("source", sourceText(w.config)))
		}
	}
}

// close ends all sources. A second time does nothing.
func (f *finder) close() {
	f.mu.Lock()
	all := f.followed
	f.mu.Unlock()
	f.endAll(all)
}

// export registers what is read at the moment of a scrape.
func (f *finder) export(w *followed) {
	labels := w.labels()
	gauge := func(name, help string, fn func(s *discovery.State) float64) {
		f.reg.GaugeFunc(name, help, func() float64 {
			f.mu.Lock()
			defer f.mu.Unlock()
			return fn(&w.state)
		}, labels...)
	}
	gauge("relevo_discovery_endpoints", "Endpoints of the last good set that the source of a cluster has told.",
		func(s *discovery.State) float64 { return float64(len(s.Endpoints)) })
	gauge("relevo_discovery_failing", "1 while the source of a cluster's endpoints fails, and the last good set stays.",
		func(s *discovery.State) float64 {
			if s.Err != nil {
				return 1
			}
			return 0
		})
	gauge("relevo_discovery_updated_timestamp_seconds", "When the source of a cluster's endpoints last told a good set; 0: never.",
		func(s *discovery.State) float64 {
			if s.Updated.IsZero() {
				return 0
			}
			return float64(s.Updated.UnixMilli()) / 1000
		})
}

// state is what is known of a cluster's endpoints; nil where they are configured.
func (f *finder) state(cluster string) (*config.Discovery, *discovery.State) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.followed[cluster]
	if w == nil {
		return nil, nil
	}
	return w.config, new(w.state)
}

// sets are endpoints by cluster.
type sets map[string][]discovery.Endpoint

// setsNow are the last good sets.
func (f *finder) setsNow() sets {
	f.mu.Lock()
	followed := f.followed
	f.mu.Unlock()
	return f.setsOf(followed)
}

func (f *finder) setsOf(followed map[string]*followed) sets {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make(sets, len(followed))
	for name, w := range followed {
		out[name] = w.state.Endpoints
	}
	return out
}
