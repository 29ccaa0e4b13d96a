package forwarder_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/route"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// steadyService is what neighbours call where the servers of service are not to be relied on.
const steadyService = "com.example.Steady:1.0"

// withSteady adds a rule and a cluster for steadyService, with a server that echoes.
func withSteady(t *testing.T, s *forwarder.Spec) *forwarder.Spec {
	t.Helper()
	c := s.Clusters[0]
	c.Name = "steady"
	c.Endpoints = []forwarder.EndpointSpec{{Network: "tcp", Address: serveEach(t, echoEach).address, Weight: 1}}
	s.Clusters = append(s.Clusters, c)
	s.Routes[0].Rules = append(s.Routes[0].Rules, forwarder.RuleSpec{
		Name: "steady", Match: route.Match{Service: route.Exactly(steadyService)}, Clusters: []forwarder.Share{{Cluster: "steady", Weight: 1}}, Timeout: patience, Attempts: 1,
	})
	return s
}

// neighbours are clients that call and verify all the time: whatever a test does to itself, they must not notice.
type neighbours struct {
	t      *testing.T
	group  sync.WaitGroup
	ended  chan struct{}
	once   sync.Once
	served [2]atomic.Int64
}

// startNeighbours runs them until the test ends.
func startNeighbours(t *testing.T, address, service string) *neighbours {
	t.Helper()
	n := &neighbours{t: t, ended: make(chan struct{})}
	for i := range n.served {
		c := dial(t, address)
		n.group.Go(func() { n.run(c, i, service) }) // ends with the neighbours, or its first failure
	}
	t.Cleanup(n.stop)
	n.goOn()
	return n
}

func (n *neighbours) run(c *peer, number int, service string) {
	pace := time.NewTicker(time.Millisecond)
	defer pace.Stop()
	for id := uint32(0); ; id++ {
		select {
		case <-n.ended:
			return
		case <-pace.C:
		}
		content := fmt.Sprintf("neighbour %d, request %d", number, id)
		r := bolt.Request{
			Version: bolt.Version(id % 3), Codec: bolt.CodecHessian2, ID: id, Timeout: 60_000,
			Headers: []bolt.Pair{{Key: "service", Value: service}}, Content: []byte(content),
		}
		if err := verified(c, r); err != nil {
			n.t.Errorf("a neighbour's request %d: %v, want nobody else to notice what happens to one", id, err)
			return
		}
		n.served[number].Add(1)
	}
}

// verified makes one call and says what is wrong with its reply.
func verified(c *peer, r bolt.Request) error {
	b, err := r.Append(nil)
	if err != nil {
		return err
	}
	_ = c.SetDeadline(time.Now().Add(2 * patience))
	if _, err := c.Write(b); err != nil {
		return err
	}
	m, err := c.next()
	switch {
	case err != nil:
		return err
	case m.Kind != wire.Reply || m.ID != r.ID || m.Status != wire.Success:
		return fmt.Errorf("got a %v with id %d and status %v, want the reply SUCCESS with id %d", m.Kind, m.ID, m.Status, r.ID)
	case bolt.VersionOf(&m) != r.Version:
		return fmt.Errorf("got a reply in %v, want %v", bolt.VersionOf(&m), r.Version)
	case string(m.Content()) != string(r.Content):
		return fmt.Errorf("got the content %.40q, want %.40q", m.Content(), r.Content)
	}
	return nil
}

// goOn waits until each of them has been served some more.
func (n *neighbours) goOn() {
	n.t.Helper()
	for i := range n.served {
		from := n.served[i].Load()
		eventually(n.t, func() bool { return n.served[i].Load() >= from+5 || n.t.Failed() },
			say("5 more requests of neighbour %d to be served", i))
	}
}

func (n *neighbours) stop() {
	n.once.Do(func() { close(n.ended) })
	n.group.Wait()
}
