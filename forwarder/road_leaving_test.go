package forwarder_test

import (
	"context"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// TestClusterLeavesBeforeItIsUsed: a request that has matched a rule of a cluster goes there, and its deadline holds, also where
// nothing else of the cluster is here that is not configured any more.
func TestClusterLeavesBeforeItIsUsed(t *testing.T) {
	server := serveEach(t, silentEach)
	asked, goOn := make(chan struct{}), make(chan struct{})
	s := spec(server.address)
	s.Listeners[0].Forwarding = forwarder.ForwardWorker
	s.Routes[0].Rules[0].Timeout = 500 * time.Millisecond
	s.Routes[0].Rules[0].Filters = []filter.Filter{blocking(func(context.Context, *filter.Exchange) filter.Verdict {
		close(asked)
		<-goOn
		return filter.Continue
	})}
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	c.send(frameOf(t, 1, "on its way"))
	<-asked
	next := spec()
	next.Clusters, next.Routes[0].Rules = nil, nil
	if err := p.Apply(next, kept); err != nil {
		t.Fatal(err)
	}
	close(goOn)
	p.wantLocal(c.receive(), wire.Timeout, forwarder.ReasonTimeout, 1)
}

// TestProtocolChangesBack: the connections that a cluster has are its own again.
func TestProtocolChangesBack(t *testing.T) {
	server := serveEach(t, silentEach)
	was := func() *forwarder.Spec {
		s := spec(server.address)
		s.Listeners[0].Codecs = append(s.Listeners[0].Codecs, hungry{})
		s.Listeners[0].DetectTimeout = patience
		s.Routes[0].Rules[0].Timeout = 500 * time.Millisecond
		return s
	}
	p := startProxy(t, was(), 512<<20)
	c := dial(t, p.address)
	c.send(frameOf(t, 1, "in flight"))
	server.got(t, 1)
	other := was()
	other.Clusters[0].Codec = hungry{}
	for _, next := range []*forwarder.Spec{other, was()} {
		if err := p.Apply(next, kept); err != nil {
			t.Fatal(err)
		}
	}
	p.wantLocal(c.receive(), wire.Timeout, forwarder.ReasonTimeout, 1)
}
