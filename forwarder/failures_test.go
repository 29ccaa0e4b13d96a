package forwarder_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/route"
	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// logbook is an access log that samples all, and keeps it.
type logbook struct {
	// Guarded by mu.
	mu      sync.Mutex
	sampled int
	records []stats.Record
}

func (l *logbook) Sample() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sampled++
	return true
}

func (l *logbook) Log(r stats.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records = append(l.records, r)
}

func (l *logbook) all() []stats.Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.records)
}

// traced is a request with all that a record tells of.
func traced(id uint32, content string) bolt.Request {
	r := request(id, content)
	r.Headers = append(r.Headers,
		bolt.Pair{Key: "sofa_head_method_name", Value: fmt.Sprint("method", id)},
		bolt.Pair{Key: "rpc_trace_context.sofaTraceId", Value: fmt.Sprint("trace", id)},
		bolt.Pair{Key: "rpc_trace_context.sofaRpcId", Value: fmt.Sprint("0.", id)})
	return r
}

// told is what a case says of a record; the rest of it follows from the request.
type told struct {
	status, reason string
	routed         string // the rule, "" for none
	sent           bool
	replied        int  // bytes of the reply's frame, -1: those of a local one
	ring           bool // it is one of the failures
	forgotten      bool // where nothing was sampled, trace and size are not known any more
}

// TestRecords: each field of what the access log and the ring of failures are told.
func TestRecords(t *testing.T) {
	for _, sampled := range []bool{true, false} {
		for _, c := range []struct {
			name   string
			edit   func(*bolt.Request)
			call   func(*peer, []byte)
			expect told
		}{
			{"reply", nil, nil, told{status: "SUCCESS", routed: "echo", sent: true, replied: 20 + 4}},
			{
				"error reply", func(r *bolt.Request) { r.Content = []byte("fail") }, nil,
				told{status: "SERVER_EXCEPTION", routed: "echo", sent: true, replied: 20 + 4, ring: true, forgotten: true},
			},
			{
				"timeout", func(r *bolt.Request) { r.Content, r.Timeout = []byte("hold"), 60 }, nil,
				told{status: "TIMEOUT", reason: forwarder.ReasonTimeout, routed: "echo", sent: true, replied: -1, ring: true, forgotten: true},
			},
			{
				"no route", func(r *bolt.Request) { r.Headers[0].Value = "com.example.Nobody:1.0" }, nil,
				told{status: "NO_PROCESSOR", reason: forwarder.ReasonNoRoute, replied: -1, ring: true},
			},
			{
				"direct reply", func(r *bolt.Request) { r.Headers[0].Value = "com.example.Direct:1.0" }, nil,
				told{status: "SERVER_THREADPOOL_BUSY", reason: forwarder.ReasonDirectReply, routed: "direct", replied: -1, ring: true},
			},
			{"one-way", func(r *bolt.Request) { r.Oneway = true }, (*peer).sendOnly, told{routed: "echo", sent: true}},
			{
				"one-way to nobody", func(r *bolt.Request) { r.Oneway, r.Headers[0].Value = true, "com.example.Nobody:1.0" }, (*peer).sendOnly,
				told{reason: forwarder.ReasonNoRoute, ring: true},
			},
			{
				"client gone", func(r *bolt.Request) { r.Content = []byte("hang up") }, (*peer).sendOnly,
				told{status: "SUCCESS", reason: forwarder.ReasonDownstreamGone, routed: "echo", sent: true, replied: 20 + 7, ring: true, forgotten: true},
			},
			{
				"upload", func(r *bolt.Request) { r.Content = noise(1, uploadSize) }, nil,
				told{status: "SUCCESS", routed: "echo", sent: true, replied: 20 + uploadSize},
			},
		} {
			t.Run(fmt.Sprintf("%s/sampled=%v", c.name, sampled), func(t *testing.T) {
				var client *peer
				server := serveEach(t, func(p *peer, m wire.Message) error {
					switch string(m.Content()) {
					case "fail":
						return p.reply(m, wire.ServerException, m.Content())
					case "hold":
						return nil
					case "hang up":
						client.hangUp()
						<-time.After(50 * time.Millisecond) // Relevo sees that, and the reply comes behind it
					}
					return echoEach(p, m)
				})
				s := uploadSpec(server.address)
				direct := s.Routes[0].Rules[0]
				direct.Name, direct.Match, direct.Clusters, direct.Reply = "direct", route.Match{Service: route.Exactly("com.example.Direct:1.0")}, nil, wire.Busy
				s.Routes[0].Rules = append(s.Routes[0].Rules, direct)
				book := &logbook{}
				if sampled {
					s.Access = book
				}
				p := startProxy(t, s, 64<<20)
				warm := dial(t, p.address) // so that there is a connection, and what is reused has been used
				for id := range uint32(20) {
					wantEcho(t, warm.call(request(1000+id, "warm")), "warm")
				}
				client = dial(t, p.address)
				r := traced(7, "good")
				if c.edit != nil {
					c.edit(&r)
				}
				frame := encode(t, r)
				begin := time.Now()
				if c.call != nil {
					c.call(client, frame)
				} else {
					client.send(frame)
					client.receive()
				}
				of := func(records []stats.Record) (out []stats.Record) {
					for _, r := range records {
						if r.ID == 7 {
							out = append(out, r)
						}
					}
					return out
				}
				var got []stats.Record
				ring := func() []stats.Record { records, _ := p.Failures(); return of(records) }
				switch {
				case sampled:
					eventually(t, func() bool { got = of(book.all()); return len(got) > 0 }, say("the record"))
				case c.expect.ring:
					eventually(t, func() bool { got = ring(); return len(got) > 0 }, say("the failure"))
				}
				p.atRest()
				if n := len(ring()); (n == 1) != c.expect.ring || n > 1 {
					t.Errorf("got %d failures in the ring, want it there: %v", n, c.expect.ring)
				}
				if len(got) == 0 {
					return // neither sampled nor a failure
				}
				if len(got) != 1 {
					t.Fatalf("got %d records, want one", len(got))
				}
				checkRecord(t, got[0], &r, len(frame), c.expect, begin, server.address, c.expect.forgotten && !sampled)
			})
		}
	}
}

