// Package header is the filter that changes headers: it sets, adds and removes them on requests and on replies. It
// never blocks and, once its buffers have grown, allocates nothing.
//
// A rule's own header changes are no filter: those are applied each time that the request is sent.
package header

import (
	"errors"
	"fmt"
	"slices"

	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// Name is the filter's name.
const Name = "headers"

// Config is what the filter does. Within each list a key stands at most once, so that the order does not matter.
type Config struct {
	Request []wire.Edit // of requests: at a listener before the route is known, so that rules see what was set
	Reply   []wire.Edit // of the servers' replies; those that Relevo makes itself are not edited
}

// New makes the filter for this place. It keeps the lists. The error names all that is wrong with them.
func New(c Config, at filter.Place) (filter.Filter, error) {
	if err := errors.Join(check("request", c.Request), check("reply", c.Reply)); err != nil {
		return nil, err
	}
	before, after, reply := beforeRoute(c.Request), afterRoute(c.Request), onReply(c.Reply)
	switch {
	case len(c.Request)+len(c.Reply) == 0:
		return nil, errors.New("no header is changed, of requests or of replies")
	case len(c.Request) == 0:
		return struct {
			named
			onReply
		}{onReply: reply}, nil
	case at == filter.AtListener && len(c.Reply) == 0:
		return struct {
			named
			beforeRoute
		}{beforeRoute: before}, nil
	case at == filter.AtListener:
		return struct {
			named
			beforeRoute
			onReply
		}{beforeRoute: before, onReply: reply}, nil
	case len(c.Reply) == 0:
		return struct {
			named
			afterRoute
		}{afterRoute: after}, nil
	}
	return struct {
		named
		afterRoute
		onReply
	}{afterRoute: after, onReply: reply}, nil
}

func check(of string, edits []wire.Edit) error {
	var errs []error
	for i, e := range edits {
		same := func(other wire.Edit) bool { return string(other.Key) == string(e.Key) }
		switch {
		case len(e.Key) == 0:
			errs = append(errs, fmt.Errorf("%s: a header key is empty", of))
		case slices.ContainsFunc(edits[:i], same):
			errs = append(errs, fmt.Errorf("%s: header %q is changed twice", of, e.Key))
		case e.Op > wire.RemoveHeader:
			errs = append(errs, fmt.Errorf("%s: header %q: there is no change %d", of, e.Key, e.Op))
		}
	}
	return errors.Join(errs...)
}

// The parts of which New puts the filter together: it has the methods that it needs and no others, because a chain asks
// all that it finds.
type (
	named       struct{}
	beforeRoute []wire.Edit
	afterRoute  []wire.Edit
	onReply     []wire.Edit
)

func (named) Name() string { return Name }

func (f beforeRoute) BeforeRoute(x *filter.Exchange) filter.Verdict { return edit(x, f) }
func (f afterRoute) AfterRoute(x *filter.Exchange) filter.Verdict   { return edit(x, f) }
func (f onReply) OnReply(x *filter.Exchange) filter.Verdict         { return edit(x, f) }

// edit answers the exchange here when its headers cannot be changed: passed on unchanged it would lack what somebody
// behind may rely on.
func edit(x *filter.Exchange, edits []wire.Edit) filter.Verdict {
	err := x.Edit(edits)
	if err == nil {
		return filter.Continue
	}
	reason := wire.ReasonBadHeaderBlock
	if e, ok := errors.AsType[*wire.DecodeError](err); ok {
		reason = e.Reason
	}
	return filter.Stop(wire.CodecException, reason)
}
