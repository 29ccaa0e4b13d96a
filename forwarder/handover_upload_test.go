package forwarder_test

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// TestCrossUpload: a frame that is passed on in pieces goes on wherever it was interrupted.
func TestCrossUpload(t *testing.T) {
	frame := frameOf(t, 9, string(noise(1, uploadSize)))
	for name, cut := range map[string]int{"no byte": 0, "a part of the head": 20, "the head": 300, "half": uploadSize / 2, "all but a byte": len(frame) - 1} {
		t.Run(name, func(t *testing.T) {
			eachCrossing(t, func(t *testing.T, cross func(*proxy, *forwarder.Spec)) {
				server, got := counting(t)
				s := uploadSpec(server.address)
				p := startProxy(t, s, 64<<20)
				c := dial(t, p.address)
				wantEcho(t, c.call(request(1, "makes the connection")), "makes the connection")
				c.send(frame[:cut])
				if cut >= 300 { // else a pause may cut the dial short, and the server sees another one
					p.wantSome("relevo_endpoint_connections", "state=leased")
				}
				if cut > readAtOnce {
					eventually(t, func() bool { return got.Load() >= int64(cut)*9/10 }, say("the server to get what was sent"))
				}
				cross(p, s)
				c.send(frame[cut:])
				wantEcho(t, c.receive(), string(noise(1, uploadSize)))
				wantEcho(t, c.call(request(2, "behind it")), "behind it")
				if n := server.accepted.Load(); n != 2 {
					t.Errorf("got %d connections at the server, want one for small frames and one for uploads", n)
				}
			})
		})
	}
}

// readAtOnce is more than one read brings: a frame of which more has come goes out in pieces.
const readAtOnce = 64 << 10

// TestCrossOnewayUpload arrives once and whole.
func TestCrossOnewayUpload(t *testing.T) {
	eachCrossing(t, func(t *testing.T, cross func(*proxy, *forwarder.Spec)) {
		var whole atomic.Int64
		server := serveEach(t, func(c *peer, m wire.Message) error {
			if m.Kind == wire.Oneway && len(m.Content()) == uploadSize {
				whole.Add(1)
			}
			return echoEach(c, m)
		})
		s := uploadSpec(server.address)
		p := startProxy(t, s, 64<<20)
		c := dial(t, p.address)
		frame := encode(t, oneway(1, string(noise(1, uploadSize))))
		c.send(frame[:uploadSize/2])
		p.wantCount(1, "relevo_endpoint_connections", "state=leased")
		cross(p, s)
		c.send(frame[uploadSize/2:])
		wantEcho(t, c.call(request(2, "behind it")), "behind it")
		eventually(t, func() bool { return whole.Load() == 1 }, say("the upload to arrive"))
	})
}

// TestCrossUploadToNobody: what is left of a frame that was answered already is taken for nobody.
func TestCrossUploadToNobody(t *testing.T) {
	eachCrossing(t, func(t *testing.T, cross func(*proxy, *forwarder.Spec)) {
		server, _ := counting(t)
		s := uploadSpec(server.address)
		p := startProxy(t, s, 64<<20)
		c := dial(t, p.address)
		r := request(1, string(noise(1, uploadSize)))
		r.Headers[0].Value = "com.example.Nobody:1.0"
		frame := encode(t, r)
		c.send(frame[:uploadSize/2])
		p.wantLocal(c.receive(), wire.NoProcessor, forwarder.ReasonNoRoute, 1)
		cross(p, s)
		c.send(frame[uploadSize/2:])
		wantEcho(t, c.call(request(2, "behind it")), "behind it")
	})
}

// TestCrossUploadThatWaits for a lease, or inside a filter: it waits on, and that is no further try.
func TestCrossUploadThatWaits(t *testing.T) {
	eachCrossing(t, func(t *testing.T, cross func(*proxy, *forwarder.Spec)) {
		server, got := counting(t)
		s := uploadSpec(server.address)
		s.Clusters[0].MaxUploads = 1
		let := make(chan struct{})
		entered := new(atomic.Int64)
		s.Listeners[0].Filters = blockingIn("after", func(ctx context.Context, x *filter.Exchange) filter.Verdict {
			if string(x.Header([]byte("slow"))) == "1" {
				entered.Add(1)
				select {
				case <-let:
				case <-ctx.Done():
				}
			}
			return filter.Continue
		})
		p := startProxy(t, s, 64<<20)
		content := string(noise(1, uploadSize))
		first, second, third := dial(t, p.address), dial(t, p.address), dial(t, p.address)
		frame := frameOf(t, 1, content)
		first.send(frame[:uploadSize/2])
		eventually(t, func() bool { return got.Load() >= uploadSize/2 }, say("the first upload to have the lease"))
		second.send(frame[:uploadSize/2])
		p.wantCount(1, "relevo_cluster_pending")
		inFilter := encode(t, slowRequest(1, content))
		third.send(inFilter[:1<<20])
		eventually(t, func() bool { return entered.Load() > 0 }, say("the third upload inside its filter"))
		cross(p, s)
		p.wantCount(1, "relevo_cluster_pending")
		close(let)
		first.send(frame[uploadSize/2:])
		wantEcho(t, first.receive(), content)
		// Whichever of the two has the lease first: a pause does not keep their order.
		second.send(frame[uploadSize/2:])
		third.send(inFilter[1<<20:])
		wantEcho(t, second.receive(), content)
		wantEcho(t, third.receive(), content)
		p.wantCount(0, "relevo_route_retries_total")
		if n := server.accepted.Load(); n != 1 {
			t.Errorf("got %d connections at the server, want the one for uploads", n)
		}
	})
}

// TestClientGoneWhileItsUploadRests: whatever it waits for is given back.
func TestClientGoneWhileItsUploadRests(t *testing.T) {
	for _, how := range []string{"resumed", "paused again", "handed over"} {
		t.Run(how, func(t *testing.T) {
			server, got := counting(t)
			s := uploadSpec(server.address)
			s.Clusters[0].MaxUploads = 1
			p := startProxy(t, s, 64<<20)
			first, second := dial(t, p.address), dial(t, p.address)
			frame := frameOf(t, 1, string(noise(1, uploadSize)))
			first.send(frame[:uploadSize/2])
			eventually(t, func() bool { return got.Load() >= uploadSize/2 }, say("the first upload to have the lease"))
			second.send(frame[:uploadSize/2])
			p.wantCount(1, "relevo_cluster_pending")
			p.pause()
			p.CloseClients("queue-full")
			switch how {
			case "resumed":
				p.Resume()
			case "paused again":
				p.pause() // buries them
				p.wantCount(0, "relevo_listener_connections")
				p.Resume()
			default:
				p.pause()
				p.takeOver(s)
			}
			p.atRest()
			p.wantCount(0, "relevo_endpoint_connections", "state=leased")
			wantEcho(t, dial(t, p.address).call(request(1, "others go on")), "others go on")
		})
	}
}