// sendOnly sends, and waits for nothing.
func (p *peer) sendOnly(frame []byte) { p.send(frame) }

// checkRecord compares a record with what is known of its request.
func checkRecord(t *testing.T, got stats.Record, r *bolt.Request, size int, x told, begin time.Time, endpoint string, forgotten bool) {
	t.Helper()
	want := stats.Record{
		Listener: "in", Protocol: "bolt", Kind: "request", Service: r.Headers[0].Value, Method: "method7", Trace: "trace7", RPC: "0.7",
		ID: 7, Status: x.status, Reason: x.reason, Request: size, Reply: x.replied,
	}
	if r.Oneway {
		want.Kind = "oneway"
	}
	if x.replied < 0 {
		want.Reply = 20
	}
	if forgotten {
		want.Trace, want.RPC, want.Request = "", "", 0
	}
	if x.routed != "" {
		want.Route = "rpc/" + x.routed
	}
	if x.routed == "echo" {
		want.Cluster = "echo"
	}
	if x.sent {
		want.Endpoint, want.Attempts = endpoint, 1
	}
	if (got.Upstream != 0) != (x.sent && !r.Oneway) {
		t.Errorf("got the upstream id %d, want one if it was sent (%v) and awaits a reply", got.Upstream, x.sent)
	}
	if got.Time.Before(begin.Add(-time.Millisecond)) || got.Time.After(time.Now()) || got.Client == "" {
		t.Errorf("got the time %v and the client %q, want a time behind %v", got.Time, got.Client, begin)
	}
	if got.Total < 0 || got.Wait < 0 || got.Server < 0 || got.Wait+got.Server > got.Total {
		t.Errorf("got %v waited, %v at the server, %v in all, want parts of the whole", got.Wait, got.Server, got.Total)
	}
	if r.Timeout < 1000 && got.Total < time.Duration(r.Timeout)*time.Millisecond {
		t.Errorf("got %v in all, want at least the timeout of %d ms", got.Total, r.Timeout)
	}
	got.Time, got.Client, got.Upstream, got.Total, got.Wait, got.Server = time.Time{}, "", 0, 0, 0, 0
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the record is not what it was (-want +got):\n%s", diff)
	}
}

