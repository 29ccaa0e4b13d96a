package forwarder_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// narrow is a listener whose connections take little before somebody reads.
func narrow(t *testing.T) net.Listener {
	t.Helper()
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096) })
	}}
	l, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestRefusedThenRetried: the endpoint that refuses is passed over within the request.
func TestRefusedThenRetried(t *testing.T) {
	s := spec(deadAddress(t), serveEach(t, echoEach).address)
	s.Clusters[0].Balancer = forwarder.BalancerRoundRobin
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	for i := range 20 {
		content := fmt.Sprint("request ", i)
		wantEcho(t, c.call(request(uint32(i), content)), content)
	}
	p.wantSome("relevo_route_retries_total")
	p.wantSome("relevo_endpoint_connect_failures_total", "endpoint="+s.Clusters[0].Endpoints[0].Address)
	p.wantCount(0, "relevo_listener_local_replies_total")
}

// TestRefusedWithoutRetry: no endpoint is left, and then, while all are passed over, none is asked.
func TestRefusedWithoutRetry(t *testing.T) {
	s := spec(deadAddress(t))
	s.Routes[0].Rules[0].Attempts = 1
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	p.wantLocal(c.call(request(1, "x")), wire.ErrorComm, forwarder.ReasonConnectFailure, 1)
	eventually(t, func() bool {
		if m := c.call(request(2, "x")); m.Status != wire.ErrorComm {
			t.Fatalf("got status %v with no endpoint up, want ERROR_COMM", m.Status)
		}
		return p.value("relevo_listener_local_replies_total", "reason="+forwarder.ReasonNoEndpoint) > 0
	}, say("a request to find the endpoint passed over"))
	p.wantLogged(forwarder.ReasonNoEndpoint)
}

// TestStartsWithEveryEndpointDown: once a server is there, the next probe finds it.
func TestStartsWithEveryEndpointDown(t *testing.T) {
	address := deadAddress(t)
	p := startProxy(t, spec(address), 512<<20)
	c := dial(t, p.address)
	if m := c.call(request(1, "x")); m.Status != wire.ErrorComm {
		t.Fatalf("got status %v with no endpoint up, want ERROR_COMM", m.Status)
	}
	p.wantSome("relevo_endpoint_failures")
	if n := p.Status().Clusters[0].Endpoints[0].Failures; n < 1 {
		t.Errorf("got %d failures in the status of an endpoint that is down, want at least 1", n)
	}
	if got := p.logged("works again"); len(got) != 0 {
		t.Errorf("got %q logged while the endpoint is down, want nothing yet", got)
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Skip("another process has taken the port: ", err)
	}
	server := serveOn(t, l, func(c *peer) {
		for m, err := c.next(); err == nil && echoEach(c, m) == nil; m, err = c.next() {
			continue
		}
	})
	defer server.stop()
	eventually(t, func() bool { return c.call(request(2, "x")).Status == wire.Success }, say("the server that has come up to be found"))
	p.wantCount(0, "relevo_endpoint_passed_over")
	p.wantCount(0, "relevo_endpoint_failures")
	if got := p.logged("works again"); len(got) != 1 {
		t.Errorf("got %q logged, want it told once that the endpoint works again", got)
	}
}

// TestOnlyOneConnectionIsTaken: a server that refuses further ones serves small and large requests on the one that it
// has, and is not dialled again for each large one.
func TestOnlyOneConnectionIsTaken(t *testing.T) {
	large := strings.Repeat("x", 300<<10)
	for _, most := range []int{1, 4} {
		t.Run(fmt.Sprint("connections_per_endpoint=", most), func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			server := serveOn(t, l, func(c *peer) {
				l.Close()
				for m, err := c.next(); err == nil && echoEach(c, m) == nil; m, err = c.next() {
					continue
				}
			})
			s := spec(server.address)
			s.Clusters[0].ConnectionsPerEndpoint = most
			s.Routes[0].Rules[0].Timeout, s.Routes[0].Rules[0].Attempts = patience, 1 // no retry hides a refusal
			p := startProxy(t, s, 512<<20)
			c := dial(t, p.address)
			wantEcho(t, c.call(request(1, "takes the connection")), "takes the connection")
			others := startNeighbours(t, p.address, service)
			from := time.Now()
			for i := range uint32(50) {
				wantEcho(t, c.call(request(2*i, large)), large)
				wantEcho(t, c.call(request(2*i+1, "small")), "small")
			}
			others.goOn()
			others.stop()
			// Each of two pools may dial at once, and then again after a pause of a second.
			bound := 2 * float64(1+time.Since(from)/time.Second)
			if most == 1 {
				bound /= 2 // the small ones' has what it may have
			}
			if got := p.value("relevo_endpoint_connect_failures_total"); got < 1 || got > bound {
				t.Errorf("got %v refused dials for 50 large requests, want 1 to %v", got, bound)
			}
			p.wantCount(1, "relevo_endpoint_connections_total")
			p.wantCount(0, "relevo_listener_local_replies_total")
			p.wantCount(0, "relevo_endpoint_failures") // it works, and does just not take more connections
		})
	}
}

