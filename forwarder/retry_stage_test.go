package forwarder

import (
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/route"
	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// stage is a road in a bubble of fake time. Its connections are pairs of sockets that no loop reads: who plays says what comes in,
// and when, and sees at the far ends what went out. Only the sweeper runs, and, in worker mode, the workers.
type stage struct {
	failer
	f    *Forwarder
	c    *upCluster
	d    *downstream
	far  *end   // the client's
	ups  []*end // the servers', as they were connected
	seed uint32 // the client's last id
}

// failer is what testing.T and rapid.T have in common.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

// end is the far end of a connection.
type end struct {
	fd  int
	buf []byte
	u   *upstream // nil: the client's
	at  int       // the endpoint
}

// stageSpec is a road whose only rule is idempotent and tries again on all conditions, to so many endpoints.
func stageSpec(endpoints int) *Spec {
	s := &Spec{
		MaxTimeout: time.Minute, Workers: WorkersSpec{Max: 64, Queue: 1024},
		Listeners: []ListenerSpec{{
			Name: "in", Network: "tcp", Address: "127.0.0.1:0", Codecs: []wire.Codec{bolt.Codec{}}, Routes: "rpc",
			Limits: wire.Limits{MaxFrame: 1 << 20, MaxHeader: 32767}, MaxConnections: 100, MaxStreams: 10000,
			QueueHigh: 1 << 20, QueueLow: 512 << 10, MaxQueued: 16 << 20, ReadTimeout: time.Minute, WriteTimeout: time.Minute,
		}},
		Routes: []RouteSpec{{Name: "rpc", Rules: []RuleSpec{{
			Name: "all", Match: route.Match{}, Clusters: []Share{{Cluster: "c", Weight: 1}}, Timeout: 10 * time.Second,
			Attempts: 3, RetryOn: RetryConnectFailure | RetryResetBeforeSend | RetryReset | RetryBusy | RetryTimeout, Idempotent: true,
			PerTryTimeout: time.Second, BackOffBase: 100 * time.Millisecond, BackOffMax: time.Second,
		}}}},
		Clusters: []ClusterSpec{{
			Name: "c", Codec: bolt.Codec{}, Limits: wire.Limits{MaxFrame: 1 << 20, MaxHeader: 32767}, Balancer: BalancerRoundRobin,
			ConnectionsPerEndpoint: 1, MaxConnections: 100, MaxPending: 100, MaxPendingBytes: 1 << 20, MaxRequests: 10000,
			MaxQueued: 1 << 20, ConnectTimeout: time.Second, ReadTimeout: time.Minute, WriteTimeout: time.Minute, MaxUploads: 1,
			RetryShare: 20_00, RetryFloor: 3, MaxRetryBytes: 16 << 20,
		}},
	}
	s.LeftoverListener, s.LeftoverCluster = s.Listeners[0], s.Clusters[0]
	for i := range endpoints {
		s.Clusters[0].Endpoints = append(s.Clusters[0].Endpoints, EndpointSpec{Network: "tcp", Address: fmt.Sprintf("127.0.0.1:%d", i+1), Weight: 1})
	}
	return s
}

// onStage plays in a bubble, with the exchanges on the read loops and on workers.
func onStage(t *testing.T, s func() *Spec, play func(*testing.T, *stage)) {
	for name, forwarding := range map[string]Forwarding{"auto": ForwardAuto, "worker": ForwardWorker} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				spec := s()
				spec.Listeners[0].Forwarding = forwarding
				st := newStage(t, spec)
				t.Cleanup(st.end)
				play(t, st)
			})
		})
	}
}

// newStage makes a stage with a client and a connection to each endpoint. Its end must be called, in the same bubble.
func newStage(t failer, s *Spec) *stage {
	t.Helper()
	f, err := New(s, 64<<20, stats.NewRegistry(), zap.NewNop())
	if err != nil {
		t.Fatalf("%v", err)
	}
	st := &stage{failer: t, f: f, c: f.snap.Load().clusters[0]}
	f.begun.Store(true)
	f.sweeping.Go(f.sweep.run)
	st.client()
	for i := range s.Clusters[0].Endpoints {
		st.connect(i)
	}
	return st
}

