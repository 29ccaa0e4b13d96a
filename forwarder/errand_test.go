package forwarder_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/filter/header"
	"github.com/relevo-proxy/relevo/forwarder/route"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// Each of these may block.
type (
	blockingBefore func(context.Context, *filter.Exchange) filter.Verdict
	blockingReply  func(context.Context, *filter.Exchange) filter.Verdict
)

func (blockingBefore) Name() string { return "blocking" }
func (blockingReply) Name() string  { return "blocking" }
func (f blockingBefore) BeforeRoute(ctx context.Context, x *filter.Exchange) filter.Verdict {
	return f(ctx, x)
}

func (f blockingReply) OnReply(ctx context.Context, x *filter.Exchange) filter.Verdict {
	return f(ctx, x)
}

// blockingIn is a filter that may block, in a phase.
func blockingIn(phase string, f func(context.Context, *filter.Exchange) filter.Verdict) []filter.Filter {
	switch phase {
	case "before":
		return []filter.Filter{blockingBefore(f)}
	case "after":
		return []filter.Filter{blocking(f)}
	}
	return []filter.Filter{blockingReply(f)}
}

// holding is a filter that may block, in a phase: it keeps the requests of this content, or all of them where that is empty, until let is
// closed, and tells entered of each, of which there may be ten.
func holding(phase, content string) (filters []filter.Filter, entered <-chan struct{}, let chan struct{}) {
	in, let := make(chan struct{}, 10), make(chan struct{})
	return blockingIn(phase, func(_ context.Context, x *filter.Exchange) filter.Verdict {
		if content == "" || string(x.Message.Content()) == content {
			in <- struct{}{}
			<-let
		}
		return filter.Continue
	}), in, let
}

// wantNoWork waits until no worker has an exchange and none waits for one.
func (p *proxy) wantNoWork() {
	p.t.Helper()
	for _, state := range []string{"busy", "parked"} {
		p.wantCount(0, "relevo_workers", "state="+state)
	}
	p.wantCount(0, "relevo_worker_queue")
}

// atWork is the number of exchanges that workers carry.
func (p *proxy) atWork() float64 {
	return p.value("relevo_workers", "state=busy") + p.value("relevo_workers", "state=parked")
}

// erratic answers, answers late, never answers, answers twice or closes, as chance has it.
func erratic(t *testing.T) *server {
	var group sync.WaitGroup
	s := serveEach(t, func(p *peer, m wire.Message) error {
		if m.Kind != wire.Request {
			return echoEach(p, m)
		}
		switch n := rand.IntN(200); {
		case n < 2:
			return errStop
		case n < 10:
			return nil
		case n < 30:
			group.Go(func() { // ends in a moment: before its request's deadline, behind it, or just then
				<-time.After(time.Duration(rand.IntN(60)) * time.Millisecond)
				_ = p.reply(m, wire.Success, m.Content())
			})
			return nil
		case n < 40:
			_ = p.reply(m, wire.Success, m.Content())
		}
		return p.reply(m, wire.Success, m.Content())
	})
	t.Cleanup(func() { s.stop(); group.Wait() })
	return s
}

