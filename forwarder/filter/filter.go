// Package filter is the contract of exchange filters: code that sees a request before it is routed, behind the
// route, and the reply on its way back, and that may let it pass or answer it here.
//
// A filter is one object for all exchanges of a chain, so it is safe for concurrent use and keeps nothing of
// an exchange: Exchange and the frame that it shows are a loan until the method returns. A filter in which a
// call may block says so by its type (Blocking), because it then must not run on a read loop.
package filter

import (
	"net/netip"
	"slices"

	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// Exchange is what a filter sees of a request and, on the way back, of its reply.
type Exchange struct {
	// Message is the request, or in OnReply the reply: a view that dies when the method returns.
	Message *wire.Message
	// Codec is the protocol of both sides.
	Codec wire.Codec
	// Client is the address of the downstream's peer.
	Client netip.AddrPort
	// Listener, Route and Cluster are names; the latter two are empty before the route is known.
	Listener, Route, Cluster string
}

// Verdict is what a filter wants done. The zero Verdict lets the exchange go on.
type Verdict struct {
	// Reason stops the exchange when it is not empty: it is answered here, with Status. It is a constant,
	// because it becomes the value of the metric label "reason".
	Reason string
	Status wire.Status
}

// Continue lets the exchange go on.
var Continue Verdict

// Stop answers the exchange here with this status, for this reason.
func Stop(status wire.Status, reason string) Verdict { return Verdict{Reason: reason, Status: status} }

// Stopped says whether the verdict ends the exchange.
func (v Verdict) Stopped() bool { return v.Reason != "" }

// Filter is what all filters share; what it can do it says by implementing some of the interfaces below.
type Filter interface {
	// Name is the filter's name in the configuration, in logs and in metrics.
	Name() string
}

// BeforeRoute filters see a request before its route is known.
type BeforeRoute interface {
	BeforeRoute(*Exchange) Verdict
}

// AfterRoute filters see a request whose route is known.
type AfterRoute interface {
	AfterRoute(*Exchange) Verdict
}

// OnReply filters see the reply. A verdict that stops replaces it by a local one.
type OnReply interface {
	OnReply(*Exchange) Verdict
}

// Blocking filters may block in any of their methods, so they run on a worker, never on a read loop.
type Blocking interface {
	Filter
	// MayBlock has no body worth calling: having it is the statement.
	MayBlock()
}

// Chain is a list of filters, sorted by phase once, when a snapshot is built.
type Chain struct {
	before []BeforeRoute
	after  []AfterRoute
	reply  []OnReply
}

// NewChain sorts filters, which keep their order within each phase.
func NewChain(filters ...Filter) *Chain {
	c := &Chain{}
	for _, f := range filters {
		if f, ok := f.(BeforeRoute); ok {
			c.before = append(c.before, f)
		}
		if f, ok := f.(AfterRoute); ok {
			c.after = append(c.after, f)
		}
		if f, ok := f.(OnReply); ok {
			c.reply = append(c.reply, f)
		}
	}
	return c
}

// HasBeforeRoute says whether any filter wants to see requests before their route is known.
func (c *Chain) HasBeforeRoute() bool { return c != nil && len(c.before) > 0 }

// HasAfterRoute says whether any filter wants to see requests whose route is known.
func (c *Chain) HasAfterRoute() bool { return c != nil && len(c.after) > 0 }

// HasOnReply says whether any filter wants to see replies.
func (c *Chain) HasOnReply() bool { return c != nil && len(c.reply) > 0 }

// BeforeRoute asks the filters in order, up to the first that stops.
func (c *Chain) BeforeRoute(x *Exchange) Verdict {
	for _, f := range c.before {
		if v := f.BeforeRoute(x); v.Stopped() {
			return v
		}
	}
	return Continue
}

// AfterRoute asks the filters in order, up to the first that stops.
func (c *Chain) AfterRoute(x *Exchange) Verdict {
	for _, f := range c.after {
		if v := f.AfterRoute(x); v.Stopped() {
			return v
		}
	}
	return Continue
}

// OnReply asks the filters in reverse order, up to the first that stops.
func (c *Chain) OnReply(x *Exchange) Verdict {
	for _, f := range slices.Backward(c.reply) {
		if v := f.OnReply(x); v.Stopped() {
			return v
		}
	}
	return Continue
}
