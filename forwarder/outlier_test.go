package forwarder_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/cluster"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// ejecting is a road that ejects one of these endpoints, which have their turns, for an hour, and tries nothing again.
func ejecting(failures int, endpoints ...string) *forwarder.Spec {
	s := spec(endpoints...)
	s.Clusters[0].Balancer = forwarder.BalancerRoundRobin
	s.Clusters[0].Outliers = &cluster.OutlierRules{
		Failures: failures, Interval: int64(time.Hour), Time: int64(time.Hour), MaxTime: int64(time.Hour), MaxShare: 5000,
	}
	s.Routes[0].Rules[0].Attempts = 1
	return s
}

// answering is a server that answers requests with a status.
func answering(t *testing.T, status wire.Status) *server {
	return serveEach(t, func(p *peer, m wire.Message) error {
		if m.Kind == wire.Request {
			return p.reply(m, status, m.Content())
		}
		return echoEach(p, m)
	})
}

// gathering is a server that answers when it has got so many requests, as it is told to.
func gathering(t *testing.T, n int, then func(*peer, []wire.Message) error) *server {
	var got []wire.Message // by the one connection that a test makes
	return serveEach(t, func(p *peer, m wire.Message) error {
		if m.Kind != wire.Request {
			return echoEach(p, m)
		}
		if got = append(got, m); len(got) < n {
			return nil
		}
		all := got
		got = nil
		return then(p, all)
	})
}

// burst sends this many requests at once, every second of them to the first endpoint, and receives as many replies.
func burst(t *testing.T, c *peer, n int) {
	t.Helper()
	var frames []byte
	for id := range uint32(n) {
		frames = append(frames, frameOf(t, id, "x")...)
	}
	c.send(frames)
	c.receiveByID(n)
}

// ejectedBy waits until an endpoint is ejected, and fails unless that was once, and for this.
func (p *proxy) ejectedBy(address, why, last string) {
	p.t.Helper()
	p.wantCount(1, "relevo_endpoint_ejected", "endpoint="+address)
	p.wantCount(1, "relevo_outlier_ejections_total", "cluster=echo", "reason="+why)
	p.wantCount(1, "relevo_outlier_ejections_total")
	eventually(p.t, func() bool { return p.logs.FilterMessage("an endpoint is ejected").Len() > 0 }, say("it to be logged"))
	logged := p.logs.FilterMessage("an endpoint is ejected").All()
	if len(logged) != 1 || logged[0].ContextMap()["endpoint"] != address || logged[0].ContextMap()["why"] != why ||
		last != "" && logged[0].ContextMap()["last"] != last {
		p.t.Errorf("got %v logged, want once that %s is ejected by %s, the last of them %s", logged, address, why, last)
	}
}

// TestWhatEjects: each kind of failure of an endpoint, five times and not once less.
func TestWhatEjects(t *testing.T) {
	type set struct {
		p *proxy
		c *peer
	}
	for _, c := range []struct {
		name string
		bad  func(*testing.T) string
		edit func(*forwarder.Spec)
		fail func(t *testing.T, x set, n int) // n times
		last string
	}{
		{
			name: "no reply in time", last: forwarder.ReasonTimeout,
			bad: func(t *testing.T) string { return serveEach(t, silentEach).address },
			fail: func(t *testing.T, x set, n int) {
				for id := range uint32(2 * n) {
					r := request(id, "x")
					r.Timeout = 600
					x.c.send(encode(t, r))
				}
				x.c.receiveByID(2 * n)
			},
		},
		{
			name: "connection closed", last: forwarder.ReasonUpstreamClosed,
			bad: func(t *testing.T) string {
				return gathering(t, 4, func(*peer, []wire.Message) error { return errStop }).address
			},
			fail: func(t *testing.T, x set, n int) { burst(t, x.c, 8) }, // of four further ones the first is the fifth
		},
		{
			name: "garbage", last: forwarder.ReasonUpstreamBroken,
			bad: func(t *testing.T) string {
				return gathering(t, 4, func(p *peer, _ []wire.Message) error {
					_, err := p.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
					return err
				}).address
			},
			fail: func(t *testing.T, x set, n int) { burst(t, x.c, 8) },
		},
		{
			name: "an upload", last: wire.Error.String(),
			bad:  func(t *testing.T) string { return answering(t, wire.Error).address },
			edit: func(s *forwarder.Spec) { s.Listeners[0].StreamAbove = 256 << 10 },
			fail: func(t *testing.T, x set, n int) {
				for range 2 * n { // one for each endpoint
					x.c.call(request(1, strings.Repeat("x", 512<<10)))
				}
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			good := serveEach(t, echoEach)
			bad := c.bad(t)
			s := ejecting(5, bad, good.address)
			if c.edit != nil {
				c.edit(s)
			}
			x := set{p: startProxy(t, s, 512<<20)}
			x.c = dial(t, x.p.address)
			c.fail(t, x, 4)
			x.p.wantCount(0, "relevo_outlier_ejections_total")
			if n := x.p.FailedInARow(bad); n != 4 {
				t.Fatalf("got %d failures in a row, want 4", n)
			}
			c.fail(t, x, 1)
			x.p.ejectedBy(bad, cluster.ByFailures, c.last)
			for id := range uint32(10) {
				wantEcho(t, x.c.call(request(id, "y")), "y") // of which the other endpoint alone is capable
			}
		})
	}
}

