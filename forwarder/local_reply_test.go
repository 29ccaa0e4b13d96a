package forwarder_test

import (
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// blackhole is the address of a listener that nobody accepts at and whose backlog is full, so that connecting it takes
// for ever.
func blackhole(t *testing.T) string {
	t.Helper()
	_, address := fullBacklog(t)
	return address
}

// fullBacklog is the socket of a blackhole.
func fullBacklog(t *testing.T) (fd int, address string) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address = (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: name.(*syscall.SockaddrInet4).Port}).String()
	for range 64 {
		c, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = syscall.Close(c) })
		if err := syscall.Connect(c, name); err != nil && !errors.Is(err, syscall.EINPROGRESS) {
			t.Fatal(err)
		}
		// The kernel's own word: on a busy machine a deadline of ours passes before we see that the connection was made.
		made, err := unix.Poll([]unix.PollFd{{Fd: int32(c), Events: unix.POLLOUT}}, 50)
		if err == nil && made == 0 {
			return fd, address
		}
	}
	t.Skip("this kernel's backlog has no end: an endpoint that cannot be connected cannot be made")
	return 0, ""
}

func TestNoRoute(t *testing.T) {
	p := startProxy(t, spec(serveEach(t, echoEach).address), 512<<20)
	c := dial(t, p.address)
	for i, headers := range [][]bolt.Pair{
		nil, {{Key: "service", Value: "com.example.Other:1.0"}}, {{Key: "service", Value: ""}}, {{Key: "Service", Value: service}},
	} {
		r := request(uint32(i), "x")
		r.Version, r.Headers = bolt.Version(i%3), headers
		p.wantLocal(c.call(r), wire.NoProcessor, forwarder.ReasonNoRoute, float64(i+1))
	}
	wantEcho(t, c.call(request(9, "still here")), "still here")
}

func TestUnknownCommand(t *testing.T) {
	p := startProxy(t, spec(serveEach(t, echoEach).address), 512<<20)
	c := dial(t, p.address)
	frame := frameOf(t, 5, "x")
	binary.BigEndian.PutUint16(frame[2:], 77)
	c.send(frame)
	m := c.receive()
	p.wantLocal(m, wire.NoProcessor, forwarder.ReasonUnknownCommand, 1)
	if m.ID != 5 {
		t.Errorf("got the id %d, want 5", m.ID)
	}
	wantEcho(t, c.call(request(6, "still here")), "still here")
}

// TestBadHeaderBlock: the frame around it is whole, so the connection goes on.
func TestBadHeaderBlock(t *testing.T) {
	p := startProxy(t, spec(serveEach(t, echoEach).address), 512<<20)
	c := dial(t, p.address)
	n := 0.0
	for i, block := range []string{
		"\x00", "\x00\x00", "\x00\x00\x00", "\x00\x00\x00\x01", "\x00\x00\x00\x01k", "\x00\x00\x00\x01k\x00\x00\x00\x02v",
		"\x7f\xff\xff\xffk", "\xff\xff\xff\xfe", "\x00\x00\x00\x01k\x00\x00\x00\x01v\x00",
	} {
		for v, l := range []layout{v1Request, v2Request, v2Request} {
			q := parts{layout: l, typ: 1, command: 1, ver1: byte(v), serial: 1, flags: 1, id: uint32(i), header: []byte(block)}
			c.send(q.frame())
			n++
			p.wantLocal(c.receive(), wire.CodecException, wire.ReasonBadHeaderBlock, n)
		}
	}
	wantEcho(t, c.call(request(99, "still here")), "still here")
}

// TestTooLarge: a frame over a limit is answered, and the connection closed; at the limit it passes.
func TestTooLarge(t *testing.T) {
	for _, v := range []bolt.Version{bolt.V1, bolt.V2, bolt.V2CRC} {
		t.Run(v.String(), func(t *testing.T) {
			s := spec(serveEach(t, echoEach).address)
			s.Listeners[0].Limits = wire.Limits{MaxFrame: 100_000, MaxHeader: 200}
			p := startProxy(t, s, 512<<20)
			others := startNeighbours(t, p.address, service)
			full := request(1, "")
			full.Version = v
			full.Content = make([]byte, 100_000-len(encode(t, full)))
			over := full
			over.Content = make([]byte, len(full.Content)+1)
			wide := request(2, "")
			wide.Version = v
			wide.Headers = append(wide.Headers, bolt.Pair{Key: "k", Value: strings.Repeat("v", 200)})
			for _, bad := range []struct {
				r      bolt.Request
				reason string
			}{{over, wire.ReasonFrameTooLarge}, {wide, wire.ReasonHeadersTooLarge}} {
				c := dial(t, p.address)
				wantEcho(t, c.call(full), string(full.Content))
				c.send(encode(t, bad.r))
				p.wantLocal(c.receive(), wire.CodecException, bad.reason, 1)
				c.wantEnd()
				p.wantCount(1, "relevo_listener_closes_total", "reason="+bad.reason)
			}
			others.goOn()
		})
	}
}

