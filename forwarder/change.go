package forwarder

import "cmp"

// Change is what has become of a listener or of an endpoint.
type Change struct {
	Listener, At      string // a listener's name and where it listens; empty for an endpoint
	Cluster, Endpoint string // empty for a listener
	State             string // one of the constants below
}

// The states that are told of. A listener is taken to begin with NotAccepting, an endpoint with Usable.
const (
	Accepting    = "accepting"
	NotAccepting = "not-accepting"
	Usable       = "usable"
	PassedOver   = "passed-over" // it has failed, and no probe has succeeded since
	Unhealthy    = "unhealthy"   // its checks say so
	Ejected      = "ejected"     // it is left out because of what became of its requests
	Drained      = "drained"     // it was taken out of the balancing
)

// change has the sweeper look at what has become of listeners and endpoints. Who calls it has changed that before.
func (s *sweeper) change() {
	s.changes.Store(true)
	s.rouse()
}

// tell tells of listeners and endpoints that are not what they were at the look before, and does what follows from that: endpoints
// that are usable again begin slowly, and a cluster with too few of them panics. The sweeper alone does it, so that what is told is in
// order, and the last that is told is what holds.
func (s *sweeper) tell(at int64) {
	if !s.changes.Swap(false) && at < s.coolAt {
		return
	}
	tell := s.f.changed
	if tell == nil {
		tell = func(Change) {}
	}
	snap := s.f.snap.Load()
	for _, l := range snap.listeners {
		if now := l.condition(); now != cmp.Or(l.told, NotAccepting) {
			l.told = now
			tell(Change{Listener: l.name, At: l.address(), State: now})
		}
	}
	for _, c := range snap.clusters {
		for _, e := range c.endpoints {
			if now := e.condition(); now != cmp.Or(e.told, Usable) {
				e.told = now
				if now == Usable {
					e.warm(at)
				}
				tell(Change{Cluster: c.policy.Name(), Endpoint: e.address, State: now})
			}
		}
		if c.judge() {
			c.tellPanic()
		}
	}
	s.coolAt = snap.cool(at)
}

func (l *listener) condition() string {
	if l.stopped.Load() || l.socket == nil || l.f.overload.gate.shut.Load() {
		return NotAccepting
	}
	return Accepting
}

func (e *upEndpoint) condition() string {
	switch h := e.policy.Health(); {
	case h.Drained:
		return Drained
	case !e.policy.Reachable():
		return PassedOver
	case h.Unhealthy:
		return Unhealthy
	case h.Ejected:
		return Ejected
	default:
		return Usable
	}
}
