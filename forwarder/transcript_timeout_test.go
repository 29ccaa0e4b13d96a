package forwarder_test

import (
	"testing"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// TestTranscriptTimeout: the deadline passes, in each phase in which something is awaited.
func TestTranscriptTimeout(t *testing.T) {
	list := []scenario{
		{name: "while a connection is made", play: func(s *scene) {
			sp := s.road(blackhole(s.t))
			sp.Clusters[0].ConnectTimeout = patience
			s.start(sp)
			s.ask(s.late())
		}},
		{name: "while a connection is made, one-way", play: func(s *scene) {
			sp := s.road(blackhole(s.t))
			sp.Clusters[0].ConnectTimeout = patience
			s.start(sp)
			r := oneway(subject, subjectContent)
			r.Timeout = short
			s.ask(encode(s.t, r))
		}},
		{name: "while it waits for room on the connection", play: func(s *scene) {
			server := s.serveClogged()
			s.start(s.road(server.address))
			s.clog(true)
			s.ask(s.late())
			s.until("relevo_listener_local_replies_total", forwarder.ReasonPendingTimeout)
			server.goOn()
		}},
		{name: "past it when there is room on the connection", play: func(s *scene) {
			server := s.serveClogged()
			s.start(s.road(server.address))
			s.clog(true)
			goOn := s.stallSweeper()
			defer goOn()
			s.askToWait(s.late())
			s.past()
			server.goOn()
			s.until("relevo_listener_local_replies_total", forwarder.ReasonPendingTimeout)
		}},
		{name: "while it is queued on the connection", play: func(s *scene) {
			server := s.serveClogged()
			s.start(s.road(server.address))
			s.clog(false)
			s.ask(s.late())
			s.until("relevo_listener_local_replies_total", forwarder.ReasonTimeout)
			server.goOn()
			s.until("relevo_cluster_dropped_total", forwarder.ReasonNoStream)
		}},
		{name: "past it when the connection breaks that it was queued on", play: func(s *scene) {
			server := s.serveClogged()
			s.start(s.road(server.address))
			s.clog(false)
			goOn := s.stallSweeper()
			defer goOn()
			s.ask(s.late())
			s.inFlight()
			s.past()
			s.breaks(server)
		}},
		{name: "while the reply is awaited", play: func(s *scene) {
			server := serveEach(s.t, func(p *peer, m wire.Message) error {
				if string(m.Content()) != subjectContent {
					return echoEach(p, m)
				}
				return nil
			})
			s.start(s.road(server.address))
			s.warm()
			s.ask(s.late())
		}},
		{name: "before its reply, which comes late", play: func(s *scene) {
			h := serveHeld(s.t)
			s.start(s.road(h.address))
			s.side.send(frameOf(s.t, 20, "makes the connection"))
			h.got(s.t, 1)
			s.ask(s.late())
			h.got(s.t, 2)
			s.until("relevo_listener_local_replies_total", forwarder.ReasonTimeout)
			h.release()
			s.until("relevo_cluster_dropped_total", forwarder.ReasonNoStream)
		}},
		{name: "while a worker is awaited", only: "worker", play: func(s *scene) {
			on := make(chan struct{})
			server := serveEach(s.t, func(p *peer, m wire.Message) error {
				if string(m.Content()) == "filler" {
					<-on
					return echoEach(p, m)
				}
				return nil
			})
			sp := s.road(server.address)
			sp.Workers = forwarder.WorkersSpec{Max: 1, Queue: 1}
			s.start(sp)
			s.c.send(frameOf(s.t, 20, "filler"))
			server.got(s.t, 1)
			s.ask(s.late())
			s.p.wantCount(1, "relevo_worker_queue")
			s.past()
			close(on)
		}},
		{name: "while a worker is awaited for a filter that may block", play: func(s *scene) {
			b := newBlocked()
			sp := s.road(serveEach(s.t, echoEach).address)
			sp.Workers = forwarder.WorkersSpec{Max: 1, Queue: 1}
			sp.Listeners[0].Filters = []filter.Filter{b.in("before", "filler")}
			s.start(sp)
			s.c.send(frameOf(s.t, 20, "filler"))
			<-b.reached
			s.ask(s.late())
			s.p.wantCount(1, "relevo_worker_queue")
			s.past()
			b.goOn()
		}},
	}
	for _, phase := range filterPhases {
		list = append(list, scenario{name: "while a filter blocks " + phaseTitle[phase], play: func(s *scene) {
			b := newBlocked()
			sp := s.road(serveEach(s.t, echoEach).address)
			sp.Listeners[0].Filters = []filter.Filter{b.in(phase, subjectContent)}
			s.start(sp)
			s.warm()
			if phase == "reply" {
				s.replyLate(b)
				return
			}
			s.ask(s.late())
			<-b.reached
		}})
	}
	list = append(list, scenario{name: "while a filter blocks on the reply, and stops it", play: func(s *scene) {
		b := newBlocked()
		b.verdict = filter.Stop(wire.ServerException, "test-verdict")
		sp := s.road(serveEach(s.t, echoEach).address)
		sp.Listeners[0].Filters = []filter.Filter{b.in("reply", subjectContent)}
		s.start(sp)
		s.warm()
		s.replyLate(b)
	}})
	transcripts(t, "timeout", list)
}