// TestConnectFailuresEject: each request that waited for the connection counts.
func TestConnectFailuresEject(t *testing.T) {
	for _, failures := range []int{1, 0} {
		dead := deadAddress(t)
		p := startProxy(t, ejecting(failures, dead, serveEach(t, echoEach).address), 512<<20)
		burst(t, dial(t, p.address), 40)
		if failures > 0 {
			p.ejectedBy(dead, cluster.ByFailures, forwarder.ReasonConnectFailure)
			continue
		}
		failed := p.value("relevo_listener_local_replies_total", "reason="+forwarder.ReasonConnectFailure)
		if got := p.FailedInARow(dead); failed == 0 || float64(got) != failed {
			t.Errorf("got %d failures in a row and %v requests answered here, want as many, and some", got, failed)
		}
	}
}

// TestStatusesThatEject, and those that are the client's fault.
func TestStatusesThatEject(t *testing.T) {
	for status := range wire.Other {
		t.Run(status.String(), func(t *testing.T) {
			bad := answering(t, status)
			p := startProxy(t, ejecting(5, bad.address, serveEach(t, echoEach).address), 512<<20)
			c := dial(t, p.address)
			for range 10 {
				burst(t, c, 2)
			}
			if status.Outcome() == wire.Bad {
				p.ejectedBy(bad.address, cluster.ByFailures, status.String())
				return
			}
			if n := p.FailedInARow(bad.address); n != 0 {
				t.Errorf("got %d failures in a row, want none", n)
			}
			p.wantCount(10, "relevo_endpoint_requests_total", "endpoint="+bad.address, "kind=request")
			p.wantCount(0, "relevo_outlier_ejections_total")
		})
	}
}

// TestBurstOfOneBatch: of the replies that one read brings each counts in its order.
func TestBurstOfOneBatch(t *testing.T) {
	const script = "FFFF.FFFF.NNFFNFFN.F.NFFFNF" // F is a failure, N is nothing
	answer := func(script string) func(*peer, []wire.Message) error {
		return func(p *peer, all []wire.Message) error {
			var out []byte
			for i, m := range all {
				status := map[byte]wire.Status{'F': wire.ServerException, '.': wire.Success, 'N': wire.NoProcessor}[script[i]]
				b, err := (&bolt.Response{Codec: bolt.CodecOf(&m), ID: m.ID, Status: status}).Append(nil)
				if err != nil {
					return err
				}
				out = append(out, b...)
			}
			_, err := p.Write(out)
			return err
		}
	}
	run := func(script string) *proxy {
		bad := gathering(t, len(script), answer(script))
		s := ejecting(5, bad.address, serveEach(t, echoEach).address)
		p := startProxy(t, s, 512<<20)
		burst(t, dial(t, p.address), 2*len(script))
		p.wantCount(0, "relevo_listener_in_flight")
		return p
	}
	p := run(script)
	p.wantCount(0, "relevo_outlier_ejections_total")
	if n := p.FailedInARow(p.Status().Clusters[0].Endpoints[0].Address); n != 4 {
		t.Errorf("got %d failures in a row behind %s, want 4", n, script)
	}
	p = run(script + "F")
	p.ejectedBy(p.Status().Clusters[0].Endpoints[0].Address, cluster.ByFailures, wire.ServerException.String())
	p = run(strings.Repeat("F", 60))
	p.ejectedBy(p.Status().Clusters[0].Endpoints[0].Address, cluster.ByFailures, wire.ServerException.String())
}

