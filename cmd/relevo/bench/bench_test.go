package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/relevo-proxy/relevo/cmd/relevo/echo"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t testing.TB, o echo.Options) (*echo.Server, string) {
	t.Helper()
	o.Listen = "127.0.0.1:0"
	s, err := echo.Listen(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return s, s.Addr().String()
}

// quick are options for a short run, in which no machine is so slow that it times out.
func quick(addr string) Options {
	return Options{Addr: addr, Connections: 3, InFlight: 8, Size: 100, Timeout: 20 * time.Second, Grace: 100 * time.Millisecond}
}

// mustRun runs the load and checks what holds for every report.
func mustRun(t testing.TB, o Options) *Report {
	t.Helper()
	r, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	ended := r.OK + r.Timeouts + r.Lost + r.Unfinished + r.Mismatched - r.Stray
	for _, n := range r.Statuses {
		ended += n
	}
	if !o.Oneway && ended != r.Sent {
		t.Errorf("%d requests sent, %d ended: want each to end once: %s", r.Sent, ended, dump(t, r))
	}
	var sent, ok uint64
	for _, p := range r.Timeline {
		sent += p.Sent
		ok += p.OK
	}
	if sent != r.Sent || ok != r.OK {
		t.Errorf("the timeline adds up to %d sent, %d ok; want %d and %d", sent, ok, r.Sent, r.OK)
	}
	return r
}

