package forwarder

import (
	"math/rand/v2"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder/cluster"
)

// The balancers that a ClusterSpec can name.
const (
	BalancerLeastRequest = "least-request"
	BalancerRoundRobin   = "round-robin"
	BalancerRandom       = "random"
	BalancerMaglev       = "maglev"
)

// hashing is what a cluster with a consistent hash needs to know. Never changed.
type hashing struct {
	keys  [][]byte // the header whose value is the key of a request; none: that is the client's address
	table *cluster.MaglevTable
}

// newHashing is nil for a cluster that does not hash. The table is that of old, which may be nil, where the endpoints are
// the same.
func newHashing(spec *ClusterSpec, old *upCluster) *hashing {
	if spec.Balancer != BalancerMaglev {
		return nil
	}
	h := &hashing{}
	if spec.HashHeader != "" {
		h.keys = [][]byte{[]byte(spec.HashHeader)}
	}
	same := func(a, b EndpointSpec) bool { return a.Address == b.Address && a.Weight == b.Weight }
	if old != nil && old.hashing != nil && slices.EqualFunc(old.spec.Endpoints, spec.Endpoints, same) {
		h.table = old.hashing.table
		return h
	}
	addresses, weights := make([]string, len(spec.Endpoints)), make([]int, len(spec.Endpoints))
	for i, e := range spec.Endpoints {
		addresses[i], weights[i] = e.Address, e.Weight
	}
	h.table = cluster.NewMaglevTable(addresses, weights)
	return h
}

// balancer is the cluster's balancer over these endpoints, as they weigh now.
func (c *upCluster) balancer(endpoints []*cluster.Endpoint) cluster.Balancer {
	switch c.spec.Balancer {
	case BalancerRoundRobin:
		return cluster.NewRoundRobin(endpoints)
	case BalancerRandom:
		return cluster.NewRandom(endpoints, rand.Uint64)
	case BalancerMaglev:
		return cluster.NewMaglev(endpoints, c.hashing.table, rand.Uint64)
	default:
		return cluster.NewLeastRequest(endpoints, rand.Uint64)
	}
}

// hash is the hash of the request's key for a cluster that hashes, 0 for a request that has none.
func (b *batch) hash(h *hashing) uint64 {
	if len(h.keys) == 0 {
		client := b.x.down.client.Addr()
		if !client.IsValid() {
			return 0
		}
		bytes := client.As16()
		return cluster.Hash(bytes[:])
	}
	value := b.values[:1]
	if b.x.down.codec.Headers(&b.msg, h.keys, value) != nil || len(value[0]) == 0 {
		return 0
	}
	return cluster.Hash(value[0])
}

// warm begins an endpoint's slow start at now, if its cluster wants that.
func (e *upEndpoint) warm(now int64) {
	if d := e.cluster().spec.SlowStart; d > 0 {
		e.policy.Warm(now, now+int64(d))
	}
}

// coolGrain is how close together ends of slow starts are that are noticed together: by their ends shares are whole already.
const coolGrain = int64(100 * time.Millisecond)

// cool ends the slow starts that are over, and returns when to look again. Only the sweeper calls it.
func (s *snapshot) cool(now int64) int64 {
	next := int64(never)
	for _, c := range s.clusters {
		for _, e := range c.endpoints {
			if until := e.policy.WarmUntil(); until > 0 && !e.policy.Cool(now) {
				next = min(next, until)
			}
		}
	}
	if next == never {
		return next
	}
	return (next + coolGrain - 1) / coolGrain * coolGrain
}

// judge looks whether so few endpoints are usable that the cluster panics. Only the sweeper calls it, and who makes the cluster
// before anybody knows it. It says whether that has changed.
func (c *upCluster) judge() bool {
	now := c.policy.Panics(c.spec.PanicThreshold)
	return c.panics.Swap(now) != now
}

// tellPanic tells of a panic that has begun or ended.
func (c *upCluster) tellPanic() {
	usable := count(c.policy.Endpoints(), (*cluster.Endpoint).Usable)
	all := count(c.policy.Endpoints(), func(e *cluster.Endpoint) bool { return !e.Health().Drained })
	fields := []zap.Field{zap.String("cluster", c.policy.Name()), zap.Int("usable", usable), zap.Int("endpoints", all)}
	if c.panics.Load() {
		c.f.log.Warn("so few endpoints are usable that unhealthy and ejected ones get requests too", fields...)
	} else {
		c.f.log.Info("unhealthy and ejected endpoints get no requests any more", fields...)
	}
}
