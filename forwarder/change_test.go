package forwarder_test

import (
	"context"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// changes are what a road tells, in order.
type changes struct {
	t    *testing.T
	told chan forwarder.Change // never closed
}

// watchChanges has a road tell its changes.
func watchChanges(t *testing.T, s *forwarder.Spec) changes {
	told := make(chan forwarder.Change, 64)
	s.Changed = func(c forwarder.Change) { told <- c }
	return changes{t, told}
}

// want waits for the next change.
func (c changes) want(want forwarder.Change) {
	c.t.Helper()
	select {
	case got := <-c.told:
		if got != want {
			c.t.Fatalf("told was %+v, want %+v", got, want)
		}
	case <-time.After(10 * time.Second):
		c.t.Fatalf("nothing is told, want %+v", want)
	}
}

// TestChangesAreTold: a listener that comes and goes, an endpoint that fails, works again, and is drained; each once, and nothing else.
func TestChangesAreTold(t *testing.T) {
	bad, stage, _ := serveStages(t)
	good := serveEach(t, echoEach)
	s := spec(bad.address, good.address)
	told := watchChanges(t, s)
	p := startProxy(t, s, 512<<20)
	name, cluster := s.Listeners[0].Name, s.Clusters[0].Name
	of := func(state string) forwarder.Change {
		return forwarder.Change{Cluster: cluster, Endpoint: bad.address, State: state}
	}
	told.want(forwarder.Change{Listener: name, At: p.address, State: forwarder.Accepting})

	c := dial(t, p.address)
	stop := false
	for id := uint32(0); !stop; id++ {
		c.call(request(id, "x"))
		stop = !p.Status().Clusters[0].Endpoints[0].Usable
	}
	told.want(of(forwarder.PassedOver))
	stage.Store(answers)
	told.want(of(forwarder.Usable))
	for range 2 {
		p.drainEndpoint(s, 0, true)
	}
	told.want(of(forwarder.Drained))
	p.drainEndpoint(s, 0, false)
	told.want(of(forwarder.Usable))
	if status := c.call(request(1, "x")).Status; status != wire.Success {
		t.Errorf("a request is answered %v, want SUCCESS", status)
	}

	next := spec(bad.address, good.address)
	more := next.Listeners[0]
	more.Name, more.Address = "more", "127.0.0.1:0"
	next.Listeners = append(next.Listeners, more)
	if err := p.Apply(next, kept); err != nil {
		t.Fatal(err)
	}
	at := p.Addresses()["more"].String()
	told.want(forwarder.Change{Listener: "more", At: at, State: forwarder.Accepting})
	if err := p.Apply(spec(bad.address, good.address), kept); err != nil {
		t.Fatal(err)
	}
	told.want(forwarder.Change{Listener: "more", At: at, State: forwarder.NotAccepting})

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := p.Drain(ctx); err != nil {
		t.Fatal(err)
	}
	told.want(forwarder.Change{Listener: name, At: p.address, State: forwarder.NotAccepting})
	select {
	case c := <-told.told:
		t.Errorf("told was %+v, too", c)
	default:
	}
}
