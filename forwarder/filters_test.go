package forwarder_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// Each filter asks a function about the exchange, in its phase.
type (
	before func(*filter.Exchange) filter.Verdict
	after  func(*filter.Exchange) filter.Verdict
	reply  func(*filter.Exchange) filter.Verdict
)

func (before) Name() string                                    { return "before" }
func (after) Name() string                                     { return "after" }
func (reply) Name() string                                     { return "reply" }
func (f before) BeforeRoute(x *filter.Exchange) filter.Verdict { return f(x) }
func (f after) AfterRoute(x *filter.Exchange) filter.Verdict   { return f(x) }
func (f reply) OnReply(x *filter.Exchange) filter.Verdict      { return f(x) }
func filterNamed(phase string, f func(*filter.Exchange) filter.Verdict) filter.Filter {
	switch phase {
	case "before":
		return before(f)
	case "after":
		return after(f)
	}
	return reply(f)
}

var filterPhases = []string{"before", "after", "reply"}

// TestFilterVerdicts: a verdict in any phase answers that exchange, and no other.
func TestFilterVerdicts(t *testing.T) {
	for _, phase := range filterPhases {
		t.Run(phase, func(t *testing.T) {
			server := serveEach(t, echoEach)
			s := spec(server.address)
			s.Listeners[0].Filters = []filter.Filter{filterNamed(phase, func(x *filter.Exchange) filter.Verdict {
				if x.Listener != "in" || !x.Client.IsValid() || x.Codec == nil {
					t.Errorf("got the listener %q, the client %v, the codec %v, want all of them told", x.Listener, x.Client, x.Codec)
				}
				if routed := x.Route == "rpc/echo" && x.Cluster == "echo"; routed == (phase == "before") {
					t.Errorf("got the route %q and the cluster %q in phase %s", x.Route, x.Cluster, phase)
				}
				if strings.HasPrefix(string(x.Message.Content()), "stop") {
					return filter.Stop(wire.ServerException, "test-verdict")
				}
				return filter.Continue
			})}
			p := startProxy(t, s, 512<<20)
			others := startNeighbours(t, p.address, service)
			c := dial(t, p.address)
			sent := server.frames.Load
			for i := range 3 {
				p.wantLocal(c.call(request(uint32(i), "stop this")), wire.ServerException, "test-verdict", float64(i+1))
				wantEcho(t, c.call(request(uint32(10+i), "go on")), "go on")
			}
			c.send(encode(t, oneway(20, "stop this, and say nothing")))
			wantEcho(t, c.call(request(21, "go on")), "go on")
			if phase != "reply" {
				p.wantCount(1, "relevo_listener_dropped_total", "reason="+forwarder.ReasonOneway)
			}
			others.goOn()
			others.stop()
			served := int64(0)
			for i := range others.served {
				served += others.served[i].Load()
			}
			want := served + 4
			if phase == "reply" {
				want += 4
			}
			if got := sent(); got != want {
				t.Errorf("got %d frames at the server, want %d: a stopped request must not get there", got, want)
			}
		})
	}
}

// TestFilterPanics: the one exchange is answered UNKNOWN, the frames behind it in the same read go on.
func TestFilterPanics(t *testing.T) {
	for _, phase := range filterPhases {
		t.Run(phase, func(t *testing.T) {
			s := spec(serveEach(t, echoEach).address)
			s.Listeners[0].Filters = []filter.Filter{filterNamed(phase, func(x *filter.Exchange) filter.Verdict {
				if string(x.Message.Content()[:4]) == "boom" {
					panic("a filter's defect")
				}
				return filter.Continue
			})}
			p := startProxy(t, s, 512<<20)
			others := startNeighbours(t, p.address, service)
			c := dial(t, p.address)
			const n = 200
			var stream []byte
			want := map[uint32]string{}
			big := strings.Repeat("large enough for a buffer of its own", 4000)
			for i := range uint32(n) {
				content := []string{"boom", "fine", "boom" + big, "fine" + big}[i%4] + fmt.Sprint(i)
				want[i] = content
				stream = append(stream, frameOf(t, i, content)...)
			}
			go func() { _, _ = c.Write(stream) }() // ends with the last byte, or the connection
			for id, m := range c.receiveByID(n) {
				if strings.HasPrefix(want[id], "fine") {
					wantEcho(t, m, want[id])
				} else if m.Status != wire.UnknownStatus || len(m.Content()) != 0 {
					t.Errorf("got status %v for the exchange that panicked, want UNKNOWN", m.Status)
				}
			}
			p.wantCount(n/2, "relevo_recovered_panics_total", "reason="+forwarder.ReasonPanic)
			p.wantCount(n/2, "relevo_listener_local_replies_total", "reason="+forwarder.ReasonPanic)
			if l := p.logged("recovered a panic"); len(l) == 0 || !strings.Contains(l[0], "filters_test.go") {
				t.Errorf("got the log %.200v, want the panic with the stack of the filter", l)
			}
			others.goOn()
		})
	}
}

// blocking asks a function that may block, in the phase behind the route.
type blocking func(context.Context, *filter.Exchange) filter.Verdict

func (blocking) Name() string { return "blocking" }
func (f blocking) AfterRoute(ctx context.Context, x *filter.Exchange) filter.Verdict {
	return f(ctx, x)
}

// TestBlockingFilterIsRefused: where the configuration says inline, nothing may block.
func TestBlockingFilterIsRefused(t *testing.T) {
	for _, place := range []string{"listener", "rule"} {
		s := spec("127.0.0.1:1")
		s.Listeners[0].Forwarding = forwarder.ForwardInline
		f := []filter.Filter{blocking(func(context.Context, *filter.Exchange) filter.Verdict { return filter.Continue })}
		if place == "rule" {
			s.Routes[0].Rules[0].Filters = f
		} else {
			s.Listeners[0].Filters = f
		}
		wantNewFails(t, s, "may block")
	}
}

// TestPanicBehindTheAnswer: an exchange that panics when it is answered, as with a status that there is none of, gives back what it
// holds all the same.
func TestPanicBehindTheAnswer(t *testing.T) {
	for _, phase := range filterPhases {
		t.Run(phase, func(t *testing.T) {
			s := spec(serveEach(t, echoEach).address)
			s.Listeners[0].Filters = []filter.Filter{filterNamed(phase, func(*filter.Exchange) filter.Verdict { return filter.Stop(wire.NumStatus, "test-no-status") })}
			s.Routes[0].Rules[0].MaxRequests = 10
			p := startProxy(t, s, 64<<20)
			c := dial(t, p.address)
			for i := range uint32(20) {
				m := c.call(request(i, strings.Repeat("x", int(i%2)*100_000)))
				if m.Status != wire.UnknownStatus {
					t.Errorf("got status %v, want UNKNOWN in the place of one that there is none of", m.Status)
				}
			}
			p.wantCount(20, "relevo_recovered_panics_total", "reason="+forwarder.ReasonPanic)
			p.wantNoWork()
		})
	}
}
