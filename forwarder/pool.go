package forwarder

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder/cluster"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// upCluster is a cluster as one snapshot has it, and its endpoints' connections, which live on when another one takes its
// place.
type upCluster struct {
	// Static after enter.
	f            *Forwarder
	spec         ClusterSpec
	codec        wire.Codec
	policy       *cluster.Cluster
	endpoints    []*upEndpoint // those of the policy, then those that are not configured any more
	limits       cluster.Limits
	pendingBytes *cluster.Limit
	probesLeft   *cluster.Limit
	retryBytes   *cluster.Limit // of copies of requests
	retryWaits   *cluster.Limit // requests that wait to be tried again
	hashing      *hashing       // nil: the balancer does not hash
	breakers     *[numBreakers]breaker
	stats        *clusterStats
	outliers     *cluster.Outliers // nil: it ejects none, and never did
	old          *upCluster        // whose place it takes; nil behind enter

	// Atomic.
	next   atomic.Pointer[upCluster] // what has taken its place
	gone   atomic.Int64              // since when it is not configured any more; 0: it is
	panics atomic.Bool               // so few endpoints are usable that those are used too that are thought to be bad

	// Owned by the sweeper.
	probeFrom int // the endpoint whose turn it is to be probed
}

// upEndpoint is an endpoint and its pools: small frames and large ones do not share connections, so that a
// large one delays nobody's small ones, neither on its way out nor as its reply.
type upEndpoint struct {
	// Static after newUpEndpoint.
	policy           *cluster.Endpoint
	network, address string
	small, large     *pool
	uploads          *pool // of connections that are leased (pool_lease.go); nothing waits in it
	stats            *endpointStats

	// Atomic.
	home     atomic.Pointer[upCluster]      // as configured now
	record   atomic.Pointer[cluster.Record] // nil: its cluster ejects no outliers
	left     atomic.Bool                    // it is not configured any more
	unproved atomic.Int32                   // connections in a row that ended before they had delivered a frame
	probe    atomic.Pointer[probe]          // the one under way, once it has a connection

	lastFailure atomic.Pointer[failure] // nil: none that this process has seen
	check       atomic.Pointer[checked] // nil: it is not checked

	// Guarded by mu.
	mu                 sync.Mutex
	closedRX, closedTX uint64 // bytes of connections that are gone

	told string // Owned by the sweeper. The State that was told last.
}

// largeFrame is the size from which on a request goes out on a connection for large ones.
const largeFrame = 256 << 10

// newUpCluster makes a cluster that takes the place of old, nil for none, once enter is called. What they have in common lives
// on: endpoints with their connections, and what is taken of the limits.
func newUpCluster(f *Forwarder, spec *ClusterSpec, old *upCluster) *upCluster {
	c := &upCluster{
		f: f, spec: *spec, codec: spec.Codec,
		pendingBytes: cluster.NewLimit(spec.MaxPendingBytes),
		probesLeft:   cluster.NewLimit(probesAtOnce),
		retryBytes:   cluster.NewLimit(spec.MaxRetryBytes),
		retryWaits:   cluster.NewLimit(cluster.Unlimited),
		stats:        newClusterStats(f.reg, spec.Name),
		limits: cluster.Limits{
			Connections: cluster.NewLimit(spec.MaxConnections),
			Pending:     cluster.NewLimit(spec.MaxPending),
			Requests:    cluster.NewLimit(spec.MaxRequests),
		},
	}
	c.limits.Retries = cluster.NewBudget(c.limits.Requests, spec.RetryShare, spec.RetryFloor)
	if old != nil && old.codec.Name() == c.codec.Name() {
		c.old = old
		c.pendingBytes, c.probesLeft, c.limits, c.breakers = old.pendingBytes, old.probesLeft, old.limits, old.breakers
		c.retryBytes, c.retryWaits = old.retryBytes, old.retryWaits
	} else {
		c.breakers = newBreakers(&c.limits, c.pendingBytes)
	}
	c.hashing = newHashing(&c.spec, c.old)
	before := c.old.byPlace()
	for _, e := range spec.Endpoints {
		up := before[place{e.Network, e.Address}]
		if up == nil {
			up = newUpEndpoint(c, cluster.NewEndpoint(e.Address, e.Weight), e.Network, e.Address)
		}
		c.endpoints = append(c.endpoints, up)
	}
	return c
}

