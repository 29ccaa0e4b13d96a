package forwarder_test

import (
	"context"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// played is a usage that a test plays. Connections count as descriptors, beside those that it says.
type played struct {
	mu  sync.Mutex
	now forwarder.Usage
}

func (p *played) usage(connections int, _ bool) forwarder.Usage {
	p.mu.Lock()
	defer p.mu.Unlock()
	u := p.now
	u.Descriptors += connections
	return u
}

// memory plays so much of 1000.
func (p *played) memory(used int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now.Memory, p.now.MemoryLimit = used, 1000
}

// overloaded gives a spec the defaults, and a usage that is played.
func overloaded(s *forwarder.Spec) *played {
	p := &played{}
	s.Overload = forwarder.OverloadSpec{Usage: p.usage, StopReading: 0.75, StopAccepting: 0.80, RefuseLow: 0.85, RefuseNormal: 0.90}
	return p
}

// acts are what a road does about overload, in order.
func acts(f *forwarder.Forwarder) (all []string) {
	for _, a := range f.Overload().Actions {
		all = append(all, a.Action+" "+a.Resource)
	}
	return all
}

// The actions about memory, in the order in which they begin.
var steps = []string{"stop-reading memory", "stop-accepting memory", "refuse-low memory", "refuse-normal memory"}

// queue is a listening socket that is none: clients wait in it until they are accepted.
type queue struct {
	mu      sync.Mutex
	news    chan struct{}
	past    bool
	closed  bool
	waiting int
	asked   int // calls of Accept
}

func (q *queue) change(fn func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	fn()
	close(q.news)
	q.news = make(chan struct{})
}

func (q *queue) Accept() (net.Conn, error) {
	q.mu.Lock()
	q.asked++
	q.mu.Unlock()
	for {
		q.mu.Lock()
		news, closed, past, waiting := q.news, q.closed, q.past, q.waiting
		if !closed && !past && waiting > 0 {
			q.waiting--
		}
		q.mu.Unlock()
		switch {
		case closed:
			return nil, net.ErrClosed
		case past:
			return nil, os.ErrDeadlineExceeded
		case waiting > 0:
			c, _ := net.Pipe()
			return c, nil // is closed, since it is no socket
		}
		<-news
	}
}

func (q *queue) SetDeadline(t time.Time) error {
	q.change(func() { q.past = !t.IsZero() && !t.After(time.Now()) })
	return nil
}

func (q *queue) Close() error   { q.change(func() { q.closed = true }); return nil }
func (q *queue) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

// TestOverloadStepByStep: what is done begins and ends in its order, ends only below a margin and for a while, and clients wait
// where they are, without anybody asking for them.
func TestOverloadStepByStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := spec("127.0.0.1:1")
		q := &queue{news: make(chan struct{})}
		s.Listeners[0].Socket = q
		usage := overloaded(s)
		var changes []string
		s.Changed = func(c forwarder.Change) { changes = append(changes, c.State) }
		core, logs := observer.New(zapcore.InfoLevel)
		reg := stats.NewRegistry()
		f, err := forwarder.New(s, 64<<20, reg, zap.New(core))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		usage.memory(700)
		f.Start()
		play := func(used int64, during time.Duration, want int) {
			t.Helper()
			usage.memory(used)
			time.Sleep(during)
			synctest.Wait()
			if got := acts(f); !slices.Equal(got, steps[:want]) {
				t.Errorf("with %d used for %v: got %v, want %v", used, during, got, steps[:want])
			}
		}
		const look, calm = 251 * time.Millisecond, 2*time.Second + 251*time.Millisecond
		play(700, look, 0)
		play(749, 10*time.Second, 0)
		play(750, look, 1)
		play(730, time.Minute, 1) // within the margin
		play(800, look, 2)
		asked := q.asked
		q.change(func() { q.waiting = 1 })
		play(850, look, 3)
		play(900, look, 4)
		play(990, time.Hour, 4)
		play(855, time.Minute, 4)
		if q.waiting != 1 || q.asked > asked+1 || f.Status().Listeners[0].Accepting {
			t.Errorf("got %d clients in the queue, %d calls of Accept and accepting %v, want one left alone", q.waiting, q.asked-asked, f.Status().Listeners[0].Accepting)
		}
		play(849, calm-2*look, 4) // not for long enough
		play(851, look, 4)
		play(849, calm-2*look, 4)
		play(849, 2*look, 3)
		play(799, calm, 2)
		for range 100 { // a reading that goes up and down
			play(740, time.Second, 2)
			play(760, time.Second, 2)
		}
		if q.waiting != 1 {
			t.Error("the client was accepted too early")
		}
		play(749, calm, 1)
		if q.waiting != 0 || !f.Status().Listeners[0].Accepting {
			t.Error("the client waits still, though it may come")
		}
		q.change(func() { q.waiting = 3 })
		synctest.Wait()
		if q.waiting != 0 {
			t.Errorf("got %d clients in the queue, want all of them accepted at once", q.waiting)
		}
		play(0, calm, 0)
		play(1000, time.Minute, 0) // there is no connection, so nobody looks
		if want := []string{forwarder.Accepting, forwarder.NotAccepting, forwarder.Accepting}; !slices.Equal(changes, want) {
			t.Errorf("told were %v, want %v", changes, want)
		}
		for _, message := range []string{"overload: it begins", "overload: it is over"} {
			if n := logs.FilterMessage(message).Len(); n != len(steps) {
				t.Errorf("the log says %q %d times, want once for each of the %d", message, n, len(steps))
			}
		}
		for _, sample := range reg.Snapshot() {
			want := map[string]float64{"relevo_overload_actions_total": 1, "relevo_overload_active": 0}
			if v, ok := want[sample.Name]; ok && hasLabels(sample, []string{"resource=memory"}) && sample.Value != v {
				t.Errorf("got %v, want %v", sample, v)
			}
		}
	})
}

