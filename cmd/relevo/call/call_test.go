package call

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/relevo-proxy/relevo/cmd/relevo/echo"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, o echo.Options) (*echo.Server, string) {
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

func TestCall(t *testing.T) {
	_, addr := start(t, echo.Options{})
	for _, v := range []bolt.Version{bolt.V1, bolt.V2, bolt.V2CRC} {
		for _, size := range []int{0, 11, 100_000} {
			content := bytes.Repeat([]byte("hello bolt "), 1+size/11)[:size]
			r, err := Do(t.Context(), Options{Addr: addr, Service: "s:1.0", Version: v, Content: content})
			if err != nil {
				t.Fatal(err)
			}
			if r.Failed() || r.Code != 0 || r.Version != v || r.Class != bolt.ClassResponse || !bytes.Equal(r.Body, content) {
				t.Errorf("%v, %d bytes: got status %v, version %v, class %q, %d bytes; want the echo", v, size, r.Status, r.Version, r.Class, len(r.Body))
			}
			if r.Connect <= 0 || r.Total < r.Connect {
				t.Errorf("connect %v, total %v: want the one within the other", r.Connect, r.Total)
			}
		}
	}
}

func TestStatusIsAResult(t *testing.T) {
	_, addr := start(t, echo.Options{Status: wire.ConnectionClosed})
	r, err := Do(t.Context(), Options{Addr: addr, Version: bolt.V2})
	if err != nil || !r.Failed() || r.Status != wire.ConnectionClosed || r.Code != 0x10 {
		t.Errorf("got %+v, %v: want status CONNECTION_CLOSED, 16", r, err)
	}
}

func TestHeartbeatAndOneway(t *testing.T) {
	s, addr := start(t, echo.Options{})
	r, err := Do(t.Context(), Options{Addr: addr, Heartbeat: true, Content: []byte("not sent")})
	if err != nil || !r.Ack || r.Failed() {
		t.Errorf("heartbeat: got %+v, %v: want an ack", r, err)
	}
	if r, err = Do(t.Context(), Options{Addr: addr, Oneway: true, Content: []byte("x")}); err != nil || !r.Oneway || r.Bytes != 0 {
		t.Errorf("one-way: got %+v, %v: want no reply and no error", r, err)
	}
	for s.Stats().Oneways == 0 && !t.Failed() {
		time.Sleep(time.Millisecond)
	}
	if got := s.Stats(); got.Heartbeats != 1 || got.Requests != 0 {
		t.Errorf("the server got %+v, want one heartbeat and one one-way request", got)
	}
	if _, err := Do(t.Context(), Options{Addr: addr, Heartbeat: true, Oneway: true}); err == nil {
		t.Error("a one-way heartbeat was sent")
	}
}

func TestNothingToTalkTo(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	_, err = Do(t.Context(), Options{Addr: addr})
	var e *Error
	if !errors.Is(err, ErrNothing) || !errors.As(err, &e) || e.Sent {
		t.Errorf("got %v, want ErrNothing and nothing sent", err)
	}
}

func TestErrorsSayWhetherAnythingWasSent(t *testing.T) {
	_, silent := start(t, echo.Options{NoReplyRate: 1})
	const never = time.Hour
	for name, c := range map[string]struct {
		within time.Duration // the context
		addr   string
		sent   bool
		want   string
	}{
		"no reply":        {never, silent, true, "timeout"},
		"closed":          {never, closing(t), true, "closed"},
		"context ended":   {200 * time.Millisecond, silent, true, "deadline exceeded"},
		"context is over": {0, silent, false, "deadline exceeded"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), c.within)
		_, err := Do(ctx, Options{Addr: c.addr, Timeout: 50 * time.Millisecond})
		cancel()
		var e *Error
		if !errors.As(err, &e) || e.Sent != c.sent || !strings.Contains(err.Error(), c.want) || errors.Is(err, ErrNothing) {
			t.Errorf("%s: got %v, want an *Error with sent %v that says %q", name, err, c.sent, c.want)
		}
	}
}

// closing is the address of a server that reads something and closes.
func closing(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		nc, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = nc.Read(make([]byte, 1<<10))
		_ = nc.Close()
	})
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return l.Addr().String()
}

func TestPrint(t *testing.T) {
	r := &Result{
		Status: wire.Busy, Code: 4, Version: bolt.V2, Codec: 12, Class: "C", Body: []byte("body\n"), Bytes: 50,
		Headers: []bolt.Pair{{Key: "k", Value: "v\x00"}}, Connect: time.Millisecond, Total: 2 * time.Millisecond,
	}
	var b bytes.Buffer
	if err := r.Print(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"SERVER_THREADPOOL_BUSY (4)", "2ms", "v2, json, 50 bytes", `"k" = "v\x00"`, "62 6f 64 79 0a"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("printed %q, want %q in it", b.String(), want)
		}
	}
	b.Reset()
	if err := r.PrintJSON(&b); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Status string
		Code   int
		Body   string
		Total  float64 `json:"total_us"`
	}
	if err := json.Unmarshal(b.Bytes(), &got); err != nil || got.Status != "SERVER_THREADPOOL_BUSY" || got.Code != 4 || got.Body != "626f64790a" || got.Total != 2000 {
		t.Errorf("JSON %s: got %+v, %v", b.Bytes(), got, err)
	}
	b.Reset()
	if err := (&Result{Oneway: true, BytesOut: 9}).PrintJSON(&b); err != nil || strings.Contains(b.String(), "status") {
		t.Errorf("one-way JSON %s, %v: want no status, as there was none", b.Bytes(), err)
	}
}
