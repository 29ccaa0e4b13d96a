package forwarder_test

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// TestUploadOfASilentClient: its lease ends with its deadline, whether or not it sends another byte, and the next upload
// gets the place.
func TestUploadOfASilentClient(t *testing.T) {
	for _, kind := range []string{"request", "one-way"} {
		t.Run(kind, func(t *testing.T) {
			server, got := counting(t)
			s := uploadSpec(server.address)
			s.Clusters[0].MaxUploads = 1
			s.Listeners[0].WriteTimeout = 400 * time.Millisecond // so that the sweeper looks often
			p := startProxy(t, s, 64<<20)
			r := request(1, string(noise(1, uploadSize)))
			r.Oneway, r.Timeout = kind == "one-way", 200
			silent := dial(t, p.address)
			silent.send(encode(t, r)[:uploadSize/2])
			eventually(t, func() bool { return got.Load() >= uploadSize/2 }, say("the server to get the half that was sent"))
			next := request(2, string(noise(2, uploadSize)))
			wantEcho(t, dial(t, p.address).call(next), string(next.Content))
			p.wantCount(1, "relevo_endpoint_closes_total", "reason="+forwarder.ReasonUploadBroken)
			silent.hangUp()
		})
	}
}

// TestUploadWithoutAPlace: where other connections have all the places of max_connections, an upload does not wait for
// one, but goes to an endpoint that has a connection for it, or is answered.
func TestUploadWithoutAPlace(t *testing.T) {
	server, _ := counting(t)
	s := uploadSpec(server.address)
	s.Clusters[0].MaxConnections = 1
	p := startProxy(t, s, 64<<20)
	c := dial(t, p.address)
	wantEcho(t, c.call(request(1, "takes the place")), "takes the place")
	p.wantLocal(c.call(request(2, string(noise(1, uploadSize)))), wire.Busy, forwarder.ReasonMaxConnections, 1)
	wantEcho(t, c.call(request(3, "behind it")), "behind it")
}

// TestUploadConnectionIsNoExcuse: an idle connection for uploads does not make an endpoint one that works for small
// requests: when it cannot be connected any more it is passed over.
func TestUploadConnectionIsNoExcuse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var small atomic.Pointer[peer]
	server := serveOn(t, l, func(c *peer) {
		for {
			m, err := c.next()
			if err != nil {
				return
			}
			if len(m.Frame) < uploadSize {
				small.Store(c)
			}
			if echoEach(c, m) != nil {
				return
			}
		}
	})
	p := startProxy(t, uploadSpec(server.address), 64<<20)
	c := dial(t, p.address)
	r := request(1, string(noise(1, uploadSize)))
	wantEcho(t, c.call(r), string(r.Content))
	wantEcho(t, c.call(request(2, "small")), "small")
	l.Close()
	small.Load().hangUp()
	p.wantCount(1, "relevo_endpoint_closes_total")
	if m := c.call(request(3, "nobody listens")); m.Status != wire.ErrorComm {
		t.Errorf("got status %v for a request to an endpoint that is gone, want ERROR_COMM", m.Status)
	}
	p.wantCount(1, "relevo_endpoint_passed_over")
}

// TestReplyFilterOfAnUpload that blocks holds a worker, and not the server connection's read loop.
func TestReplyFilterOfAnUpload(t *testing.T) {
	server, _ := counting(t)
	s := uploadSpec(server.address)
	s.Clusters[0].MaxUploads = 1
	let, entered := make(chan struct{}), make(chan struct{}, 1)
	var n atomic.Int64
	s.Listeners[0].Filters = blockingIn("reply", func(context.Context, *filter.Exchange) filter.Verdict {
		if n.Add(1) == 1 {
			entered <- struct{}{}
			<-let
		}
		return filter.Continue
	})
	p := startProxy(t, s, 64<<20)
	first, second := dial(t, p.address), dial(t, p.address)
	first.send(frameOf(t, 1, string(noise(1, uploadSize))))
	<-entered
	wantEcho(t, second.call(request(2, string(noise(2, uploadSize)))), string(noise(2, uploadSize)))
	close(let)
	wantEcho(t, first.receive(), string(noise(1, uploadSize)))
}

