package forwarder_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// TestTranscriptRetry: nothing of the request was sent, so it may be tried again.
func TestTranscriptRetry(t *testing.T) {
	transcripts(t, "retry", []scenario{
		{name: "the endpoint cannot be connected, another one can", play: func(s *scene) {
			s.turnOfTheDead(s.road())
			s.ask()
		}},
		{name: "no endpoint can be connected", play: func(s *scene) {
			s.start(s.road(deadAddress(s.t), deadAddress(s.t)))
			s.ask()
		}},
		{name: "the only endpoint cannot be connected", play: func(s *scene) {
			s.start(s.road(deadAddress(s.t)))
			s.ask()
		}},
		{name: "the rule wants no retry", play: func(s *scene) {
			sp := s.road()
			sp.Routes[0].Rules[0].RetryOn = forwarder.RetryResetBeforeSend
			s.turnOfTheDead(sp)
			s.ask()
		}},
		{name: "the connection breaks before it is sent", play: func(s *scene) {
			server := s.serveClogged()
			s.start(s.road(server.address))
			s.clog(false)
			s.ask()
			s.inFlight()
			s.breaks(server)
		}},
		{name: "the connection breaks before it is sent, and no try is left", play: func(s *scene) {
			server := s.serveClogged()
			sp := s.road(server.address)
			sp.Routes[0].Rules[0].Attempts = 1
			s.start(sp)
			s.clog(false)
			s.ask()
			s.inFlight()
			s.breaks(server)
		}},
		{name: "the connection breaks before a one-way request is sent", play: func(s *scene) {
			server := s.serveClogged()
			s.start(s.road(server.address))
			s.clog(false)
			s.ask(s.onewaySubject())
			s.p.wantCount(1, "relevo_endpoint_requests_total", "kind=oneway")
			s.breaks(server)
		}},
		{name: "the connection breaks that it waited for room on", play: func(s *scene) {
			server := s.serveClogged()
			s.start(s.road(server.address))
			s.clog(true)
			s.askToWait()
			s.breaks(server)
		}},
		{name: "the server is busy, and then it is not", play: func(s *scene) {
			s.startIdempotent(busyAtFirst(s.t, 1).address)
			s.ask()
		}},
		{name: "the server stays busy, and no try is left", play: func(s *scene) {
			s.startIdempotent(busyAtFirst(s.t, 2).address)
			s.ask()
		}},
		{name: "the server is busy, and the budget is used up", play: func(s *scene) {
			sp := s.idempotent(busyAtFirst(s.t, 1).address)
			sp.Clusters[0].RetryFloor = 0
			s.start(sp)
			s.warm()
			s.ask()
		}},
		{name: "the server is busy, and the rule does not mind", play: func(s *scene) {
			sp := s.idempotent(busyAtFirst(s.t, 1).address)
			sp.Routes[0].Rules[0].RetryOn = forwarder.RetryReset
			s.start(sp)
			s.warm()
			s.ask()
		}},
		{name: "the server closes its connection, and answers on another one", play: func(s *scene) {
			var asked atomic.Int64
			s.startIdempotent(serveEach(s.t, func(p *peer, m wire.Message) error {
				if string(m.Content()) == subjectContent && asked.Add(1) == 1 {
					p.hangUp()
					return errStop
				}
				return echoEach(p, m)
			}).address)
			s.ask()
			s.until("relevo_endpoint_closes_total", conn.ReasonPeerClosed)
		}},
		{name: "a try takes too long", play: func(s *scene) {
			var asked atomic.Int64
			s.startIdempotent(serveEach(s.t, func(p *peer, m wire.Message) error {
				if string(m.Content()) == subjectContent && asked.Add(1) == 1 {
					return nil
				}
				return echoEach(p, m)
			}).address)
			s.ask()
		}},
	})
}

// idempotent is the road with a rule that tries again on all conditions, without a pause.
func (s *scene) idempotent(endpoints ...string) *forwarder.Spec {
	sp := s.road(endpoints...)
	r := &sp.Routes[0].Rules[0]
	r.RetryOn |= forwarder.RetryReset | forwarder.RetryBusy | forwarder.RetryTimeout
	r.Idempotent, r.PerTryTimeout = true, short*time.Millisecond
	sp.Clusters[0].RetryFloor, sp.Clusters[0].MaxRetryBytes = 1, 1<<20
	return sp
}

// startIdempotent runs it, with a connection that is there already.
func (s *scene) startIdempotent(endpoint string) {
	s.t.Helper()
	s.start(s.idempotent(endpoint))
	s.warm()
}

// busyAtFirst is a server that is too busy for the subject so often, and then is not.
func busyAtFirst(t *testing.T, times int64) *server {
	var asked atomic.Int64
	return serveEach(t, func(p *peer, m wire.Message) error {
		if string(m.Content()) == subjectContent && asked.Add(1) <= times {
			return p.reply(m, wire.Busy, nil)
		}
		return echoEach(p, m)
	})
}

