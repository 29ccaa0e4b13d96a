// Package filter is an example: a filter that lets only requests of known tenants pass. docs/filters.md says how it
// is put into a road.
package filter

import (
	"errors"

	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// ReasonNoTenant is why a request is answered that does not say whose it is, or says somebody who is not known. The reason
// of a verdict is a constant, because it becomes a metric's label: never what a client sent.
const ReasonNoTenant = "no-tenant"

// header is the key whose value is the tenant.
const header = "app"

// Tenants is the filter. Static after NewTenants: it is one object for all exchanges, which many goroutines ask at once.
type Tenants struct {
	key   []byte // kept here, because a slice that is made for each request is an allocation
	known map[string]bool
}

// What a filter can do it says by its methods, so one that is spelt wrong would be silently never asked. This line is what
// notices.
var _ filter.BeforeRoute = (*Tenants)(nil)

// NewTenants makes the filter that lets pass what has one of these tenants in its header app.
func NewTenants(known ...string) (*Tenants, error) {
	if len(known) == 0 {
		return nil, errors.New("tenant: none is known, so nothing would pass")
	}
	f := &Tenants{key: []byte(header), known: map[string]bool{}}
	for _, name := range known {
		if name == "" {
			return nil, errors.New("tenant: a name is empty, and so is the header of those who send none")
		}
		f.known[name] = true
	}
	return f, nil
}

// Name implements filter.Filter.
func (*Tenants) Name() string { return "tenant" }

// BeforeRoute refuses the request of anybody who is not known. The value lies in the frame, and is not kept. Looking it up
// needs no copy: the compiler sees that the string does not outlive the line.
func (f *Tenants) BeforeRoute(x *filter.Exchange) filter.Verdict {
	if !f.known[string(x.Header(f.key))] {
		return filter.Stop(wire.ServerException, ReasonNoTenant)
	}
	return filter.Continue
}