// TestRecordOfTheNeverSent: one that never got to a server has no id there, whatever the batches have carried before.
func TestRecordOfTheNeverSent(t *testing.T) {
	server, got := counting(t)
	s := uploadSpec(server.address)
	s.Clusters[0].MaxUploads = 1
	p := startProxy(t, s, 64<<20)
	others := startNeighbours(t, p.address, service)
	holder := dial(t, p.address) // of the only lease
	held := frameOf(t, 1, string(noise(1, uploadSize)))
	holder.send(held[:uploadSize/2])
	eventually(t, func() bool { return got.Load() >= uploadSize/2 }, say("the lease to be taken"))
	hasty := request(2, string(noise(1, uploadSize)))
	hasty.Timeout = 20
	tooLarge := encode(t, request(3, strings.Repeat("x", 17<<20)))
	const n = 20
	for range n {
		others.goOn()
		c := dial(t, p.address)
		c.send(encode(t, hasty)[:uploadSize/4])
		c.receive()
		c.hangUp()
		c = dial(t, p.address)
		c.send(tooLarge[:1000])
		c.receive()
		c.wantEnd()
	}
	others.stop()
	holder.send(held[uploadSize/2:])
	holder.receive()
	records, total := p.Failures()
	if total != 2*n || len(records) != 2*n {
		t.Fatalf("got %d failures, %d of them kept, want %d", total, len(records), 2*n)
	}
	for _, r := range records {
		want := map[uint32]string{2: forwarder.ReasonPendingTimeout, 3: wire.ReasonFrameTooLarge}[r.ID]
		if r.Upstream != 0 || r.Reason != want {
			t.Errorf("got the upstream id %d and the reason %s of request %d, which was never sent, want none and %s", r.Upstream, r.Reason, r.ID, want)
		}
	}
}

// TestFailuresAreBounded: the ring keeps the newest 256, oldest first, and counts all; a name of a client is cut.
func TestFailuresAreBounded(t *testing.T) {
	p := startProxy(t, spec(deadAddress(t)), 64<<20)
	c := dial(t, p.address)
	const n = 600
	for id := range uint32(n) {
		r := request(id, "")
		r.Headers[0].Value = strings.Repeat("s", 3000)
		c.call(r)
	}
	records, total := p.Failures()
	if len(records) != 256 || total != n {
		t.Fatalf("got %d failures kept of %d, want 256 of %d", len(records), total, n)
	}
	for i, r := range records {
		if r.ID != uint32(n-256+i) || len(r.Service) != stats.MaxText {
			t.Fatalf("got failure %d of request %d with %d bytes of service, want that of request %d with %d", i, r.ID, len(r.Service), n-256+i, stats.MaxText)
		}
	}
}

// TestRecordsUnderLoad: with all requests sampled each is told of once, and what is told is its own: records are used again.
func TestRecordsUnderLoad(t *testing.T) {
	s := spec(erratic(t).address, erratic(t).address)
	s.Workers = forwarder.WorkersSpec{Max: 30, Queue: 50}
	book := &logbook{}
	s.Access = book
	p := startProxy(t, s, 64<<20)
	const clients, each, burst = 6, 400, 20
	var group sync.WaitGroup
	for n := range uint32(clients) {
		group.Go(func() {
			c := dial(t, p.address)
			for first := uint32(0); first < each; first += burst {
				var frames []byte
				for i := range uint32(burst) {
					r := traced(n*each+first+i, "content")
					r.Timeout = 40
					r.Oneway = i == 5
					frames = append(frames, encode(t, r)...)
				}
				c.send(frames)
				c.receiveByID(burst - 1)
			}
			c.hangUp()
		})
	}
	group.Wait()
	eventually(t, func() bool { return len(book.all()) == clients*each }, func() string {
		return fmt.Sprintf("%d records, there are %d", clients*each, len(book.all()))
	})
	seen := map[uint32]bool{}
	for _, r := range book.all() {
		if seen[r.ID] {
			t.Errorf("got request %d told of twice, want once", r.ID)
		}
		seen[r.ID] = true
		if r.Service != service || r.Method != fmt.Sprint("method", r.ID) || r.Trace != fmt.Sprint("trace", r.ID) || r.RPC != fmt.Sprint("0.", r.ID) {
			t.Errorf("got %q, %q, %q, %q told of request %d, want its own", r.Service, r.Method, r.Trace, r.RPC, r.ID)
		}
		if oneway := r.ID%burst == 5; (r.Kind == "oneway") != oneway || oneway && r.Status != "" {
			t.Errorf("got the kind %q and the status %q of request %d", r.Kind, r.Status, r.ID)
		}
		if r.Wait+r.Server > r.Total || r.Total < 0 {
			t.Errorf("got %v waited, %v at the server, %v in all, want parts of the whole", r.Wait, r.Server, r.Total)
		}
	}
	if book.sampled != clients*each {
		t.Errorf("got asked %d times whether to sample, want once a request: %d", book.sampled, clients*each)
	}
}
