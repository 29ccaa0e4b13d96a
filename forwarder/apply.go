package forwarder

import (
	"errors"
	"slices"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/stats"
)

// ErrResting is what Apply returns while the road is being handed over, or ends.
var ErrResting = errors.New("the road is being handed over to another process, or ends")

// Apply puts another configuration into force. What is the same lives on, with its connections and counters: listeners of
// the same name and address, endpoints of the same address in a cluster of the same name and protocol, and what is taken of
// limits. Requests go by the new rules from the next one that is read on; those that have matched a rule go on by it, to
// the endpoints that its cluster has now.
//
// A listener that is gone accepts nothing more: what still comes on its connections is answered CONNECTION_CLOSED, and they
// close when they are quiet, at the latest after LeaveTimeout. An endpoint that is gone drains, as does one that is to: requests
// in flight finish and then its connections close; those that wait for one go elsewhere within the cluster, with none left they
// are answered.
//
// keep is called when all that can fail has been done, and before anything has changed: with its error nothing does. Where the
// road begins to end meanwhile, what keep has kept is for the process that comes next.
//
// Of Workers, Access, Changed and Overload.Usage the Spec's are not looked at. An error is ErrResting, keep's, or all that is wrong; then nothing
// has changed.
func (f *Forwarder) Apply(spec *Spec, keep func() error) error {
	if !f.applying.TryLock() {
		return ErrResting
	}
	defer f.applying.Unlock()
	if f.draining.Load() || f.abandoned.Load() {
		return ErrResting
	}
	old := f.snap.Load()
	next, err := f.build(spec, old)
	if err != nil {
		return err
	}
	if err := keep(); err != nil {
		f.discard(next, old)
		return err
	}
	configured, listening := slices.Clone(next.clusters), slices.Clone(next.listeners)
	if !f.enter(next, old, spec) {
		f.discard(next, old)
		return nil
	}
	for _, c := range old.clusters {
		if heir := next.clusterNamed(c.spec.Name); heir != nil && heir != c && heir.codec.Name() == c.codec.Name() {
			c.next.Store(heir)
		}
	}
	for _, l := range old.listeners {
		if !slices.Contains(listening, l) && !l.leaving.Load() {
			l.retire()
		}
	}
	for _, l := range listening {
		if !slices.Contains(old.listeners, l) {
			f.accepting.Go(l.accept) // ends when its socket is closed, or with the shift
		}
	}
	for _, c := range configured {
		for i, e := range c.endpoints {
			switch {
			case i >= len(c.spec.Endpoints):
				e.leave()
			case c.spec.Endpoints[i].Drain:
				e.drain(true)
			}
		}
	}
	if f.begun.Load() { // else Start does it
		f.checks.configure(next)
	}
	f.export(old.endpoints())
	f.forgetMetrics(old, next)
	f.sweep.retime.Store(true)
	f.sweep.change()
	return nil
}

// enter swaps the snapshot that was built from spec in, unless the road has begun to end: who ends it sees the one or the other.
func (f *Forwarder) enter(next, old *snapshot, spec *Spec) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.draining.Load() {
		return false
	}
	for _, c := range next.clusters {
		c.enter()
	}
	next.limits.enter(spec)
	f.overload.configure(&spec.Overload)
	for i, l := range next.listeners {
		if slices.Contains(old.listeners, l) {
			l.configure(&spec.Listeners[i])
		} else {
			l.takeFile()
		}
	}
	f.keepLeaving(next, old)
	f.snap.Store(next)
	return true
}

// discard closes what was bound for a snapshot that does not take the place of old.
func (f *Forwarder) discard(next, old *snapshot) {
	for _, l := range next.listeners {
		if !slices.Contains(old.listeners, l) {
			l.stop()
		}
	}
	f.forgetMetrics(next, old)
}

// keepLeaving adds to the next snapshot what is not configured any more, as long as something of it is here: the sweeper looks
// after it.
func (f *Forwarder) keepLeaving(next, old *snapshot) {
	for _, l := range old.listeners {
		if slices.Contains(next.listeners, l) {
			continue
		}
		if open, _ := l.connections(); open > 0 || !l.leaving.Load() {
			next.listeners = append(next.listeners, l)
			next.roads[l.slot] = leftoverRoadOf(old.roads[l.slot])
		}
	}
	for _, c := range old.clusters {
		heir := next.clusterNamed(c.spec.Name)
		if heir != nil && heir.codec.Name() == c.codec.Name() {
			continue // enter has kept its endpoints
		}
		waits := c.retryWaits.Used() > 0 // to be tried again, at what has an endpoint then
		// One that has not left gets what has matched a rule and is nowhere yet: a filter has it.
		if waits || slices.ContainsFunc(c.endpoints, func(e *upEndpoint) bool { return !e.left.Load() || !e.over() }) {
			c.gone.CompareAndSwap(0, f.now())
			next.clusters = append(next.clusters, c)
		}
	}
}

// dismissAfter is how long a cluster that is not configured any more is used by what has matched a rule before, in
// nanoseconds. Then its endpoints drain.
const dismissAfter = int64(time.Second)

// dismiss lets the endpoints of a cluster drain that is not configured any more, when it is time.
func (c *upCluster) dismiss(now int64) {
	if since := c.gone.Load(); since == 0 || now-since < dismissAfter {
		return
	}
	for _, e := range c.endpoints {
		if !e.left.Load() {
			e.leave()
		}
	}
}

// counted is what has metrics of its own: a listener, a rule and where it leads, its limit, a cluster, or an endpoint of one.
type counted struct{ listener, route, limit, cluster, endpoint string }

// labels are those that all of its metrics have, and no others.
func (c counted) labels() []stats.Label {
	cluster := stats.Label{Name: "cluster", Value: c.cluster}
	switch {
	case c.listener != "":
		return []stats.Label{{Name: "listener", Value: c.listener}}
	case c.limit != "":
		return []stats.Label{{Name: "route", Value: c.route}, {Name: "limit", Value: c.limit}}
	case c.route != "":
		return []stats.Label{{Name: "route", Value: c.route}, cluster}
	case c.endpoint != "":
		return []stats.Label{cluster, {Name: "endpoint", Value: c.endpoint}}
	default:
		return []stats.Label{cluster}
	}
}

// counted are the things of a snapshot that have metrics.
func (s *snapshot) counted() map[counted]bool {
	all := make(map[counted]bool)
	for _, l := range s.listeners {
		if l.f == nil || s.roads[l.slot] == nil {
			continue // its making has failed
		}
		all[counted{listener: l.name}] = true
		for _, rule := range s.roads[l.slot].rules {
			for _, t := range rule.targets {
				all[counted{route: t.name, cluster: t.clusterName()}] = true
			}
		}
	}
	for name := range s.limits.bounds {
		all[counted{route: name, limit: limitMaxRequests}] = true
	}
	for _, c := range s.clusters {
		all[counted{cluster: c.spec.Name}] = true
		for _, e := range c.endpoints {
			all[counted{cluster: c.spec.Name, endpoint: e.address}] = true
		}
	}
	return all
}

// forgetMetrics forgets the metrics of what one snapshot has and the other has not.
func (f *Forwarder) forgetMetrics(of, not *snapshot) {
	stay := not.counted()
	var gone [][]stats.Label
	for c := range of.counted() {
		if !stay[c] {
			gone = append(gone, c.labels())
		}
	}
	f.reg.ForgetEach(gone)
}
