package forwarder_test

import (
	"fmt"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/route"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// What a request costs, counted: these tests depend on no clock. TestAllocations counts what it allocates.

// counted is the proxy's end of a connection, and how often the kernel was asked to read from it and to write to it.
type counted struct {
	*net.TCPConn
	calls *calls
}

type calls struct{ reads, writes atomic.Int64 }

func (c counted) SyscallConn() (syscall.RawConn, error) {
	raw, err := c.TCPConn.SyscallConn()
	return countedRaw{raw, c.calls}, err
}

type countedRaw struct {
	syscall.RawConn
	calls *calls
}

// Each call of f is one system call.

func (r countedRaw) Read(f func(uintptr) bool) error {
	return r.RawConn.Read(func(fd uintptr) bool { r.calls.reads.Add(1); return f(fd) })
}

func (r countedRaw) Write(f func(uintptr) bool) error {
	return r.RawConn.Write(func(fd uintptr) bool { r.calls.writes.Add(1); return f(fd) })
}

// countedPair is a connection of which the proxy gets the counted end.
func countedPair(t *testing.T) (near counted, far *peer) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	far = dial(t, l.Addr().String())
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return counted{c.(*net.TCPConn), &calls{}}, far
}

// TestSystemCallsOfABatch: of all frames of one read those for one server go out in one write, and so do all replies of one
// read. A read that waits for its batch asks twice: in vain, and when something has come.
func TestSystemCallsOfABatch(t *testing.T) {
	if mode == forwarder.ForwardWorker {
		t.Skip("workers gather flushes for as long as others are under way: how many there are depends on the scheduler")
	}
	const servers, each, rounds = 2, 8, 50
	s := spec(deadAddress(t))
	second := s.Clusters[0]
	second.Name = "second"
	s.Clusters = append(s.Clusters, second)
	rule := s.Routes[0].Rules[0]
	rule.Name, rule.Match = "second", route.Match{Service: route.Exactly(service + "2")}
	rule.Clusters = []forwarder.Share{{Cluster: "second", Weight: 1}}
	s.Routes[0].Rules = append(s.Routes[0].Rules, rule)
	p := startProxy(t, s, 512<<20)

	client, from := countedPair(t)
	p.Admit(client)
	ends, ups := make([]counted, servers), make([]*peer, servers)
	for i := range servers {
		ends[i], ups[i] = countedPair(t)
		if err := p.Connect(i, ends[i]); err != nil {
			t.Fatal(err)
		}
	}
	for round := range rounds {
		var batch []byte
		for i := range servers * each { // by turns to the one and the other
			r := request(uint32(round*servers*each+i+1), "sixteen bytes...")
			if i%servers == 1 {
				r.Headers[0].Value = service + "2"
			}
			batch = append(batch, encode(t, r)...)
		}
		from.send(batch)
		for _, up := range ups {
			var replies []byte
			for range each {
				m := up.receive()
				b, err := (&bolt.Response{Codec: bolt.CodecOf(&m), ID: m.ID, Status: wire.Success, Content: m.Content()}).Append(nil)
				if err != nil {
					t.Fatal(err)
				}
				replies = append(replies, b...)
			}
			up.send(replies)
		}
		from.receiveByID(servers * each)
	}
	for name, c := range map[string]struct {
		end                   counted
		most                  int64 // writes
		batches, frames, sent int
	}{
		"the client":        {client, servers * rounds, rounds, servers * each, rounds},
		"the first server":  {ends[0], rounds, rounds, each, rounds},
		"the second server": {ends[1], rounds, rounds, each, rounds},
	} {
		if n := c.end.calls.writes.Load(); n > c.most || n == 0 {
			t.Errorf("got %d writes to %s for %d batches of %d frames, want some, and no more than %d", n, name, c.batches, c.frames, c.most)
		}
		// The last read waits for more.
		if n := c.end.calls.reads.Load(); n > int64(2*c.batches+1) || n == 0 {
			t.Errorf("got %d reads from %s of %d batches of %d frames, want some, and no more than two a batch and one", n, name, c.batches, c.frames)
		}
	}
}

// TestGoroutinesOfRequests: requests that wait for a slow server have no goroutine inline, and with workers no more than there
// may be workers.
func TestGoroutinesOfRequests(t *testing.T) {
	const requests, workers = 2000, 32
	waiting, most := requests, 0 // at the server, and goroutines
	if mode == forwarder.ForwardWorker {
		waiting, most = workers, workers
	}
	arrived := make(chan struct{}) // closed by the server when all that can have come
	release := make(chan struct{}) // closed when they are to be answered, or the test has failed
	answer := sync.OnceFunc(func() { close(release) })
	server := serve(t, func(c *peer) {
		var held []wire.Message
		for n := 0; ; n++ { // the first is answered at once
			m, err := c.next()
			if err != nil {
				return
			}
			held = append(held, m)
			if n > 0 && n < waiting {
				continue
			}
			if n == waiting {
				close(arrived)
				<-release
			}
			for _, m := range held {
				if c.reply(m, wire.Success, m.Content()) != nil {
					return
				}
			}
			held = nil
		}
	})
	s := spec(server.address)
	s.Workers.Max = workers
	t.Cleanup(answer) // before the server is waited for
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	wantEcho(t, c.call(request(1, "the first")), "the first")

	before := runtime.NumGoroutine()
	var frames []byte
	for i := range requests {
		frames = append(frames, frameOf(t, uint32(i+2), "one of many")...)
	}
	c.send(frames)
	<-arrived
	p.wantCount(requests, "relevo_listener_in_flight")
	// What was on its way out when they were counted may leave first.
	eventually(t, func() bool { return runtime.NumGoroutine() <= before+most }, func() string {
		return fmt.Sprintf("%d goroutines with %d requests in flight to be no more than the %d with none, and %d", runtime.NumGoroutine(), requests, before, most)
	})
	answer()
	c.receiveByID(requests)
}
