package forwarder

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"slices"
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
	limits    ruleLimits
	leftover  leftover

	leaveTimeout time.Duration
}

// leftover is what connections are adopted with whose listener or cluster is not configured any more.
type leftover struct {
	listener ListenerSpec
	cluster  ClusterSpec
}

// road is what the requests of one listener meet.
type road struct {
	name       string // of the route table
	codecs     []wire.Codec
	limits     wire.Limits
	worker     bool          // every exchange runs on a worker, because it is asked for or because a filter may block
	chain      *filter.Chain // before the route is known
	table      *route.Table
	keys       [][]byte // that the table asks for, then the service and the method where they are not among them
	service    int      // indexes into keys
	method     int
	rules      []rule
	maxStreams int64
	maxTimeout int64 // nanoseconds
	detect     int64 // nanoseconds from a connection's first byte to its protocol; 0: the only codec speaks it
	pieces     int   // size of a frame from which on it is passed on in pieces
}

// rule is where a rule of a route table leads: to one of its targets, each as often as its share says.
type rule struct {
	targets []*target
	shares  *route.Shares // nil for a single target
}

// pick is the target of the next request.
func (r *rule) pick() *target {
	if r.shares == nil {
		return r.targets[0]
	}
	return r.targets[r.shares.Pick()]
}

// target is one cluster of a rule, for the requests of one listener: everything that they need, resolved.
type target struct {
	name     string     // table/rule
	cluster  *upCluster // nil: answered here, with reply
	reply    wire.Status
	chain    *filter.Chain
	worker   bool        // its exchanges run on a worker, because a filter may block
	edits    []wire.Edit // of the header block, each time a request is sent
	timeout  int64       // nanoseconds
	attempts uint8
	priority Priority
	retryOn  RetryOn
	perTry   int64 // nanoseconds; 0: a try has as long as the request
	backOff  backOff
	limit    *ruleLimit // nil: the rule's requests in flight have no bound
	stats    *targetStats
}

// clusterName is the name of the target's cluster, "" where there is none.
func (t *target) clusterName() string {
	if t.cluster == nil {
		return ""
	}
	return t.cluster.spec.Name
}

// build makes a snapshot that takes the place of old, which may be empty, and binds what listeners it adds. Nobody notices
// before enter. All that is wrong is reported together.
func (f *Forwarder) build(spec *Spec, old *snapshot) (*snapshot, error) {
	s := &snapshot{leftover: leftover{spec.LeftoverListener, spec.LeftoverCluster}, leaveTimeout: spec.LeaveTimeout}
	var errs []error
	clusters := make(map[string]*upCluster)
	for i := range spec.Clusters {
		c := newUpCluster(f, &spec.Clusters[i], old.clusterLike(&spec.Clusters[i]))
		clusters[spec.Clusters[i].Name] = c
		s.clusters = append(s.clusters, c)
	}
	s.limits = newRuleLimits(spec, old.limits)
	tables := make(map[string]*routes)
	for i := range spec.Routes {
		r, err := buildRoutes(&spec.Routes[i], clusters)
		if err != nil {
			errs = append(errs, err)
		}
		tables[spec.Routes[i].Name] = r // nil for one that is wrong: that it is missing would be a second fault
	}
	s.roads = slices.Clone(old.roads)
	for i := range spec.Listeners {
		r, err := f.buildRoad(&spec.Listeners[i], tables, clusters, s.limits, spec.MaxTimeout)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s.place(&spec.Listeners[i], r, old)
	}
	if len(errs) > 0 {
		f.discard(s, old)
		return nil, errors.Join(errs...)
	}
	for i, l := range s.listeners {
		if l.f != nil {
			continue // it listens already
		}
		if err := f.bind(l, &spec.Listeners[i], old); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		f.discard(s, old)
		return nil, errors.Join(errs...)
	}
	return s, nil
}

// place gives a listener its slot: that which it has, or a free one.
func (s *snapshot) place(spec *ListenerSpec, r *road, old *snapshot) {
	l := old.listenerAt(spec)
	if l == nil {
		taken := func(slot int) bool {
			has := func(l *listener) bool { return l.slot == slot }
			return slices.ContainsFunc(s.listeners, has) || slices.ContainsFunc(old.listeners, has)
		}
		l = &listener{slot: 0}
		for taken(l.slot) {
			l.slot++
		}
	}
	for len(s.roads) <= l.slot {
		s.roads = append(s.roads, nil)
	}
	s.roads[l.slot] = r
	s.listeners = append(s.listeners, l)
}