// TestEveryTryOfABrokenConnectionCounts once, whether it was sent or not.
func TestEveryTryOfABrokenConnectionCounts(t *testing.T) {
	broken := make(chan struct{})
	bad := serveOn(t, narrow(t), func(c *peer) {
		<-broken
		c.reset()
	})
	good := serveEach(t, echoEach)
	s := ejecting(0, bad.address, good.address)
	s.Routes[0].Rules[0].Timeout = patience
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	content := strings.Repeat("x", 60<<10)
	queued := func() float64 { // sent there, by Relevo's count, and not yet taken by the kernel
		e := "endpoint=" + bad.address
		return p.value("relevo_endpoint_requests_total", e)*(60<<10) - p.value("relevo_endpoint_bytes_total", e, "direction=written")
	}
	n := 0
	for ; queued() < 512<<10; n += 2 {
		c.send(frameOf(t, uint32(n), content), frameOf(t, uint32(n+1), content))
		wantEcho(t, c.receive(), content) // from the good one
	}
	bad.listener.Close()
	close(broken)
	reasons := map[wire.Status]int{}
	for _, m := range c.receiveByID(n / 2) {
		reasons[m.Status]++
	}
	p.wantSome("relevo_listener_local_replies_total", "reason="+forwarder.ReasonResetBeforeSend)
	p.wantSome("relevo_listener_local_replies_total", "reason="+forwarder.ReasonUpstreamClosed)
	if got := p.FailedInARow(bad.address); got != n/2 || reasons[wire.ErrorComm] != n/2 {
		t.Errorf("got %d failures in a row and the replies %v, want %d: each try once", got, reasons, n/2)
	}
}

// TestWhatDoesNotEject: what is the client's fault, or ours.
func TestWhatDoesNotEject(t *testing.T) {
	for name, fail := range map[string]func(t *testing.T, p *proxy, c *peer, bad *server){
		"a client in a hurry": func(t *testing.T, p *proxy, c *peer, bad *server) {
			for id := range uint32(40) {
				r := request(id, "hold")
				r.Timeout = 1 + int32(id)
				c.call(r)
			}
		},
		"a connection closed by hand": func(t *testing.T, p *proxy, c *peer, bad *server) {
			for id := range uint32(20) {
				c.send(frameOf(t, 2*id, "hold"), frameOf(t, 2*id+1, "hold"))
				wantEcho(t, c.receive(), "hold") // from the other one
				bad.got(t, int64(id)+1)
				for _, u := range p.open(forwarder.ConnectionFilter{Side: forwarder.ServerSide, Endpoint: bad.address}) {
					_, _ = p.CloseConnection(u.ID, true)
				}
				c.receive()
			}
		},
		"clients that are gone": func(t *testing.T, p *proxy, c *peer, bad *server) {
			for id := range uint32(20) {
				gone := dial(t, p.address)
				gone.send(frameOf(t, id, "hang up"), frameOf(t, id, "hang up"))
				bad.got(t, int64(id)+1)
				gone.hangUp()
			}
			eventually(t, func() bool { // whose turn it is depends on how far the last of them came
				c.call(request(1, "release"))
				return p.value("relevo_cluster_in_flight") == 0
			}, say("the replies that nobody waits for"))
		},
		"uploads that break off": func(t *testing.T, p *proxy, c *peer, bad *server) {
			for id := range uint32(20) {
				gone := dial(t, p.address)
				gone.send(frameOf(t, id, strings.Repeat("x", 512<<10))[:400<<10])
				p.wantCount(1, "relevo_cluster_in_flight")
				gone.hangUp()
				p.wantCount(0, "relevo_cluster_in_flight")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			var held []wire.Message
			var from []*peer
			bad := serveEach(t, func(p *peer, m wire.Message) error {
				switch string(m.Content()) {
				case "hold":
					return nil
				case "hang up":
					held, from = append(held, m), append(from, p)
					return nil
				case "release":
					for i, m := range held {
						_ = from[i].reply(m, wire.Success, nil)
					}
				}
				return echoEach(p, m)
			})
			s := ejecting(5, bad.address, serveEach(t, echoEach).address)
			s.Listeners[0].StreamAbove = 256 << 10
			p := startProxy(t, s, 512<<20)
			fail(t, p, dial(t, p.address), bad)
			if n := p.FailedInARow(bad.address); n != 0 {
				t.Errorf("got %d failures in a row, want none", n)
			}
			p.wantCount(0, "relevo_outlier_ejections_total")
		})
	}
}