// enter puts the cluster into force. It is called once, before anybody knows the cluster.
func (c *upCluster) enter() {
	spec, old := &c.spec, c.old
	c.old = nil
	c.limits.Connections.SetMax(spec.MaxConnections)
	c.limits.Pending.SetMax(spec.MaxPending)
	c.limits.Requests.SetMax(spec.MaxRequests)
	c.limits.Retries.SetMax(spec.RetryShare, spec.RetryFloor)
	c.pendingBytes.SetMax(spec.MaxPendingBytes)
	c.retryBytes.SetMax(spec.MaxRetryBytes)
	policies, before := make([]*cluster.Endpoint, len(c.endpoints)), old.byPlace()
	for i, e := range c.endpoints {
		policies[i] = e.policy
		e.policy.SetWeight(spec.Endpoints[i].Weight)
		e.takeCheck(spec.Check)
		joins := e.left.Swap(false) || before[place{e.network, e.address}] == nil // it may come again before all of it is gone
		if drain := spec.Endpoints[i].Drain; !drain || joins {
			e.drain(drain) // the others when those are known that come in their place: Apply
		}
		if joins && old != nil && len(old.spec.Endpoints) > 0 { // the first endpoints that are found begin together
			e.warm(c.f.now())
		}
	}
	c.policy = cluster.New(spec.Name, policies, c.balancer(policies), c.limits)
	c.watchOutliers(policies, old)
	if old != nil {
		c.panics.Store(old.panics.Load()) // until the sweeper looks
		configured := c.byPlace()
		for _, e := range old.endpoints { // those that are not configured any more, as long as something of them is here
			if configured[place{e.network, e.address}] != e && (!e.left.Load() || !e.over()) { // until it has left it may be picked
				c.endpoints = append(c.endpoints, e)
			}
		}
	}
	for _, e := range c.endpoints { // last: by these others find the cluster
		e.home.Store(c)
	}
}

// place is where an endpoint is.
type place struct{ network, address string }

// byPlace are the endpoints of a cluster, which may be nil. Of two at one place the first counts: the other has left.
func (c *upCluster) byPlace() map[place]*upEndpoint {
	if c == nil {
		return nil
	}
	all := make(map[place]*upEndpoint, len(c.endpoints))
	for _, e := range slices.Backward(c.endpoints) {
		all[place{e.network, e.address}] = e
	}
	return all
}

// latest is the cluster as it is configured now: an exchange that has chosen its rule goes where the rule's cluster leads by
// the time.
func (c *upCluster) latest() *upCluster {
	if c == nil {
		return nil
	}
	for next := c.next.Load(); next != nil; next = c.next.Load() {
		c = next
	}
	return c
}

// leave takes an endpoint that is not configured any more out of the balancing: what is under way ends, what waits goes
// elsewhere, and the connections close.
func (e *upEndpoint) leave() {
	e.left.Store(true)
	e.uncheck()
	e.drain(true)
}

// over says whether nothing of an endpoint that is not configured any more is left.
func (e *upEndpoint) over() bool {
	for _, p := range e.pools() {
		p.mu.Lock()
		busy := len(p.waiting) > 0 || p.dialling || len(*p.conns.Load()) > 0 || p.leases.dialling > 0 || len(p.leases.waiting) > 0
		p.mu.Unlock()
		if busy {
			return false
		}
	}
	return e.policy.Active() == 0
}

func newUpEndpoint(c *upCluster, policy *cluster.Endpoint, network, address string) *upEndpoint {
	e := &upEndpoint{
		policy: policy, network: network, address: address,
		stats: newEndpointStats(c.f.reg, c.spec.Name, address),
	}
	e.home.Store(c)
	e.small, e.large, e.uploads = newPool(e), newPool(e), newPool(e)
	return e
}

// name is the endpoint's address as a configuration has it.
func (e *upEndpoint) name() string {
	if e.network == "unix" {
		return "unix:" + e.address
	}
	return e.address
}

// cluster is the endpoint's cluster as it is configured now.
func (e *upEndpoint) cluster() *upCluster { return e.home.Load() }

// addLeftover adds an endpoint that the balancer does not know, for what is under way to it, and returns its index.
func (c *upCluster) addLeftover(address string) int {
	policy := cluster.NewEndpoint(address, cluster.MinWeight)
	policy.Drain(true)
	e := newUpEndpoint(c, policy, "", address)
	e.left.Store(true)
	c.endpoints = append(c.endpoints, e)
	return len(c.endpoints) - 1
}

// pool is the connections to one endpoint that requests share, and the exchanges that wait for one. It dials
// when somebody needs a connection, one at a time.
type pool struct {
	// Static after newPool.
	endpoint *upEndpoint

	// Atomic. The slice is replaced, never changed; written under mu.
	conns atomic.Pointer[[]*upstream]

	// Guarded by mu.
	mu        sync.Mutex
	waiting   []waiter
	dialling  bool
	notBefore int64 // after a failed dial beside connections that work: when to try again
	closed    bool
	leases    leases // of the pool of uploads
}

