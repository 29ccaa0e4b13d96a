package forwarder_test

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// TestOneway is forwarded and never answered, not even by the server that answers it.
func TestOneway(t *testing.T) {
	server := serveEach(t, func(c *peer, m wire.Message) error {
		m.Kind = wire.Request // so that it is echoed, as the Node server does
		return echoEach(c, m)
	})
	p := startProxy(t, spec(server.address), 512<<20)
	c := dial(t, p.address)
	for i := range 30 {
		r := oneway(uint32(i), "one-way")
		r.Version = bolt.Version(i % 3)
		c.send(encode(t, r))
		wantEcho(t, c.call(request(uint32(100+i), "a call")), "a call")
	}
	server.got(t, 60)
	p.wantCount(30, "relevo_cluster_dropped_total", "reason="+forwarder.ReasonNoStream)
	p.wantCount(30, "relevo_listener_requests_total", "kind=oneway")
	p.wantCount(30, "relevo_endpoint_requests_total", "kind=oneway")
	p.wantCount(60, "relevo_route_requests_total")
}

// TestOnewayErrors: what cannot be forwarded is dropped and counted, and nothing comes back.
func TestOnewayErrors(t *testing.T) {
	s := spec(deadAddress(t))
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	lost := oneway(1, "no route")
	lost.Headers = nil
	bad := parts{layout: v1Request, typ: 2, command: 1, serial: 1, header: []byte("\x00")}
	odd := parts{layout: v1Request, typ: 2, command: 55, serial: 1}
	c.send(encode(t, lost), bad.frame(), odd.frame(), encode(t, oneway(2, "no endpoint")))
	p.wantCount(4, "relevo_listener_dropped_total", "reason="+forwarder.ReasonOneway)
	for _, reason := range []string{forwarder.ReasonNoRoute, wire.ReasonBadHeaderBlock} {
		p.wantLogged(reason)
	}
	r := request(3, "the first thing that is answered")
	if m := c.call(r); m.Status != wire.ErrorComm {
		t.Errorf("got status %v, want ERROR_COMM for the request behind them", m.Status)
	}
	over := oneway(4, strings.Repeat("x", 17<<20))
	go func() { _, _ = c.Write(encode(t, over)) }() // ends with the last byte, or the connection
	c.wantEnd()
	p.wantCount(1, "relevo_listener_closes_total", "reason="+wire.ReasonFrameTooLarge)
	p.wantCount(0, "relevo_listener_local_replies_total", "reason="+wire.ReasonFrameTooLarge)
	p.wantCount(5, "relevo_listener_dropped_total", "reason="+forwarder.ReasonOneway)
	p.wantCount(5, "relevo_listener_requests_total", "kind=oneway")
}

// heartbeat is a client's heartbeat in a version.
func heartbeat(t *testing.T, v bolt.Version, id uint32) []byte {
	t.Helper()
	return encode(t, bolt.Request{Version: v, Heartbeat: true, Codec: bolt.CodecHessian2, ID: id, Timeout: 3000})
}

// TestHeartbeatOfAClient is answered here, whatever the servers do.
func TestHeartbeatOfAClient(t *testing.T) {
	p := startProxy(t, spec(deadAddress(t)), 512<<20)
	c := dial(t, p.address)
	for i := range uint32(30) {
		v := bolt.Version(i % 3)
		c.send(heartbeat(t, v, i<<20))
		m := c.receive()
		if m.Kind != wire.Ack || m.ID != i<<20 || bolt.VersionOf(&m) != v || m.Status != wire.Success {
			t.Errorf("got a %v with id %d in %v and status %v, want the ack of %d in %v with SUCCESS", m.Kind, m.ID, bolt.VersionOf(&m), m.Status, i<<20, v)
		}
	}
	p.wantCount(30, "relevo_listener_requests_total", "kind=heartbeat")
	p.wantCount(0, "relevo_endpoint_connect_failures_total")
}

// TestHeartbeatUpstream: sent to a silent server after the interval; without acks the connection is closed, and the
// requests on it answered; with acks it stays.
func TestHeartbeatUpstream(t *testing.T) {
	for _, acks := range []bool{false, true} {
		t.Run(fmt.Sprintf("acks=%v", acks), func(t *testing.T) {
			beats := make(chan uint32, 100)
			server := serveEach(t, func(c *peer, m wire.Message) error {
				if m.Kind == wire.Heartbeat {
					beats <- m.ID
					if bolt.VersionOf(&m) != bolt.V1 || bolt.CodecOf(&m) != bolt.CodecHessian2 {
						t.Errorf("got a heartbeat in %v with codec %d, want v1 with codec 1, which real servers ack", bolt.VersionOf(&m), bolt.CodecOf(&m))
					}
					if !acks {
						return nil
					}
				}
				if string(m.Content()) == "unanswered" {
					return nil
				}
				return echoEach(c, m)
			})
			s := spec(server.address)
			s.Routes[0].Rules[0].Timeout = time.Minute
			s.Clusters[0].HeartbeatInterval, s.Clusters[0].HeartbeatMisses = 40*time.Millisecond, 3
			p := startProxy(t, s, 512<<20)
			c := dial(t, p.address)
			wantEcho(t, c.call(request(1, "hello")), "hello")
			if acks {
				for range 8 {
					<-beats
				}
				wantEcho(t, c.call(request(2, "still here")), "still here")
				p.wantCount(1, "relevo_endpoint_connections_total")
				p.wantCount(0, "relevo_endpoint_closes_total")
				return
			}
			p.wantLocal(c.call(request(2, "unanswered")), wire.ErrorComm, forwarder.ReasonUpstreamBroken, 1)
			p.wantCount(1, "relevo_endpoint_closes_total", "reason="+forwarder.ReasonHeartbeatTimeout)
			// The first three were of no use; from then on each probe of the endpoint is one.
			probes := p.value("relevo_endpoint_probes_total")
			if got := p.value("relevo_endpoint_requests_total", "kind=heartbeat"); got < 3 || got > 3+probes+1 {
				t.Errorf("got %v heartbeats and %v probes, want the 3 that were not answered and one a probe", got, probes)
			}
		})
	}
}