// TestWorkersAnswerOnce: whatever servers and clients do, each request of a client that stays is answered once, in its
// time, and in the end no worker has anything and every place is free.
func TestWorkersAnswerOnce(t *testing.T) {
	s := spec(erratic(t).address, erratic(t).address)
	s.Listeners[0].Forwarding = forwarder.ForwardWorker
	s.Workers = forwarder.WorkersSpec{Max: 24, Queue: 40}
	s.Routes[0].Rules[0].Filters = blockingIn("after", func(ctx context.Context, _ *filter.Exchange) filter.Verdict {
		switch rand.IntN(100) {
		case 0:
			<-ctx.Done()
		case 1:
			select {
			case <-ctx.Done():
			case <-time.After(5 * time.Millisecond):
			}
		}
		return filter.Continue
	})
	p := startProxy(t, s, 64<<20)
	var clients, leavers sync.WaitGroup
	statuses := [wire.NumStatus]atomic.Int64{}
	stop := make(chan struct{})
	for range 3 {
		leavers.Go(func() { // ends with stop
			for {
				select {
				case <-stop:
					return
				default:
				}
				c := dial(t, p.address)
				for id := range uint32(rand.IntN(20)) {
					c.send(frameOf(t, id, "gone before the reply"))
				}
				endings[[]string{"end-of-file", "reset"}[rand.IntN(2)]](c)
			}
		})
	}
	const rounds, burst = 30, 16
	for number := range 4 {
		clients.Go(func() {
			c := dial(t, p.address)
			for round := range uint32(rounds) {
				var frames []byte
				for i := range uint32(burst) {
					r := request(round*burst+i, fmt.Sprint(number, " ", round*burst+i, strings.Repeat("x", rand.IntN(2)*9000)))
					r.Timeout = 30 + rand.Int32N(30)
					frames = append(frames, encode(t, r)...)
				}
				c.send(frames)
				for id, m := range c.receiveByID(burst) {
					if id/burst != round {
						t.Errorf("got a reply to request %d in round %d, want each request answered once", id, round)
					}
					if want := fmt.Sprint(number, " ", id); m.Status == wire.Success && strings.TrimRight(string(m.Content()), "x") != want {
						t.Errorf("got the content %.40q, want that of request %q", m.Content(), want)
					}
					statuses[m.Status].Add(1)
				}
			}
			c.hangUp()
		})
	}
	clients.Wait()
	close(stop)
	leavers.Wait()
	p.wantNoWork()
	for _, want := range []wire.Status{wire.Success, wire.Timeout} {
		if statuses[want].Load() == 0 {
			t.Errorf("got no reply of status %v, want some: this tests too little", want)
		}
	}
}

// TestWorkersFull: with all workers taken and the queue full a request is answered busy at once; the others have their turn.
func TestWorkersFull(t *testing.T) {
	for _, queue := range []int{0, 3} {
		t.Run(fmt.Sprintf("queue=%d", queue), func(t *testing.T) {
			h := serveHeld(t)
			s := spec(h.address)
			s.Listeners[0].Forwarding = forwarder.ForwardWorker
			s.Workers = forwarder.WorkersSpec{Max: 2, Queue: queue}
			p := startProxy(t, s, 64<<20)
			c := dial(t, p.address)
			taken := 2 + queue
			for id := range uint32(taken) {
				c.send(frameOf(t, id, "taken"))
			}
			p.wantCount(float64(queue), "relevo_worker_queue")
			h.got(t, 2)
			p.wantCount(2, "relevo_workers", "state=parked")
			for i := range 3 {
				p.wantLocal(c.call(request(100, strings.Repeat("y", i*3000))), wire.Busy, forwarder.ReasonMaxWorkers, float64(i+1))
			}
			c.send(encode(t, oneway(101, "nobody is told")))
			p.wantCount(1, "relevo_listener_dropped_total", "reason="+forwarder.ReasonOneway)
			p.wantCount(4, "relevo_worker_rejections_total", "reason="+forwarder.ReasonMaxWorkers)
			h.release()
			for _, m := range c.receiveByID(taken) {
				wantEcho(t, m, "taken")
			}
			p.wantNoWork() // who has sent its reply is idle in a moment, and not before: its client may be faster
			wantEcho(t, c.call(request(102, "there is room again")), "there is room again")
			p.wantNoWork()
		})
	}
}

// TestWorkerTimeout: who waits for a worker beyond its deadline is answered when one comes, and its server not asked.
func TestWorkerTimeout(t *testing.T) {
	server := serveEach(t, echoEach)
	s := spec(server.address)
	s.Workers = forwarder.WorkersSpec{Max: 1, Queue: 3}
	filters, entered, let := holding("before", "first")
	s.Listeners[0].Filters = filters
	p := startProxy(t, s, 64<<20)
	c := dial(t, p.address)
	c.send(frameOf(t, 1, "first"))
	<-entered
	r := request(2, "too late")
	r.Timeout = 20
	begin := time.Now()
	c.send(encode(t, r))
	p.wantCount(1, "relevo_worker_queue")
	eventually(t, func() bool { return time.Since(begin) > 50*time.Millisecond }, say("its time to be over"))
	close(let)
	replies := c.receiveByID(2)
	wantEcho(t, replies[1], "first")
	p.wantLocal(replies[2], wire.Timeout, forwarder.ReasonWorkerTimeout, 1)
	if n := server.frames.Load(); n != 1 {
		t.Errorf("got %d frames at the server, want none of a request whose time was over", n)
	}
}