// TestOverloadWithoutALimit: what is not known, or switched off, is not acted on.
func TestOverloadWithoutALimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := spec("127.0.0.1:1")
		s.Listeners[0].Socket = &queue{news: make(chan struct{})}
		usage := overloaded(s)
		f, err := forwarder.New(s, 64<<20, stats.NewRegistry(), zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		usage.now = forwarder.Usage{Memory: 750} // of an unknown limit
		f.Start()
		want := func(what string, limit int64, want ...string) {
			t.Helper()
			_ = forwarder.NewWatch(f).Stuck() // rouses the sweeper
			time.Sleep(3 * time.Second)
			synctest.Wait()
			_ = forwarder.NewWatch(f).Stuck()
			synctest.Wait()
			if got := f.Overload(); got.MemoryLimit != limit || !slices.Equal(acts(f), want) {
				t.Errorf("%s: got a limit of %d and %v, want %d and %v", what, got.MemoryLimit, acts(f), limit, want)
			}
		}
		want("a limit that is not known", 0)
		configured := func(change func(o *forwarder.OverloadSpec)) {
			t.Helper()
			next := *s
			change(&next.Overload)
			if err := f.Apply(&next, kept); err != nil {
				t.Fatal(err)
			}
		}
		configured(func(o *forwarder.OverloadSpec) { o.MemoryLimit = 1000 })
		want("a limit that is configured", 1000, steps[0])
		configured(func(o *forwarder.OverloadSpec) { o.MemoryLimit = -1 })
		want("none", 0)
		usage.memory(820)
		want("none, whatever is known", 0)
		configured(func(o *forwarder.OverloadSpec) { o.StopAccepting = 0.85 })
		want("another mark", 1000, steps[0])
	})
}

