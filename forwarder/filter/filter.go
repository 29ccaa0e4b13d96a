// Package filter is the contract of filters: code that sees what passes along the road and may let it pass, change
// it, hold it, or answer it here. Exchange filters see requests and replies; connection filters (connection.go) see
// connections and their bytes. Each filter is a folder of its own below this one.
//
// An exchange filter is one object for all exchanges of a chain, so it is safe for concurrent use and keeps nothing
// of an exchange: Exchange and the frame that it shows are a loan until the method returns. In which phase it
// acts, and whether it may block there, a filter says by its type: by the methods that it has. One that may block runs
// on a worker, and everything else of its route with it; only a request that is passed on in pieces stays on the read
// loop of its client, which has nothing else to do meanwhile.
package filter

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// Exchange is what a filter sees of a request and, on the way back, of its reply.
type Exchange struct {
	// Message is the request, or in OnReply the reply: a view that dies when the method returns or Edit is called.
	Message *wire.Message
	// Head says that of Message, a request that is passed on in pieces, only the head is there: it has no content.
	Head bool
	// Codec is the protocol of both sides.
	Codec wire.Codec
	// MaxHeader bounds the header block that Edit may make, in bytes.
	MaxHeader int
	// Client is the address of the downstream's peer, zero for a unix socket.
	Client netip.AddrPort
	// Listener, Route and Cluster are names; the latter two are empty before the route is known, and Cluster also
	// where the route answers by itself. Route is "table/rule".
	Listener, Route, Cluster string
	// Elapsed is how long ago the request arrived where its filters are asked anew, and else 0: for a filter that waits, and
	// that has waited before.
	Elapsed time.Duration

	edited  [2][]byte // frames that Edit made, by turns: the one before is what the next is made from
	turn    int
	changed bool

	// Scratch of the calls to Codec, whose arguments would be allocated anew each time.
	key, value [1][]byte
	values     [][]byte
	decoded    wire.Message
}

// Header is the value of a header of Message, nil where it is absent or null. It aliases the frame. A malformed header
// block has no headers.
func (x *Exchange) Header(key []byte) []byte {
	x.key[0] = key
	err := x.Codec.Headers(x.Message, x.key[:], x.value[:])
	value := x.value[0]
	x.key[0], x.value[0] = nil, nil
	if err != nil {
		return nil
	}
	return value
}

// Headers are the values of several headers of Message, found in one walk: that of keys[i] at index i, nil where it is
// absent or null. They alias the frame, and the slice is valid until the next call of Headers. The error is
// wire.ErrHeaderBlock: the block is malformed.
func (x *Exchange) Headers(keys [][]byte) ([][]byte, error) {
	x.values = slices.Grow(x.values[:0], len(keys))[:len(keys)]
	if err := x.Codec.Headers(x.Message, keys, x.values); err != nil {
		return nil, err
	}
	return x.values, nil
}

// Edit changes the header block of Message. The values of edits may alias the frame. The error is a *wire.DecodeError that says why it cannot be: the block is
// malformed, or would become too large; Message is then as it was.
func (x *Exchange) Edit(edits []wire.Edit) error {
	to := &x.edited[x.turn&1] // never the one that Message lies in
	frame, err := x.Codec.AppendEdited((*to)[:0], x.Message, edits, x.MaxHeader)
	if err != nil {
		return err
	}
	*to = frame
	x.decoded = *x.Message
	if x.Head {
		_, _, err = x.Codec.Head(&x.decoded, frame, wire.Limits{})
	} else {
		_, err = x.Codec.Decode(&x.decoded, frame, wire.Limits{})
	}
	if err == nil {
		*x.Message = x.decoded
		x.turn++
		x.changed = true
	}
	x.decoded = wire.Message{}
	return err
}

// Begin makes x ready for a chain.
func (x *Exchange) Begin() { x.changed = false }

// Size is the number of bytes that x holds for edited frames.
func (x *Exchange) Size() int { return cap(x.edited[0]) + cap(x.edited[1]) }

// Edited says whether a filter has changed the frame of Message since Begin. The frame is valid until the next but one
// Edit.
func (x *Exchange) Edited() bool { return x.changed }

// Verdict is what a filter wants done. The zero Verdict lets the exchange go on.
type Verdict struct {
	// Reason stops the exchange when it is not empty: it is answered here, with Status. It is a constant,
	// because it becomes the value of the metric label "reason".
	Reason string
	Status wire.Status
}

// Continue lets the exchange go on.
var Continue Verdict

// Stop answers the exchange here with this status, for this reason. It panics without a reason, because that would let
// pass what the filter means to stop.
func Stop(status wire.Status, reason string) Verdict {
	if reason == "" {
		panic("filter: Stop without a reason")
	}
	return Verdict{Reason: reason, Status: status}
}

// Stopped says whether the verdict ends the exchange.
func (v Verdict) Stopped() bool { return v.Reason != "" }

// Filter is what all filters share; what it can do it says by implementing some of the interfaces below. A filter
// that stands at a listener sees every request there, in all three phases; one that stands at a rule sees the
// requests that the rule matched, from AfterRoute on.
type Filter interface {
	// Name is the filter's name in the configuration, in logs and in metrics.
	Name() string
}