// listenerAt is the listener of this name at this address, nil if there is none.
func (s *snapshot) listenerAt(spec *ListenerSpec) *listener {
	for _, l := range s.listeners {
		if l.name == spec.Name && l.network == spec.Network && l.at == spec.Address && !l.leaving.Load() {
			return l
		}
	}
	return nil
}

// endpoints are those of all clusters.
func (s *snapshot) endpoints() map[*upEndpoint]bool {
	out := make(map[*upEndpoint]bool)
	for _, c := range s.clusters {
		for _, e := range c.endpoints {
			out[e] = true
		}
	}
	return out
}

// clusterNamed is the cluster of this name, nil if there is none.
func (s *snapshot) clusterNamed(name string) *upCluster {
	for _, c := range s.clusters {
		if c.spec.Name == name {
			return c
		}
	}
	return nil
}

// clusterLike is the cluster whose place one of this spec takes: of those of its name that which speaks its protocol, because of one
// that has changed it both may be here.
func (s *snapshot) clusterLike(spec *ClusterSpec) *upCluster {
	for _, c := range s.clusters {
		if c.spec.Name == spec.Name && c.codec.Name() == spec.Codec.Name() {
			return c
		}
	}
	return nil
}

// routes is a route table and what it was made from.
type routes struct {
	spec  *RouteSpec
	table *route.Table
}

// buildRoutes checks and builds one route table.
func buildRoutes(spec *RouteSpec, clusters map[string]*upCluster) (*routes, error) {
	matches := make([]route.Match, len(spec.Rules))
	for i := range spec.Rules {
		matches[i] = spec.Rules[i].Match
		for _, share := range spec.Rules[i].Clusters {
			if clusters[share.Cluster] == nil {
				return nil, fmt.Errorf("route table %s, rule %s: there is no cluster %q", spec.Name, spec.Rules[i].Name, share.Cluster)
			}
		}
	}
	t, err := route.New(matches)
	if err != nil {
		return nil, fmt.Errorf("route table %s: %w", spec.Name, err)
	}
	return &routes{spec, t}, nil
}

// buildRoad makes a listener's road along its route table. The road is nil where the table is wrong.
func (f *Forwarder) buildRoad(spec *ListenerSpec, tables map[string]*routes, clusters map[string]*upCluster, limits ruleLimits, maxTimeout time.Duration) (*road, error) {
	t, ok := tables[spec.Routes]
	if !ok {
		return nil, fmt.Errorf("listener %s: there is no route table %q", spec.Name, spec.Routes)
	}
	if t == nil {
		return nil, nil // the table's own fault is reported
	}
	if err := act(spec.Filters, filter.AtListener); err != nil {
		return nil, fmt.Errorf("listener %s: %w", spec.Name, err)
	}
	r := &road{
		name: t.spec.Name, codecs: spec.Codecs, limits: spec.Limits, table: t.table,
		chain: filter.NewChain(spec.Filters, nil), maxStreams: int64(spec.MaxStreams), maxTimeout: int64(maxTimeout),
		detect: int64(spec.DetectTimeout), pieces: spec.StreamAbove,
	}
	r.worker = spec.Forwarding == ForwardWorker || r.chain.Blocks()
	r.keys = slices.Clone(t.table.Keys())
	r.service, r.method = r.key(route.ServiceKey), r.key(route.MethodKey)
	for i := range t.spec.Rules {
		rule, err := f.buildRule(spec, t.spec.Name, &t.spec.Rules[i], clusters, limits)
		if err != nil {
			return nil, fmt.Errorf("listener %s: rule %s/%s: %w", spec.Name, t.spec.Name, t.spec.Rules[i].Name, err)
		}
		r.rules = append(r.rules, rule)
	}
	return r, nil
}

// detectProtocol is what a listener is said to speak whose clients' protocol is detected.
const detectProtocol = "auto"

// protocol is the name of what the listener speaks.
func (r *road) protocol() string {
	if r.detect > 0 {
		return detectProtocol
	}
	return r.codecs[0].Name()
}

// key is the index of a header key among those that are looked up.
func (r *road) key(name string) int {
	for i, k := range r.keys {
		if string(k) == name {
			return i
		}
	}
	r.keys = append(r.keys, []byte(name))
	return len(r.keys) - 1
}

// act refuses filters that nothing would ever ask at their place.
func act(filters []filter.Filter, at filter.Place) error {
	for _, f := range filters {
		if !filter.Acts(f, at) {
			return fmt.Errorf("filter %s: it has nothing to do at this place", f.Name())
		}
	}
	return nil
}