// pair is a connection: a near end for the road, and the descriptor of a far one.
func (s *stage) pair() (conn.Socket, *end) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		s.Fatalf("%v", err)
	}
	file := os.NewFile(uintptr(fds[0]), "near")
	defer file.Close()
	c, err := net.FileConn(file)
	if err != nil {
		s.Fatalf("%v", err)
	}
	return c.(conn.Socket), &end{fd: fds[1]}
}

// client connects another client, which asks from now on.
func (s *stage) client() {
	near, far := s.pair()
	l := s.f.snap.Load().listeners[0]
	cc, err := conn.New(near, s.f.buffers, l.config.Load().conn)
	if err != nil {
		s.Fatalf("%v", err)
	}
	s.d, s.far = newDownstream(l, l.config.Load(), cc, nil), far
	s.d.speak(bolt.Codec{})
	l.mu.Lock()
	l.open[s.d] = struct{}{}
	l.connected.Add(1)
	l.mu.Unlock()
}

// hangUp ends the client.
func (s *stage) hangUp() {
	s.d.conn.Close(conn.ReasonPeerClosed)
	s.d.run()
	_ = syscall.Close(s.far.fd)
}

// connect makes a connection to an endpoint.
func (s *stage) connect(endpoint int) *end {
	near, far := s.pair()
	p := s.c.endpoints[endpoint].small
	u := makeUpstream(p)
	var err error
	if u.conn, err = conn.New(near, s.f.buffers, u.connConfig()); err != nil {
		s.Fatalf("%v", err)
	}
	s.c.limits.Connections.Adopt(1)
	u.become(stateReady)
	p.mu.Lock()
	conns := append([]*upstream(nil), *p.conns.Load()...)
	conns = append(conns, u)
	p.conns.Store(&conns)
	p.mu.Unlock()
	far.u, far.at = u, endpoint
	s.ups = append(s.ups, far)
	return far
}

// breaks ends a server's connection, and makes another one first, as a server that has crashed and is there again.
func (s *stage) breaks(e *end) {
	for i, o := range s.ups {
		if o == e {
			s.ups = append(s.ups[:i], s.ups[i+1:]...)
			break
		}
	}
	s.connect(e.at)
	e.u.conn.Close(conn.ReasonReset)
	e.u.run()
	_ = syscall.Close(e.fd)
	synctest.Wait()
}

// ask brings a request in, with a timeout in milliseconds, and returns its id.
func (s *stage) ask(timeout int32) uint32 {
	s.Helper()
	s.seed++
	r := bolt.Request{
		Codec: bolt.CodecHessian2, ID: s.seed, Timeout: timeout, Class: bolt.ClassRequest,
		Headers: []bolt.Pair{{Key: "service", Value: "com.example.Order:1.0"}}, Content: fmt.Append(nil, "request ", s.seed),
	}
	frame, err := r.Append(nil)
	if err != nil {
		s.Fatalf("%v", err)
	}
	s.bring(frame, s.d, nil)
	return s.seed
}

// reply has a server answer what it has got.
func (s *stage) reply(e *end, m wire.Message, status wire.Status) {
	s.Helper()
	frame, err := (&bolt.Response{Codec: bolt.CodecOf(&m), ID: m.ID, Status: status, Content: m.Content()}).Append(nil)
	if err != nil {
		s.Fatalf("%v", err)
	}
	s.bring(frame, nil, e.u)
}

// bring is a read loop that has read one frame: of a client, or of a server.
func (s *stage) bring(frameBytes []byte, d *downstream, u *upstream) {
	s.Helper()
	b := s.f.batch()
	if n, err := (bolt.Codec{}).Decode(&b.msg, frameBytes, wire.Limits{}); err != nil || n != len(frameBytes) {
		s.Fatalf("a frame of %d bytes is decoded to %d: %v", len(frameBytes), n, err)
	}
	b.frame = frame{bytes: b.msg.Frame}
	if d != nil {
		b.inbound(d)
	} else {
		b.outbound(u)
		b.putBack()
	}
	b.done()
	synctest.Wait()
}