// TestEjectedBySuccessRate: one of four serves worse than the others.
func TestEjectedBySuccessRate(t *testing.T) {
	bad := answering(t, wire.Busy)
	s := ejecting(0, bad.address, serveEach(t, echoEach).address, serveEach(t, echoEach).address, serveEach(t, echoEach).address)
	rules := s.Clusters[0].Outliers
	rules.Interval, rules.SuccessRate = int64(50*time.Millisecond), &cluster.SuccessRate{MinRequests: 20, MinEndpoints: 4, Deviations: 1.5}
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	eventually(t, func() bool {
		burst(t, c, 400)
		return p.value("relevo_outlier_ejections_total") > 0
	}, say("an endpoint to be ejected that answers busy"))
	p.ejectedBy(bad.address, cluster.BySuccessRate, "")
	fields := p.logs.FilterMessage("an endpoint is ejected").All()[0].ContextMap()
	if n := fields["requests"].(int64); fields["success_rate"].(float64) != 0 || n < 20 || fields["threshold"].(float64) <= 0 {
		t.Errorf("got %v logged, want a success rate of 0 of 20 requests or more", fields)
	}
}

// TestEjectionIsRefused where nobody would be left, and shows.
func TestEjectionIsRefused(t *testing.T) {
	bad := answering(t, wire.Error)
	p := startProxy(t, ejecting(5, bad.address), 512<<20)
	c := dial(t, p.address)
	for range 10 {
		burst(t, c, 1)
	}
	p.wantCount(2, "relevo_outlier_refusals_total", "reason="+cluster.LastUsable)
	p.wantCount(0, "relevo_endpoint_ejected")
	if got := p.logged("may not be"); len(got) != 1 {
		t.Errorf("got %q logged of two refusals in a moment, want one line", got)
	}
}

// TestEjectionEnds by itself, and is told of.
func TestEjectionEnds(t *testing.T) {
	bad, good := answering(t, wire.Error), serveEach(t, echoEach)
	s := ejecting(5, bad.address, good.address)
	s.Clusters[0].Outliers.Time = int64(200 * time.Millisecond)
	s.Clusters[0].Outliers.MaxTime = s.Clusters[0].Outliers.Time
	told := watchChanges(t, s)
	p := startProxy(t, s, 512<<20)
	told.want(forwarder.Change{Listener: "in", At: p.address, State: forwarder.Accepting})
	c := dial(t, p.address)
	burst(t, c, 10)
	of := func(state string) forwarder.Change {
		return forwarder.Change{Cluster: "echo", Endpoint: bad.address, State: state}
	}
	told.want(of(forwarder.Ejected))
	told.want(of(forwarder.Usable))
	p.wantCount(0, "relevo_endpoint_ejected")
	if got := p.logged("that was ejected is back"); len(got) != 1 {
		t.Errorf("got %q logged, want once that it is back", got)
	}
	if st := p.Status().Clusters[0]; st.Ejected != 0 || st.Endpoints[0].Ejections != 1 || st.Endpoints[0].EjectedWhy != cluster.ByFailures || !st.Endpoints[0].EjectedUntil.IsZero() {
		t.Errorf("got the status %+v of %d ejected, want one ejection remembered", st.Endpoints[0], st.Ejected)
	}
	p.wantCount(1, "relevo_cluster_slow_start")
	eventually(t, func() bool { // it gets little at first
		burst(t, c, 10)
		return p.value("relevo_outlier_ejections_total") == 2
	}, say("it to be ejected again"))
	told.want(of(forwarder.Ejected))
}

// TestEjectionAcrossConfigurations: it goes along with its endpoint, and ends with the rules.
func TestEjectionAcrossConfigurations(t *testing.T) {
	bad, good, third := answering(t, wire.Error), serveEach(t, echoEach), serveEach(t, echoEach)
	p := startProxy(t, ejecting(5, bad.address, good.address), 512<<20)
	c := dial(t, p.address)
	burst(t, c, 10)
	p.ejectedBy(bad.address, cluster.ByFailures, "")
	st := func() forwarder.EndpointStatus {
		all := p.Status().Clusters[0].Endpoints
		return all[slices.IndexFunc(all, func(e forwarder.EndpointStatus) bool { return e.Address == bad.address })]
	}
	until := st().EjectedUntil
	if d := time.Until(until); d < 59*time.Minute || d > 67*time.Minute || st().Condition != forwarder.Ejected || p.Status().Clusters[0].Ejected != 1 {
		t.Errorf("got %+v, want it ejected for an hour and a tenth at most", st())
	}
	apply := func(s *forwarder.Spec) {
		t.Helper()
		if err := p.Apply(s, kept); err != nil {
			t.Fatal(err)
		}
	}
	apply(ejecting(3, third.address, good.address, bad.address))
	if !st().EjectedUntil.Equal(until) || st().Usable {
		t.Errorf("got %+v behind a change of the list, want it ejected as before", st())
	}
	s := ejecting(3, third.address, good.address, bad.address)
	s.Clusters[0].Outliers = nil
	apply(s)
	eventually(t, func() bool { return st().Usable }, say("the endpoint to be let in: nothing is ejected any more"))
	for range 10 {
		burst(t, c, 3)
	}
	if st().Ejections != 0 || !st().Usable {
		t.Errorf("got %+v, want nothing remembered and nothing ejected without rules", st())
	}
	apply(ejecting(3, third.address, good.address, bad.address))
	eventually(t, func() bool { // it gets little at first
		burst(t, c, 30)
		return !st().EjectedUntil.IsZero()
	}, say("it to be ejected by the rules that are back"))
	apply(ejecting(3, third.address, good.address))
	apply(ejecting(3, third.address, good.address, bad.address))
	eventually(t, func() bool { return st().Usable }, say("an endpoint that had left to come back as any other"))
}

