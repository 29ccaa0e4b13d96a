package forwarder_test

import (
	"context"
	"testing"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// TestTranscriptHijack: what is answered here, from each phase.
func TestTranscriptHijack(t *testing.T) {
	list := []scenario{
		{name: "Init, too many streams", play: func(s *scene) {
			h := serveHeld(s.t)
			sp := s.road(h.address)
			sp.Listeners[0].MaxStreams = 1
			s.start(sp)
			s.c.send(frameOf(s.t, 20, "held"))
			h.got(s.t, 1)
			s.ask()
			s.until("relevo_listener_local_replies_total", forwarder.ReasonMaxStreams)
			h.release()
		}},
		{name: "Init, draining", play: func(s *scene) {
			h := serveHeld(s.t)
			s.start(s.road(h.address))
			s.c.send(frameOf(s.t, 20, "held")) // keeps the connection
			h.got(s.t, 1)
			drained := make(chan struct{})
			go func() { // ends with the road
				defer close(drained)
				_ = s.p.Drain(context.Background())
			}()
			s.t.Cleanup(func() { h.release(); <-drained })
			eventually(s.t, func() bool { return !s.p.Status().Listeners[0].Accepting }, say("the drain to begin"))
			s.ask()
		}},
		{name: "Init, unknown command", play: func(s *scene) {
			s.start(s.road(serveEach(s.t, echoEach).address))
			s.ask(s.unknownCommand())
		}},
		{name: "DownFilter, no worker", play: func(s *scene) { // in both modes: a filter before the route may block
			b := newBlocked()
			sp := s.road(serveEach(s.t, echoEach).address)
			sp.Workers = forwarder.WorkersSpec{Max: 1}
			sp.Listeners[0].Filters = []filter.Filter{b.in("before", "filler")}
			s.start(sp)
			s.c.send(frameOf(s.t, 20, "filler"))
			<-b.reached
			s.ask()
			s.until("relevo_listener_local_replies_total", forwarder.ReasonMaxWorkers)
			b.goOn()
		}},
		{name: "DownFilter, no worker for a one-way request", play: func(s *scene) {
			b := newBlocked()
			sp := s.road(serveEach(s.t, echoEach).address)
			sp.Workers = forwarder.WorkersSpec{Max: 1}
			sp.Listeners[0].Filters = []filter.Filter{b.in("before", "filler")}
			s.start(sp)
			s.c.send(frameOf(s.t, 20, "filler"))
			<-b.reached
			s.ask(s.onewaySubject())
			s.until("relevo_worker_rejections_total", forwarder.ReasonMaxWorkers)
			b.goOn()
		}},
		{name: "MatchRoute, no route", play: func(s *scene) {
			s.start(s.road(serveEach(s.t, echoEach).address))
			s.ask(encode(s.t, s.elsewhere()))
		}},
		{name: "MatchRoute, malformed header block", play: func(s *scene) {
			s.start(s.road(serveEach(s.t, echoEach).address))
			q := parts{layout: v1Request, typ: 1, command: 1, serial: 1, id: subject, header: []byte("\x00\x00\x00\x01k")}
			s.ask(q.frame())
		}},
		{name: "DownFilterAfterRoute, no worker", play: func(s *scene) { // the rule's filter may block
			b := newBlocked()
			sp := s.road(serveEach(s.t, echoEach).address)
			sp.Workers = forwarder.WorkersSpec{Max: 1}
			sp.Routes[0].Rules[0].Filters = []filter.Filter{b.in("after", "filler")}
			s.start(sp)
			s.c.send(frameOf(s.t, 20, "filler"))
			<-b.reached
			s.ask()
			s.until("relevo_listener_local_replies_total", forwarder.ReasonMaxWorkers)
			b.goOn()
		}},
		{name: "ChooseEndpoint, direct reply", play: func(s *scene) {
			sp := s.road(serveEach(s.t, echoEach).address)
			sp.Routes[0].Rules[0].Clusters, sp.Routes[0].Rules[0].Reply = nil, wire.ServerException
			s.start(sp)
			s.ask()
		}},
		{name: "ChooseEndpoint, one-way to a direct reply", play: func(s *scene) {
			sp := s.road(serveEach(s.t, echoEach).address)
			sp.Routes[0].Rules[0].Clusters, sp.Routes[0].Rules[0].Reply = nil, wire.ServerException
			s.start(sp)
			s.ask(s.onewaySubject())
		}},
		{name: "ChooseEndpoint, too many requests", play: func(s *scene) {
			h := serveHeld(s.t)
			sp := s.road(h.address)
			sp.Clusters[0].MaxRequests = 1
			s.start(sp)
			s.side.send(frameOf(s.t, 20, "held"))
			h.got(s.t, 1)
			s.ask()
			s.until("relevo_listener_local_replies_total", forwarder.ReasonMaxRequests)
			h.release()
		}},
		{name: "ChooseEndpoint, every endpoint is passed over", play: func(s *scene) {
			sp := s.road(deadAddress(s.t))
			s.start(sp)
			// An endpoint is passed over from its first failure on: here until the subject has been there.
			st := s.stopAt(20, "Hijack")
			s.side.send(frameOf(s.t, 20, "finds it dead"))
			<-st.reached
			s.ask()
			s.until("relevo_listener_local_replies_total", forwarder.ReasonNoEndpoint)
			st.goOn()
		}},
		{name: "Send, nothing more may wait", play: func(s *scene) {
			server := s.serveClogged()
			sp := s.road(server.address)
			sp.Clusters[0].MaxPending = 1
			s.start(sp)
			s.clog(true)
			s.ask()
			s.until("relevo_listener_local_replies_total", forwarder.ReasonMaxPending)
			server.goOn()
		}},
		{name: "Send, too many connections", play: func(s *scene) {
			sp := s.road(serveEach(s.t, echoEach).address, serveEach(s.t, echoEach).address)
			sp.Clusters[0].MaxConnections, sp.Clusters[0].Balancer = 1, forwarder.BalancerRoundRobin
			sp.Routes[0].Rules[0].Attempts = 1
			s.start(sp)
			s.warm()
			s.ask() // it is the other one's turn
		}},
		{name: "Send, too many connections, another try", play: func(s *scene) {
			sp := s.road(serveEach(s.t, echoEach).address, serveEach(s.t, echoEach).address)
			sp.Clusters[0].MaxConnections, sp.Clusters[0].Balancer = 1, forwarder.BalancerRoundRobin
			s.start(sp)
			s.warm()
			s.ask()
		}},
		{name: "Send, header changes make the block too large", play: func(s *scene) {
			sp := s.road(serveEach(s.t, echoEach).address)
			sp.Listeners[0].Limits.MaxHeader = len(encode(s.t, request(subject, "")))
			sp.Routes[0].Rules[0].Headers = []wire.Edit{{Op: wire.SetHeader, Key: []byte("k"), Value: make([]byte, 1000)}}
			s.start(sp)
			s.warm()
			s.ask()
		}},
		{name: "WaitNotify, the only endpoint is drained", play: func(s *scene) {
			server := s.serveClogged()
			sp := s.road(server.address)
			s.start(sp)
			s.clog(true)
			s.askToWait()
			s.p.drainEndpoint(sp, 0, true)
			s.until("relevo_listener_local_replies_total", forwarder.ReasonNoEndpoint)
			server.goOn()
		}},
		{name: "WaitNotify, the server sends what is no frame", play: func(s *scene) {
			s.start(s.road(serveEach(s.t, func(p *peer, m wire.Message) error {
				if string(m.Content()) != subjectContent {
					return echoEach(p, m)
				}
				_, err := p.Write([]byte("this is no frame"))
				return err
			}).address))
			s.warm()
			s.ask()
			s.until("relevo_endpoint_closes_total", wire.ReasonBadProtocol)
		}},
		{name: "WaitNotify, Relevo stops", play: func(s *scene) {
			h := serveHeld(s.t)
			s.start(s.road(h.address))
			s.ask()
			h.got(s.t, 1)
			s.p.Close()
			h.release()
		}},
	}
	for _, phase := range filterPhases {
		list = append(list, scenario{name: "a filter stops it " + phaseTitle[phase], play: func(s *scene) {
			sp := s.road(serveEach(s.t, echoEach).address)
			sp.Listeners[0].Filters = []filter.Filter{filterNamed(phase, func(x *filter.Exchange) filter.Verdict {
				return filter.Stop(wire.ServerException, "test-verdict")
			})}
			s.start(sp)
			s.warm()
			s.ask()
		}}, scenario{name: "a filter that blocks stops it " + phaseTitle[phase], play: func(s *scene) {
			sp := s.road(serveEach(s.t, echoEach).address)
			b := newBlocked()
			b.verdict = filter.Stop(wire.ServerException, "test-verdict")
			sp.Listeners[0].Filters = []filter.Filter{b.in(phase, subjectContent)}
			s.start(sp)
			s.warm()
			s.ask()
			<-b.reached
			b.goOn()
		}}, scenario{name: "a filter Panics " + phaseTitle[phase], play: func(s *scene) {
			sp := s.road(serveEach(s.t, echoEach).address)
			sp.Listeners[0].Filters = []filter.Filter{filterNamed(phase, func(x *filter.Exchange) filter.Verdict {
				panic("a filter's defect")
			})}
			s.start(sp)
			s.warm()
			s.ask()
		}}, scenario{name: "a filter that blocks Panics " + phaseTitle[phase], play: func(s *scene) {
			sp := s.road(serveEach(s.t, echoEach).address)
			b := newBlocked()
			b.panics = true
			sp.Listeners[0].Filters = []filter.Filter{b.in(phase, subjectContent)}
			s.start(sp)
			s.warm()
			s.ask()
			<-b.reached
			b.goOn()
		}})
	}
	list = append(list, scenario{name: "one-way, a filter Panics before the route", play: func(s *scene) {
		sp := s.road(serveEach(s.t, echoEach).address)
		sp.Listeners[0].Filters = []filter.Filter{before(func(*filter.Exchange) filter.Verdict { panic("a filter's defect") })}
		s.start(sp)
		s.ask(s.onewaySubject())
	}}, scenario{name: "ChooseEndpoint, another protocol", play: func(s *scene) {
		sp := s.road(serveEach(s.t, echoEach).address)
		sp.Listeners[0].Codecs = []wire.Codec{bolt.Codec{}, otherCodec{}}
		sp.Clusters[0].Codec, sp.Listeners[0].DetectTimeout = otherCodec{}, patience
		sp.Routes[1].Rules[0].Clusters = sp.Routes[1].Rules[1].Clusters
		s.start(sp)
		s.ask()
	}})
	transcripts(t, "hijack", list)
}

// otherCodec is a protocol of another name, which no bytes are of.
type otherCodec struct{ bolt.Codec }

func (otherCodec) Name() string                 { return "other" }
func (otherCodec) Detect([]byte) wire.Detection { return wire.NotMine }