func dump(t testing.TB, r *Report) string {
	t.Helper()
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestClosedLoop(t *testing.T) {
	for _, v := range []bolt.Version{bolt.V1, bolt.V2, bolt.V2CRC} {
		for _, size := range []int{0, 5, 15, 16, 17, 1024, 70_000} {
			s, addr := start(t, echo.Options{})
			o := quick(addr)
			o.Version, o.Size, o.Count = v, size, 500
			o.Headers = []bolt.Pair{{Key: "k", Value: "v"}}
			r := mustRun(t, o)
			if r.Failed() || r.OK != 500 || r.Dials != 3 || r.Latency == nil || r.Latency.P50 <= 0 || r.Latency.Max < r.Latency.P50 {
				t.Errorf("%v, %d bytes: got %s, want 500 ok replies on 3 connections", v, size, dump(t, r))
			}
			if got := s.Stats(); got.Requests != 500 || got.Accepted != 3 || got.BytesIn != r.BytesOut || got.BytesOut != r.BytesIn {
				t.Errorf("%v, %d bytes: the server counted %+v, the report says %d bytes out, %d in", v, size, got, r.BytesOut, r.BytesIn)
			}
		}
	}
}

func TestSeveralAddresses(t *testing.T) {
	a, addrA := start(t, echo.Options{})
	b, addrB := start(t, echo.Options{})
	o := quick(addrA + ", " + addrB)
	o.Connections, o.Count = 4, 100
	if r := mustRun(t, o); r.OK != 100 || a.Stats().Accepted != 2 || b.Stats().Accepted != 2 {
		t.Errorf("got %d ok, %d and %d connections; want 100 over 2 and 2", r.OK, a.Stats().Accepted, b.Stats().Accepted)
	}
}

func TestFullSocketsDoNotLock(t *testing.T) {
	_, addr := start(t, echo.Options{})
	o := quick(addr)
	o.Connections, o.InFlight, o.Size, o.Count = 2, 24, 2<<20, 100
	if r := mustRun(t, o); r.OK != 100 || r.Failed() {
		t.Errorf("got %s, want all of 100 large requests answered", dump(t, r))
	}
}

func TestOpenLoopKeepsItsRate(t *testing.T) {
	s, addr := start(t, echo.Options{})
	o := quick(addr)
	o.Rate, o.Duration, o.InFlight = 2000, 500*time.Millisecond, 0
	r := mustRun(t, o)
	if r.Sent != 1000 || r.OK != 1000 || r.Failed() || s.Stats().Requests != 1000 {
		t.Errorf("got %s, want the 1000 requests of half a second", dump(t, r))
	}
	if r.Elapsed < 0.499 {
		t.Errorf("took %v s, want half a second", r.Elapsed)
	}
	o.Duration, o.Count = 0, 77
	if r := mustRun(t, o); r.Sent != 77 || r.OK != 77 {
		t.Errorf("got %d sent, %d ok, want the count of 77", r.Sent, r.OK)
	}
}

func TestLatencyCountsFromWhenARequestWasDue(t *testing.T) {
	const stall = 400 * time.Millisecond
	addr := crooked(t, func(_ *wire.Message, request, _ int, honest []byte) []byte {
		if request == 100 {
			time.Sleep(stall)
		}
		return honest
	})
	o := quick(addr)
	o.Connections, o.Rate, o.Duration, o.InFlight = 1, 1000, 800*time.Millisecond, 0
	r := mustRun(t, o)
	// 300 of 800 requests were due in the first 300 ms of the stall and waited for 100 ms or more of it.
	if r.Failed() || r.Latency.P90 < 100e3 || r.Latency.Max < 350e3 {
		t.Errorf("got p90 %.0f µs, max %.0f µs: want all that were due during the stall of %v to have waited", r.Latency.P90, r.Latency.Max, stall)
	}
}

func TestOverrun(t *testing.T) {
	_, addr := start(t, echo.Options{NoReplyRate: 1})
	o := quick(addr)
	o.Connections, o.Rate, o.Duration, o.InFlight = 2, 1000, 200*time.Millisecond, 5
	o.Timeout = time.Second
	r := mustRun(t, o)
	if r.Sent != 10 || r.Timeouts != 10 || r.Overrun != 190 || !r.Failed() {
		t.Errorf("got %s: want 5 in flight on each of 2 connections, and 190 overrun", dump(t, r))
	}
}

func TestTimeoutsMakeRoom(t *testing.T) {
	s, addr := start(t, echo.Options{NoReplyRate: 0.5, Seed: 3})
	o := quick(addr)
	o.Count, o.Timeout, o.Grace = 60, 30*time.Millisecond, 20*time.Millisecond
	r := mustRun(t, o)
	if r.Sent != 60 || r.OK == 0 || r.Timeouts < s.Stats().Unanswered {
		t.Errorf("got %s, want 60 sent of which the %d unanswered timed out", dump(t, r), s.Stats().Unanswered)
	}
}

func TestLostAndReconnected(t *testing.T) {
	s, addr := start(t, echo.Options{CloseAfter: 50})
	o := quick(addr)
	o.Connections, o.Count = 1, 500
	r := mustRun(t, o)
	if r.Lost == 0 || r.Reconnects < 5 || r.Sent != 500 || s.Stats().Accepted != r.Dials || !r.Failed() {
		t.Errorf("got %s: want a lost request at each 50th, and a connection after it", dump(t, r))
	}
}

func TestOneway(t *testing.T) {
	for _, rate := range []float64{0, 5000} {
		s, addr := start(t, echo.Options{})
		o := quick(addr)
		o.Oneway, o.Count, o.Rate, o.Size = true, 1000, rate, 1000
		r := mustRun(t, o)
		if r.Sent != 1000 || r.Lost != 0 || r.Failed() {
			t.Errorf("rate %v: got %s, want 1000 sent", rate, dump(t, r))
		}
		if got := s.Stats(); got.Oneways != 1000 || got.Requests != 0 {
			t.Errorf("rate %v: the server counted %+v, want 1000 one-way requests when Run returns", rate, got)
		}
	}
}

func TestWarmupIsNotReported(t *testing.T) {
	s, addr := start(t, echo.Options{})
	for _, rate := range []float64{0, 1000} {
		o := quick(addr)
		o.Warmup, o.Count, o.Rate = 100*time.Millisecond, 50, rate
		before := s.Stats().Requests
		r := mustRun(t, o)
		if r.Sent != 50 || r.OK != 50 {
			t.Errorf("rate %v: got %d sent, %d ok, want the count of 50", rate, r.Sent, r.OK)
		}
		if all := s.Stats().Requests - before; all <= 50 {
			t.Errorf("rate %v: the server got %d requests, want those of the warm-up too", rate, all)
		}
	}
}

func TestInterruptedRunIsReported(t *testing.T) {
	_, addr := start(t, echo.Options{})
	for _, rate := range []float64{0, 100} {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		o := quick(addr)
		o.Duration, o.Rate = time.Hour, rate
		r, err := Run(ctx, o)
		cancel()
		if err != nil || !r.Interrupted || r.OK == 0 || r.OK != r.Sent || r.Failed() {
			t.Errorf("rate %v: got %+v, %v: want what was done until the interruption", rate, r, err)
		}
	}
}

func TestNothingToTalkTo(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := l.Addr().String()
	_ = l.Close()
	if _, err := Run(t.Context(), quick(gone)); !errors.Is(err, ErrNothing) {
		t.Errorf("got %v, want ErrNothing", err)
	}
	_, addr := start(t, echo.Options{})
	o := quick(gone + "," + addr)
	o.Connections, o.Count = 2, 10
	if r := mustRun(t, o); r.OK != 10 || r.DialErrors == 0 {
		t.Errorf("got %s: want the address that answers used, the other counted", dump(t, r))
	}
}

func TestOptionsSayAllThatIsWrong(t *testing.T) {
	_, err := Run(t.Context(), Options{Size: -1, Rate: -1, Timeout: 1 << 62})
	for _, want := range []string{"no address", "size", "rate", "timeout"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want it to name %q", err, want)
		}
	}
	o := quick("127.0.0.1:1")
	o.PID = 1 << 30
	if _, err := Run(t.Context(), o); err == nil || errors.Is(err, ErrNothing) {
		t.Errorf("got %v, want that there is no such process", err)
	}
}