// TestOverloadRefusesByPriority: low first, then normal, and never high; what is in flight goes on.
func TestOverloadRefusesByPriority(t *testing.T) {
	h := serveHeld(t)
	s := classes(h.address)
	usage := overloaded(s)
	usage.memory(700)
	p := startProxy(t, s, 64<<20)
	c := dial(t, p.address)
	c.send(encode(t, of("low", 1000)))
	h.got(t, 1)
	h.release()
	wantEcho(t, c.receive(), "low")
	id, refused, oneways := uint32(0), map[string]float64{}, 0.0
	for _, play := range []struct {
		used  int64
		steps int
		busy  []string
	}{{700, 0, nil}, {860, 3, []string{"low"}}, {950, 4, []string{"low", "normal"}}, {860, 4, []string{"low", "normal"}}, {810, 3, []string{"low"}}, {10, 0, nil}} {
		usage.memory(play.used)
		eventually(t, func() bool { return slices.Equal(acts(p.Forwarder), steps[:play.steps]) }, func() string {
			return "with " + strings.Join(steps[:play.steps], ", ") + ": " + strings.Join(acts(p.Forwarder), ", ")
		})
		for _, class := range []string{"low", "normal", "high"} {
			id++
			want := wire.Success
			if slices.Contains(play.busy, class) {
				want = wire.Busy
				refused[class]++
			}
			if m := c.call(of(class, id)); m.Status != want {
				t.Errorf("with %d used: got %v for %s, want %v", play.used, m.Status, class, want)
			}
			also := 0.0
			if class == "low" {
				also = oneways
			}
			p.wantCount(refused[class]+also, "relevo_overload_refused_total", "priority="+class)
			p.wantCount(refused[class], "relevo_route_local_replies_total", "route=rpc/"+class, "reason="+forwarder.ReasonOverload)
		}
		if len(play.busy) > 0 {
			oneways++
			r := of("low", id)
			r.Oneway = true
			before := p.value("relevo_listener_dropped_total", "reason="+forwarder.ReasonOneway)
			c.send(encode(t, r))
			p.wantCount(before+1, "relevo_listener_dropped_total", "reason="+forwarder.ReasonOneway)
		}
	}
}

// TestOverloadStopsReading: the client that holds most is not read from while memory is short, in the middle of a frame its
// frame is read to its end, and the others go on.
func TestOverloadStopsReading(t *testing.T) {
	server := serveEach(t, echoEach)
	s := spec(server.address)
	s.Listeners[0].StreamAbove = 0
	usage := overloaded(s)
	usage.memory(700)
	p := startProxy(t, s, 512<<20)
	hungry, modest := dial(t, p.address), dial(t, p.address)
	content := strings.Repeat("x", 4<<20)
	frame := frameOf(t, 1, content)
	hungry.send(frame[:len(frame)/2])
	eventually(t, func() bool { return p.Buffered() >= 4<<20 }, say("half of the large frame to be here"))
	usage.memory(760)
	p.wantCount(1, "relevo_listener_connections", "state=gated")
	wantEcho(t, modest.call(request(1, "modest")), "modest")
	hungry.send(frame[len(frame)/2:])
	wantEcho(t, hungry.receive(), content)
	usage.memory(0)
	p.wantCount(0, "relevo_overload_active")
	p.wantCount(0, "relevo_listener_connections", "state=gated")
	wantEcho(t, hungry.call(request(2, "again")), "again")
}