// buildRule resolves one rule for a listener.
func (f *Forwarder) buildRule(l *ListenerSpec, table string, spec *RuleSpec, clusters map[string]*upCluster, limits ruleLimits) (rule, error) {
	if err := act(spec.Filters, filter.AtRule); err != nil {
		return rule{}, err
	}
	chain := filter.NewChain(l.Filters, spec.Filters)
	if chain.Blocks() && l.Forwarding == ForwardInline {
		return rule{}, errors.New("a filter may block, and forwarding is inline")
	}
	if spec.RetryOn&retrySent != 0 && !spec.Idempotent {
		return rule{}, errors.New("requests may be sent again after they were sent, and the rule does not say that they are idempotent")
	}
	retryOn := spec.RetryOn
	if retryOn&RetryReset != 0 {
		retryOn |= RetryResetBeforeSend // who may be sent twice may be sent once
	}
	common := target{
		name: table + "/" + spec.Name, reply: spec.Reply, chain: chain,
		worker: chain.Blocks(), edits: spec.Headers, timeout: int64(spec.Timeout),
		attempts: uint8(min(max(spec.Attempts, 1), maxAttempts)), retryOn: retryOn, priority: spec.Priority,
		perTry: int64(spec.perTry()), backOff: backOff{int64(spec.BackOffBase), int64(spec.BackOffMax)},
	}
	if spec.MaxRequests > 0 {
		common.limit = limits.bounds[common.name]
	}
	if len(spec.Clusters) == 0 {
		common.stats = newTargetStats(f.reg, table, spec.Name, "")
		return rule{targets: []*target{&common}}, nil
	}
	var out rule
	var weights []int
	for _, share := range spec.Clusters {
		t := common
		t.cluster = clusters[share.Cluster]
		t.stats = newTargetStats(f.reg, table, spec.Name, share.Cluster)
		if speaks := t.cluster.codec.Name(); !slices.ContainsFunc(l.Codecs, func(c wire.Codec) bool { return c.Name() == speaks }) {
			return rule{}, fmt.Errorf("cluster %s speaks %s, and the listener does not", share.Cluster, speaks)
		}
		out.targets = append(out.targets, &t)
		weights = append(weights, share.Weight)
	}
	if len(weights) > 1 {
		out.shares = route.NewShares(weights)
	}
	return out, nil
}

// bind opens a listener's socket and makes the listener, which has its slot already. A socket that another listener has
// until now, under another name, is shared with it.
func (f *Forwarder) bind(l *listener, spec *ListenerSpec, old *snapshot) error {
	socket, inherited, err := spec.Socket, spec.Socket != nil, error(nil)
	var twin *listener
	for _, o := range old.listeners {
		if socket == nil && o.sharable() && o.network == spec.Network && o.at == spec.Address {
			if socket, err = o.share(); err != nil {
				return fmt.Errorf("listener %s: %w", spec.Name, err)
			}
			inherited, twin = true, o
		}
	}
	if socket == nil {
		if socket, err = f.listen(spec); err != nil {
			return fmt.Errorf("listener %s: %w", spec.Name, err)
		}
	}
	l.init(f, spec, socket, inherited)
	if l.twin = twin; twin != nil {
		l.kept.Store(true) // until takeFile
	}
	return nil
}

// listen opens a socket.
func (f *Forwarder) listen(spec *ListenerSpec) (net.Listener, error) {
	lc := net.ListenConfig{KeepAlive: -1} // each connection gets its own: admit
	socket, err := lc.Listen(f.ctx, spec.Network, spec.Address)
	if spec.Network == "unix" && errors.Is(err, syscall.EADDRINUSE) && stale(spec.Address) {
		if err = os.Remove(spec.Address); err == nil {
			socket, err = lc.Listen(f.ctx, spec.Network, spec.Address)
		}
	}
	if err != nil {
		return nil, err
	}
	if u, ok := socket.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // another process may have it; stop removes it
	}
	return socket, nil
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

// keepAlive finds peers that are gone without a word: after about a minute of silence, within about a minute. Each connection has
// times of its own: when ten thousand that were made at once are asked at once, the kernel drops probes and answers, and takes those
// for peers that are gone.
func keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{
		Enable: true, Count: 4,
		Idle:     48*time.Second + rand.N(24*time.Second),
		Interval: 12*time.Second + rand.N(6*time.Second),
	}
}

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