// TestBlockingFilterIsCutShort: its context ends at the deadline, the request is answered then, and others go on.
func TestBlockingFilterIsCutShort(t *testing.T) {
	for _, phase := range filterPhases {
		t.Run(phase, func(t *testing.T) {
			s := spec(serveEach(t, echoEach).address)
			s.Listeners[0].Filters = blockingIn(phase, func(ctx context.Context, x *filter.Exchange) filter.Verdict {
				if string(x.Message.Content()) == "hold" {
					<-ctx.Done()
				}
				return filter.Continue
			})
			p := startProxy(t, s, 64<<20)
			others := startNeighbours(t, p.address, service)
			c := dial(t, p.address)
			for i := range uint32(3) {
				r := request(i, "hold")
				r.Timeout = 60
				c.send(encode(t, r))
				wantEcho(t, c.call(request(100, "not held")), "not held")
				p.wantLocal(c.receive(), wire.Timeout, forwarder.ReasonFilterTimeout, float64(i+1))
			}
			others.goOn()
			others.stop()
			p.wantNoWork()
		})
	}
}

// TestBlockingFilterAtClose: its context ends, so that Close does not wait for the deadline.
func TestBlockingFilterAtClose(t *testing.T) {
	for _, phase := range filterPhases {
		t.Run(phase, func(t *testing.T) {
			s := spec(serveEach(t, echoEach).address)
			s.Routes[0].Rules[0].Timeout = time.Hour
			var entered, left atomic.Int64
			s.Listeners[0].Filters = blockingIn(phase, func(ctx context.Context, _ *filter.Exchange) filter.Verdict {
				entered.Add(1)
				<-ctx.Done()
				left.Add(1)
				return filter.Continue
			})
			p := startProxy(t, s, 64<<20)
			c := dial(t, p.address)
			const n = 20
			for id := range uint32(n) {
				r := request(id, "held")
				r.Timeout = 3600_000
				c.send(encode(t, r))
			}
			eventually(t, func() bool { return entered.Load() == n }, say("all requests to be held"))
			p.Close()
			if left.Load() != n {
				t.Errorf("got %d of %d filters back behind Close, want Close to wait for all", left.Load(), n)
			}
			if workers := p.value("relevo_workers"); workers != 0 {
				t.Errorf("got %v workers behind Close, want none", workers)
			}
		})
	}
}

// TestBlockingFilterPanics: the one exchange is answered UNKNOWN, and its worker takes the next.
func TestBlockingFilterPanics(t *testing.T) {
	for _, phase := range filterPhases {
		t.Run(phase, func(t *testing.T) {
			s := spec(serveEach(t, echoEach).address)
			s.Workers = forwarder.WorkersSpec{Max: 2, Queue: 100}
			s.Listeners[0].Filters = blockingIn(phase, func(_ context.Context, x *filter.Exchange) filter.Verdict {
				if strings.HasPrefix(string(x.Message.Content()), "boom") {
					panic("a filter's defect")
				}
				return filter.Continue
			})
			p := startProxy(t, s, 64<<20)
			c := dial(t, p.address)
			const n = 40
			want := map[uint32]string{}
			for id := range uint32(n) {
				want[id] = []string{"boom", "fine", "boom" + strings.Repeat("x", 90_000), "fine" + strings.Repeat("y", 90_000)}[id%4]
				c.send(frameOf(t, id, want[id]))
			}
			for id, m := range c.receiveByID(n) {
				if id%2 == 1 {
					wantEcho(t, m, want[id])
				} else if m.Status != wire.UnknownStatus {
					t.Errorf("got status %v for the exchange that panicked, want UNKNOWN", m.Status)
				}
			}
			p.wantCount(n/2, "relevo_recovered_panics_total", "reason="+forwarder.ReasonPanic)
			p.wantNoWork()
		})
	}
}

