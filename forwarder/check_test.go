package forwarder_test

import (
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/health"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// checkedSpec is a road whose endpoints are asked for heartbeats, often.
func checkedSpec(endpoints ...string) *forwarder.Spec {
	s := spec(endpoints...)
	s.Clusters[0].Check = &forwarder.CheckSpec{Heartbeat: true, Interval: 20 * time.Millisecond, Timeout: 20 * time.Millisecond, Unhealthy: 3, Healthy: 2}
	return s
}

// endpoint is what is known of an endpoint of the first cluster.
func (p *proxy) endpoint(i int) forwarder.EndpointStatus { return p.Status().Clusters[0].Endpoints[i] }

// wantCondition waits until an endpoint is in a condition.
func (p *proxy) wantCondition(i int, want string) {
	p.t.Helper()
	eventually(p.t, func() bool { return p.endpoint(i).Condition == want }, say("endpoint %d to be %s", i, want))
}

// TestChecks: an endpoint that accepts and is silent becomes unhealthy without a request, gets none while it is, and is healthy again
// when it answers. Each change is told once.
func TestChecks(t *testing.T) {
	bad, stage, requests := serveStages(t)
	stage.Store(saysNothing)
	good := serveEach(t, echoEach)
	s := checkedSpec(bad.address, good.address)
	s.Clusters[0].Balancer = forwarder.BalancerRoundRobin
	told := watchChanges(t, s)
	p := startProxy(t, s, 512<<20)
	cluster := s.Clusters[0].Name
	told.want(forwarder.Change{Listener: s.Listeners[0].Name, At: p.address, State: forwarder.Accepting})
	told.want(forwarder.Change{Cluster: cluster, Endpoint: bad.address, State: forwarder.Unhealthy})
	e := p.endpoint(0)
	if e.Usable || e.Failures != 0 || e.Check == nil || e.Check.Passed || e.Check.Reason != health.ReasonNoAnswer || e.Check.InARow < 3 {
		t.Errorf("got %+v, check %+v, want it unhealthy behind 3 checks without an answer, and not passed over", e, e.Check)
	}
	if e.LastFailure == nil || e.LastFailure.Reason != health.ReasonNoAnswer || e.LastFailure.Detail != "no answer in 20ms" {
		t.Errorf("got %+v as its last failure, want that it has not answered", e.LastFailure)
	}
	if g := p.endpoint(1); !g.Usable || g.Check == nil || !g.Check.Passed {
		t.Errorf("got %+v, check %+v of the other, want it to have passed", g, g.Check)
	}
	p.wantCount(1, "relevo_endpoint_unhealthy", "endpoint="+bad.address)
	p.wantCount(0, "relevo_endpoint_unhealthy", "endpoint="+good.address)
	p.wantCount(0, "relevo_endpoint_passed_over")
	p.wantSome("relevo_health_checks_total", "cluster="+cluster, "result="+health.ReasonNoAnswer)
	p.wantSome("relevo_health_checks_total", "cluster="+cluster, "result="+health.Passed)
	c := dial(t, p.address)
	for id := range uint32(20) {
		wantEcho(t, c.call(request(id, "x")), "x")
	}
	if got := requests.Load(); got != 0 {
		t.Errorf("got %d requests at the endpoint that is unhealthy, want none", got)
	}

	stage.Store(answers)
	told.want(forwarder.Change{Cluster: cluster, Endpoint: bad.address, State: forwarder.Usable})
	eventually(t, func() bool { wantEcho(t, c.call(request(1, "x")), "x"); return requests.Load() > 0 }, say("requests at the endpoint that is healthy again"))
	for _, about := range []string{"an endpoint is unhealthy", "passes its checks again"} {
		eventually(t, func() bool { return len(p.logged(about)) == 1 }, say("one line of the log with %q", about)) // it comes behind the change
	}
}

// TestCheckByConnection: who accepts passes, whatever it says; who cannot be connected does not.
func TestCheckByConnection(t *testing.T) {
	silent, stage, _ := serveStages(t)
	stage.Store(saysNothing)
	s := checkedSpec(silent.address, deadAddress(t))
	s.Clusters[0].Check.Heartbeat = false
	p := startProxy(t, s, 512<<20)
	p.wantCondition(1, forwarder.Unhealthy)
	if k := p.endpoint(1).Check; k == nil || k.Reason != health.ReasonCannotConnect || k.Detail != "connect: connection refused" {
		t.Errorf("got %+v, want that it is refused", k)
	}
	p.wantSome("relevo_health_checks_total", "result="+health.Passed)
	if e := p.endpoint(0); !e.Usable || !e.Check.Passed {
		t.Errorf("got %+v, check %+v, want it usable: it accepts", e, e.Check)
	}
}

// TestCheckOfAnotherProtocol: what is no frame is no answer.
func TestCheckOfAnotherProtocol(t *testing.T) {
	other := serve(t, func(c *peer) {
		if _, err := c.next(); err == nil {
			_, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
		}
	})
	p := startProxy(t, checkedSpec(other.address), 512<<20)
	p.wantCondition(0, forwarder.Unhealthy)
	if k := p.endpoint(0).Check; k == nil || k.Reason != health.ReasonBadAnswer {
		t.Errorf("got %+v, want %s", k, health.ReasonBadAnswer)
	}
	c := dial(t, p.address)
	p.wantLocal(c.call(request(1, "x")), wire.ErrorComm, forwarder.ReasonNoEndpoint, 1)
}

// TestChecksOverCrossings: what is known of an endpoint by its checks is known behind a pause and in the next process, that it was
// checked lately, too: none is due before its time. Where the next configuration has no checks it is forgotten.
func TestChecksOverCrossings(t *testing.T) {
	eachCrossing(t, func(t *testing.T, cross func(*proxy, *forwarder.Spec)) {
		s := checkedSpec(deadAddress(t), serveEach(t, echoEach).address)
		often := s.Clusters[0] // tells when checks are made
		often.Name = "often"
		often.Endpoints = s.Clusters[0].Endpoints[1:]
		seldom := *often.Check
		seldom.Interval, seldom.Unhealthy = time.Hour, 1 // so that the first is the last
		s.Clusters[0].Check = &seldom
		s.Clusters = append(s.Clusters, often)
		p := startProxy(t, s, 512<<20)
		p.wantCondition(0, forwarder.Unhealthy)
		eventually(t, func() bool { k := p.endpoint(1).Check; return k != nil && k.Passed }, say("a check of the other"))
		before := *p.endpoint(0).Check
		cross(p, s)
		base := p.value("relevo_health_checks_total", "cluster=often")
		eventually(t, func() bool { return p.value("relevo_health_checks_total", "cluster=often") >= base+3 }, say("checks of the other cluster"))
		e := p.endpoint(0)
		if e.Condition != forwarder.Unhealthy || e.Check == nil || e.Check.At.Sub(before.At).Abs() > time.Millisecond || e.Check.Reason != before.Reason || e.Check.InARow != 1 {
			t.Errorf("got %+v, check %+v, want it unhealthy as before: %+v", e, e.Check, before)
		}
		if g := p.endpoint(1); !g.Usable || g.Check == nil || !g.Check.Passed {
			t.Errorf("got %+v, check %+v of the other, want it to have passed", g, g.Check)
		}
		p.wantCount(1, "relevo_endpoint_unhealthy")
		c := dial(t, p.address)
		for id := range uint32(10) {
			wantEcho(t, c.call(request(id, "x")), "x")
		}
		next := *s
		next.Clusters = append([]forwarder.ClusterSpec(nil), s.Clusters...)
		next.Clusters[0].Check = nil
		p.handOver(&next)
		if e := p.endpoint(0); !e.Usable || e.Check != nil {
			t.Errorf("got %+v, check %+v without checks, want nothing known", e, e.Check)
		}
	})
}

// TestChecksGoOn behind each crossing.
func TestChecksGoOn(t *testing.T) {
	eachCrossing(t, func(t *testing.T, cross func(*proxy, *forwarder.Spec)) {
		bad, stage, _ := serveStages(t)
		s := checkedSpec(bad.address)
		p := startProxy(t, s, 512<<20)
		p.wantCondition(0, forwarder.Unhealthy)
		cross(p, s)
		stage.Store(answers)
		p.wantCondition(0, forwarder.Usable)
		stage.Store(saysNothing)
		p.wantCondition(0, forwarder.Unhealthy)
	})
}

// TestChecksRest: a check that is under way when the road comes to rest ends without a result, and changes nothing.
func TestChecksRest(t *testing.T) {
	silent, stage, _ := serveStages(t)
	stage.Store(saysNothing)
	s := checkedSpec(silent.address)
	s.Clusters[0].Check.Timeout, s.Clusters[0].Check.Interval = patience, patience
	p := startProxy(t, s, 512<<20)
	p.wantCount(1, "relevo_health_checks_under_way")
	p.pause()
	if n := p.value("relevo_health_checks_under_way"); n != 0 {
		t.Errorf("got %v checks under way at rest, want none", n)
	}
	stage.Store(answers)
	if k := p.endpoint(0).Check; k == nil || k.InARow != 0 {
		t.Errorf("got %+v, want no result yet", k)
	}
	if got := p.series("relevo_health_checks_total"); len(got) > 0 {
		t.Errorf("got %v, want no result counted", got)
	}
	p.Resume()
	p.wantCount(1, "relevo_health_checks_total", "result="+health.Passed)
}

// TestChecksFollowTheConfiguration: they begin, are others and end with it; and what has left is forgotten.
func TestChecksFollowTheConfiguration(t *testing.T) {
	silent, stage, _ := serveStages(t)
	stage.Store(saysNothing)
	good := serveEach(t, echoEach)
	p := startProxy(t, spec(silent.address, good.address), 512<<20)
	apply := func(s *forwarder.Spec) {
		t.Helper()
		if err := p.Apply(s, kept); err != nil {
			t.Fatal(err)
		}
	}
	if e := p.endpoint(0); e.Check != nil {
		t.Errorf("got the check %+v, want none", e.Check)
	}
	with := checkedSpec(silent.address, good.address)
	apply(with)
	p.wantCondition(0, forwarder.Unhealthy)

	plain := checkedSpec(silent.address, good.address)
	plain.Clusters[0].Check.Heartbeat = false
	apply(plain)
	p.wantCondition(0, forwarder.Usable)

	apply(with)
	p.wantCondition(0, forwarder.Unhealthy)
	apply(spec(silent.address, good.address))
	if e := p.endpoint(0); !e.Usable || e.Check != nil {
		t.Errorf("got %+v, check %+v without checks, want nothing known", e, e.Check)
	}

	apply(with)
	p.wantCondition(0, forwarder.Unhealthy)
	apply(checkedSpec(good.address))
	if got := len(p.Status().Clusters[0].Endpoints); got != 1 {
		t.Fatalf("got %d endpoints, want the one that is configured", got)
	}
	stage.Store(answers)
	apply(with)
	if e := p.endpoint(0); !e.Usable {
		t.Errorf("got %+v of an endpoint that is configured again, want nothing known", e)
	}
	eventually(t, func() bool { k := p.endpoint(0).Check; return k != nil && k.Passed }, say("it to be checked"))
}

// TestDrainedIsChecked, so that it is known what it is when it is to serve again.
func TestDrainedIsChecked(t *testing.T) {
	bad, stage, _ := serveStages(t)
	s := checkedSpec(bad.address, serveEach(t, echoEach).address)
	s.Clusters[0].Endpoints[0].Drain = true
	p := startProxy(t, s, 512<<20)
	p.wantCount(1, "relevo_endpoint_unhealthy")
	if got := p.endpoint(0).Condition; got != forwarder.Drained {
		t.Errorf("got it %s, want drained: that is what it is first of all", got)
	}
	p.drainEndpoint(s, 0, false)
	p.wantCondition(0, forwarder.Unhealthy)
	stage.Store(answers)
	p.wantCondition(0, forwarder.Usable)
}
