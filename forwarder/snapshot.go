package forwarder

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/route"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// snapshot is one built configuration. It never changes; a new one is built beside it and swapped in whole.
type snapshot struct {
	listeners []*listener
	roads     []*road      // by listener.slot
	clusters  []*upCluster // as configured
}

// road is what the requests of one listener meet.
type road struct {
	name       string // of the route table
	codec      wire.Codec
	limits     wire.Limits
	chain      *filter.Chain
	table      *route.Table
	keys       [][]byte // that the table asks for
	targets    []*target
	maxStreams int64
	maxTimeout int64 // nanoseconds
}

// target is where a rule of a route table leads: everything that its requests need, resolved.
type target struct {
	name     string // table/rule
	service  string // that the rule asks for, "" when it asks for none
	cluster  *upCluster
	timeout  int64 // nanoseconds
	attempts uint8
	retryOn  RetryOn
	stats    *targetStats
}

// build makes a snapshot and binds its listeners. All that is wrong is reported together.
func (f *Forwarder) build(spec *Spec) (*snapshot, error) {
	s := &snapshot{}
	var errs []error
	clusters := make(map[string]*upCluster)
	for i := range spec.Clusters {
		c := newUpCluster(f, &spec.Clusters[i])
		clusters[spec.Clusters[i].Name] = c
		s.clusters = append(s.clusters, c)
	}
	tables := make(map[string]*road)
	for i := range spec.Routes {
		r, err := f.buildRoutes(&spec.Routes[i], clusters)
		if err != nil {
			errs = append(errs, err)
		}
		tables[spec.Routes[i].Name] = r // nil for one that is wrong: that it is missing would be a second fault
	}
	for i := range spec.Listeners {
		r, err := buildRoad(&spec.Listeners[i], tables, spec.MaxTimeout)
		if err != nil {
			errs = append(errs, err)
		}
		s.roads = append(s.roads, r)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	for i := range spec.Listeners {
		l, err := f.bind(&spec.Listeners[i], i)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s.listeners = append(s.listeners, l)
	}
	if len(errs) > 0 {
		for _, l := range s.listeners {
			l.stop()
		}
		return nil, errors.Join(errs...)
	}
	return s, nil
}

// buildRoutes resolves one route table.
func (f *Forwarder) buildRoutes(spec *RouteSpec, clusters map[string]*upCluster) (*road, error) {
	r := &road{name: spec.Name}
	matches := make([]route.Match, len(spec.Rules))
	for i := range spec.Rules {
		rule := &spec.Rules[i]
		matches[i] = rule.Match
		c := clusters[rule.Cluster]
		if c == nil {
			return nil, fmt.Errorf("route table %s, rule %s: there is no cluster %q", spec.Name, rule.Name, rule.Cluster)
		}
		r.targets = append(r.targets, &target{
			name:     spec.Name + "/" + rule.Name,
			service:  rule.Match.Service,
			cluster:  c,
			timeout:  int64(rule.Timeout),
			attempts: uint8(min(max(rule.Attempts, 1), maxAttempts)),
			retryOn:  rule.RetryOn,
			stats:    newTargetStats(f.reg, spec.Name, rule.Name, rule.Cluster),
		})
	}
	t, err := route.New(matches)
	if err != nil {
		return nil, fmt.Errorf("route table %s: %w", spec.Name, err)
	}
	r.table, r.keys = t, t.Keys()
	return r, nil
}

// buildRoad completes a listener's road from its route table. The road is nil where the table is wrong.
func buildRoad(spec *ListenerSpec, tables map[string]*road, maxTimeout time.Duration) (*road, error) {
	t, ok := tables[spec.Routes]
	if !ok {
		return nil, fmt.Errorf("listener %s: there is no route table %q", spec.Name, spec.Routes)
	}
	if t == nil {
		return nil, nil // the table's own fault is reported
	}
	for _, x := range t.targets {
		if x.cluster.codec.Name() != spec.Codec.Name() {
			return nil, fmt.Errorf("listener %s speaks %s, but rule %s leads to cluster %s, which speaks %s",
				spec.Name, spec.Codec.Name(), x.name, x.cluster.policy.Name(), x.cluster.codec.Name())
		}
	}
	for _, fl := range spec.Filters {
		if _, blocks := fl.(filter.Blocking); blocks {
			return nil, fmt.Errorf("listener %s: filter %s may block, and nothing on this road may", spec.Name, fl.Name())
		}
	}
	r := *t
	r.codec, r.limits = spec.Codec, spec.Limits
	r.chain = filter.NewChain(spec.Filters...)
	r.maxStreams = int64(spec.MaxStreams)
	r.maxTimeout = int64(maxTimeout)
	return &r, nil
}

// bind opens a listener's socket.
func (f *Forwarder) bind(spec *ListenerSpec, slot int) (*listener, error) {
	lc := net.ListenConfig{KeepAliveConfig: keepAlive}
	socket, err := lc.Listen(f.ctx, spec.Network, spec.Address)
	if spec.Network == "unix" && errors.Is(err, syscall.EADDRINUSE) && stale(spec.Address) {
		if err = os.Remove(spec.Address); err == nil {
			socket, err = lc.Listen(f.ctx, spec.Network, spec.Address)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("listener %s: %w", spec.Name, err)
	}
	return newListener(f, spec, socket, slot), nil
}

// stale says whether a path is a socket at which nobody listens: what a process leaves that was killed.
func stale(path string) bool {
	if info, err := os.Lstat(path); err != nil || info.Mode().Type() != fs.ModeSocket {
		return false
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = c.Close() // somebody does listen
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// keepAlive finds peers that are gone without a word: after a minute of silence, within a minute.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 15 * time.Second, Count: 4}

// leave asks the server connections to end, and returns how many there are.
func (s *snapshot) leave() int {
	n := 0
	for _, c := range s.clusters {
		c.connections(func(u *upstream) {
			u.conn.Leave()
			n++
		})
	}
	return n
}

// unsent is the number of bytes that wait to be sent to servers, in write queues or for a connection.
func (s *snapshot) unsent() int64 {
	var n int64
	for _, c := range s.clusters {
		n += c.unsent()
	}
	return n
}
