package forwarder_test

import (
	"context"
	"errors"
	"maps"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/stats"
)

// duplicate is another descriptor of the same socket, as another process would get it.
func duplicate(t *testing.T, s interface {
	SyscallConn() (syscall.RawConn, error)
},
) *os.File {
	t.Helper()
	raw, err := s.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var fd uintptr
	var errno syscall.Errno
	if err := raw.Control(func(old uintptr) {
		fd, _, errno = syscall.Syscall(syscall.SYS_FCNTL, old, syscall.F_DUPFD_CLOEXEC, 0)
	}); err != nil || errno != 0 {
		t.Fatal(errors.Join(err, errno))
	}
	return os.NewFile(fd, "handed over")
}

// pause brings the road to rest.
func (p *proxy) pause() {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	if err := p.Pause(ctx); err != nil {
		p.t.Fatalf("pausing: %v", err)
	}
	if n := p.UnderWay(); n != 0 {
		p.t.Errorf("got %d workers under way behind Pause, want none", n)
	}
}

// handOver has another road, with a configuration of its own, go on where this one stands, as between two processes but for
// the wire. The proxy is the other one from then on.
func (p *proxy) handOver(s *forwarder.Spec) {
	p.t.Helper()
	p.pause()
	p.takeOver(s)
}

// takeOver is handOver of a road at rest. It returns what was handed over.
func (p *proxy) takeOver(s *forwarder.Spec) *forwarder.Handover {
	p.t.Helper()
	old := p.Forwarder
	sockets := old.Sockets()
	next := *s
	next.Listeners = append([]forwarder.ListenerSpec(nil), s.Listeners...)
	for i := range next.Listeners {
		l := &next.Listeners[i]
		if socket := sockets[l.Name]; socket != nil {
			f := duplicate(p.t, socket)
			var err error
			if l.Socket, err = net.FileListener(f); err != nil {
				p.t.Fatal(err)
			}
			f.Close()
		}
	}
	core, logs := observer.New(zapcore.InfoLevel)
	reg := stats.NewRegistry()
	heir, err := forwarder.New(&next, 512<<20, reg, zap.New(core))
	if err != nil {
		p.t.Fatal(err)
	}
	h := old.Export()
	move := func(d *conn.Detached) { d.Socket = duplicate(p.t, d.Socket) }
	for i := range h.Downstreams {
		move(&h.Downstreams[i].Conn)
	}
	for i := range h.Upstreams {
		move(&h.Upstreams[i].Conn)
	}
	if err := heir.Adopt(h); err != nil {
		p.t.Fatal(err)
	}
	old.Abandon()
	heir.Start()
	old.Close()
	for _, gauge := range []string{"relevo_workers", "relevo_worker_queue"} {
		if n := p.value(gauge); n != 0 {
			p.t.Errorf("got %s = %v of the road that was left, want 0", gauge, n)
		}
	}
	p.Forwarder, p.reg, p.logs = heir, reg, logs
	return h
}

// crossings are the ways in which a road is brought to rest and goes on. Whoever is served must not notice which.
var crossings = map[string]func(*proxy, *forwarder.Spec){
	"taken back": func(p *proxy, _ *forwarder.Spec) {
		p.pause()
		p.Export()
		p.Resume()
	},
	"given up": func(p *proxy, _ *forwarder.Spec) {
		ctx, cancel := context.WithCancel(p.t.Context())
		cancel()
		_ = p.Pause(ctx) // it may be at rest already
		p.Resume()
	},
	"handed over":   (*proxy).handOver,
	"to other mode": func(p *proxy, s *forwarder.Spec) { p.handOver(otherMode(s)) },
	"thrice": func(p *proxy, s *forwarder.Spec) {
		p.handOver(s)
		p.handOver(otherMode(s))
		p.handOver(s)
	},
}

// otherMode is the configuration with the exchanges on workers where they are not, and the other way round.
func otherMode(s *forwarder.Spec) *forwarder.Spec {
	next := *s
	next.Listeners = slices.Clone(s.Listeners)
	next.Listeners[0].Forwarding = forwarder.ForwardWorker
	if s.Listeners[0].Forwarding == forwarder.ForwardWorker {
		next.Listeners[0].Forwarding = forwarder.ForwardAuto
	}
	return &next
}

