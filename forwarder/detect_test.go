package forwarder_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/route"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// prefix is what frames of the second protocol begin with; behind it they are Bolt's.
const prefix = "\x02\x01zz" // as Bolt v2 begins, so that the first bytes do not tell

// prefixed is the second protocol.
type prefixed struct{ bolt.Codec }

func (prefixed) Name() string { return "prefixed" }

func (prefixed) Detect(b []byte) wire.Detection {
	n := min(len(b), len(prefix))
	switch {
	case string(b[:n]) != prefix[:n]:
		return wire.NotMine
	case n < len(prefix):
		return wire.NeedMore
	}
	return wire.Mine
}

// inner and outer take the prefix off a view, and put it before one.
func inner(m *wire.Message) wire.Message {
	in := *m
	in.Frame = m.Frame[len(prefix):]
	for _, at := range []*uint32{&in.ClassAt, &in.HeaderAt, &in.ContentAt, &in.ContentEnd} {
		*at -= uint32(len(prefix))
	}
	return in
}

func outer(m *wire.Message, b []byte) {
	m.Frame = b[:len(prefix)+len(m.Frame)]
	for _, at := range []*uint32{&m.ClassAt, &m.HeaderAt, &m.ContentAt, &m.ContentEnd} {
		*at += uint32(len(prefix))
	}
}

func (c prefixed) Decode(m *wire.Message, b []byte, lim wire.Limits) (int, error) {
	*m = wire.Message{}
	if len(b) < len(prefix) {
		return len(prefix) + 1, nil
	}
	if string(b[:len(prefix)]) != prefix {
		return 0, &wire.DecodeError{Reason: wire.ReasonBadProtocol}
	}
	n, err := c.Codec.Decode(m, b[len(prefix):], lim)
	if n += len(prefix); err == nil && n <= len(b) {
		outer(m, b)
	}
	return n, err
}

func (c prefixed) Headers(m *wire.Message, keys, values [][]byte) error {
	in := inner(m)
	return c.Codec.Headers(&in, keys, values)
}

func (c prefixed) AppendEdited(dst []byte, m *wire.Message, edits []wire.Edit, maxHeader int) ([]byte, error) {
	in := inner(m)
	out, err := c.Codec.AppendEdited(append(dst, prefix...), &in, edits, maxHeader)
	if err != nil {
		return dst, err
	}
	return out, nil
}

func (c prefixed) PatchRequest(frame []byte, id uint32, timeout int32) {
	c.Codec.PatchRequest(frame[len(prefix):], id, timeout)
}

func (c prefixed) PatchReply(frame []byte, id uint32) { c.Codec.PatchReply(frame[len(prefix):], id) }

func (c prefixed) AppendReply(dst []byte, tag wire.Tag, id uint32, s wire.Status) []byte {
	return c.Codec.AppendReply(append(dst, prefix...), tag, id, s)
}

func (c prefixed) AppendHeartbeat(dst []byte, id uint32) []byte {
	return c.Codec.AppendHeartbeat(append(dst, prefix...), id)
}

// strip takes the prefix of the next frame off what comes.
func (p *peer) strip() error {
	for len(p.buf) < len(prefix) {
		in := make([]byte, 4096)
		n, err := p.Read(in)
		if p.buf = append(p.buf, in[:n]...); n == 0 && err != nil {
			return err
		}
	}
	if got := string(p.buf[:len(prefix)]); got != prefix {
		return fmt.Errorf("got a frame that begins with %q, want the prefix", got)
	}
	p.buf = p.buf[len(prefix):]
	return nil
}

// servePrefixed is an echo server of the second protocol.
func servePrefixed(t *testing.T) *server {
	return serve(t, func(c *peer) {
		for c.strip() == nil {
			m, err := c.next()
			if err != nil {
				return
			}
			b, err := (&bolt.Response{Version: bolt.VersionOf(&m), ID: m.ID, Content: m.Content()}).Append([]byte(prefix))
			if err == nil {
				_, err = c.Write(b)
			}
			if err != nil {
				return
			}
		}
	})
}

const prefixedService = "com.example.Prefixed:1.0"

// autoSpec is a listener for both protocols, with a cluster and a service of each.
func autoSpec(t *testing.T) *forwarder.Spec {
	s := spec(serveEach(t, echoEach).address)
	s.Listeners[0].Codecs = []wire.Codec{bolt.Codec{}, prefixed{}}
	s.LeftoverListener.Codecs = s.Listeners[0].Codecs
	s.Listeners[0].DetectTimeout = patience
	s.Listeners[0].StreamAbove = 0 // the second protocol does not say how
	s.Clusters = append(s.Clusters, s.Clusters[0])
	s.Clusters[1].Name, s.Clusters[1].Codec = "prefixed", prefixed{}
	s.Clusters[1].Endpoints = []forwarder.EndpointSpec{{Network: "tcp", Address: servePrefixed(t).address, Weight: 100}}
	rule := s.Routes[0].Rules[0]
	rule.Name, rule.Match, rule.Clusters = "prefixed", route.Match{Service: route.Exactly(prefixedService)}, []forwarder.Share{{Cluster: "prefixed", Weight: 1}}
	s.Routes[0].Rules = append(s.Routes[0].Rules, rule)
	return s
}

// receiveAs reads a frame of one of the protocols.
func (p *peer) receiveAs(prefixed bool) wire.Message {
	p.t.Helper()
	if prefixed {
		_ = p.SetReadDeadline(time.Now().Add(patience))
		if err := p.strip(); err != nil {
			p.t.Fatal(err)
		}
	}
	return p.receive()
}