// BeforeRoute filters see a request before its route is known. It does not block.
type BeforeRoute interface {
	BeforeRoute(*Exchange) Verdict
}

// AfterRoute filters see a request whose route is known. It does not block.
type AfterRoute interface {
	AfterRoute(*Exchange) Verdict
}

// OnReply filters see the reply. A verdict that stops replaces it by a local one. It does not block.
type OnReply interface {
	OnReply(*Exchange) Verdict
}

// BlockingBeforeRoute is BeforeRoute for filters that may block. They return when ctx ends: at the request's deadline, at
// the end of the process, or because the exchange is handed to another process, which asks its filters anew from the first
// on. So a blocking filter can be called twice for one request.
type BlockingBeforeRoute interface {
	BeforeRoute(context.Context, *Exchange) Verdict
}

// BlockingAfterRoute is AfterRoute for filters that may block, like BlockingBeforeRoute.
type BlockingAfterRoute interface {
	AfterRoute(context.Context, *Exchange) Verdict
}

// BlockingOnReply is OnReply for filters that may block, like BlockingBeforeRoute.
type BlockingOnReply interface {
	OnReply(context.Context, *Exchange) Verdict
}

// Place is where a filter stands.
type Place uint8

// The places.
const (
	AtListener Place = iota // it sees every request there, in all phases
	AtRule                  // it sees what the rule matched, from AfterRoute on
)

// Acts says whether the filter is asked anything at that place: it is not when it has none of the methods above with
// the right signature, nor at a rule when it has BeforeRoute only.
func Acts(f Filter, at Place) bool {
	switch f.(type) {
	case BeforeRoute, BlockingBeforeRoute:
		if at == AtListener {
			return true
		}
	}
	switch f.(type) {
	case AfterRoute, BlockingAfterRoute, OnReply, BlockingOnReply:
		return true
	}
	return false
}

// call is one filter in one phase.
type call struct {
	inline   func(*Exchange) Verdict
	blocking func(context.Context, *Exchange) Verdict // nil where inline is set
}

// Chain is a list of filters, sorted by phase once, when a snapshot is built.
type Chain struct {
	before, after, reply []call
	blocks               bool
}

// NewChain sorts the filters of a listener and, behind them, those of a rule, which keep their order within each phase.
// Without a rule pass none: the chain then is what is asked before the route is known.
func NewChain(listener, rule []Filter) *Chain {
	c := &Chain{}
	for _, f := range listener {
		switch f := f.(type) {
		case BeforeRoute:
			c.before = append(c.before, call{inline: f.BeforeRoute})
		case BlockingBeforeRoute:
			c.before = append(c.before, call{blocking: f.BeforeRoute})
		}
	}
	for _, f := range slices.Concat(listener, rule) {
		switch f := f.(type) {
		case AfterRoute:
			c.after = append(c.after, call{inline: f.AfterRoute})
		case BlockingAfterRoute:
			c.after = append(c.after, call{blocking: f.AfterRoute})
		}
		switch f := f.(type) {
		case OnReply:
			c.reply = append(c.reply, call{inline: f.OnReply})
		case BlockingOnReply:
			c.reply = append(c.reply, call{blocking: f.OnReply})
		}
	}
	slices.Reverse(c.reply)
	blocking := func(c call) bool { return c.blocking != nil }
	c.blocks = slices.ContainsFunc(c.before, blocking) || slices.ContainsFunc(c.after, blocking) ||
		slices.ContainsFunc(c.reply, blocking)
	return c
}

// Blocks says whether any filter of the chain may block, so that it must run on a worker.
func (c *Chain) Blocks() bool { return c.blocks }

// HasBeforeRoute says whether any filter wants to see requests before their route is known.
func (c *Chain) HasBeforeRoute() bool { return len(c.before) > 0 }

// HasAfterRoute says whether any filter wants to see requests whose route is known.
func (c *Chain) HasAfterRoute() bool { return len(c.after) > 0 }

// HasOnReply says whether any filter wants to see replies.
func (c *Chain) HasOnReply() bool { return len(c.reply) > 0 }

// BeforeRoute asks the filters in order, up to the first that stops. ctx is used only by those that may block, here and
// below.
func (c *Chain) BeforeRoute(ctx context.Context, x *Exchange) Verdict { return ask(ctx, c.before, x) }

// AfterRoute asks the filters in order, those of the listener first, up to the first that stops.
func (c *Chain) AfterRoute(ctx context.Context, x *Exchange) Verdict { return ask(ctx, c.after, x) }

// OnReply asks the filters in reverse order, up to the first that stops.
func (c *Chain) OnReply(ctx context.Context, x *Exchange) Verdict { return ask(ctx, c.reply, x) }

func ask(ctx context.Context, calls []call, x *Exchange) Verdict {
	v := Continue
	for i := range calls {
		if f := calls[i].inline; f != nil {
			v = f(x)
		} else {
			v = calls[i].blocking(ctx, x)
		}
		if v.Stopped() {
			break
		}
	}
	clear(x.values) // views of a frame that x must not keep alive
	return v
}