// got are the frames that have come to a far end since it was asked last.
func (s *stage) got(e *end) []wire.Message {
	s.Helper()
	var chunk [64 << 10]byte
	for {
		n, err := syscall.Read(e.fd, chunk[:])
		if err != nil || n == 0 {
			break
		}
		e.buf = append(e.buf, chunk[:n]...)
	}
	var out []wire.Message
	for len(e.buf) > 0 {
		var m wire.Message
		n, err := (bolt.Codec{VerifyCRC: true}).Decode(&m, e.buf, wire.Limits{})
		if err != nil || n > len(e.buf) {
			s.Fatalf("%d bytes that are no frame: %v", len(e.buf), err)
		}
		e.buf = e.buf[n:]
		out = append(out, m)
	}
	return out
}

// one is the only frame that has come to any server, and which that is.
func (s *stage) one() (*end, wire.Message) {
	s.Helper()
	var at *end
	var all []wire.Message
	for _, e := range s.ups {
		if got := s.got(e); len(got) > 0 {
			at, all = e, append(all, got...)
		}
	}
	if len(all) != 1 {
		s.Fatalf("got %d requests at the servers, want one", len(all))
	}
	return at, all[0]
}

// none fails if a request has come to any server.
func (s *stage) none() {
	s.Helper()
	for _, e := range s.ups {
		if got := s.got(e); len(got) > 0 {
			s.Errorf("got %d requests at endpoint %d, want none", len(got), e.at)
		}
	}
}

// answered fails unless the client has got one reply, with this id and status, and nothing else.
func (s *stage) answered(id uint32, status wire.Status) wire.Message {
	s.Helper()
	got := s.got(s.far)
	if len(got) != 1 || got[0].ID != id || got[0].Status != status {
		s.Fatalf("got %s at the client, want one reply with the id %d and the status %v", inWords(got), id, status)
	}
	return got[0]
}

func inWords(list []wire.Message) string {
	var out strings.Builder
	fmt.Fprint(&out, len(list), " frames")
	for i := range list {
		fmt.Fprintf(&out, ", %d: %v", list[i].ID, list[i].Status)
	}
	return out.String()
}

// value is the sum of a metric's series that have this reason, or of all.
func (s *stage) value(name, reason string) (sum float64) {
	for _, m := range s.f.reg.Snapshot() {
		if m.Name != name {
			continue
		}
		of := reason == ""
		for _, l := range m.Labels {
			of = of || l.Name == "reason" && l.Value == reason
		}
		if of {
			sum += m.Value
		}
	}
	return sum
}

// wait lets time pass.
func (s *stage) wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// idle fails unless nothing is held for any request.
func (s *stage) idle() {
	s.Helper()
	for what, n := range map[string]int{
		"requests": s.c.limits.Requests.Used(), "retries": s.c.limits.Retries.Used(), "bytes of copies": s.c.retryBytes.Used(),
		"requests that wait to be tried again": s.c.retryWaits.Used(), "pending": s.c.limits.Pending.Used(),
		"streams of the client": int(s.d.inFlight.Load()),
	} {
		if n != 0 {
			s.Errorf("got %d %s when every request has ended, want none", n, what)
		}
	}
	for _, e := range s.c.endpoints {
		if n := e.policy.Active(); n != 0 {
			s.Errorf("got %d requests under way to an endpoint when every request has ended, want none", n)
		}
	}
}

// end ends the road, and looks for what it has left.
func (s *stage) end() {
	s.Helper()
	closed := make(chan struct{}) // closed when the road is
	go func() {
		defer close(closed)
		s.f.Close()
	}()
	synctest.Wait() // it waits for the workers, whose exchanges end with the connections
	for _, u := range s.f.snap.Load().all() {
		u.run()
	}
	for _, d := range s.f.snap.Load().downstreams() {
		d.run()
	}
	<-closed
	s.idle()
	if n := s.f.Buffered(); n != 0 {
		s.Errorf("got %d bytes of buffers behind Close, want 0", n)
	}
	if n := s.value("relevo_recovered_panics_total", ""); n != 0 {
		s.Errorf("got %v recovered panics, want none", n)
	}
	for _, e := range append(s.ups, s.far) {
		_ = syscall.Close(e.fd)
	}
}
