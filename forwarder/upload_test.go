package forwarder_test

import (
	"bytes"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/route"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

const uploadSize = 2 << 20

// uploadSpec passes frames on in pieces from 256 KiB on.
func uploadSpec(endpoints ...string) *forwarder.Spec {
	s := spec(endpoints...)
	s.Listeners[0].StreamAbove = 256 << 10
	s.Listeners[0].ReadTimeout = patience
	s.Routes[0].Rules[0].Timeout = patience
	return s
}

// counting is a server that tells how many bytes it has got, and echoes.
func counting(t *testing.T) (*server, *atomic.Int64) {
	got := new(atomic.Int64)
	s := serve(t, func(c *peer) {
		in := &counter{peer: c, got: got}
		for {
			m, err := in.next()
			if err != nil || echoEach(c, m) != nil {
				return
			}
		}
	})
	return s, got
}

// counter is a peer that counts what it reads.
type counter struct {
	*peer
	got *atomic.Int64
}

func (c *counter) next() (wire.Message, error) {
	for {
		var m wire.Message
		n, err := bolt.Codec{VerifyCRC: true}.Decode(&m, c.buf, wire.Limits{})
		if err != nil {
			return m, err
		}
		if n <= len(c.buf) {
			m.Frame = bytes.Clone(m.Frame)
			c.buf = c.buf[n:]
			return m, nil
		}
		in := make([]byte, 64<<10)
		n, err = c.Read(in)
		c.buf = append(c.buf, in[:n]...)
		c.got.Add(int64(n))
		if err != nil {
			return m, err
		}
	}
}

// TestUploadInPieces: the server gets the front of a large request while its client has not sent the rest; Relevo holds
// little of it; all of it arrives, in each version, with what filters and the rule change in its header.
func TestUploadInPieces(t *testing.T) {
	for _, v := range []bolt.Version{bolt.V1, bolt.V2, bolt.V2CRC} {
		t.Run(fmt.Sprint(v), func(t *testing.T) {
			server, got := counting(t)
			s := uploadSpec(server.address)
			s.Routes[0].Rules[0].Headers = []wire.Edit{{Op: wire.SetHeader, Key: []byte("x-via"), Value: []byte("relevo")}}
			p := startProxy(t, s, 64<<20)
			others := startNeighbours(t, p.address, service)
			r := request(7, string(noise(1, uploadSize)))
			r.Version = v
			frame := encode(t, r)
			c := dial(t, p.address)
			c.send(frame[:uploadSize/2])
			eventually(t, func() bool { return got.Load() >= uploadSize/2 }, say("the server to get the half that was sent"))
			if held := p.Buffered(); held > 1<<20 {
				t.Errorf("got %d bytes buffered for a request that waits for its client, want less than a quarter of it", held)
			}
			others.goOn()
			c.send(frame[uploadSize/2 : len(frame)-2])
			c.send(frame[len(frame)-2:])
			m := c.receive()
			if m.ID != 7 {
				t.Errorf("got id %d, want 7", m.ID)
			}
			wantEcho(t, m, string(r.Content))
			for id := range uint32(3) { // the connections are as good as before, the leased one too
				wantEcho(t, c.call(request(id, "small")), "small")
				r.ID = id
				wantEcho(t, c.call(r), string(r.Content))
			}
			others.goOn()
			if n := server.accepted.Load(); n > 2 {
				t.Errorf("got %d connections at the server, want one for small frames and one for uploads", n)
			}
		})
	}
}

// TestUploadBreaksOff: it breaks its own server connection and nothing else, and the endpoint is not to blame.
func TestUploadBreaksOff(t *testing.T) {
	for name, end := range endings {
		t.Run(name, func(t *testing.T) {
			server, got := counting(t)
			p := startProxy(t, uploadSpec(server.address), 64<<20)
			others := startNeighbours(t, p.address, service)
			frame := frameOf(t, 1, string(noise(1, uploadSize)))
			for i := range 5 {
				c := dial(t, p.address)
				before := got.Load()
				c.send(frame[:uploadSize/2])
				eventually(t, func() bool { return got.Load() >= before+uploadSize/2 }, say("the server to get upload %d's half", i))
				end(c)
				p.wantCount(float64(i+1), "relevo_endpoint_closes_total", "reason="+forwarder.ReasonUploadBroken)
			}
			p.wantCount(0, "relevo_endpoint_passed_over")
			others.goOn()
		})
	}
}

// TestUploadPastItsDeadline is answered, its server connection is closed, and what the client still sends of it is
// thrown away: the next request is understood.
func TestUploadPastItsDeadline(t *testing.T) {
	server, got := counting(t)
	s := uploadSpec(server.address)
	p := startProxy(t, s, 64<<20)
	others := startNeighbours(t, p.address, service)
	r := request(1, string(noise(1, uploadSize)))
	r.Timeout = 200
	frame := encode(t, r)
	c := dial(t, p.address)
	c.send(frame[:uploadSize/2])
	eventually(t, func() bool { return got.Load() >= uploadSize/2 }, say("the server to get the half that was sent"))
	p.wantLocal(c.receive(), wire.Timeout, forwarder.ReasonTimeout, 1)
	c.send(frame[uploadSize/2:])
	wantEcho(t, c.call(request(2, "the next")), "the next")
	p.wantCount(1, "relevo_endpoint_closes_total", "reason="+forwarder.ReasonUploadBroken)
	p.wantCount(0, "relevo_endpoint_passed_over")
	others.goOn()
}

// TestUploadIsAnsweredEarly: a reply that comes before the last byte is passed on at once, and the rest goes on.
func TestUploadIsAnsweredEarly(t *testing.T) {
	var whole atomic.Int64
	server := serve(t, func(c *peer) {
		for {
			head := make([]byte, 22)
			if _, err := c.Read(head); err != nil {
				return
			}
			var m wire.Message
			b := append([]byte{}, head...)
			rest, _ := bolt.Codec{}.Decode(&m, b, wire.Limits{})
			m.ID = uint32(b[5])<<24 | uint32(b[6])<<16 | uint32(b[7])<<8 | uint32(b[8])
			c.send(bolt.Codec{}.AppendReply(nil, m.Tag, m.ID, wire.Busy))
			for rest -= len(head); rest > 0; {
				n, err := c.Read(make([]byte, min(rest, 64<<10)))
				if err != nil {
					return
				}
				rest -= n
			}
			whole.Add(1)
		}
	})
	p := startProxy(t, uploadSpec(server.address), 64<<20)
	frame := frameOf(t, 9, string(noise(1, uploadSize)))
	c := dial(t, p.address)
	for i := range int64(2) {
		c.send(frame[:uploadSize/2])
		if m := c.receive(); m.Status != wire.Busy || m.ID != 9 {
			t.Fatalf("got id %d and status %v, want the server's early reply SERVER_THREADPOOL_BUSY with id 9", m.ID, m.Status)
		}
		c.send(frame[uploadSize/2:])
		eventually(t, func() bool { return whole.Load() == i+1 }, say("the server to get all of the frame that it has answered"))
	}
	if n := server.accepted.Load(); n != 1 {
		t.Errorf("got %d connections at the server, want the one, whose frames are whole", n)
	}
}

// TestUploadsWaitForALease: more uploads than connections for them take turns, in order; one whose time is over while it
// waits is answered.
func TestUploadsWaitForALease(t *testing.T) {
	server, got := counting(t)
	s := uploadSpec(server.address)
	s.Clusters[0].MaxUploads = 1
	p := startProxy(t, s, 64<<20)
	others := startNeighbours(t, p.address, service)
	defer others.stop()
	first, second, third := dial(t, p.address), dial(t, p.address), dial(t, p.address)
	frame := frameOf(t, 1, string(noise(1, uploadSize)))
	first.send(frame[:uploadSize/2])
	eventually(t, func() bool { return got.Load() >= uploadSize/2 }, say("the first upload to have the lease"))
	hasty := request(3, string(noise(1, uploadSize)))
	hasty.Timeout = 100
	second.send(encode(t, hasty)[:uploadSize/2])
	p.wantLocal(second.receive(), wire.Timeout, forwarder.ReasonPendingTimeout, 1)
	sent := make(chan struct{})
	go func() { defer close(sent); third.send(frame) }() // ends when the third has the lease
	p.wantCount(1, "relevo_cluster_pending")
	others.goOn()
	first.send(frame[uploadSize/2:])
	wantEcho(t, first.receive(), string(noise(1, uploadSize)))
	wantEcho(t, third.receive(), string(noise(1, uploadSize)))
	<-sent
	second.hangUp()
}

// TestOnewayUpload arrives once and whole.
func TestOnewayUpload(t *testing.T) {
	var whole atomic.Int64
	content := noise(1, uploadSize)
	server := serveEach(t, func(c *peer, m wire.Message) error {
		if m.Kind == wire.Oneway && bytes.Equal(m.Content(), content) {
			whole.Add(1)
		}
		return echoEach(c, m)
	})
	p := startProxy(t, uploadSpec(server.address), 64<<20)
	c := dial(t, p.address)
	for i := range int64(3) {
		c.send(encode(t, oneway(1, string(content))))
		wantEcho(t, c.call(request(2, "behind it")), "behind it")
		eventually(t, func() bool { return whole.Load() == i+1 }, say("the server to get one-way upload %d once, it has %d", i+1, whole.Load()))
	}
}

// TestUploadToNobody: one that no rule takes, and one whose endpoints are all dead, are answered; what follows is read.
func TestUploadToNobody(t *testing.T) {
	server := serveEach(t, echoEach)
	s := uploadSpec(server.address)
	s.Clusters = append(s.Clusters, s.Clusters[0])
	s.Clusters[1].Name = "dead"
	s.Clusters[1].Endpoints = []forwarder.EndpointSpec{{Network: "tcp", Address: deadAddress(t), Weight: 1}}
	rule := s.Routes[0].Rules[0]
	rule.Name, rule.Match.Service, rule.Clusters = "dead", route.Exactly("com.example.Dead:1.0"), []forwarder.Share{{Cluster: "dead", Weight: 1}}
	s.Routes[0].Rules = append(s.Routes[0].Rules, rule)
	p := startProxy(t, s, 64<<20)
	c := dial(t, p.address)
	r := request(1, string(noise(1, uploadSize)))
	r.Headers[0].Value = "com.example.Nobody:1.0"
	p.wantLocal(c.call(r), wire.NoProcessor, forwarder.ReasonNoRoute, 1)
	r.Headers[0].Value = "com.example.Dead:1.0"
	if m := c.call(r); m.Status != wire.ErrorComm {
		t.Errorf("got status %v for an upload to a dead endpoint, want ERROR_COMM", m.Status)
	}
	wantEcho(t, c.call(request(2, "what follows")), "what follows")
}

// TestUploadIsTriedElsewhere when its first endpoint cannot be connected.
func TestUploadIsTriedElsewhere(t *testing.T) {
	server, _ := counting(t)
	s := uploadSpec(deadAddress(t), server.address)
	s.Clusters[0].Balancer = forwarder.BalancerRoundRobin
	p := startProxy(t, s, 64<<20)
	c := dial(t, p.address)
	r := request(1, string(noise(1, uploadSize)))
	for i := range uint32(4) {
		r.ID = i
		wantEcho(t, c.call(r), string(r.Content))
	}
	p.wantSome("relevo_endpoint_connect_failures_total")
}

// TestUploadToAServerThatDoesNotRead holds a bounded part of it and ends by the deadline.
func TestUploadToAServerThatDoesNotRead(t *testing.T) {
	server := serve(t, func(c *peer) { <-t.Context().Done() })
	s := uploadSpec(server.address)
	p := startProxy(t, s, 64<<20)
	c := dial(t, p.address)
	r := request(1, string(noise(1, 15<<20)))
	r.Timeout = 500
	frame := encode(t, r)
	sent := make(chan struct{})
	go func() { defer close(sent); c.send(frame) }() // ends when all was taken, for the server or for nobody
	most := watch(p)
	p.wantLocal(c.receive(), wire.Timeout, forwarder.ReasonTimeout, 1)
	<-sent
	if got := most(); got > 4<<20 {
		t.Errorf("got %d bytes buffered for an upload that is not taken, want at most the queue and a read", got)
	}
	p.wantCount(1, "relevo_endpoint_closes_total", "reason="+forwarder.ReasonUploadBroken)
}

// TestUploadAndHeartbeats: nothing of ours is written into the middle of a frame.
func TestUploadAndHeartbeats(t *testing.T) {
	server := serve(t, func(c *peer) {
		stop := make(chan struct{})
		defer close(stop)
		go func() { // the server asks for heartbeats, too; ends with the script
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for id := uint32(1); ; id++ {
				select {
				case <-stop:
					return
				case <-tick.C:
					if _, err := c.Write(bolt.Codec{}.AppendHeartbeat(nil, id)); err != nil {
						return
					}
				}
			}
		}()
		for {
			m, err := c.next()
			if err != nil || echoEach(c, m) != nil {
				return
			}
		}
	})
	s := uploadSpec(server.address)
	s.Clusters[0].HeartbeatInterval = 10 * time.Millisecond
	p := startProxy(t, s, 64<<20)
	r := request(1, string(noise(1, uploadSize)))
	r.Version = bolt.V2CRC
	frame := encode(t, r)
	c := dial(t, p.address)
	for range 3 {
		for at := 0; at < len(frame); at += 100_000 {
			c.send(frame[at:min(at+100_000, len(frame))])
			<-time.After(5 * time.Millisecond)
		}
		wantEcho(t, c.receive(), string(r.Content))
	}
	p.wantCount(0, "relevo_endpoint_closes_total")
}

// TestUploadWithAWrongChecksum is answered CODEC_EXCEPTION where checksums are verified, and both connections end.
func TestUploadWithAWrongChecksum(t *testing.T) {
	server, _ := counting(t)
	s := uploadSpec(server.address)
	s.Listeners[0].Codecs = []wire.Codec{bolt.Codec{VerifyCRC: true}}
	s.Clusters[0].Codec = bolt.Codec{VerifyCRC: true}
	p := startProxy(t, s, 64<<20)
	r := request(1, string(noise(1, uploadSize)))
	r.Version = bolt.V2CRC
	frame := encode(t, r)
	frame[len(frame)/2] ^= 1
	c := dial(t, p.address)
	c.send(frame)
	p.wantLocal(c.receive(), wire.CodecException, wire.ReasonBadChecksum, 1)
	c.wantEnd()
	p.wantCount(1, "relevo_listener_closes_total", "reason="+wire.ReasonBadChecksum)
	p.wantCount(1, "relevo_endpoint_closes_total", "reason="+forwarder.ReasonUploadBroken)
}

// TestUploadWhileDraining ends before its connection does.
func TestUploadWhileDraining(t *testing.T) {
	server, got := counting(t)
	p := startProxy(t, uploadSpec(server.address), 64<<20)
	frame := frameOf(t, 1, string(noise(1, uploadSize)))
	c := dial(t, p.address)
	c.send(frame[:uploadSize/2])
	eventually(t, func() bool { return got.Load() >= uploadSize/2 }, say("the server to get the half that was sent"))
	drained := make(chan error, 1)
	go func() { drained <- p.Drain(t.Context()) }() // ends with the connection
	<-time.After(300 * time.Millisecond)            // longer than a connection that is idle stays
	c.send(frame[uploadSize/2:])
	wantEcho(t, c.receive(), string(noise(1, uploadSize)))
	c.wantEnd()
	if err := <-drained; err != nil {
		t.Errorf("got %v from Drain, want nil", err)
	}
}

// TestUploadMatchesItsRule: rules see the head as they see a small frame.
func TestUploadMatchesItsRule(t *testing.T) {
	one, two := serveEach(t, echoEach), serveEach(t, echoEach)
	s := uploadSpec(one.address)
	s.Clusters = append(s.Clusters, s.Clusters[0])
	s.Clusters[1].Name = "two"
	s.Clusters[1].Endpoints = []forwarder.EndpointSpec{{Network: "tcp", Address: two.address, Weight: 1}}
	rule := s.Routes[0].Rules[0]
	rule.Name, rule.Clusters = "two", []forwarder.Share{{Cluster: "two", Weight: 1}}
	rule.Match.Headers = []route.Header{{Key: "size", Text: route.Text{Kind: route.Prefix, Value: "lar"}}}
	s.Routes[0].Rules = []forwarder.RuleSpec{rule, s.Routes[0].Rules[0]}
	p := startProxy(t, s, 64<<20)
	r := request(1, string(noise(1, uploadSize)))
	r.Headers = append(r.Headers, bolt.Pair{Key: "size", Value: "large"})
	wantEcho(t, dial(t, p.address).call(r), string(r.Content))
	if one.frames.Load() != 0 || two.frames.Load() == 0 {
		t.Errorf("got %d and %d frames at the two clusters, want all at the second", one.frames.Load(), two.frames.Load())
	}
}