// TestUpstreamCloses with a request in flight, gently and by a reset.
func TestUpstreamCloses(t *testing.T) {
	for name, end := range endings {
		t.Run(name, func(t *testing.T) {
			server := serveEach(t, func(c *peer, m wire.Message) error {
				if string(m.Content()) == "hello" {
					return echoEach(c, m)
				}
				end(c)
				return errStop
			})
			p := startProxy(t, withSteady(t, spec(server.address)), 512<<20)
			others := startNeighbours(t, p.address, steadyService)
			c := dial(t, p.address)
			for i := range 3 {
				wantEcho(t, c.call(request(9, "hello")), "hello")
				p.wantLocal(c.call(request(uint32(i), "x")), wire.ErrorComm, forwarder.ReasonUpstreamClosed, float64(i+1))
			}
			p.wantCount(0, "relevo_route_retries_total", "route=rpc/echo")
			p.wantCount(3, "relevo_endpoint_closes_total", "endpoint="+server.address)
			if n := server.frames.Load(); n != 6 {
				t.Errorf("got %d frames at the server, want each of the 6 requests once: what was sent is never sent again", n)
			}
			others.goOn()
		})
	}
}

// TestResetBeforeSend: what the kernel has not taken a byte of goes to another endpoint; what it has does not.
func TestResetBeforeSend(t *testing.T) {
	broken := make(chan struct{})
	bad := serveOn(t, narrow(t), func(c *peer) {
		<-broken
		c.reset()
	})
	good := serveEach(t, echoEach)
	s := spec(bad.address, good.address)
	s.Clusters[0].Balancer = forwarder.BalancerRoundRobin
	s.Routes[0].Rules[0].Timeout = patience
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	content := strings.Repeat("x", 60<<10)
	queued := func() float64 { // sent there, by Relevo's count, and not yet taken by the kernel
		e := "endpoint=" + bad.address
		return p.value("relevo_endpoint_requests_total", e)*(60<<10) - p.value("relevo_endpoint_bytes_total", e, "direction=written")
	}
	n := 0
	for ; queued() < 512<<10; n++ {
		c.send(frameOf(t, uint32(n), content))
		if n%2 == 1 {
			wantEcho(t, c.receive(), content) // from the good one
		}
	}
	close(broken)
	bad.listener.Close()
	statuses := map[wire.Status]int{}
	for _, m := range c.receiveByID(n - n/2) {
		statuses[m.Status]++
	}
	if statuses[wire.Success] == 0 || statuses[wire.ErrorComm] == 0 || statuses[wire.Success]+statuses[wire.ErrorComm] != n-n/2 {
		t.Errorf("got %v of the %d requests on the broken connection, want some SUCCESS by retry, ERROR_COMM for those sent", statuses, n-n/2)
	}
	p.wantCount(float64(statuses[wire.ErrorComm]), "relevo_listener_local_replies_total", "reason="+forwarder.ReasonUpstreamClosed)
	if got := p.value("relevo_route_retries_total"); got < float64(statuses[wire.Success]) {
		t.Errorf("got %v retries counted, want at least the %d requests that were saved", got, statuses[wire.Success])
	}
	if got, want := good.frames.Load(), int64(n/2+statuses[wire.Success]); got != want {
		t.Errorf("got %d requests at the good server, want %d: one is there twice, or answered by nobody", got, want)
	}
}

