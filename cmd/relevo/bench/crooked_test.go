package bench

import (
	"encoding/binary"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// trick is what a crooked server does instead of an honest reply: it gets the request, its number on the
// connection and the number of the connection, both from 0, and the honest reply. A nil result closes the
// connection.
type trick func(m *wire.Message, request, conn int, honest []byte) []byte

// crooked runs a server with a trick until the test ends, and returns its address.
func crooked(t *testing.T, f trick) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		conns []net.Conn
	)
	wg.Go(func() { // ends when the listener is closed
		for i := 0; ; i++ {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, nc)
			mu.Unlock()
			wg.Go(func() { // ends when the connection is closed
				defer nc.Close()
				cheat(nc, f, i)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, nc := range conns {
			_ = nc.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String()
}

func cheat(nc net.Conn, f trick, conn int) {
	var (
		m       wire.Message
		buf     []byte
		chunk   = make([]byte, 64<<10)
		request int
	)
	for {
		n, err := nc.Read(chunk)
		if err != nil {
			return
		}
		buf = append(buf, chunk[:n]...)
		for {
			n, err := bolt.Codec{}.Decode(&m, buf, wire.Limits{})
			if err != nil {
				return
			}
			if n > len(buf) {
				break
			}
			out := f(&m, request, conn, honest(&m))
			request++
			if out == nil {
				return
			}
			if _, err := nc.Write(out); err != nil {
				return
			}
			buf = buf[n:]
		}
	}
}

// honest is the reply of an echo server.
func honest(m *wire.Message) []byte {
	r := bolt.Response{Version: bolt.VersionOf(m), Codec: bolt.CodecOf(m), ID: m.ID, Class: bolt.ClassResponse, Content: m.Content()}
	b, err := r.Append(nil)
	if err != nil {
		panic(err)
	}
	return b
}

// contentAt is where the content of an honest v1 reply begins.
const contentAt = 20 + len(bolt.ClassResponse)

func TestEachDefectIsCounted(t *testing.T) {
	every := func(k int, f trick) trick {
		return func(m *wire.Message, request, conn int, honest []byte) []byte {
			if request%k != k-1 {
				return honest
			}
			return f(m, request, conn, honest)
		}
	}
	const n = 100
	for name, c := range map[string]struct {
		trick   trick
		version bolt.Version
		oneway  bool
		want    func(*Report) bool
	}{
		"a byte of the pattern is wrong": {
			trick: every(10, func(_ *wire.Message, _, _ int, b []byte) []byte { b[len(b)-1] ^= 1; return b }),
			want:  func(r *Report) bool { return r.Mismatched == 10 && r.OK == n-10 && r.Stray == 0 },
		},
		"the payload is that of another request": {
			trick: every(10, func(_ *wire.Message, _, _ int, b []byte) []byte { b[contentAt]++; return b }),
			want:  func(r *Report) bool { return r.Mismatched == 10 && r.OK == n-10 },
		},
		"the payload is that of another connection": {
			trick: every(10, func(_ *wire.Message, _, _ int, b []byte) []byte { b[contentAt+8]++; return b }),
			want:  func(r *Report) bool { return r.Mismatched == 10 && r.OK == n-10 },
		},
		"the payload is too short": {
			trick: every(10, func(m *wire.Message, _, _ int, _ []byte) []byte {
				m.ContentEnd--
				return honest(m)
			}),
			want: func(r *Report) bool { return r.Mismatched == 10 && r.OK == n-10 },
		},
		"the version is another": {
			trick: every(10, func(m *wire.Message, _, _ int, _ []byte) []byte {
				r := bolt.Response{Version: bolt.V2, ID: m.ID, Content: m.Content()}
				b, _ := r.Append(nil)
				return b
			}),
			want: func(r *Report) bool { return r.Mismatched == 10 && r.OK == n-10 },
		},
		"answered twice": {
			trick: every(10, func(_ *wire.Message, _, _ int, b []byte) []byte { return append(b, b...) }),
			want:  func(r *Report) bool { return r.Duplicated >= 9 && r.OK == n }, // the run may end before the last
		},
		"an id that was never sent": {
			trick: every(10, func(_ *wire.Message, _, _ int, b []byte) []byte {
				other := append([]byte(nil), b...)
				binary.BigEndian.PutUint32(other[5:], 1<<29)
				return append(other, b...)
			}),
			want: func(r *Report) bool { return r.Mismatched == 10 && r.Stray == 10 && r.OK == n },
		},
		"a request of the server's": {
			trick: every(10, func(m *wire.Message, _, _ int, b []byte) []byte { return append(append([]byte(nil), m.Frame...), b...) }),
			want:  func(r *Report) bool { return r.Mismatched == 10 && r.Stray == 10 && r.OK == n },
		},
		"a heartbeat of the server's, which is no defect": {
			trick: every(10, func(_ *wire.Message, _, _ int, b []byte) []byte { return bolt.Codec{}.AppendHeartbeat(b, 1) }),
			want:  func(r *Report) bool { return !r.Failed() && r.OK == n },
		},
		"a status": {
			trick: every(10, func(m *wire.Message, _, _ int, _ []byte) []byte {
				return bolt.Codec{}.AppendReply(nil, m.Tag, m.ID, wire.Busy)
			}),
			want: func(r *Report) bool { return r.Statuses["SERVER_THREADPOOL_BUSY"] == 10 && r.OK == n-10 },
		},
		"never answered": {
			trick: every(25, func(_ *wire.Message, _, _ int, _ []byte) []byte { return []byte{} }),
			want:  func(r *Report) bool { return r.Timeouts == 4 && r.OK == n-4 },
		},
		"no Bolt": {
			trick: every(10, func(_ *wire.Message, _, _ int, _ []byte) []byte { return []byte("nonsense") }),
			want:  func(r *Report) bool { return r.Malformed > 0 && r.Lost > 0 && r.Reconnects > 0 },
		},
		"a wrong checksum": {
			version: bolt.V2CRC,
			trick:   every(10, func(_ *wire.Message, _, _ int, b []byte) []byte { b[len(b)-1] ^= 1; return b }),
			want:    func(r *Report) bool { return r.Malformed > 0 && r.Lost > 0 },
		},
		"closed in the middle": {
			trick: every(10, func(_ *wire.Message, _, _ int, _ []byte) []byte { return nil }),
			want:  func(r *Report) bool { return r.Lost > 0 && r.Reconnects > 0 && r.Dials > 2 && r.OK >= 60 },
		},
		"a one-way request is answered": {
			oneway: true,
			trick:  every(10, func(_ *wire.Message, _, _ int, b []byte) []byte { return b }),
			want:   func(r *Report) bool { return r.Sent == n },
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := quick(crooked(t, c.trick))
			o.Connections, o.InFlight, o.Count, o.Version, o.Oneway = 1, 4, n, c.version, c.oneway
			o.Timeout = time.Second
			r := mustRun(t, o)
			if !c.want(r) {
				t.Errorf("got %s", dump(t, r))
			}
		})
	}
}

func TestLateReplyIsNoMismatch(t *testing.T) {
	var held []byte
	addr := crooked(t, func(_ *wire.Message, request, _ int, honest []byte) []byte {
		switch request {
		case 1: // never in time
			held = honest
			return []byte{}
		case 9: // sent after request 1 has timed out: the connection keeps one in flight
			return append(held, honest...)
		}
		return honest
	})
	o := quick(addr)
	o.Connections, o.InFlight, o.Count, o.Timeout = 1, 1, 20, time.Second
	r := mustRun(t, o)
	if r.Timeouts != 1 || r.Late != 1 || r.OK != 19 || r.Mismatched != 0 || r.Duplicated != 0 {
		t.Errorf("got %s, want one timeout and its reply late", dump(t, r))
	}
}

func TestServerThatOnlyClosesIsNotDialledInALoop(t *testing.T) {
	addr := crooked(t, func(*wire.Message, int, int, []byte) []byte { return nil })
	o := quick(addr)
	o.Connections, o.Duration = 1, 300*time.Millisecond
	r := mustRun(t, o)
	if r.Reconnects == 0 || r.Dials > 10 || r.OK != 0 {
		t.Errorf("got %d dials, %d reconnects: want a few, ever further apart", r.Dials, r.Reconnects)
	}
}
