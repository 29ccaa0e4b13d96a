package forwarder_test

import (
	"testing"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// TestTranscriptPlain: what goes its way.
func TestTranscriptPlain(t *testing.T) {
	list := []scenario{
		{name: "a connection is there", play: func(s *scene) {
			s.start(s.road(serveEach(s.t, echoEach).address))
			s.warm()
			s.ask()
		}},
		{name: "a connection must be made", play: func(s *scene) {
			s.start(s.road(serveEach(s.t, echoEach).address))
			s.ask()
		}},
		{name: "the server answers with an error", play: func(s *scene) {
			s.start(s.road(serveEach(s.t, func(p *peer, m wire.Message) error {
				return p.reply(m, wire.ServerException, nil)
			}).address))
			s.ask()
		}},
		{name: "it waits for room on the connection", play: func(s *scene) {
			server := s.serveClogged()
			s.start(s.road(server.address))
			s.clog(true)
			s.askToWait()
			server.goOn()
		}},
		{name: "one-way", play: func(s *scene) {
			server := serveEach(s.t, echoEach)
			s.start(s.road(server.address))
			s.warm()
			s.ask(s.onewaySubject())
			server.got(s.t, 2)
		}},
		{name: "one-way, a connection must be made", play: func(s *scene) {
			server := serveEach(s.t, echoEach)
			s.start(s.road(server.address))
			s.ask(s.onewaySubject())
			server.got(s.t, 1)
		}},
		{name: "one-way, no route", play: func(s *scene) {
			s.start(s.road(serveEach(s.t, echoEach).address))
			r := s.elsewhere()
			r.Oneway = true
			s.ask(encode(s.t, r))
		}},
		{name: "one-way, the endpoint is dead", play: func(s *scene) {
			s.start(s.road(deadAddress(s.t)))
			s.ask(s.onewaySubject())
		}},
		{name: "filters in all phases", play: func(s *scene) {
			sp := s.road(serveEach(s.t, echoEach).address)
			pass := func(*filter.Exchange) filter.Verdict { return filter.Continue }
			sp.Listeners[0].Filters = []filter.Filter{before(pass), after(pass), reply(pass)}
			s.start(sp)
			s.warm()
			s.ask()
		}},
		{name: "filters that block both ways", play: func(s *scene) {
			sp := s.road(serveEach(s.t, echoEach).address)
			there, back := newBlocked(), newBlocked()
			sp.Listeners[0].Filters = []filter.Filter{there.in("before", subjectContent), back.in("reply", subjectContent)}
			s.start(sp)
			s.warm()
			s.ask()
			<-there.reached
			there.goOn()
			<-back.reached
			back.goOn()
		}},
		{name: "a rule's filter that blocks both ways", play: func(s *scene) {
			sp := s.road(serveEach(s.t, echoEach).address)
			there, back := newBlocked(), newBlocked()
			sp.Routes[0].Rules[0].Filters = []filter.Filter{there.in("after", subjectContent), back.in("reply", subjectContent)}
			s.start(sp)
			s.warm()
			s.ask()
			<-there.reached
			there.goOn()
			<-back.reached
			back.goOn()
		}},
		{name: "a worker is awaited", play: func(s *scene) {
			sp := s.road(serveEach(s.t, echoEach).address)
			sp.Workers = forwarder.WorkersSpec{Max: 1, Queue: 1}
			b := newBlocked()
			sp.Listeners[0].Filters = []filter.Filter{b.in("before", "filler")}
			s.start(sp)
			s.warm()
			s.c.send(frameOf(s.t, 20, "filler"))
			<-b.reached
			s.ask()
			s.p.wantCount(1, "relevo_worker_queue")
			b.goOn()
		}},
	}
	transcripts(t, "plain", list)
}
