// Package cluster decides where a request may go: which endpoint, whether it is usable, whether there is room.
//
// It is policy only. It opens no connection, reads no clock and starts no goroutine: times are nanoseconds of
// whatever monotonic clock the caller uses, and what happened to a connection is told to the endpoint by who
// saw it. The connections themselves, and what waits for one, are the caller's.
//
// Everything here may be used by any number of goroutines at once, and nothing takes a lock.
package cluster

// Balancer chooses among the endpoints that it was built with.
type Balancer interface {
	// Pick returns the index of an endpoint that serves what is asked (see Ask), -1 when none does: when each has
	// failed, and no probe has succeeded since, or is drained. A request then fails at once: none is spent on
	// finding out.
	Pick(ask Ask) int
}

// Ask is what a pick goes by. It has no more fields than the compiler keeps in registers.
type Ask struct {
	Avoid int  // the endpoint tried last, which is taken only if no other serves; -1 avoids none
	Panic bool // endpoints serve that are only thought to be bad: Reachable is enough, and need not be Usable
	Now   int64
	Hash  uint64 // for a Maglev: that of the request's key; 0: it has none
}

// Limits are the bounds of one cluster. A nil Limit does not bound.
type Limits struct {
	Connections *Limit // to all endpoints together, being dialled included
	Pending     *Limit // exchanges that wait for a connection
	Requests    *Limit // exchanges under way
	Retries     *Limit // of Requests, those beyond their first try
}

// Cluster is a name for endpoints that can stand in for each other. Static after New.
type Cluster struct {
	name      string
	endpoints []*Endpoint
	balancer  Balancer
	limits    Limits
}

// New ties a cluster together. The balancer must have been built with the same endpoints in the same order;
// indexes are indexes into them.
func New(name string, endpoints []*Endpoint, balancer Balancer, limits Limits) *Cluster {
	for _, l := range []**Limit{&limits.Connections, &limits.Pending, &limits.Requests, &limits.Retries} {
		if *l == nil {
			*l = NewLimit(Unlimited)
		}
	}
	return &Cluster{name: name, endpoints: endpoints, balancer: balancer, limits: limits}
}

// Name is the cluster's name in the configuration and in metrics.
func (c *Cluster) Name() string { return c.name }

// Endpoints are the cluster's endpoints. The caller must not change the slice.
func (c *Cluster) Endpoints() []*Endpoint { return c.endpoints }

// Limits are the cluster's bounds; none is nil.
func (c *Cluster) Limits() *Limits { return &c.limits }

// Pick returns the index of the endpoint that the next try should use, or -1; see Balancer.
func (c *Cluster) Pick(ask Ask) int { return c.balancer.Pick(ask) }