// eachCrossing runs a test once for each of them.
func eachCrossing(t *testing.T, test func(t *testing.T, cross func(*proxy, *forwarder.Spec))) {
	for _, name := range slices.Sorted(maps.Keys(crossings)) {
		t.Run(name, func(t *testing.T) { test(t, crossings[name]) })
	}
}

// roundsUnderLoad is how often a road comes to rest in a test under load.
const roundsUnderLoad = 12

// TestHandOverUnderLoad: nobody notices, however often. There is no room for exchanges that wait for a connection but for that the
// road rests.
func TestHandOverUnderLoad(t *testing.T) {
	for _, name := range []string{"taken back", "handed over"} {
		t.Run(name, func(t *testing.T) {
			server := serveEach(t, echoEach)
			s := spec(server.address)
			s.Clusters[0].MaxPending = 1
			p := startProxy(t, s, 512<<20)
			c := dial(t, p.address)
			wantEcho(t, c.call(request(1, "makes the connection")), "makes the connection")
			load := startLoad(t, p.address)
			load.goOn()
			for i := range uint32(roundsUnderLoad) {
				c.send(frameOf(t, i, "across"))
				crossings[name](p, s)
				wantEcho(t, c.receive(), "across")
			}
			load.goOn()
			load.stop()
			if got := server.accepted.Load(); got != 1 {
				t.Errorf("got %d connections at the server, want the first one to be kept", got)
			}
		})
	}
}

// TestHandOverWhileClientsConnect: a connection that comes at any moment is read by one loop, of one road.
func TestHandOverWhileClientsConnect(t *testing.T) {
	s := spec(serveEach(t, echoEach).address)
	p := startProxy(t, s, 512<<20)
	var group sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		group.Go(func() { // ends with stop, or its first failure
			for id := uint32(0); ; id++ {
				select {
				case <-stop:
					return
				default:
				}
				c, err := net.Dial("tcp", p.address)
				if err == nil {
					err = verified(&peer{TCPConn: c.(*net.TCPConn), t: t}, request(id, "just come"))
					c.Close()
				}
				if err != nil {
					t.Errorf("a client's first call: %v", err)
					return
				}
			}
		})
	}
	for range roundsUnderLoad {
		p.pause()
		var waiting [32]*peer // the kernel accepts them meanwhile
		for i := range waiting {
			waiting[i] = dial(t, p.address)
			waiting[i].send(frameOf(t, uint32(i), "came while the road rests"))
		}
		p.takeOver(s)
		for _, c := range waiting {
			wantEcho(t, c.receive(), "came while the road rests")
			c.hangUp()
		}
	}
	close(stop)
	group.Wait()
}

// TestNothingMovesAtRest: no exchange takes a step between Pause and Resume, also where exchanges wait for workers that become
// idle at that moment.
func TestNothingMovesAtRest(t *testing.T) {
	s := spec(serveEach(t, echoEach).address)
	s.Listeners[0].Forwarding = forwarder.ForwardWorker
	s.Workers = forwarder.WorkersSpec{Max: 2, Queue: 10_000}
	p := newProxy(t, s, 512<<20)
	var steps atomic.Int64
	p.Trace(func(forwarder.Step) { steps.Add(1) })
	p.Start()
	c := dial(t, p.address)
	const burst = 100
	var frames []byte
	for id := range uint32(burst) {
		frames = append(frames, frameOf(t, id, "one of many")...)
	}
	for range 2 * roundsUnderLoad {
		from := steps.Load()
		c.send(frames)
		eventually(t, func() bool { return steps.Load() > from+burst }, say("the burst to begin"))
		p.pause()
		before := steps.Load()
		for range 100 {
			runtime.Gosched()
		}
		if n := steps.Load() - before; n != 0 {
			t.Fatalf("got %d steps of exchanges at rest, want none", n)
		}
		p.Resume()
		for _, m := range c.receiveByID(burst) {
			wantEcho(t, m, "one of many")
		}
	}
}