// waiter is an exchange that waits for a connection, and its request, in a buffer of its own.
type waiter struct {
	x     exchange
	frame []byte
	held  int // bytes of memory
}

func newPool(e *upEndpoint) *pool {
	p := &pool{endpoint: e}
	p.conns.Store(new([]*upstream))
	return p
}

// pool is the pool for a frame of this size. Where there is no connection to be had for its kind, it shares those
// of the other.
func (e *upEndpoint) pool(size int) *pool {
	p := e.small
	if size >= largeFrame {
		p = e.large
	}
	if other := p.other(); !p.promising() && other.staying() > 0 {
		return other
	}
	return p
}

// other is the endpoint's other pool.
func (p *pool) other() *pool {
	if p == p.endpoint.small {
		return p.endpoint.large
	}
	return p.endpoint.small
}

// promising says whether the pool has a connection, or may get one.
func (p *pool) promising() bool {
	if p.staying() > 0 {
		return true
	}
	c := p.endpoint.cluster()
	if !p.endpoint.policy.Reachable() {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dialling || c.policy.Limits().Connections.Left() > 0 && c.f.now() >= p.notBefore
}

// works says whether there is a connection to the endpoint.
func (e *upEndpoint) works() bool {
	return e.small.staying() > 0 || e.large.staying() > 0
}

// pools are all pools, for those that concern all connections.
func (e *upEndpoint) pools() [3]*pool { return [3]*pool{e.small, e.large, e.uploads} }

// ready returns the connection with the fewest streams among those that can take another frame, or nil. Where
// it has streams and there may be more connections, one is dialled meanwhile.
func (p *pool) ready() *upstream {
	conns := *p.conns.Load()
	most := p.endpoint.cluster().spec.ConnectionsPerEndpoint
	if len(conns) == 1 && most == 1 {
		return p.usable() // nothing to choose from, nothing to dial
	}
	var best *upstream
	streams, open := 0, 0
	for _, u := range conns {
		if u.stays() {
			open++
		}
		if !u.takes() {
			continue
		}
		if n := u.table.Len(); best == nil || n < streams {
			best, streams = u, n
		}
	}
	if streams > 0 && open < most {
		p.mu.Lock()
		p.wantDial()
		p.mu.Unlock()
	}
	return best
}

// usable is a connection that can take another frame, or nil; unlike ready it dials none.
func (p *pool) usable() *upstream {
	for _, u := range *p.conns.Load() {
		if u.takes() {
			return u
		}
	}
	return nil
}

// staying counts the connections that are not about to leave.
func (p *pool) staying() int {
	n := 0
	for _, u := range *p.conns.Load() {
		if u.stays() {
			n++
		}
	}
	return n
}

// queueHigh is the high watermark of an upstream's write queue, in bytes: above it exchanges wait, and from half
// of it down they go on.
const queueHigh = 1 << 20

// wantDial starts a dial if there may be one more connection, and reports whether a dial is under way. Called
// with mu held.
func (p *pool) wantDial() bool {
	c := p.endpoint.cluster()
	switch {
	case c.f.resting.Load():
		return true // as soon as the road goes on
	case !p.endpoint.policy.Reachable():
		return false // a probe finds out whether it works, or it drains
	case p.dialling:
		return true
	case p.closed, p.staying() >= c.spec.ConnectionsPerEndpoint:
		return false
	case p.endpoint.works() && c.f.now() < p.notBefore:
		return false
	case !c.takeConnection():
		return false
	}
	p.dialling = true
	c.f.dialling.Go(p.dial) // ends within connect_timeout, or with the shift
	return true
}

// takeConnection takes the place for one more connection of the cluster, and of the process.
func (c *upCluster) takeConnection() bool {
	connections := c.policy.Limits().Connections
	if connections.TryAcquire(1) == 0 {
		return false
	}
	if !c.f.overload.mayDial() {
		connections.Release(1)
		return false
	}
	return true
}

// dial makes one connection and serves those that waited for it.
func (p *pool) dial() {
	u, err := p.connect()
	if err != nil {
		p.failed(err)
		return
	}
	p.add(u)
	p.serve()
}

// errInterrupted ends a dial because of a pause, which is not the endpoint's fault.
var errInterrupted = errors.New("interrupted by a pause")

// connect makes one connection to the endpoint, within connect_timeout. It runs in the group of dials.
func (p *pool) connect() (*upstream, error) {
	e := p.endpoint
	f := e.cluster().f
	shift := f.shiftCtx()
	ctx, cancel := context.WithTimeout(shift, e.cluster().spec.ConnectTimeout)
	defer cancel()
	dialer := net.Dialer{KeepAliveConfig: keepAlive()}
	c, err := dialer.DialContext(ctx, e.network, e.address)
	switch {
	case err != nil && shift.Err() != nil && f.ctx.Err() == nil:
		return nil, errInterrupted
	case err != nil:
		return nil, err
	}
	u, err := newUpstream(p, c)
	if err != nil {
		return nil, err
	}
	e.stats.dials.Add(1)
	f.log.Debug("endpoint connected", zap.String("cluster", e.cluster().policy.Name()), zap.String("endpoint", e.address))
	return u, nil
}

// add makes a new connection the pool's and starts its read loop.
func (p *pool) add(u *upstream) {
	f := p.endpoint.cluster().f
	u.become(stateReady)
	p.mu.Lock()
	p.dialled() // with what follows, so that none who looks counts the connection twice
	p.notBefore = 0
	closed := p.closed
	conns := append(slices.Clone(*p.conns.Load()), u)
	p.conns.Store(&conns)
	p.mu.Unlock()
	if closed {
		u.conn.Close(ReasonStopping)
	}
	if p.endpoint.policy.Health().Drained { // who drained it has seen the connection, or we see that
		u.drain(ReasonEndpointDrained)
	}
	f.sweep.connected()
	f.reading.Go(u.run) // ends when the connection is closed
}

// dialled notes that a dial has ended. Called with mu held.
func (p *pool) dialled() {
	if p == p.endpoint.uploads {
		p.leases.dialling--
	} else {
		p.dialling = false
	}
}

// failed ends a dial in vain: those that waited for it try elsewhere, or are answered.
func (p *pool) failed(err error) {
	e := p.endpoint
	f := e.cluster().f
	e.cluster().policy.Limits().Connections.Release(1)
	if errors.Is(err, errInterrupted) {
		p.mu.Lock()
		p.dialled()
		p.mu.Unlock()
		if !f.resting.Load() { // else Resume does it
			p.rekindle()
		}
		return
	}
	if f.ctx.Err() == nil {
		e.note(f.now(), ReasonConnectFailure, err.Error())
		if !e.works() && (p != e.uploads || p.staying() == 0) {
			e.failed(f.now()) // else it works, and does just not take more connections
		}
		e.stats.failures.Add(1)
		if n, ok := f.warn(e.address, ReasonConnectFailure); ok {
			f.log.Warn("an endpoint cannot be connected", zap.String("check", advice[ReasonConnectFailure]), zap.String("cluster", e.cluster().policy.Name()),
				zap.String("endpoint", e.address), zap.Error(err), zap.Uint64("suppressed", n))
		}
	}
	p.mu.Lock()
	p.dialled()
	p.notBefore = f.now() + extraDialPause
	var waiting []waiter
	if p.staying() == 0 {
		waiting, p.waiting = p.waiting, nil
	}
	p.mu.Unlock()
	if p.other().staying() > 0 {
		f.resumeAll(waiting, phaseSend, "") // they share after all
		return
	}
	f.resumeAll(waiting, phaseRetry, ReasonConnectFailure)
}

// extraDialPause is how long a pool that has connections waits behind a failed dial for one more.
const extraDialPause = int64(time.Second)

// close closes all connections, and those that are still being dialled.
func (c *upCluster) close() {
	for _, e := range c.endpoints {
		for _, p := range e.pools() {
			p.mu.Lock()
			p.closed = true
			waiting := p.waiting
			p.waiting = nil
			p.mu.Unlock()
			for _, u := range *p.conns.Load() {
				u.conn.Close(ReasonStopping)
			}
			c.f.concludeAll(waiting, wire.ConnectionClosed, ReasonDraining)
		}
	}
}

// connections calls fn for every connection.
func (c *upCluster) connections(fn func(*upstream)) {
	for _, e := range c.endpoints {
		for _, p := range e.pools() {
			for _, u := range *p.conns.Load() {
				fn(u)
			}
		}
	}
}

// unsent is the number of bytes that wait to be sent, in write queues or for a connection.
func (c *upCluster) unsent() int64 {
	n := int64(c.pendingBytes.Used())
	c.connections(func(u *upstream) { n += u.conn.Queued() })
	return n
}

// bytes are the bytes read from and written to an endpoint so far.
func (e *upEndpoint) bytes() (rx, tx uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	rx, tx = e.closedRX, e.closedTX
	for _, p := range e.pools() {
		for _, u := range *p.conns.Load() {
			if u.counted {
				continue
			}
			r, t := u.conn.Bytes()
			rx += r
			tx += t
		}
	}
	return rx, tx
}
