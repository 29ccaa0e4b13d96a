package main

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
	"github.com/relevo-proxy/relevo/cmd/relevo/echo"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// What it measures must be the whole work: the load generator finds whatever reply goes astray.
func TestRelayTakesEachReplyToWhoAsked(t *testing.T) {
	server, err := echo.Listen(echo.Options{Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	defer group.Wait()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	group.Go(func() { _ = server.Run(ctx) }) // ends with ctx

	up, err := net.Dial("tcp", server.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	r, err := newRelay(up)
	if err != nil {
		t.Fatal(err)
	}
	group.Go(func() { _ = r.up() }) // ends when the server closes the connection
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	group.Go(func() { // ends with the listener
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			group.Go(func() { r.down(client) }) // ends when the load is over
		}
	})
	for size, count := range map[int]uint64{16: 300, 1 << 10: 300, 1 << 20: 24} { // the last one is larger than a read
		report, err := bench.Run(ctx, bench.Options{
			Addr: l.Addr().String(), Connections: 3, InFlight: 8, Size: size, Count: count, Timeout: time.Minute,
		})
		if err != nil || report.Failed() || report.OK == 0 {
			t.Errorf("of %d bytes: %d of %d requests came back, mismatched %d (%v); want all", size, report.OK, report.Sent, report.Mismatched, err)
		}
	}
}

func TestFrameIsWholeOrNone(t *testing.T) {
	request, err := (&bolt.Request{Version: bolt.V1, Codec: 1, Class: "c", Headers: []bolt.Pair{{Key: "k", Value: "v"}}, Content: []byte("content")}).Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	reply, err := (&bolt.Response{Version: bolt.V1, Codec: 1, Content: []byte("content")}).Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string][]byte{"request": request, "reply": reply} {
		for n := range f {
			if got, err := frame(f[:n]); got != 0 || err != nil {
				t.Errorf("the first %d of a %s's %d bytes are a frame of %d bytes (%v), want more to be waited for", n, name, len(f), got, err)
			}
		}
		if got, err := frame(append(f, f...)); got != len(f) || err != nil {
			t.Errorf("a %s of %d bytes is a frame of %d bytes (%v)", name, len(f), got, err)
		}
	}
	if _, err := frame(make([]byte, requestFixed)); err == nil {
		t.Error("bytes that are not Bolt's are taken for a frame")
	}
}
