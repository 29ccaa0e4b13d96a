package forwarder_test

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// short is the deadline of a request that is to miss it, in milliseconds.
const short = 30

// late is the frame of the subject's request with a short deadline.
func (s *scene) late() []byte {
	r := request(subject, subjectContent)
	r.Timeout = short
	return encode(s.t, r)
}

// warm makes the connection to the server, so that the subject waits for none.
func (s *scene) warm() {
	s.t.Helper()
	wantEcho(s.t, s.side.call(request(1, "warm")), "warm")
	s.p.atRest()
}

// turnOfTheDead starts the road with two endpoints, of which the one whose turn it is cannot be connected any more.
func (s *scene) turnOfTheDead(sp *forwarder.Spec) {
	s.t.Helper()
	dead, good := serveEach(s.t, echoEach), serveEach(s.t, echoEach)
	for _, a := range []string{dead.address, good.address} {
		sp.Clusters[0].Endpoints = append(sp.Clusters[0].Endpoints, forwarder.EndpointSpec{Network: "tcp", Address: a, Weight: 1})
	}
	sp.Clusters[0].Balancer = forwarder.BalancerRoundRobin
	s.start(sp)
	for last := false; !last || dead.frames.Load() == 0; { // until the good one had the last turn, after the other
		had := good.frames.Load()
		s.warm()
		last = good.frames.Load() > had
	}
	dead.stop()
	s.until("relevo_endpoint_closes_total", conn.ReasonPeerClosed)
}

// hangUp ends the subject's client, and waits until Relevo has seen it where that is possible.
func (s *scene) hangUp() {
	s.t.Helper()
	s.c.hangUp()
	s.gone = true
	s.p.wantCount(1, "relevo_listener_closes_total", "listener=in")
}

// past waits until a short deadline has passed that has begun to run.
func (s *scene) past() {
	s.t.Helper()
	from := time.Now()
	eventually(s.t, func() bool { return time.Since(from) > short*time.Millisecond }, say("time to pass"))
}

// inFlight waits until the subject's request has been given to the connection that clog has filled.
func (s *scene) inFlight() {
	s.t.Helper()
	s.p.wantCount(s.clogs+1, "relevo_endpoint_requests_total", "cluster=echo", "kind=request")
}

// askToWait asks, and waits until the request is in the list of those that wait for a connection. It is counted before it is
// there, and one for which there is room meanwhile never gets there.
func (s *scene) askToWait(frames ...[]byte) {
	s.t.Helper()
	waiting := s.p.value("relevo_cluster_pending")
	s.ask(frames...)
	s.p.wantCount(waiting+1, "relevo_cluster_pending")
	eventually(s.t, func() bool { return s.went("Send", "WaitNotify") }, say("the request to be in the list"))
}

// replyLate asks, and has the reply come to a filter that blocks, past the deadline or not long before.
func (s *scene) replyLate(b *blocked) {
	s.t.Helper()
	goOn := s.stallSweeper() // it would answer first where the reply is slow
	defer goOn()
	s.ask(s.late())
	<-b.reached
	s.p.wantSome("relevo_listener_local_replies_total", "listener=in")
}

// stallSweeper keeps the sweeper from ending anything, until what is returned is called.
func (s *scene) stallSweeper() (goOn func()) {
	s.t.Helper()
	first := oneway(89, "makes the connection, on which nobody but the sweeper ends what follows")
	first.Headers[0].Value = silentService
	s.side.send(encode(s.t, first))
	s.p.wantCount(1, "relevo_endpoint_requests_total", "cluster=silent", "kind=oneway")
	st := s.stopAt(90, "Hijack")
	r := request(90, "expires")
	r.Headers[0].Value, r.Timeout = silentService, 1
	s.side.send(encode(s.t, r))
	<-st.reached
	return st.goOn
}

// clogged is a server whose first connection takes next to nothing until it is told what to do. All others answer,
// with no content.
type clogged struct {
	*server
	first chan func(*peer) bool // what its first connection does before it answers; false: it ends
}

func (s *scene) serveClogged() *clogged {
	c := &clogged{first: make(chan func(*peer) bool, 1)}
	s.t.Cleanup(func() { close(c.first) })
	c.server = serveOn(s.t, narrow(s.t), func(p *peer) {
		if p.number == 1 {
			if act := <-c.first; act == nil || !act(p) {
				return
			}
		}
		for m, err := p.next(); err == nil; m, err = p.next() {
			if m.Kind == wire.Request && p.reply(m, wire.Success, nil) != nil {
				return
			}
		}
	})
	return c
}

// goOn and reset are what a clogged connection can do.
func (c *clogged) goOn()  { c.first <- func(*peer) bool { return true } }
func (c *clogged) reset() { c.first <- func(p *peer) bool { p.reset(); return false } }