// TestLimitsAnswerBusy fills each limit of requests to the brim: what is within goes its way, what is over is answered
// at once.
func TestLimitsAnswerBusy(t *testing.T) {
	for _, tc := range []struct {
		name, reason string
		change       func(*forwarder.Spec)
		clients      int
		rejected     bool // by the cluster
	}{
		{"streams", forwarder.ReasonMaxStreams, func(s *forwarder.Spec) { s.Listeners[0].MaxStreams = 4 }, 1, false},
		{"requests", forwarder.ReasonMaxRequests, func(s *forwarder.Spec) { s.Clusters[0].MaxRequests = 4 }, 2, true},
		{"requests of low priority", forwarder.ReasonLowMaxRequests, func(s *forwarder.Spec) {
			s.Clusters[0].MaxRequests, s.Routes[0].Rules[0].Priority = 5, forwarder.PriorityLow
		}, 2, true},
		{"requests of the rule", forwarder.ReasonRouteMaxRequests, func(s *forwarder.Spec) { s.Routes[0].Rules[0].MaxRequests = 4 }, 2, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := serveHeld(t)
			s := spec(h.address)
			tc.change(s)
			p := startProxy(t, s, 512<<20)
			var clients []*peer
			for range tc.clients {
				clients = append(clients, dial(t, p.address))
			}
			c := clients[len(clients)-1]
			for i := range 4 {
				clients[i%tc.clients].send(frameOf(t, uint32(i), "held"))
			}
			h.got(t, 4)
			for i := range 3 {
				p.wantLocal(c.call(request(uint32(100+i), "over")), wire.Busy, tc.reason, float64(i+1))
			}
			if tc.rejected {
				p.wantCount(3, "relevo_cluster_rejections_total", "reason="+tc.reason)
			}
			c.send(encode(t, oneway(7, "a one-way request takes no place")))
			h.got(t, 5)
			h.release()
			for i := range 4 {
				wantEcho(t, clients[i%tc.clients].receive(), "held")
			}
			wantEcho(t, c.call(request(8, "room again")), "room again")
		})
	}
}

// TestPlaceIsFreeWhenTheReplyIsThere: who has its reply may send the next request, whatever the limit.
func TestPlaceIsFreeWhenTheReplyIsThere(t *testing.T) {
	for name, change := range map[string]func(*forwarder.Spec){
		"streams":  func(s *forwarder.Spec) { s.Listeners[0].MaxStreams = 1 },
		"requests": func(s *forwarder.Spec) { s.Clusters[0].MaxRequests = 1 },
		"rule":     func(s *forwarder.Spec) { s.Routes[0].Rules[0].MaxRequests = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			s := spec(serveEach(t, echoEach).address)
			change(s)
			p := startProxy(t, s, 512<<20)
			c := dial(t, p.address)
			for i := range 3000 {
				if m := c.call(request(uint32(i), "one by one")); m.Status != wire.Success {
					t.Fatalf("got status %v for request %d of a client that waits for each reply, want SUCCESS", m.Status, i)
				}
			}
		})
	}
}

func TestPendingLimits(t *testing.T) {
	hole := blackhole(t)
	for _, tc := range []struct {
		name   string
		change func(*forwarder.ClusterSpec)
	}{
		{"number", func(c *forwarder.ClusterSpec) { c.MaxPending = 2 }},
		{"bytes", func(c *forwarder.ClusterSpec) { c.MaxPendingBytes = 10_000 }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := spec(hole)
			s.Clusters[0].ConnectTimeout = 500 * time.Millisecond
			tc.change(&s.Clusters[0])
			p := startProxy(t, s, 512<<20)
			c := dial(t, p.address)
			content := strings.Repeat("x", 1400)
			c.send(frameOf(t, 1, content), frameOf(t, 2, content))
			p.wantCount(2, "relevo_cluster_pending")
			p.wantLocal(c.call(request(3, content)), wire.Busy, forwarder.ReasonMaxPending, 1)
			p.wantCount(1, "relevo_cluster_rejections_total", "reason="+forwarder.ReasonMaxPending)
			// The dial ends: the endpoint is passed over, and there is no other.
			for id, m := range c.receiveByID(2) {
				if id > 2 || m.Status != wire.ErrorComm {
					t.Errorf("got status %v with id %d, want ERROR_COMM for 1 and 2", m.Status, id)
				}
			}
			p.wantCount(1, "relevo_endpoint_connect_failures_total")
		})
	}
}