// TestDescriptorsAreKept: clients are accepted up to the reserve and not beyond, whoever comes at once; those that wait are
// accepted when others have gone, and server connections get descriptors of the reserve, but not the last.
func TestDescriptorsAreKept(t *testing.T) {
	server := serveEach(t, echoEach)
	s := spec(server.address)
	usage := overloaded(s)
	s.Overload.Reserve = 20
	usage.now = forwarder.Usage{Descriptors: 30, DescriptorLimit: 100}
	p := startProxy(t, s, 64<<20)
	const places = 100 - 20 - 30
	clients := make([]*peer, places+30)
	for i := range clients {
		clients[i] = dial(t, p.address)
	}
	p.wantCount(1, "relevo_overload_active", "action=stop-accepting", "resource=descriptors")
	p.wantCount(places, "relevo_listener_connections")
	wantEcho(t, clients[0].call(request(1, "served")), "served")
	for _, c := range clients[1:4] { // not as many as the margin
		c.hangUp()
	}
	p.wantCount(places-3, "relevo_listener_connections")
	p.wantCount(1, "relevo_overload_active")
	for _, c := range clients[4:places] {
		c.hangUp()
	}
	p.wantCount(0, "relevo_overload_active")
	p.wantCount(31, "relevo_listener_connections")
	wantEcho(t, clients[len(clients)-1].call(request(2, "the last")), "the last")
	usage.mu.Lock()
	usage.now.Descriptors = 100 - 32 // a server connection and 31 clients are beside
	usage.mu.Unlock()
	p.wantCount(1, "relevo_overload_active", "action=stop-dialling")
	wantEcho(t, clients[0].call(request(3, "on the connection that there is")), "on the connection that there is")
	server.mu.Lock()
	for c := range server.conns {
		c.Close()
	}
	server.mu.Unlock()
	p.wantCount(0, "relevo_cluster_connections")
	for id := uint32(4); ; id++ { // until the sweeper has looked, one may be made
		m := clients[0].call(request(id, "nothing to send it on"))
		if m.Status == wire.Busy {
			break
		}
	}
	p.wantSome("relevo_route_local_replies_total", "reason="+forwarder.ReasonMaxConnections)
	usage.mu.Lock()
	usage.now.Descriptors = 30
	usage.mu.Unlock()
	p.wantCount(0, "relevo_overload_active")
	wantEcho(t, clients[0].call(request(1000, "over")), "over")
}

// TestOverloadAndAPause: at rest nothing of it changes; it does when the road goes on, and a process that takes over looks before
// anybody is accepted.
func TestOverloadAndAPause(t *testing.T) {
	s := classes(serveEach(t, echoEach).address)
	usage := overloaded(s)
	usage.memory(700)
	p := startProxy(t, s, 64<<20)
	c := dial(t, p.address)
	wantEcho(t, c.call(of("low", 1)), "low")
	for range 2 {
		p.pause()
		usage.memory(860)
		if got := acts(p.Forwarder); len(got) != 0 {
			t.Errorf("at rest %v began", got)
		}
		p.Resume()
		eventually(t, func() bool { return slices.Equal(acts(p.Forwarder), steps[:3]) }, say("overload to be seen behind a pause"))
		eventually(t, func() bool { return c.call(of("low", 2)).Status == wire.Busy }, say("low priority to be refused, now that this was decided"))
		late := dial(t, p.address)
		p.pause()
		usage.memory(0)
		if got := acts(p.Forwarder); len(got) != 3 {
			t.Errorf("at rest all but %v ended", got)
		}
		p.Resume()
		eventually(t, func() bool { return len(acts(p.Forwarder)) == 0 }, say("overload to end behind a pause"))
		wantEcho(t, late.call(of("low", 3)), "low")
	}
	usage.memory(860)
	p.handOver(s)
	if got := acts(p.Forwarder); !slices.Equal(got, steps[:3]) {
		t.Errorf("the process that took over does %v, want %v at once", got, steps[:3])
	}
	late := dial(t, p.address)
	if m := c.call(of("low", 4)); m.Status != wire.Busy {
		t.Errorf("got %v, want busy", m.Status)
	}
	p.wantCount(3, "relevo_listener_connections") // the last one waits
	usage.memory(0)
	wantEcho(t, late.call(of("low", 5)), "low")
}

// TestOverloadEnds: a road that accepts nothing can be drained and closed.
func TestOverloadEnds(t *testing.T) {
	s := spec(serveEach(t, echoEach).address)
	usage := overloaded(s)
	usage.memory(990)
	p := startProxy(t, s, 64<<20)
	if got := acts(p.Forwarder); !slices.Equal(got, steps) {
		t.Fatalf("got %v behind the start, want all", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := p.Drain(ctx); err != nil {
		t.Error(err)
	}
}
