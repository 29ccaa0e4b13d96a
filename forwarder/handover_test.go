package forwarder_test

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

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
}) *os.File {
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

// handOver has another road, with a configuration of its own, go on where this one stands, as between two processes but for
// the wire. The proxy is the other one from then on.
func (p *proxy) handOver(s *forwarder.Spec) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
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
	if err := old.Pause(ctx); err != nil {
		p.t.Fatalf("pausing: %v", err)
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
	p.Forwarder, p.reg, p.logs = heir, reg, logs
}

// TestHandOverUnderLoad: nobody notices, however often.
func TestHandOverUnderLoad(t *testing.T) {
	server := serveEach(t, echoEach)
	s := spec(server.address)
	p := startProxy(t, s, 512<<20)
	load := startLoad(t, p.address)
	c := dial(t, p.address)
	for i := range uint32(30) {
		load.goOn()
		c.send(frameOf(t, i, "across"))
		p.handOver(s)
		wantEcho(t, c.receive(), "across")
	}
	load.stop()
	if got := server.accepted.Load(); got != 1 {
		t.Errorf("got %d connections at the server, want the first one to be kept", got)
	}
}

// TestPauseAndResumeUnderLoad: a hand-over that is taken back is not noticed either.
func TestPauseAndResumeUnderLoad(t *testing.T) {
	server := serveEach(t, echoEach)
	p := startProxy(t, spec(server.address), 512<<20)
	load := startLoad(t, p.address)
	for range 30 {
		load.goOn()
		if err := p.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.Export()
		p.Resume()
	}
	load.stop()
	if got := server.accepted.Load(); got != 1 {
		t.Errorf("got %d connections at the server, want the first one to be kept", got)
	}
}

var _ = time.Second
