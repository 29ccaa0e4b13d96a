// Package source is the connection filter that admits clients by the network that they come from.
package source

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/relevo-proxy/relevo/forwarder/filter"
)

// ReasonDenied closes a connection from a network that may not come in.
const ReasonDenied = "source-denied"

// Filter is a filter.ConnectionFilter.
type Filter struct {
	// Static after New.
	allow, deny networks
}

// New returns a filter that denies what comes from a network of deny and, where allow is not empty, what comes from
// none of allow. Where both hold an address, it is denied. IPv4 addresses in IPv6 form (::ffff:a.b.c.d), and networks
// of such, count as the IPv4 ones that they mean; ::/0 is all other IPv6 addresses. A client on a unix socket has no
// address: it is not looked at, and let in.
//
// A connection costs a binary search in each list.
func New(allow, deny []netip.Prefix) *Filter {
	return &Filter{allow: newNetworks(allow), deny: newNetworks(deny)}
}

// Name is "source".
func (*Filter) Name() string { return "source" }

// New implements filter.ConnectionFilter.
func (f *Filter) New(c *filter.Connection) any { return &client{f, c.Client.Addr()} }

// client is the filter at one connection.
type client struct {
	filter  *Filter
	address netip.Addr // zero for a unix socket
}

// OnNew denies what may not come in.
func (c *client) OnNew() filter.Next {
	if c.address.IsValid() && !c.filter.allows(c.address) {
		return filter.Close(ReasonDenied)
	}
	return filter.Pass
}

func (f *Filter) allows(a netip.Addr) bool {
	a = a.Unmap().WithZone("") // no network has a zone
	return !f.deny.contain(a) && (len(f.allow) == 0 || f.allow.contain(a))
}

// networks is a set of addresses: sorted, and none lies in another. So the only one that can hold an address is the
// last that does not begin behind it.
type networks []netip.Prefix

func newNetworks(list []netip.Prefix) networks {
	sorted := make([]netip.Prefix, len(list))
	for i, p := range list {
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		sorted[i] = p.Masked()
	}
	slices.SortFunc(sorted, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	var out networks
	for _, p := range sorted {
		if n := len(out); n == 0 || !out[n-1].Contains(p.Addr()) {
			out = append(out, p)
		}
	}
	return out
}

func (n networks) contain(a netip.Addr) bool {
	i, found := slices.BinarySearchFunc(n, a, func(p netip.Prefix, a netip.Addr) int { return p.Addr().Compare(a) })
	if !found {
		i-- // the one that begins before it
	}
	return i >= 0 && n[i].Contains(a)
}