// TestServerAsks: a heartbeat of a server is acked, a request of a server to its client refused.
func TestServerAsks(t *testing.T) {
	answers := make(chan wire.Message, 10)
	server := serveEach(t, func(c *peer, m wire.Message) error {
		switch m.Kind {
		case wire.Request:
			for i, v := range []bolt.Version{bolt.V1, bolt.V2, bolt.V2CRC} {
				r := request(uint32(70+i), "a push")
				r.Version = v
				c.send(heartbeat(t, v, uint32(60+i)), encode(t, r))
			}
			return echoEach(c, m)
		case wire.Reply, wire.Ack:
			answers <- m
		default:
		}
		return nil
	})
	p := startProxy(t, spec(server.address), 512<<20)
	c := dial(t, p.address)
	wantEcho(t, c.call(request(1, "hello")), "hello")
	for i := range uint32(3) {
		if m := <-answers; m.Kind != wire.Ack || m.ID != 60+i || bolt.VersionOf(&m) != bolt.Version(i) {
			t.Errorf("got a %v with id %d in %v, want the ack of heartbeat %d in %v", m.Kind, m.ID, bolt.VersionOf(&m), 60+i, bolt.Version(i))
		}
		if m := <-answers; m.Kind != wire.Reply || m.ID != 70+i || m.Status != wire.NoProcessor || bolt.VersionOf(&m) != bolt.Version(i) {
			t.Errorf("got a %v with id %d and status %v, want NO_PROCESSOR to push %d", m.Kind, m.ID, m.Status, 70+i)
		}
	}
	p.wantCount(3, "relevo_cluster_dropped_total", "reason="+forwarder.ReasonServerPush)
}

// TestClientAnswers: replies, acks and GoAways of a client are nobody's; the connection goes on.
func TestClientAnswers(t *testing.T) {
	p := startProxy(t, spec(serveEach(t, echoEach).address), 512<<20)
	c := dial(t, p.address)
	for _, q := range []parts{
		{layout: v1Response, command: 2, serial: 1, id: 1},
		{layout: v2Response, command: 2, ver1: 1, serial: 1, id: 1},
		{layout: v1Response, command: 0, serial: 1, id: 1},
		{layout: v1Request, typ: 1, command: 100, serial: 1, id: 1},
	} {
		c.send(q.frame())
	}
	wantEcho(t, c.call(request(1, "still here")), "still here")
	p.wantCount(4, "relevo_listener_dropped_total", "reason="+forwarder.ReasonUnexpectedFrame)
}

// goAway is what a server sends before it leaves.
func goAway() []byte {
	b, err := (&bolt.Request{Codec: bolt.CodecHessian2}).Append(nil)
	if err != nil {
		panic(err) // an empty request can be written
	}
	binary.BigEndian.PutUint16(b[2:], 100)
	return b
}

// TestGoAway: new streams go elsewhere, those that are there end, then the connection closes.
func TestGoAway(t *testing.T) {
	leave := make(chan struct{})
	server := serve(t, func(c *peer) {
		for {
			m, err := c.next()
			if err != nil {
				return
			}
			if c.number == 1 && string(m.Content()) == "last" {
				c.send(goAway())
				<-leave
			}
			if echoEach(c, m) != nil {
				return
			}
		}
	})
	p := startProxy(t, spec(server.address), 512<<20)
	c := dial(t, p.address)
	wantEcho(t, c.call(request(1, "first")), "first")
	c.send(frameOf(t, 2, "last"))
	p.wantCount(1, "relevo_endpoint_connections", "state=draining")
	for i := range 10 {
		wantEcho(t, c.call(request(uint32(10+i), "elsewhere")), "elsewhere")
	}
	p.wantCount(0, "relevo_endpoint_closes_total")
	p.wantCount(2, "relevo_cluster_connections")
	close(leave)
	wantEcho(t, c.receive(), "last")
	p.wantCount(1, "relevo_endpoint_closes_total", "reason="+forwarder.ReasonGoAway)
	p.wantCount(1, "relevo_cluster_connections")
}

// TestGoAwayOfASilentServer: the last stream may end by its deadline too.
func TestGoAwayOfASilentServer(t *testing.T) {
	server := serveEach(t, func(c *peer, _ wire.Message) error { c.send(goAway()); return nil })
	s := spec(server.address)
	s.Clusters[0].HeartbeatInterval = 0
	p := startProxy(t, s, 512<<20)
	r := request(1, "x")
	r.Timeout = 100
	p.wantLocal(dial(t, p.address).call(r), wire.Timeout, forwarder.ReasonTimeout, 1)
	p.wantCount(1, "relevo_endpoint_closes_total", "reason="+forwarder.ReasonGoAway)
	p.wantCount(0, "relevo_cluster_connections")
}
