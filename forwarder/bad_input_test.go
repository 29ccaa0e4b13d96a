package forwarder_test

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// TestBadBytes closes the one connection, for one counted and logged reason, after what came before has been answered.
func TestBadBytes(t *testing.T) {
	huge := func(l layout, at int, lengths ...uint32) string {
		q := parts{layout: l, typ: 1, command: 1, ver1: 2, flags: 1, serial: 1, id: 3}
		b := q.frame()[:q.fixed]
		binary.BigEndian.PutUint16(b[at:], uint16(lengths[0]))
		binary.BigEndian.PutUint16(b[at+2:], uint16(lengths[1]))
		binary.BigEndian.PutUint32(b[at+4:], lengths[2])
		return string(b)
	}
	const top16, top32 = 1<<16 - 1, 1<<32 - 1
	for _, tc := range []struct {
		name, bytes, reason string
		status              wire.Status // of the answer to what still has an id; Success: there is none
	}{
		{"http", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", wire.ReasonBadProtocol, 0},
		{"zero", "\x00", wire.ReasonBadProtocol, 0},
		{"high", "\xff" + strings.Repeat("\xff", 100), wire.ReasonBadProtocol, 0},
		{"tls", "\x16\x03\x01", wire.ReasonBadProtocol, 0},
		{"v1-type", "\x01\x03", wire.ReasonBadType, 0},
		{"v2-type", "\x02\x01\xff", wire.ReasonBadType, 0},
		{"response-command", "\x01\x00\x00\x63" + strings.Repeat("\x00", 16), wire.ReasonBadType, 0},
		{"v1-all-lengths", huge(v1Request, 14, top16, top16, top32), wire.ReasonFrameTooLarge, wire.CodecException},
		{"v2-all-lengths", huge(v2Request, 16, top16, top16, top32), wire.ReasonFrameTooLarge, wire.CodecException},
		{"v1-sign-bit", huge(v1Request, 14, 0, 0, 1<<31), wire.ReasonFrameTooLarge, wire.CodecException},
		{"v2-sum-overflows", huge(v2Request, 16, 0, 4, top32-27), wire.ReasonFrameTooLarge, wire.CodecException},
		{"v2-headers", huge(v2Request, 16, 0, 32768, 0), wire.ReasonHeadersTooLarge, wire.CodecException},
	} {
		for _, before := range []int{0, 3} {
			t.Run(fmt.Sprintf("%s/after=%d", tc.name, before), func(t *testing.T) {
				p := startProxy(t, spec(serveEach(t, echoEach).address), 512<<20)
				others := startNeighbours(t, p.address, service)
				c := dial(t, p.address)
				for i := range before {
					wantEcho(t, c.call(request(uint32(i), "good")), "good")
				}
				c.send([]byte(tc.bytes))
				if tc.status != wire.Success {
					p.wantLocal(c.receive(), tc.status, tc.reason, 1)
				}
				c.wantEnd()
				p.wantCount(1, "relevo_listener_closes_total", "reason="+tc.reason)
				p.wantCount(1, "relevo_listener_closes_total")
				p.wantLogged(tc.reason)
				others.goOn()
			})
		}
	}
}

// TestChecksumVerified: with a codec that verifies, a damaged frame ends the connection, with its id answered.
func TestChecksumVerified(t *testing.T) {
	s := spec(serveEach(t, echoEach).address)
	s.Listeners[0].Codecs = []wire.Codec{bolt.Codec{VerifyCRC: true}}
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	r := request(1, "checked")
	r.Version = bolt.V2CRC
	wantEcho(t, c.call(r), "checked")
	frame := encode(t, r)
	frame[len(frame)-6] ^= 1
	c.send(frame)
	p.wantLocal(c.receive(), wire.CodecException, wire.ReasonBadChecksum, 1)
	c.wantEnd()
	p.wantCount(1, "relevo_listener_closes_total", "reason="+wire.ReasonBadChecksum)
}

// TestClientEndsAtEveryByte: by end of file and by a reset, at every byte of a request, the last one included.
func TestClientEndsAtEveryByte(t *testing.T) {
	for name, end := range endings {
		t.Run(name, func(t *testing.T) {
			p := startProxy(t, withSteady(t, spec(serveEach(t, echoEach).address)), 512<<20)
			frame := frameOf(t, 1, "never read")
			total := 0
			for cut := range len(frame) + 1 {
				c := dial(t, p.address)
				c.send(frame[:cut])
				total += cut
				p.reading(total)
				end(c)
				p.wantCount(0, "relevo_listener_connections")
			}
			n := float64(len(frame) + 1)
			closes := p.value("relevo_listener_closes_total", "reason="+conn.ReasonPeerClosed) +
				p.value("relevo_listener_closes_total", "reason="+conn.ReasonReset)
			if closes != n || p.value("relevo_listener_closes_total") != n {
				t.Errorf("got %v closes, want %v that say peer-closed or reset: %v", closes, n, p.series("relevo_listener_closes_total"))
			}
			p.atRest()
			startNeighbours(t, p.address, service).goOn()
		})
	}
}

// TestClientGone: its replies are dropped and counted, its requests done all the same.
func TestClientGone(t *testing.T) {
	h := serveHeld(t)
	p := startProxy(t, spec(h.address), 512<<20)
	c := dial(t, p.address)
	for i := range uint32(5) {
		c.send(frameOf(t, i, "x"))
	}
	h.got(t, 5)
	c.reset()
	p.wantCount(0, "relevo_listener_connections")
	p.wantCount(5, "relevo_cluster_in_flight")
	h.release()
	p.wantCount(5, "relevo_listener_dropped_total", "reason="+forwarder.ReasonDownstreamGone)
	p.wantCount(0, "relevo_route_retries_total")
	p.wantCount(0, "relevo_endpoint_closes_total")
}

// TestServerEndsAtEveryByte: by a reset or gently, at every byte of a reply.
func TestServerEndsAtEveryByte(t *testing.T) {
	for name, end := range endings {
		t.Run(name, func(t *testing.T) {
			cuts := make(chan int, 1)
			server := serveEach(t, func(c *peer, m wire.Message) error {
				if string(m.Content()) == "hello" {
					return echoEach(c, m)
				}
				b, err := (&bolt.Response{Version: bolt.VersionOf(&m), Codec: 1, ID: m.ID, Content: []byte("the reply")}).Append(nil)
				if err == nil {
					_, err = c.Write(b[:min(<-cuts, len(b))])
				}
				end(c)
				if err != nil {
					return err
				}
				return errStop
			})
			p := startProxy(t, withSteady(t, spec(server.address)), 512<<20)
			others := startNeighbours(t, p.address, steadyService)
			c := dial(t, p.address)
			answered := 0.0
			const whole = 22 + len("the reply") + 4 // the longest; v1 replies are whole before
			for cut := range whole + 1 {
				r := request(uint32(cut), "x")
				r.Version = bolt.Version(cut % 3)
				length := []int{20, 22, 26}[r.Version] + len("the reply")
				wantEcho(t, c.call(request(99, "hello")), "hello")
				cuts <- cut
				m := c.call(r)
				switch {
				case m.Status == wire.Success && cut >= length:
					wantEcho(t, m, "the reply")
				case m.Status == wire.ErrorComm:
					answered++
				default:
					t.Errorf("got status %v for a reply cut at byte %d of %d, want ERROR_COMM", m.Status, cut, length)
				}
				p.wantCount(float64(cut+1), "relevo_endpoint_closes_total", "endpoint="+server.address)
			}
			p.wantCount(answered, "relevo_listener_local_replies_total", "reason="+forwarder.ReasonUpstreamClosed)
			others.goOn()
		})
	}
}

// TestCrookedServers: each does something else wrong with the reply of the one request; the client learns it, or does
// not notice, and the reason is counted.
func TestCrookedServers(t *testing.T) {
	reply := func(m wire.Message, id uint32) []byte {
		b, err := (&bolt.Response{Version: bolt.VersionOf(&m), Codec: 1, ID: id, Content: m.Content()}).Append(nil)
		if err != nil {
			t.Error(err)
		}
		return b
	}
	for _, tc := range []struct {
		name   string
		answer func(c *peer, m wire.Message) error
		want   wire.Status
		metric string
		reason string
		count  float64
		logged string
	}{
		{
			"twice", func(c *peer, m wire.Message) error { c.send(reply(m, m.ID), reply(m, m.ID)); return nil },
			wire.Success, "relevo_cluster_dropped_total", forwarder.ReasonNoStream, 1, "",
		},
		{
			"wrong-id", func(c *peer, m wire.Message) error { c.send(reply(m, m.ID+64)); return nil },
			wire.Timeout, "relevo_cluster_dropped_total", forwarder.ReasonNoStream, 1, forwarder.ReasonTimeout,
		},
		{
			"id-0", func(c *peer, m wire.Message) error { c.send(reply(m, 0)); return nil },
			wire.Timeout, "relevo_cluster_dropped_total", forwarder.ReasonNoStream, 1, forwarder.ReasonTimeout,
		},
		{"never", silentEach, wire.Timeout, "relevo_listener_local_replies_total", forwarder.ReasonTimeout, 1, forwarder.ReasonTimeout},
		{
			"half", func(c *peer, m wire.Message) error { b := reply(m, m.ID); c.send(b[:len(b)/2]); return nil },
			wire.Timeout, "relevo_listener_local_replies_total", forwarder.ReasonTimeout, 1, forwarder.ReasonTimeout,
		},
		{
			"half-then-close", func(c *peer, m wire.Message) error { b := reply(m, m.ID); c.send(b[:len(b)/2]); return errStop },
			wire.ErrorComm, "relevo_endpoint_closes_total", conn.ReasonPeerClosed, 1, forwarder.ReasonUpstreamClosed,
		},
		{
			"garbage", func(c *peer, _ wire.Message) error { c.send([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")); return nil },
			wire.ErrorComm, "relevo_endpoint_closes_total", wire.ReasonBadProtocol, 1, wire.ReasonBadProtocol,
		},
		{
			"type", func(c *peer, _ wire.Message) error { c.send([]byte("\x01\x09")); return nil },
			wire.ErrorComm, "relevo_endpoint_closes_total", wire.ReasonBadType, 1, wire.ReasonBadType,
		},
		{"too-large", func(c *peer, _ wire.Message) error {
			c.send([]byte("\x01\x00\x00\x02\x01\x00\x00\x00\x01\x01\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff"))
			return nil
		}, wire.ErrorComm, "relevo_endpoint_closes_total", wire.ReasonFrameTooLarge, 1, wire.ReasonFrameTooLarge},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server := serveEach(t, tc.answer)
			p := startProxy(t, withSteady(t, spec(server.address)), 512<<20)
			others := startNeighbours(t, p.address, steadyService)
			r := request(7, "the one request")
			r.Timeout = 150
			if m := dial(t, p.address).call(r); m.Status != tc.want {
				t.Errorf("got status %v, want %v", m.Status, tc.want)
			}
			p.wantCount(tc.count, tc.metric, "reason="+tc.reason)
			if tc.logged != "" {
				p.wantLogged(tc.logged)
			}
			if tc.want == wire.ErrorComm {
				closer := forwarder.ReasonUpstreamBroken
				if tc.reason == conn.ReasonPeerClosed {
					closer = forwarder.ReasonUpstreamClosed
				}
				p.wantCount(1, "relevo_listener_local_replies_total", "reason="+closer)
				p.wantLogged(closer)
			}
			others.goOn()
		})
	}
}

// TestLateReply: it comes when its request has been answered TIMEOUT, and must not answer a newer one.
func TestLateReply(t *testing.T) {
	late := make(chan wire.Message, 1)
	server := serveEach(t, func(c *peer, m wire.Message) error {
		if string(m.Content()) == "late" {
			late <- m
			return nil
		}
		if err := c.reply(<-late, wire.Success, []byte("late")); err != nil {
			return err
		}
		return echoEach(c, m)
	})
	p := startProxy(t, spec(server.address), 512<<20)
	c := dial(t, p.address)
	for i := range uint32(5) {
		r := request(i, "late")
		r.Timeout = 30
		if m := c.call(r); m.Status != wire.Timeout {
			t.Fatalf("got status %v, want TIMEOUT", m.Status)
		}
		if p.value("relevo_listener_local_replies_total", "reason="+forwarder.ReasonPendingTimeout) > 0 {
			t.Skip("the first dial took longer than the deadline")
		}
		wantEcho(t, c.call(request(i, "on time")), "on time")
	}
	p.wantCount(5, "relevo_cluster_dropped_total", "reason="+forwarder.ReasonNoStream)
}