func TestProcessAndPrint(t *testing.T) {
	_, addr := start(t, echo.Options{NoReplyRate: 0.05})
	o := quick(addr)
	o.PID, o.Count, o.Timeout = os.Getpid(), 200, 50*time.Millisecond
	r := mustRun(t, o)
	if p := r.Process; p == nil || p.CPU <= 0 || p.RSS < 1<<20 || p.Cores <= 0 || r.Self <= 0 {
		t.Errorf("got %+v and %v µs, want the CPU time and memory of this process", p, r.Self)
	}
	r.Statuses["ERROR_COMM"] = 7
	var b bytes.Buffer
	if err := r.Print(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{addr, "closed loop, 8 in flight", "timed out", "status ERROR_COMM", "p99.9", "µs of CPU a request", "RSS"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("printed %q, want %q in it", b.String(), want)
		}
	}
	if strings.Contains(b.String(), "mismatched") {
		t.Errorf("printed %q, want nothing about what did not happen", b.String())
	}
}

func TestFlightTellsEveryAnswer(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := newFlight(1)
		state := map[uint32]verdict{} // what taking the id must say
		sent := map[uint32]int64{}
		var ids []uint32
		for now := range int64(rapid.IntRange(1, 300).Draw(t, "steps")) {
			switch rapid.IntRange(0, 9).Draw(t, "step") {
			default:
				id, _ := f.issue(now, now)
				state[id], sent[id] = answered, now
				ids = append(ids, id)
			case 6, 7, 8:
				if len(ids) == 0 {
					continue
				}
				id := rapid.SampledFrom(ids).Draw(t, "id")
				s, v := f.take(id)
				if v != state[id] || v == answered && (s.id != id || s.sent != sent[id]) {
					t.Fatalf("taking %d: got %v and %+v, want %v", id, v, s, state[id])
				}
				state[id] = duplicated
			case 9:
				before := now - int64(rapid.IntRange(0, 40).Draw(t, "age"))
				f.expire(before, func(s slot) {
					if state[s.id] != answered || sent[s.id] >= before {
						t.Fatalf("%d timed out, want only what is in flight and was sent before %d", s.id, before)
					}
					state[s.id] = late
				})
			}
			var want []uint32
			for id, v := range state {
				if v == answered {
					want = append(want, id)
				}
			}
			if f.n != len(want) {
				t.Fatalf("%d in flight, want %d", f.n, len(want))
			}
		}
		for _, id := range []uint32{0, uint32(len(ids)) + 1, maxID + 1, 1 << 31} {
			if _, v := f.take(id); v != unknown {
				t.Fatalf("taking %d, which was never sent: got %v, want unknown", id, v)
			}
		}
		n := 0
		f.clear(func(slot) { n++ })
		if f.n != 0 || n > len(ids) {
			t.Fatalf("cleared %d of %d, left %d", n, len(ids), f.n)
		}
	})
}