// TestTimeIsOverBehindAFilter: a rule's timeout that passed in a filter of the listener, before anybody knew the rule, ends
// the request before it is sent.
func TestTimeIsOverBehindAFilter(t *testing.T) {
	server := serveEach(t, echoEach)
	s := spec(server.address)
	s.Routes[0].Rules[0].Timeout = 100 * time.Millisecond
	s.Listeners[0].Filters = blockingIn("before", func(_ context.Context, x *filter.Exchange) filter.Verdict {
		if string(x.Message.Content()) == "late" {
			<-time.After(200 * time.Millisecond)
		}
		return filter.Continue
	})
	p := startProxy(t, s, 64<<20)
	c := dial(t, p.address)
	wantEcho(t, c.call(request(1, "in time")), "in time")
	p.wantLocal(c.call(request(2, "late")), wire.Timeout, forwarder.ReasonFilterTimeout, 1)
	if n := server.frames.Load(); n != 1 {
		t.Errorf("got %d frames at the server, want none of the request whose time was over", n-1)
	}
}

// TestUploadsDoNotWaitWhileBuffersAreFull: what an upload that waits for a connection has sent is held meanwhile. So when buffers are
// nearly full none waits any more, as no other request does, and nobody is closed to make room.
func TestUploadsDoNotWaitWhileBuffersAreFull(t *testing.T) {
	const limit, held = 2 << 20, 64 << 10
	const n = 2 * limit / held
	server, got := counting(t)
	s := uploadSpec(server.address)
	s.Clusters[0].MaxUploads = 1
	p := startProxy(t, s, limit)
	frame := frameOf(t, 1, string(noise(1, uploadSize)))
	first := dial(t, p.address)
	first.send(frame[:uploadSize/2])
	eventually(t, func() bool { return got.Load() >= uploadSize/2 }, say("the server to get the half that was sent"))
	refused := func() float64 {
		return p.value("relevo_listener_local_replies_total", "reason="+forwarder.ReasonMaxPending)
	}
	var clients []*peer
	for i := range n {
		c := dial(t, p.address)
		c.send(frame[:held+1000])
		clients = append(clients, c)
		eventually(t, func() bool { return p.value("relevo_cluster_pending")+refused() == float64(i+1) }, func() string {
			return fmt.Sprintf("%d uploads waiting or refused, %v wait and %v are refused", i+1, p.value("relevo_cluster_pending"), refused())
		})
	}
	if refused() < n/4 || p.Buffered() > limit {
		t.Errorf("got %v of %d uploads refused and %d bytes buffered, want the limit of %d to hold", refused(), n, p.Buffered(), limit)
	}
	first.hangUp()
	for _, c := range clients {
		c.hangUp()
	}
	p.atRest()
	p.wantCount(0, "relevo_listener_closes_total", "reason="+forwarder.ReasonBufferPressure)
}

// TestCloseNoMoreThanIsTooMuch: the memory of connections that are closed for it may take a while to come back, as here, where their
// read loops are inside a filter. Nobody else is closed meanwhile.
func TestCloseNoMoreThanIsTooMuch(t *testing.T) {
	const limit, held = 2 << 20, 64 << 10
	const n = 2 * limit / held
	s := uploadSpec(serveEach(t, echoEach).address)
	s.Listeners[0].WriteTimeout = time.Minute
	let := make(chan struct{})
	s.Listeners[0].Filters = blockingIn("before", func(_ context.Context, x *filter.Exchange) filter.Verdict {
		if x.Head {
			<-let
		}
		return filter.Continue
	})
	p := startProxy(t, s, limit)
	release := sync.OnceFunc(func() { close(let) })
	t.Cleanup(release) // before the proxy's close, which waits for the filter
	frame := frameOf(t, 1, string(noise(1, uploadSize)))
	clients := make([]*peer, n)
	for i := range clients {
		clients[i] = dial(t, p.address)
		_, _ = clients[i].Write(frame[:held+1000]) // it may be closed already
	}
	eventually(t, func() bool { return len(p.logged("closed connections to make room")) > 0 }, say("connections to be closed for their memory"))
	begin := time.Now()
	eventually(t, func() bool { return time.Since(begin) > 300*time.Millisecond }, say("some more looks at the memory"))
	release()
	for _, c := range clients {
		c.hangUp()
	}
	p.atRest()
	p.wantCount(0, "relevo_listener_connections")
	if got := p.value("relevo_listener_closes_total", "reason="+forwarder.ReasonBufferPressure); got < 1 || got > n*3/4 {
		t.Errorf("got %v of %d clients closed for their memory, want about half of them, which is too much", got, n)
	}
}
