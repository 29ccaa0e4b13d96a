package forwarder_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// TestNoRequestIsSpentOnFindingOut: one request finds a dead endpoint; from then on it is probed, and no other fails.
func TestNoRequestIsSpentOnFindingOut(t *testing.T) {
	dead, good := deadAddress(t), serveEach(t, echoEach)
	s := spec(dead, good.address)
	s.Clusters[0].Balancer = forwarder.BalancerRoundRobin
	s.Routes[0].Rules[0].Attempts = 1 // no retry hides a failure
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	failed := 0
	for id := uint32(0); failed == 0 || p.value("relevo_endpoint_probes_total", "result=connect-failure") < 3; id++ {
		if c.call(request(id, "x")).Status != wire.Success {
			failed++
		}
		if id == 10 && failed == 0 {
			t.Fatal("got no request at the dead endpoint, want the first or the second there")
		}
	}
	if failed != 1 {
		t.Errorf("got %d failed requests while the endpoint was probed, want the 1 that found it dead", failed)
	}
	if st := p.Status().Clusters[0].Endpoints[0]; st.Usable || st.Failures < 4 {
		t.Errorf("got the status %+v, want it passed over with a failure for each probe", st)
	}
	p.wantCount(1, "relevo_endpoint_passed_over", "endpoint="+dead)
}

// stages are what a server does with what it gets, one after the other.
const (
	hangsUp int32 = iota
	saysNothing
	answers
)

// serveStages runs a server that is at a stage, which the test moves on.
func serveStages(t *testing.T) (s *server, stage *atomic.Int32, requests *atomic.Int64) {
	stage, requests = new(atomic.Int32), new(atomic.Int64)
	s = serve(t, func(c *peer) {
		if stage.Load() == hangsUp {
			return
		}
		for m, err := c.next(); err == nil; m, err = c.next() {
			if m.Kind == wire.Request {
				requests.Add(1)
			}
			if stage.Load() == answers && echoEach(c, m) != nil {
				return
			}
		}
	})
	return s, stage, requests
}

// TestProbeWantsAnAnswer: that a server accepts connections is no proof, nor that it takes a heartbeat.
func TestProbeWantsAnAnswer(t *testing.T) {
	bad, stage, requests := serveStages(t)
	s := spec(bad.address, serveEach(t, echoEach).address)
	s.Clusters[0].Balancer = forwarder.BalancerRoundRobin
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	others := func(result string) bool { // goes on to send until a probe of the bad one has ended so
		before := p.value("relevo_endpoint_probes_total", "result="+result)
		eventually(t, func() bool {
			c.call(request(1, "x"))
			return p.value("relevo_endpoint_probes_total", "result="+result) > before
		}, say("a probe with the result %s", result))
		return p.Status().Clusters[0].Endpoints[0].Usable
	}
	if others("closed") {
		t.Error("got the endpoint usable though it closed the probe's connection")
	}
	stage.Store(saysNothing)
	if others("no-answer") {
		t.Error("got the endpoint usable though it did not answer the probe")
	}
	p.wantSome("relevo_endpoint_closes_total", "reason="+forwarder.ReasonProbeTimeout)
	p.wantLogged("can be connected and does not answer")
	if got := requests.Load(); got != 0 {
		t.Errorf("got %d requests at a server that is silent when it is probed, want none", got)
	}
	p.wantCount(0, "relevo_listener_local_replies_total", "reason="+forwarder.ReasonTimeout)
	stage.Store(answers)
	if !others("proved") {
		t.Error("got the endpoint passed over though it answered the probe")
	}
	eventually(t, func() bool { wantEcho(t, c.call(request(2, "x")), "x"); return requests.Load() > 0 }, say("requests at the server that works again"))
}

// TestProbeWithoutHeartbeats: then a connection is proof enough, and failures are remembered until there is a frame.
func TestProbeWithoutHeartbeats(t *testing.T) {
	bad, stage, requests := serveStages(t)
	s := spec(bad.address)
	s.Clusters[0].HeartbeatInterval = 0
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	eventually(t, func() bool {
		c.call(request(1, "x"))
		return p.value("relevo_endpoint_probes_total", "result=connected") >= 2
	}, say("two probes that could connect"))
	if got := p.Status().Clusters[0].Endpoints[0].Failures; got < 2 {
		t.Errorf("got %d failures in a row, want them remembered: no frame has come", got)
	}
	stage.Store(answers)
	eventually(t, func() bool { return c.call(request(2, "x")).Status == wire.Success }, say("requests to be served"))
	if requests.Load() == 0 {
		t.Error("got an answer and no request at the server")
	}
	p.wantCount(0, "relevo_endpoint_failures")
}

// TestProbeOnAConnectionThatIsThere: of two connections one is stuck and given up, so the other one is asked.
func TestProbeOnAConnectionThatIsThere(t *testing.T) {
	server := serveEach(t, func(c *peer, m wire.Message) error {
		if c.number == 1 && m.Kind == wire.Heartbeat {
			return nil // the first connection answers no heartbeats
		}
		if string(m.Content()) == "held" {
			return nil
		}
		return echoEach(c, m)
	})
	s := spec(server.address)
	s.Clusters[0].ConnectionsPerEndpoint = 2
	s.Clusters[0].HeartbeatInterval, s.Clusters[0].HeartbeatMisses = 50*time.Millisecond, 2
	s.Routes[0].Rules[0].Timeout = time.Second
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	c.send(frameOf(t, 1, "held"), frameOf(t, 2, "held"))
	eventually(t, func() bool {
		if server.accepted.Load() < 2 {
			c.send(frameOf(t, 3, "held"))
		}
		return p.value("relevo_endpoint_probes_total", "result=proved") >= 1
	}, say("a probe that succeeds"))
	if got := server.accepted.Load(); got != 2 {
		t.Errorf("got %d connections, want the 2 from before the probe: it needs none of its own", got)
	}
	p.wantCount(0, "relevo_endpoint_passed_over")
}