// TestDrainWaitsForWorkers: a request, and a one-way request that no connection counts, are carried to their end.
func TestDrainWaitsForWorkers(t *testing.T) {
	for _, kind := range []string{"request", "oneway"} {
		t.Run(kind, func(t *testing.T) {
			server := serveEach(t, echoEach)
			s := spec(server.address)
			s.Workers = forwarder.WorkersSpec{Max: 1, Queue: 10}
			filters, entered, let := holding("after", "")
			s.Listeners[0].Filters = filters
			p := startProxy(t, s, 64<<20)
			c := dial(t, p.address)
			const n = 3 // one with a worker, two that wait for it
			for id := range uint32(n) {
				r := request(id, "held")
				r.Oneway = kind == "oneway"
				c.send(encode(t, r))
			}
			<-entered
			p.wantCount(n-1, "relevo_worker_queue")
			drained := make(chan error, 1)
			go func() { drained <- p.Drain(t.Context()) }() // ends behind the last of them
			if kind == "oneway" {
				c.wantEnd() // nothing is owed to it
			}
			select {
			case err := <-drained:
				t.Fatalf("got Drain back (%v) while a filter held %d requests, want it to wait", err, n)
			case <-time.After(50 * time.Millisecond):
			}
			close(let)
			if kind == "request" {
				for _, m := range c.receiveByID(n) {
					wantEcho(t, m, "held")
				}
			}
			if err := <-drained; err != nil {
				t.Errorf("got %v from Drain, want nil", err)
			}
			server.got(t, n)
		})
	}
}

// TestAutoHandsOnlyWhatBlocks: with forwarding auto the exchanges of the rule whose filter may block are on workers, in
// exact numbers; those of the other rules are on none, and are served while all workers are taken.
func TestAutoHandsOnlyWhatBlocks(t *testing.T) {
	s := spec(serveEach(t, echoEach).address)
	s.Listeners[0].Forwarding = forwarder.ForwardAuto
	s.Workers = forwarder.WorkersSpec{Max: 4, Queue: 6}
	let := make(chan struct{})
	rule := s.Routes[0].Rules[0]
	rule.Name, rule.Match = "held", route.Match{Headers: []route.Header{{Key: "slow", Text: route.Exactly("1")}}}
	rule.Filters = blockingIn("after", func(context.Context, *filter.Exchange) filter.Verdict { <-let; return filter.Continue })
	s.Routes[0].Rules = append([]forwarder.RuleSpec{rule}, s.Routes[0].Rules...)
	p := startProxy(t, s, 64<<20)
	c := dial(t, p.address)
	for n := range uint32(10) {
		c.send(encode(t, slowRequest(n, "held")))
		want := min(float64(n)+1, 4)
		eventually(t, func() bool { return p.atWork() == want && p.value("relevo_worker_queue") == float64(n)+1-want }, func() string {
			return fmt.Sprintf("%v workers at work and %v in the queue, there are %v and %v", want, float64(n)+1-want, p.atWork(), p.value("relevo_worker_queue"))
		})
		for range 5 {
			wantEcho(t, c.call(request(1000, "inline")), "inline")
		}
	}
	p.wantCount(4, "relevo_workers")
	close(let)
	for _, m := range c.receiveByID(10) {
		wantEcho(t, m, "held")
	}
	p.wantNoWork()
	p.wantCount(0, "relevo_worker_rejections_total")
}

// TestLineGoesOnWithoutWhoIsInAFilter: requests that one read brought go on in a line, and so do their replies; one whose
// filter takes its time holds up nobody behind it, and no memory but its own frame's.
func TestLineGoesOnWithoutWhoIsInAFilter(t *testing.T) {
	const n = 20
	for _, phase := range filterPhases {
		for _, last := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s,last=%v", phase, last), func(t *testing.T) {
				h := serveHeld(t)
				s := spec(h.address)
				s.Listeners[0].Forwarding = forwarder.ForwardWorker
				s.Routes[0].Rules[0].Timeout = time.Minute
				let, entered := make(chan struct{}), make(chan struct{})
				s.Listeners[0].Filters = blockingIn(phase, func(_ context.Context, x *filter.Exchange) filter.Verdict {
					if string(x.Message.Content()) == "held" {
						close(entered)
						<-let
					}
					return filter.Continue
				})
				p := startProxy(t, s, 64<<20)
				release := sync.OnceFunc(func() { close(let) })
				t.Cleanup(release) // before the proxy's close, which waits for the filter
				c := dial(t, p.address)
				held := uint32(0)
				if last {
					held = n - 1
				}
				var frames []byte
				for id := range uint32(n) {
					content := "goes on"
					if id == held {
						content = "held"
					}
					frames = append(frames, frameOf(t, id, content)...)
				}
				c.send(frames)
				if phase == "reply" {
					h.got(t, n)
				} else {
					h.got(t, n-1)
				}
				h.release()
				<-entered
				for id, m := range c.receiveByID(n - 1) {
					if id == held {
						t.Errorf("got a reply to request %d, want it held", id)
					}
					wantEcho(t, m, "goes on")
				}
				eventually(t, func() bool { return p.Buffered() == 0 }, say("no buffer for a frame of some bytes"))
				release()
				wantEcho(t, c.receive(), "held")
				p.wantNoWork()
			})
		}
	}
}