func TestPendingTimeout(t *testing.T) {
	s := spec(blackhole(t))
	s.Clusters[0].ConnectTimeout = patience
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	r := request(1, "x")
	r.Timeout = 30
	p.wantLocal(c.call(r), wire.Timeout, forwarder.ReasonPendingTimeout, 1)
	p.wantCount(0, "relevo_cluster_pending")
}

func TestConnectTimeout(t *testing.T) {
	s := spec(blackhole(t))
	s.Clusters[0].ConnectTimeout = 50 * time.Millisecond
	s.Routes[0].Rules[0].Attempts = 1
	p := startProxy(t, s, 512<<20)
	p.wantLocal(dial(t, p.address).call(request(1, "x")), wire.ErrorComm, forwarder.ReasonConnectFailure, 1)
	p.wantCount(1, "relevo_endpoint_connect_failures_total")
}

// TestClusterConnections: the connection that the second endpoint would need is one too many.
func TestClusterConnections(t *testing.T) {
	s := spec(serveEach(t, echoEach).address, serveEach(t, echoEach).address)
	s.Clusters[0].Balancer, s.Clusters[0].MaxConnections = forwarder.BalancerRoundRobin, 1
	s.Routes[0].Rules[0].Attempts = 1
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	wantEcho(t, c.call(request(1, "the first")), "the first")
	p.wantLocal(c.call(request(2, "the second")), wire.Busy, forwarder.ReasonMaxConnections, 1)
	p.wantCount(1, "relevo_cluster_rejections_total", "reason="+forwarder.ReasonMaxConnections)
	p.wantCount(1, "relevo_cluster_connections")
	wantEcho(t, c.call(request(3, "the first again")), "the first again")
}

// TestClusterConnectionsRetried: a request that may be tried again goes to the endpoint that has the connection.
func TestClusterConnectionsRetried(t *testing.T) {
	s := spec(serveEach(t, echoEach).address, serveEach(t, echoEach).address)
	s.Clusters[0].Balancer, s.Clusters[0].MaxConnections = forwarder.BalancerRoundRobin, 1
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	for i := range uint32(20) {
		wantEcho(t, c.call(request(i, "whichever")), "whichever")
	}
	p.wantSome("relevo_cluster_rejections_total", "reason="+forwarder.ReasonMaxConnections)
	p.wantCount(1, "relevo_cluster_connections")
}

// TestOnlyConnectionBreaks: with one connection allowed, those that wait for room on it get the one that replaces it.
func TestOnlyConnectionBreaks(t *testing.T) {
	h := make(chan struct{})
	server := serve(t, func(c *peer) {
		if c.number == 1 {
			<-h
			c.reset()
			return
		}
		for m, err := c.next(); err == nil && echoEach(c, m) == nil; m, err = c.next() {
			continue
		}
	})
	defer server.stop()
	s := spec(server.address)
	s.Clusters[0].MaxConnections = 1
	s.Routes[0].Rules[0].Timeout, s.Routes[0].Rules[0].Attempts = patience, 1
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	content := strings.Repeat("x", 60<<10)
	c.send(frameOf(t, 0, content))
	p.wantCount(1, "relevo_endpoint_requests_total")
	n := 1
	for ; p.value("relevo_cluster_pending") == 0; n++ {
		c.send(frameOf(t, uint32(n), content))
	}
	close(h)
	statuses := make(map[wire.Status]int)
	for _, m := range c.receiveByID(n) {
		statuses[m.Status]++
	}
	if statuses[wire.Success] == 0 || statuses[wire.Success]+statuses[wire.ErrorComm] != n {
		t.Errorf("got %v of %d requests, want SUCCESS for what was not sent yet, ERROR_COMM for what was", statuses, n)
	}
	p.wantCount(0, "relevo_listener_local_replies_total", "reason="+forwarder.ReasonPendingTimeout)
}