func TestIDsWrap(t *testing.T) {
	f := newFlight(4)
	f.issued = maxID - 1
	var got []uint32
	for range 3 {
		id, _ := f.issue(0, 0)
		got = append(got, id)
	}
	if want := []uint32{maxID, 1, 2}; !slices.Equal(got, want) {
		t.Errorf("got ids %d, want %d", got, want)
	}
}

func TestForgottenTimeoutsAreLate(t *testing.T) {
	f := newFlight(1)
	for range maxExpired + 10 {
		f.issue(0, 0)
	}
	f.expire(1, func(slot) {})
	for id := range uint32(maxExpired + 10) {
		if _, v := f.take(id + 1); v != late {
			t.Fatalf("reply to %d, timed out: got %v, want late", id+1, v)
		}
	}
}

func TestTimelineIsBounded(t *testing.T) {
	a, b := newTally(1000), newTally(1000)
	for i := range int64(3 * maxSteps) {
		var x batch
		x.sent, x.ok = 1, 1
		x.latency(i)
		a.fold(&x, 1000+i*stepWidth)
	}
	var x batch
	x.sent = 1
	b.fold(&x, 1000)
	b.merge(a)
	if len(b.steps) > maxSteps || b.width != 4*stepWidth {
		t.Errorf("%d steps of %d ns, want at most %d, four times as wide", len(b.steps), b.width, maxSteps)
	}
	var sum step
	for _, s := range b.steps {
		sum.join(s)
	}
	if sum.sent != 3*maxSteps+1 || sum.ok != 3*maxSteps || sum.maxLatency != 3*maxSteps-1 || b.total.sent != sum.sent {
		t.Errorf("the steps add up to %+v", sum)
	}
	if b.steps[0].sent != 5 {
		t.Errorf("the first step has %d, want 4 and 1", b.steps[0].sent)
	}
}

func BenchmarkRecord(b *testing.B) {
	h := newHistogram()
	b.ReportAllocs()
	for i := range b.N {
		h.record(int64(i%5_000_000), 1)
	}
}

func BenchmarkFlight(b *testing.B) {
	f := newFlight(64)
	for range 64 {
		f.issue(0, 0)
	}
	b.ReportAllocs()
	for i := range b.N {
		if _, v := f.take(uint32(i%maxID) + 1); v != answered {
			b.Fatal(v)
		}
		f.issue(0, 0)
	}
}

// BenchmarkReceive is a read of 64 replies and the write of 64 requests, without the system calls; the replies
// are made within it, by copying ids and stamps.
func BenchmarkReceive(b *testing.B) {
	const window = 64
	r, err := newRun(Options{Addr: "-", Connections: 1, InFlight: window, Size: 1024, Timeout: time.Second, Class: bolt.ClassRequest})
	if err != nil {
		b.Fatal(err)
	}
	r.start = time.Now()
	c := r.clients[0]
	l := &link{number: 1, flight: newFlight(window), frames: bytes.Repeat(r.frame, window), flushing: true}
	c.send(l, window, 0)
	var m wire.Message
	if _, err := (bolt.Codec{}).Decode(&m, r.frame, limits); err != nil {
		b.Fatal(err)
	}
	reply := honest(&m)
	l.in = append(bytes.Repeat(reply, window), 0)
	b.ReportAllocs()
	b.SetBytes(int64(len(reply)))
	for range b.N/window + 1 {
		l.start, l.end = 0, len(l.in)-1
		for i := range window {
			from, to := l.pending[i*len(r.frame):], l.in[i*len(reply):]
			copy(to[5:9], from[5:9])
			copy(to[contentAt:contentAt+stampLen], from[r.content:])
		}
		l.pending = l.pending[:0]
		if !c.receive(l, l.end) {
			b.Fatal("the connection ended")
		}
	}
	if got := c.tally.total; got.ok == 0 || got.mismatched+got.duplicated+got.malformed > 0 {
		b.Fatalf("got %+v", got)
	}
}
