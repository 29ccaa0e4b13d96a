package forwarder

import (
	"encoding/binary"
	"os"
	"testing"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// BenchmarkRoad is what a request of 1 KiB and its reply cost on the inline road without the kernel, on a route without policies: both
// connections write into /dev/null, and frames come 20 at a time, as in a busy read. The least of many short runs
// (-benchtime 30000x -count 40 -cpu 1) tells two revisions apart by a few nanoseconds, on a machine that others use too.
func BenchmarkRoad(b *testing.B) {
	const batch = 20
	s := stageSpec(1)
	rule := &s.Routes[0].Rules[0]
	rule.RetryOn, rule.Idempotent, rule.PerTryTimeout = RetryConnectFailure|RetryResetBeforeSend, false, 0
	s.Clusters[0].Balancer, s.Clusters[0].MaxQueued = BalancerLeastRequest, 16<<20
	f, err := New(s, 256<<20, stats.NewRegistry(), zap.NewNop())
	if err != nil {
		b.Fatal(err)
	}
	connect := func(cfg conn.Config) *conn.Conn {
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			b.Fatal(err)
		}
		c, err := conn.New(null, f.buffers, cfg)
		if err != nil {
			b.Fatal(err)
		}
		return c
	}
	snap := f.snap.Load()
	l := snap.listeners[0]
	d := newDownstream(l, l.config.Load(), connect(l.config.Load().conn), nil)
	d.speak(bolt.Codec{})
	p := snap.clusters[0].endpoints[0].small
	u := makeUpstream(p)
	u.conn = connect(u.connConfig())
	u.become(stateReady)
	p.conns.Store(&[]*upstream{u})

	var requests, replies []byte
	for i := range batch {
		r := bolt.Request{
			Codec: bolt.CodecHessian2, ID: uint32(i + 1), Timeout: 3000, Class: bolt.ClassRequest,
			Headers: []bolt.Pair{{Key: "service", Value: "com.example.Order:1.0"}}, Content: make([]byte, 1<<10),
		}
		if requests, err = r.Append(requests); err != nil {
			b.Fatal(err)
		}
		reply := bolt.Response{Codec: bolt.CodecHessian2, Status: wire.Success, Class: bolt.ClassResponse, Content: r.Content}
		if replies, err = reply.Append(replies); err != nil {
			b.Fatal(err)
		}
	}
	b.ResetTimer()
	for n := 0; n < b.N; n += batch {
		x := f.batch()
		if _, err := x.requests(d, requests); err != nil {
			b.Fatal(err)
		}
		x.done()
		for i := range batch { // the id is behind the first five bytes of a frame of version 1
			binary.BigEndian.PutUint32(replies[i*len(replies)/batch+5:], u.table.Last()-batch+1+uint32(i))
		}
		x = f.batch()
		if _, err := x.replies(u, replies); err != nil {
			b.Fatal(err)
		}
		x.done()
	}
	b.StopTimer()
	if n := u.table.Len(); n > 0 {
		b.Fatalf("%d requests have no reply", n)
	}
}