// TestAcceptsAndCloses: a server that closes each connection unread. Every request ends, once; with the other endpoint
// there, those of which nothing was sent succeed.
func TestAcceptsAndCloses(t *testing.T) {
	for name, end := range endings {
		t.Run(name, func(t *testing.T) {
			bad := serve(t, end)
			s := spec(bad.address, serveEach(t, echoEach).address)
			s.Clusters[0].Balancer = forwarder.BalancerRoundRobin
			p := startProxy(t, s, 512<<20)
			c := dial(t, p.address)
			const n = 200
			failed := 0
			for i := range n {
				m := c.call(request(uint32(i), "x"))
				switch m.Status {
				case wire.Success:
				case wire.ErrorComm:
					failed++
				default:
					t.Fatalf("got status %v, want SUCCESS or, of what was sent, ERROR_COMM", m.Status)
				}
			}
			if failed > n/2 {
				t.Errorf("got %d of %d requests failed, want at most the half that meets the bad server", failed, n)
			}
			p.wantCount(float64(failed), "relevo_listener_local_replies_total", "reason="+forwarder.ReasonUpstreamClosed)
			p.wantCount(float64(failed), "relevo_listener_local_replies_total")
		})
	}
}

// TestDeadlines: the smallest of the frame's timeout, the route's and the cap counts, and what is left of it goes along.
func TestDeadlines(t *testing.T) {
	const short = 40 * time.Millisecond
	for _, tc := range []struct {
		name  string
		frame int32
		route time.Duration
		cap   time.Duration
		want  int32 // the most that may be left, in ms
	}{
		{"frame", 40, patience, time.Minute, 40},
		{"route", 60_000, short, time.Minute, 40},
		{"cap", 60_000, patience, short, 40},
		{"zero-is-the-route's", 0, short, time.Minute, 40},
		{"negative-is-the-route's", -1, short, time.Minute, 40},
		{"least-is-the-route's", -1 << 31, short, time.Minute, 40},
		{"greatest-is-the-route's", 1<<31 - 1, short, time.Minute, 40},
		{"one-millisecond", 1, patience, time.Minute, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			left := make(chan int32, 3)
			server := serveEach(t, func(_ *peer, m wire.Message) error { left <- m.Timeout; return nil })
			s := spec(server.address)
			s.MaxTimeout, s.Routes[0].Rules[0].Timeout = tc.cap, tc.route
			p := startProxy(t, s, 512<<20)
			c := dial(t, p.address)
			for i, v := range []bolt.Version{bolt.V1, bolt.V2, bolt.V2CRC} {
				r := request(uint32(i), "x")
				r.Version, r.Timeout = v, tc.frame
				m := c.call(r)
				if m.Status != wire.Timeout || bolt.VersionOf(&m) != v {
					t.Errorf("got status %v in %v, want TIMEOUT in %v", m.Status, bolt.VersionOf(&m), v)
				}
			}
			timeouts := p.value("relevo_listener_local_replies_total", "reason="+forwarder.ReasonTimeout) +
				p.value("relevo_listener_local_replies_total", "reason="+forwarder.ReasonPendingTimeout) // the dial's, of the first
			if timeouts != 3 {
				t.Errorf("got %v timeouts counted, want 3: %v", timeouts, p.series("relevo_listener_local_replies_total"))
			}
			for range server.frames.Load() {
				if ms := <-left; ms < 1 || ms > tc.want {
					t.Errorf("got %d ms in the frame at the server, want 1 to %d: what is left of the deadline", ms, tc.want)
				}
			}
		})
	}
}

// TestOnlyOneConnectionIsTakenByALargeOne: then it is the small ones that share.
func TestOnlyOneConnectionIsTakenByALargeOne(t *testing.T) {
	large := strings.Repeat("x", 300<<10)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := serveOn(t, l, func(c *peer) {
		l.Close()
		for m, err := c.next(); err == nil && echoEach(c, m) == nil; m, err = c.next() {
			continue
		}
	})
	p := startProxy(t, spec(server.address), 512<<20)
	c := dial(t, p.address)
	wantEcho(t, c.call(request(1, large)), large)
	for i := range uint32(5) {
		wantEcho(t, c.call(request(2+i, "small")), "small")
	}
	p.wantCount(0, "relevo_listener_local_replies_total")
}