// TestHalfAFrameBehindALine: what is read of a frame stays its connection's when the frames before it are lent to workers.
func TestHalfAFrameBehindALine(t *testing.T) {
	s := spec(serveEach(t, echoEach).address)
	s.Listeners[0].Forwarding = forwarder.ForwardWorker
	p := startProxy(t, s, 64<<20)
	c := dial(t, p.address)
	id := uint32(0)
	var rest []byte
	for _, size := range []int{1, 100, 5000, 30_000, 70_000, 10} {
		var whole []byte
		for range 3 {
			whole = append(whole, frameOf(t, id, strings.Repeat("w", int(id)))...)
			id++
		}
		half := frameOf(t, id, strings.Repeat("h", size))
		id++
		at := len(half) - 1 - size/2
		c.send(append(append(rest, whole...), half[:at]...))
		for id, m := range c.receiveByID(3 + min(1, len(rest))) {
			if id%4 < 3 {
				wantEcho(t, m, strings.Repeat("w", int(id)))
			}
		}
		rest = half[at:]
	}
	c.send(rest)
	wantEcho(t, c.receive(), strings.Repeat("h", 10))
	p.wantNoWork()
}

// TestEditedRequestsInALine: what the listener's filter has made of each request that one read brought is what its worker gets,
// though the requests behind it are edited before.
func TestEditedRequestsInALine(t *testing.T) {
	s := spec(serveEach(t, echoEach).address)
	s.Listeners[0].Forwarding = forwarder.ForwardAuto // so that the listener's filter does not need a worker, and the rule's does
	s.Listeners[0].Filters = orFail(t)(header.New(header.Config{Request: []wire.Edit{setHeader("via", "relevo")}}, filter.AtListener))
	s.Routes[0].Rules[0].Filters = blockingIn("after", func(_ context.Context, x *filter.Exchange) filter.Verdict {
		if via := x.Header([]byte("via")); string(via) != "relevo" {
			return filter.Stop(wire.Error, "test-not-edited")
		}
		return filter.Continue
	})
	p := startProxy(t, s, 64<<20)
	c := dial(t, p.address)
	const n = 60
	want := map[uint32]string{}
	var frames []byte
	for id := range uint32(n) {
		want[id] = fmt.Sprint(id, strings.Repeat("x", 50*int(id)))
		frames = append(frames, frameOf(t, id, want[id])...)
	}
	c.send(frames)
	for id, m := range c.receiveByID(n) {
		wantEcho(t, m, want[id])
	}
	p.wantNoWork()
}