// TestTranscriptReset: a connection ends, the server's or the client's.
func TestTranscriptReset(t *testing.T) {
	end := map[string]func(*peer){"closes": (*peer).hangUp, "resets": (*peer).reset}
	var list []scenario
	for _, how := range []string{"closes", "resets"} {
		reason := map[string]string{"closes": conn.ReasonPeerClosed, "resets": conn.ReasonReset}[how]
		list = append(list, scenario{name: "the server " + how + " its connection before the send", play: func(s *scene) {
			ending := make(chan struct{})
			server := serve(s.t, func(p *peer) {
				for m, err := p.next(); err == nil && echoEach(p, m) == nil; m, err = p.next() {
					if p.number == 1 {
						<-ending
						end[how](p)
						return
					}
				}
			})
			s.start(s.road(server.address))
			s.warm()
			st := s.stopAt(subject, "Send")
			s.ask()
			<-st.reached
			close(ending)
			s.until("relevo_endpoint_closes_total", reason)
			st.goOn()
		}}, scenario{name: "the server " + how + " its connection with the request in flight", play: func(s *scene) {
			server := serveEach(s.t, func(p *peer, m wire.Message) error {
				if string(m.Content()) != subjectContent {
					return echoEach(p, m)
				}
				end[how](p)
				return errStop
			})
			s.start(s.road(server.address))
			s.warm()
			s.ask()
			s.until("relevo_endpoint_closes_total", reason)
		}})
	}
	list = append(list,
		scenario{name: "the client goes before the send", play: func(s *scene) {
			h := serveHeld(s.t)
			s.start(s.road(h.address))
			st := s.stopAt(subject, "Send")
			s.ask()
			<-st.reached
			s.c.hangUp()
			s.gone = true
			if mode == forwarder.ForwardWorker { // else the client's read loop is what waits
				s.p.wantCount(1, "relevo_listener_closes_total", "listener=in")
			}
			st.goOn()
			h.got(s.t, 1)
			s.p.wantCount(1, "relevo_listener_closes_total", "listener=in")
			h.release()
		}},
		scenario{name: "the client goes while its request is queued on the connection", play: func(s *scene) {
			server := s.serveClogged()
			s.start(s.road(server.address))
			s.clog(false)
			s.ask()
			s.inFlight()
			s.hangUp()
			server.goOn()
		}},
		scenario{name: "the client goes, then the connection breaks that its request was queued on", play: func(s *scene) {
			server := s.serveClogged()
			s.start(s.road(server.address))
			s.clog(false)
			s.ask()
			s.inFlight()
			s.hangUp()
			s.breaks(server)
		}},
		scenario{name: "the client goes before the reply", play: func(s *scene) {
			h := serveHeld(s.t)
			s.start(s.road(h.address))
			s.ask()
			h.got(s.t, 1)
			s.hangUp()
			h.release()
		}},
		scenario{name: "the client resets before the reply", play: func(s *scene) {
			h := serveHeld(s.t)
			s.start(s.road(h.address))
			s.ask()
			h.got(s.t, 1)
			s.c.reset()
			s.hangUp()
			h.release()
		}},
		scenario{name: "the client goes as its deadline passes", play: func(s *scene) {
			server := serveEach(s.t, silentEach)
			s.start(s.road(server.address))
			st := s.stopAt(subject, "Hijack")
			s.ask(s.late())
			<-st.reached
			s.hangUp()
			st.goOn()
		}},
		scenario{name: "the client goes while it waits for room on the connection", play: func(s *scene) {
			server := s.serveClogged()
			s.start(s.road(server.address))
			s.clog(true)
			s.askToWait()
			s.hangUp()
			server.goOn()
		}},
		scenario{name: "the client goes while a connection is made, for too long", play: func(s *scene) {
			sp := s.road(blackhole(s.t))
			sp.Clusters[0].ConnectTimeout = patience
			s.start(sp)
			st := s.stopAt(subject, "Hijack")
			s.ask(s.late())
			<-st.reached
			s.hangUp()
			st.goOn()
		}},
		scenario{name: "the client goes while a connection is made in vain", play: func(s *scene) {
			s.start(s.road(deadAddress(s.t)))
			st := s.stopAt(subject, "Retry")
			s.ask()
			<-st.reached
			s.hangUp()
			st.goOn()
		}},
	)
	for _, phase := range filterPhases {
		list = append(list, scenario{name: "the client goes while a filter blocks " + phaseTitle[phase], play: func(s *scene) {
			b := newBlocked()
			sp := s.road(serveEach(s.t, echoEach).address)
			sp.Listeners[0].Filters = []filter.Filter{b.in(phase, subjectContent)}
			s.start(sp)
			s.warm()
			s.ask()
			<-b.reached
			s.hangUp()
			b.goOn()
		}})
	}
	transcripts(t, "reset", list)
}