// breaks resets the connection that clog has filled, and waits until Relevo has cleaned up behind it. The kernel tells
// of the reset once: it is the writer that gets it or the read loop, and where it is the writer the read loop, which then
// sees an end of file, may be the first to close.
func (s *scene) breaks(c *clogged) {
	s.t.Helper()
	s.anyEnd = true
	c.reset()
	s.p.wantCount(1, "relevo_endpoint_closes_total", "cluster=echo")
}

// clog fills the connection to a clogged server with requests of others: so far that the next one stays in its write
// queue, or so far that the next one waits for room.
func (s *scene) clog(full bool) {
	s.t.Helper()
	const size = 60 << 10
	content := strings.Repeat("x", size)
	requests := func() float64 {
		return s.p.value("relevo_endpoint_requests_total", "cluster=echo", "kind=request")
	}
	waiting := func() float64 { return s.p.value("relevo_cluster_pending", "cluster=echo") }
	queued := func() float64 {
		return requests()*size - s.p.value("relevo_endpoint_bytes_total", "cluster=echo", "direction=written")
	}
	for n := 1.0; full && waiting() == 0 || !full && queued() < 512<<10; n++ {
		s.side.send(frameOf(s.t, uint32(100+n), content))
		eventually(s.t, func() bool {
			return requests() == n || full && n > 1 && requests()+waiting() == n // the first one waits for the connection
		}, say("request %v of those that fill the queue", n))
		s.clogs = requests()
	}
}

// blocked is a filter that blocks on the subject, in one phase, until the exchange's deadline or until it is told to go on.
type blocked struct {
	reached chan struct{} // closed when it is there
	on      chan struct{} // closed by goOn
	once    sync.Once
	verdict filter.Verdict // then
	panics  bool           // instead
}

func newBlocked() *blocked {
	return &blocked{reached: make(chan struct{}), on: make(chan struct{})}
}

func (b *blocked) goOn()      { b.once.Do(func() { close(b.on) }) }
func (*blocked) Name() string { return "blocked" }

func (b *blocked) wait(ctx context.Context, content string, m *wire.Message) filter.Verdict {
	if string(m.Content()) != content {
		return filter.Continue
	}
	close(b.reached)
	select {
	case <-b.on:
	case <-ctx.Done():
	}
	if b.panics {
		panic("a filter's defect")
	}
	return b.verdict
}

// The filter in each phase, for requests with a content.
type (
	blockedBefore struct {
		*blocked
		content string
	}
	blockedAfter struct {
		*blocked
		content string
	}
	blockedReply struct {
		*blocked
		content string
	}
)

func (f blockedBefore) BeforeRoute(ctx context.Context, x *filter.Exchange) filter.Verdict {
	return f.wait(ctx, f.content, x.Message)
}

func (f blockedAfter) AfterRoute(ctx context.Context, x *filter.Exchange) filter.Verdict {
	return f.wait(ctx, f.content, x.Message)
}

func (f blockedReply) OnReply(ctx context.Context, x *filter.Exchange) filter.Verdict {
	return f.wait(ctx, f.content, x.Message)
}

// in is the filter that blocks in a phase on what has this content.
func (b *blocked) in(phase, content string) filter.Filter {
	switch phase {
	case "before":
		return blockedBefore{b, content}
	case "after":
		return blockedAfter{b, content}
	}
	return blockedReply{b, content}
}

// phaseTitle names the phases in which filters are asked, for the names of scenarios.
var phaseTitle = map[string]string{"before": "before the route", "after": "behind the route", "reply": "on the reply"}

// pieces is the subject's request as a frame that goes out in pieces.
func (s *scene) pieces() []byte { return frameOf(s.t, subject, string(noise(1, uploadSize))) }

// piecesRoad passes frames on in pieces from 256 KiB on.
func (s *scene) piecesRoad(endpoints ...string) *forwarder.Spec {
	sp := s.road(endpoints...)
	sp.Listeners[0].StreamAbove, sp.Listeners[0].ReadTimeout = 256<<10, patience
	return sp
}

// onewaySubject is the subject as a one-way request.
func (s *scene) onewaySubject() []byte { return encode(s.t, oneway(subject, subjectContent)) }

// unknownCommand is the subject as a request of a command that Bolt does not define.
func (s *scene) unknownCommand() []byte {
	frame := frameOf(s.t, subject, subjectContent)
	frame[3] = 77
	return frame
}

// elsewhere is the subject as a request for a service that no rule knows.
func (s *scene) elsewhere() bolt.Request {
	r := request(subject, subjectContent)
	r.Headers[0].Value = "com.example.Other:1.0"
	return r
}