// TestWhoWaitedForAWorkerGoesByWhatIsConfigured: a worker that goes on with a request which waited, behind one that a filter held for
// long, goes by what is configured now, not by what was when it began: the request may be of a listener that came meanwhile.
func TestWhoWaitedForAWorkerGoesByWhatIsConfigured(t *testing.T) {
	before, behind := serveEach(t, echoEach), serveEach(t, echoEach)
	let, entered := make(chan struct{}), make(chan struct{}, 1)
	filters := blockingIn("before", func(_ context.Context, x *filter.Exchange) filter.Verdict {
		if string(x.Message.Content()) != "first" {
			return filter.Continue
		}
		entered <- struct{}{}
		<-let
		return filter.Stop(wire.Error, "test-held")
	})
	build := func(to string) *forwarder.Spec {
		s := spec(before.address)
		other := s.Clusters[0]
		other.Name, other.Endpoints = "other", []forwarder.EndpointSpec{{Network: "tcp", Address: behind.address, Weight: 1}}
		s.Clusters = append(s.Clusters, other)
		s.Routes[0].Rules[0].Clusters[0].Cluster = to
		s.Listeners[0].Filters = filters
		s.Workers = forwarder.WorkersSpec{Max: 1, Queue: 10}
		return s
	}
	p := startProxy(t, build("echo"), 64<<20)
	c := dial(t, p.address)
	c.send(frameOf(t, 1, "first"))
	<-entered
	if err := p.Apply(withListener(build("other"), "more", "tcp", "127.0.0.1:0"), kept); err != nil {
		t.Fatal(err)
	}
	more := dial(t, p.Addresses()["more"].String())
	more.send(encode(t, oneway(2, "the new listener")))
	p.wantCount(1, "relevo_worker_queue")
	more.send(frameOf(t, 3, "the new listener"))
	p.wantCount(2, "relevo_worker_queue")
	c.send(frameOf(t, 4, "the new rule"))
	p.wantCount(3, "relevo_worker_queue")
	close(let)
	replies := c.receiveByID(2)
	p.wantLocal(replies[1], wire.Error, "test-held", 1)
	wantEcho(t, replies[4], "the new rule")
	wantEcho(t, more.receive(), "the new listener")
	behind.got(t, 3)
	if n := before.frames.Load(); n != 0 {
		t.Errorf("got %d requests where the rule has led before, want none", n)
	}
	p.wantNoWork()
}

// TestListenerLeavesWhileAWorkerIsAwaited: who came in through a listener that is not configured any more is told so, however long
// it may wait.
func TestListenerLeavesWhileAWorkerIsAwaited(t *testing.T) {
	for _, timeout := range []int32{0, 60_000} {
		t.Run(fmt.Sprint(timeout), func(t *testing.T) {
			filters, entered, let := holding("before", "first")
			server := serveEach(t, echoEach)
			build := func() *forwarder.Spec {
				s := spec(server.address)
				s.Workers = forwarder.WorkersSpec{Max: 1, Queue: 10}
				s.Listeners[0].Filters = filters
				return s
			}
			p := startProxy(t, withListener(build(), "more", "tcp", "127.0.0.1:0"), 64<<20)
			c, more := dial(t, p.address), dial(t, p.Addresses()["more"].String())
			c.send(frameOf(t, 1, "first"))
			<-entered
			r := request(2, "waits for a worker")
			r.Timeout = timeout
			more.send(encode(t, r))
			p.wantCount(1, "relevo_worker_queue")
			if err := p.Apply(build(), kept); err != nil {
				t.Fatal(err)
			}
			close(let)
			p.wantLocal(more.receive(), wire.ConnectionClosed, forwarder.ReasonDraining, 1)
			more.wantEnd()
			wantEcho(t, c.receive(), "first")
			p.wantNoWork()
		})
	}
}

// TestPlacesComeBackBeforeAFilterBlocks: what an exchange has held is given back when it ends, though its worker goes on with another
// one, which a filter holds.
func TestPlacesComeBackBeforeAFilterBlocks(t *testing.T) {
	h := serveHeld(t)
	s := spec(h.address)
	s.Workers = forwarder.WorkersSpec{Max: 1, Queue: 10}
	filters, entered, let := holding("after", "held")
	s.Listeners[0].Filters = filters
	p := startProxy(t, s, 64<<20)
	release := sync.OnceFunc(func() { close(let) })
	t.Cleanup(release) // before the proxy's close, which waits for the filter
	c := dial(t, p.address)
	c.send(frameOf(t, 1, "first"))
	h.got(t, 1)
	c.send(frameOf(t, 2, "held"))
	p.wantCount(1, "relevo_worker_queue")
	h.release()
	wantEcho(t, c.receive(), "first")
	<-entered
	p.wantCount(1, "relevo_listener_in_flight")
	p.wantCount(0, "relevo_cluster_in_flight")
	p.wantCount(0, "relevo_endpoint_in_flight")
	release()
	wantEcho(t, c.receive(), "held")
	p.wantNoWork()
}