// TestDetect: the protocol is found wherever the first bytes are cut, and what came is forwarded.
func TestDetect(t *testing.T) {
	p := startProxy(t, autoSpec(t), 512<<20)
	read := 0
	for _, v := range []bolt.Version{bolt.V1, bolt.V2, bolt.V2CRC} {
		for _, second := range []bool{false, true} {
			r := request(7, "detected")
			r.Version = v
			if second {
				r.Headers[0].Value = prefixedService
			}
			frame := encode(t, r)
			if second {
				frame = append([]byte(prefix), frame...)
			}
			for cut := 1; cut <= 40; cut++ {
				c := dial(t, p.address)
				c.send(frame[:cut])
				read += cut
				p.reading(read)
				c.send(frame[cut:])
				wantEcho(t, c.receiveAs(second), "detected")
				c.send(frame, frame)
				wantEcho(t, c.receiveAs(second), "detected")
				wantEcho(t, c.receiveAs(second), "detected")
				c.hangUp()
				read += 3*len(frame) - cut
			}
		}
	}
	p.wantCount(0, "relevo_listener_closes_total", "reason="+forwarder.ReasonUnknownProtocol)
}

// TestDetectTimeout: who does not tell in time is closed; who has told, and who has sent nothing yet, are not.
func TestDetectTimeout(t *testing.T) {
	s := autoSpec(t)
	s.Listeners[0].DetectTimeout = 100 * time.Millisecond
	p := startProxy(t, s, 512<<20)
	silent, told := dial(t, p.address), dial(t, p.address)
	wantEcho(t, told.call(request(1, "told")), "told")
	for i := range 3 {
		c := dial(t, p.address)
		tick := time.NewTicker(20 * time.Millisecond)
		for _, b := range frameOf(t, 1, "too slow")[:22] { // a byte at a time does not help
			if <-tick.C; c.writeByte(b) != nil {
				break
			}
		}
		tick.Stop()
		c.wantEnd()
		p.wantCount(float64(i+1), "relevo_listener_closes_total", "reason="+forwarder.ReasonDetectTimeout)
	}
	wantEcho(t, told.call(request(2, "still here")), "still here")
	wantEcho(t, silent.call(request(3, "at last")), "at last")
	p.wantCount(3, "relevo_listener_closes_total")
}

func (p *peer) writeByte(b byte) error {
	_, err := p.Write([]byte{b})
	return err
}

// TestDetectNobodys: bytes of no protocol close their connection with one counted reason, and the operator sees them.
func TestDetectNobodys(t *testing.T) {
	s := autoSpec(t)
	p := startProxy(t, s, 512<<20)
	others := startNeighbours(t, p.address, service) // so that what is reused has been used
	others.goOn()
	garbage := make([]byte, 5000)
	for i := range garbage {
		garbage[i] = byte(rand.IntN(250) + 5)
	}
	closed := 0.0
	for _, text := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\x16\x03\x01\x02\x00\x01", "\n", string(garbage),
		"\x01\x09", "\x02\x01zy", "\x02\x01\x01\x00\x01\x70",
	} {
		for range 5 {
			c := dial(t, p.address)
			c.send([]byte(text))
			c.wantEnd()
			closed++
			p.wantCount(closed, "relevo_listener_closes_total", "reason="+forwarder.ReasonUnknownProtocol)
		}
	}
	others.goOn()
	others.stop()
	p.wantLogged(forwarder.ReasonUnknownProtocol)
	for _, e := range p.logs.All() {
		if e.ContextMap()["reason"] == forwarder.ReasonUnknownProtocol && e.ContextMap()["bytes"] != fmt.Sprintf("%x", "GET / HTTP/1.1\r\n") {
			t.Errorf("got the bytes %q logged, want the first 16 that came: %v", e.ContextMap()["bytes"], e.ContextMap())
		}
	}
	p.wantCount(0, "relevo_listener_local_replies_total")
}

// hungry is a protocol that cannot tell, whatever comes.
type hungry struct{ bolt.Codec }

func (hungry) Name() string                 { return "hungry" }
func (hungry) Detect([]byte) wire.Detection { return wire.NeedMore }

// TestDetectIsBounded: a protocol that never makes up its mind is not asked about more than so many bytes.
func TestDetectIsBounded(t *testing.T) {
	s := spec(serveEach(t, echoEach).address)
	s.Listeners[0].Codecs = []wire.Codec{hungry{}, bolt.Codec{}}
	s.Listeners[0].DetectTimeout = patience
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	c.send(bytes.Repeat([]byte{1}, 255))
	p.reading(255)
	p.wantCount(0, "relevo_listener_closes_total")
	c.send([]byte{1})
	c.wantEnd()
	p.wantCount(1, "relevo_listener_closes_total", "reason="+forwarder.ReasonUnknownProtocol)
}

// TestOtherProtocol: a rule that leads to a cluster of the other protocol answers, in the client's own, and takes no
// place there.
func TestOtherProtocol(t *testing.T) {
	p := startProxy(t, autoSpec(t), 512<<20)
	c, second := dial(t, p.address), dial(t, p.address)
	r := request(1, strings.Repeat("x", 1000))
	for i := range uint32(3) {
		r.ID, r.Headers[0].Value = i, prefixedService
		p.wantLocal(c.call(r), wire.NoProcessor, forwarder.ReasonOtherProtocol, float64(2*i+1))
		r.Headers[0].Value = service
		second.send([]byte(prefix), encode(t, r))
		p.wantLocal(second.receiveAs(true), wire.NoProcessor, forwarder.ReasonOtherProtocol, float64(2*i+2))
	}
	r.Oneway = true
	second.send([]byte(prefix), encode(t, r))
	p.wantCount(1, "relevo_listener_dropped_total", "reason="+forwarder.ReasonOneway)
	wantEcho(t, c.call(request(9, "its own")), "its own")
	p.wantCount(1, "relevo_endpoint_connections_total")
}
