package forwarder_test

import (
	"encoding/binary"
	"io"
	"sync/atomic"
	"testing"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// TestTranscriptPieces: a frame that is too large to be gathered first goes out in pieces, on its client's read loop in
// both modes. What waits there for a connection, for the rest of the frame or for the reply is no step of its own, nor is the
// end of a one-way request.
func TestTranscriptPieces(t *testing.T) {
	transcripts(t, "pieces", []scenario{
		{name: "it goes its way", play: func(s *scene) {
			server, _ := counting(s.t)
			s.start(s.piecesRoad(server.address))
			s.ask(s.pieces())
		}},
		{name: "one-way", play: func(s *scene) {
			server := serveEach(s.t, echoEach)
			s.start(s.piecesRoad(server.address))
			s.untold = true
			s.ask(encode(s.t, oneway(subject, string(noise(1, uploadSize)))))
			server.got(s.t, 1)
		}},
		{name: "the server answers before it is whole", play: func(s *scene) {
			server := serve(s.t, func(p *peer) {
				head := make([]byte, 22)
				if _, err := io.ReadFull(p, head); err != nil {
					return
				}
				b, err := (&bolt.Response{ID: binary.BigEndian.Uint32(head[5:]), Status: wire.Busy}).Append(nil)
				if err == nil {
					_, err = p.Write(b)
				}
				if err == nil {
					_, _ = io.Copy(io.Discard, p)
				}
			})
			s.start(s.piecesRoad(server.address))
			frame := s.pieces()
			s.ask(frame[:uploadSize/2])
			s.p.wantCount(1, "relevo_listener_replies_total", "listener=in")
			s.c.send(frame[uploadSize/2:])
		}},
		{name: "a filter blocks before the route", play: func(s *scene) {
			server, _ := counting(s.t)
			sp := s.piecesRoad(server.address)
			b := newBlocked()
			sp.Listeners[0].Filters = []filter.Filter{b.in("before", "")} // of a head, there is no content
			s.start(sp)
			s.ask(s.pieces())
			<-b.reached
			b.goOn()
		}},
		{name: "a filter stops it before the route", play: func(s *scene) {
			server, _ := counting(s.t)
			sp := s.piecesRoad(server.address)
			sp.Listeners[0].Filters = []filter.Filter{before(func(*filter.Exchange) filter.Verdict {
				return filter.Stop(wire.ServerException, "test-verdict")
			})}
			s.start(sp)
			s.ask(s.pieces())
		}},
		{name: "a filter Panics behind the route", play: func(s *scene) {
			server, _ := counting(s.t)
			sp := s.piecesRoad(server.address)
			sp.Listeners[0].Filters = []filter.Filter{after(func(*filter.Exchange) filter.Verdict { panic("a filter's defect") })}
			s.start(sp)
			s.ask(s.pieces())
		}},
		{name: "no route", play: func(s *scene) {
			server, _ := counting(s.t)
			s.start(s.piecesRoad(server.address))
			r := s.elsewhere()
			r.Content = noise(1, uploadSize)
			s.ask(encode(s.t, r))
		}},
		{name: "the endpoint cannot be connected, another one can", play: func(s *scene) {
			s.turnOfTheDead(s.piecesRoad())
			s.ask(s.pieces())
		}},
		{name: "no endpoint can be connected", play: func(s *scene) {
			s.start(s.piecesRoad(deadAddress(s.t), deadAddress(s.t)))
			s.ask(s.pieces())
		}},
		{name: "its deadline passes while another one has the connection", play: func(s *scene) {
			s.behind(1024, short)
			s.until("relevo_listener_local_replies_total", forwarder.ReasonPendingTimeout)
		}},
		{name: "nothing more may wait while another one has the connection", play: func(s *scene) {
			s.behind(0, 60_000)
			s.until("relevo_listener_local_replies_total", forwarder.ReasonMaxPending)
		}},
		{name: "its deadline passes before it is whole", play: func(s *scene) {
			server, got := counting(s.t)
			s.start(s.piecesRoad(server.address))
			r := request(subject, string(noise(1, uploadSize)))
			r.Timeout = 500 // the connection must be made within it
			frame := encode(s.t, r)
			s.ask(frame[:uploadSize/2])
			s.arrived(got)
			s.until("relevo_listener_local_replies_total", forwarder.ReasonTimeout)
			s.c.send(frame[uploadSize/2:])
			s.until("relevo_endpoint_closes_total", forwarder.ReasonUploadBroken)
		}},
		{name: "the server resets the connection before it is whole", play: func(s *scene) {
			got, ending := new(atomic.Int64), make(chan struct{})
			server := serve(s.t, func(p *peer) {
				n, _ := io.CopyN(io.Discard, p, uploadSize/2)
				got.Add(n)
				<-ending
				p.reset()
			})
			s.start(s.piecesRoad(server.address))
			frame := s.pieces()
			s.ask(frame[:uploadSize/2])
			s.arrived(got)
			close(ending)
			s.until("relevo_listener_local_replies_total", forwarder.ReasonUpstreamClosed)
			s.until("relevo_endpoint_closes_total", conn.ReasonReset)
			s.c.send(frame[uploadSize/2:])
		}},
		{name: "the client goes before it is whole", play: func(s *scene) {
			server, got := counting(s.t)
			s.start(s.piecesRoad(server.address))
			s.ask(s.pieces()[:uploadSize/2])
			s.arrived(got)
			s.hangUp()
			s.until("relevo_endpoint_closes_total", forwarder.ReasonUploadBroken)
		}},
		{name: "the client goes before a one-way one is whole", play: func(s *scene) {
			server, got := counting(s.t)
			s.start(s.piecesRoad(server.address))
			s.untold = true
			s.ask(encode(s.t, oneway(subject, string(noise(1, uploadSize))))[:uploadSize/2])
			s.arrived(got)
			s.hangUp()
			s.until("relevo_endpoint_closes_total", forwarder.ReasonUploadBroken)
		}},
		{name: "its checksum is wrong", play: func(s *scene) {
			server, _ := counting(s.t)
			sp := s.piecesRoad(server.address)
			sp.Listeners[0].Codecs = []wire.Codec{bolt.Codec{VerifyCRC: true}}
			sp.Clusters[0].Codec = bolt.Codec{VerifyCRC: true}
			s.start(sp)
			r := request(subject, string(noise(1, uploadSize)))
			r.Version = bolt.V2CRC
			frame := encode(s.t, r)
			frame[len(frame)/2] ^= 1
			s.ask(frame)
			s.until("relevo_endpoint_closes_total", forwarder.ReasonUploadBroken)
			s.hear()
			s.until("relevo_listener_closes_total", wire.ReasonBadChecksum)
		}},
	})
}

// arrived waits until a server has got the half that its client has sent.
func (s *scene) arrived(got *atomic.Int64) {
	s.t.Helper()
	eventually(s.t, func() bool { return got.Load() >= uploadSize/2 }, say("the server to get the half that was sent"))
}

// behind asks while another upload has the only connection that uploads may have, which ends with the test.
func (s *scene) behind(maxPending int, timeout int32) {
	s.t.Helper()
	server, got := counting(s.t)
	sp := s.piecesRoad(server.address)
	sp.Clusters[0].MaxUploads, sp.Clusters[0].MaxPending = 1, maxPending
	s.start(sp)
	other := frameOf(s.t, 20, string(noise(2, uploadSize)))
	s.side.send(other[:uploadSize/2])
	s.arrived(got)
	r := request(subject, string(noise(1, uploadSize)))
	r.Timeout = timeout
	s.ask(encode(s.t, r))
	s.t.Cleanup(func() { s.side.send(other[uploadSize/2:]) }) // before the road is looked at
}