// TestEjectionAcrossProcesses: who is ejected stays so, until the same moment, and a row of failures goes on.
func TestEjectionAcrossProcesses(t *testing.T) {
	bad, worse, good := answering(t, wire.Error), answering(t, wire.Busy), serveEach(t, echoEach)
	s := ejecting(5, bad.address, worse.address, good.address, serveEach(t, echoEach).address)
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	burst(t, c, 16)
	worse.got(t, 4)
	p.wantCount(0, "relevo_outlier_ejections_total")
	s.Clusters[0].Endpoints = []forwarder.EndpointSpec{s.Clusters[0].Endpoints[0], s.Clusters[0].Endpoints[2], s.Clusters[0].Endpoints[1], s.Clusters[0].Endpoints[3]}
	p.handOver(s)
	if a, b := p.FailedInARow(bad.address), p.FailedInARow(worse.address); a != 4 || b != 4 {
		t.Fatalf("got %d and %d failures in a row behind a hand-over, want 4 and 4", a, b)
	}
	burst(t, c, 1)
	p.ejectedBy(bad.address, cluster.ByFailures, "")
	until := p.Status().Clusters[0].Endpoints[0].EjectedUntil
	p.handOver(s)
	st := p.Status().Clusters[0].Endpoints[0]
	if d := st.EjectedUntil.Sub(until).Abs(); d > time.Second || st.Ejections != 1 || st.EjectedWhy != cluster.ByFailures || st.Usable {
		t.Errorf("got %+v behind a hand-over, want it ejected until %v", st, until)
	}
	for range 4 {
		burst(t, c, 3)
	}
	p.wantCount(1, "relevo_endpoint_ejected", "endpoint="+worse.address)
	off := *s
	off.Clusters = slices.Clone(s.Clusters)
	off.Clusters[0].Outliers = nil
	p.handOver(&off)
	for i := range 4 {
		if st := p.Status().Clusters[0].Endpoints[i]; !st.Usable || st.Ejections != 0 {
			t.Errorf("got %+v in a process that ejects nobody, want it usable", st)
		}
	}
}

// TestTriesBeforeTheLastCount: each try that is followed by another one counts where it failed, though the request succeeds.
func TestTriesBeforeTheLastCount(t *testing.T) {
	for _, c := range []struct {
		name string
		bad  func(*testing.T) *server
		last string
	}{
		{"busy", func(t *testing.T) *server { return answering(t, wire.Busy) }, wire.Busy.String()},
		{"no reply in the time of a try", func(t *testing.T) *server { return serveEach(t, silentEach) }, forwarder.ReasonTimeout},
		{"connection closed", func(t *testing.T) *server {
			return gathering(t, 5, func(*peer, []wire.Message) error { return errStop })
		}, forwarder.ReasonUpstreamClosed},
	} {
		t.Run(c.name, func(t *testing.T) {
			bad := c.bad(t)
			s := ejecting(5, bad.address, serveEach(t, echoEach).address)
			rule := &s.Routes[0].Rules[0]
			rule.Attempts, rule.RetryOn = 2, forwarder.RetryBusy|forwarder.RetryTimeout|forwarder.RetryReset
			rule.Timeout, rule.PerTryTimeout, rule.Idempotent = patience, 150*time.Millisecond, true
			rule.BackOffBase, rule.BackOffMax = time.Millisecond, time.Millisecond
			s.Clusters[0].RetryShare, s.Clusters[0].RetryFloor, s.Clusters[0].MaxRetryBytes = 10000, 100, 1<<20
			p := startProxy(t, s, 512<<20)
			client := dial(t, p.address)
			burst(t, client, 10)
			p.wantCount(0, "relevo_listener_local_replies_total")
			p.ejectedBy(bad.address, cluster.ByFailures, c.last)
		})
	}
}
