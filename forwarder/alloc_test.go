package forwarder_test

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"runtime/debug"
	"sync"
	"testing"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// fixedEcho is a server that allocates nothing: all requests have the length of this one, all replies that of reply, and
// only the ids differ.
func fixedEcho(c *peer, request, reply []byte, v bolt.Version) {
	in, out := make([]byte, 64<<10), make([]byte, 0, 64<<10)
	at := 5
	if v != bolt.V1 {
		at = 6
	}
	have := 0
	for {
		n, err := c.Read(in[have:])
		if err != nil {
			return
		}
		have += n
		out = out[:0]
		done := 0
		for ; have-done >= len(request) && len(out)+len(reply) <= cap(out); done += len(request) {
			out = append(out, reply...)
			copy(out[len(out)-len(reply)+at:], in[done+at:done+at+4])
		}
		have = copy(in, in[done:have])
		if _, err := c.Write(out); err != nil {
			return
		}
	}
}

// TestAllocations: a request on the inline road allocates nothing. It counts objects, not time. Client and server of the
// test allocate nothing themselves, and the collector rests, because it empties pools.
func TestAllocations(t *testing.T) {
	if mode == forwarder.ForwardWorker {
		t.Skip("a worker's exchange is not inline")
	}
	if raceEnabled {
		t.Skip("with the race detector a sync.Pool forgets at random what was put into it")
	}
	for _, v := range []bolt.Version{bolt.V1, bolt.V2, bolt.V2CRC} {
		for _, clients := range []int{1, 4} {
			t.Run(fmt.Sprintf("%v/clients=%d", v, clients), func(t *testing.T) { countAllocations(t, v, clients, func(*forwarder.ClusterSpec) {}) })
		}
	}
	for name, header := range map[string]string{"header": "service", "client": ""} {
		t.Run("hashed by "+name, func(t *testing.T) {
			countAllocations(t, bolt.V1, 1, func(c *forwarder.ClusterSpec) {
				c.Balancer, c.HashHeader = forwarder.BalancerMaglev, header
			})
		})
	}
}

func countAllocations(t *testing.T, v bolt.Version, clients int, with func(*forwarder.ClusterSpec)) {
	const pipelined, rounds = 8, 2500
	r := request(1, "sixteen bytes...")
	r.Version = v
	frame := encode(t, r)
	reply, err := (&bolt.Response{Version: v, Codec: 1, Status: wire.Success, Content: r.Content}).Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	s := spec(serve(t, func(c *peer) { fixedEcho(c, frame, reply, v) }).address)
	with(&s.Clusters[0])
	p := startProxy(t, s, 512<<20)
	var stream []byte
	for range pipelined {
		stream = append(stream, frame...)
	}
	// Workers stand ready, so that the measured part starts no goroutine.
	work, done := make(chan int), make(chan error, clients)
	var group sync.WaitGroup
	for range clients {
		c := net.Conn(dial(t, p.address).TCPConn)
		in := make([]byte, pipelined*len(reply))
		group.Go(func() { // ends when work is closed
			for n := range work {
				var err error
				for range n {
					if _, err = c.Write(stream); err == nil {
						_, err = io.ReadFull(c, in)
					}
					if err != nil {
						break
					}
				}
				done <- err
			}
		})
	}
	defer group.Wait()
	defer close(work)
	run := func(rounds int) {
		for range clients {
			work <- rounds
		}
		for range clients {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	run(rounds / 5) // pools fill, tables and queues grow
	requests := rounds * pipelined * clients
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	run(rounds)
	runtime.ReadMemStats(&after)
	if n := after.Mallocs - before.Mallocs; n > uint64(requests/100) {
		t.Errorf("got %d allocations for %d requests, want none a request and less than %d in all", n, requests, requests/100)
	} else {
		t.Logf("%d allocations for %d requests", n, requests)
	}
}
