package forwarder

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/relevo-proxy/relevo/forwarder/conn"
)

// queues are connections whose peers read, and how many bytes were appended to each.
type queues struct {
	conns []*conn.Conn

	// Guarded by mu.
	mu       sync.Mutex
	appended []uint64
}

func newQueues(t *testing.T, n int) *queues {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	q := &queues{appended: make([]uint64, n)}
	var group sync.WaitGroup
	t.Cleanup(group.Wait)
	for range n {
		client, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		group.Go(func() { // ends when the connection is closed
			_, _ = io.Copy(io.Discard, server)
			_ = server.Close()
		})
		c, err := conn.New(client.(conn.Socket), conn.NewBuffers(64<<20), conn.Config{High: 1 << 20, Low: 1 << 19, MaxQueued: 16 << 20})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close("test"); c.Release() })
		q.conns = append(q.conns, c)
	}
	return q
}

// owe appends to one and returns the flush that the caller then owes.
func (q *queues) owe(i int) []*conn.Conn {
	q.mu.Lock()
	q.appended[i] += 5
	q.mu.Unlock()
	switch v := q.conns[i].Append([]byte("frame")); v {
	case conn.First:
		return []*conn.Conn{q.conns[i]}
	case conn.Appended:
		return nil
	default:
		panic(fmt.Sprint("a connection that is open does not take a frame: ", v))
	}
}

// unsent says which bytes were left lying.
func (q *queues) unsent() string {
	for i, c := range q.conns {
		if n := c.Queued(); n != 0 {
			return fmt.Sprintf("got %d bytes of connection %d unsent, want none while nobody is expected", n, i)
		}
		if _, written := c.Bytes(); written != q.appended[i] {
			return fmt.Sprintf("got %d bytes written to connection %d, want the %d that were appended", written, i, q.appended[i])
		}
	}
	return ""
}

func newGather() *gather {
	g := &gather{}
	g.since.Store(never)
	return g
}

// TestGather: the last who leaves flushes for all; somebody who is still expected holds the flushes back.
func TestGather(t *testing.T) {
	q, g := newQueues(t, 3), newGather()
	g.expect(3)
	g.leave(q.owe(0), 1, 1, 0)
	g.leave(q.owe(1), 1, 1, 0)
	if q.conns[0].Queued() == 0 || q.conns[1].Queued() == 0 {
		t.Error("got a flush while somebody is expected, want them together")
	}
	g.leave(nil, 0, 1, 0) // it owes nothing, and yet it is the last
	if wrong := q.unsent(); wrong != "" {
		t.Error(wrong)
	}
	if n := g.active(); n != 0 {
		t.Errorf("got %d active, want none", n)
	}
}

// TestGatherIsBounded: in a crowd that never ends the flushes wait for so many messages, and for so long, at most.
func TestGatherIsBounded(t *testing.T) {
	q, g := newQueues(t, 2), newGather()
	for round := range 3 {
		g.expect(maxGather + 1)
		for i := range maxGather {
			g.leave(q.owe(i%2), 1, 1, 0)
			if got, want := q.conns[0].Queued() == 0, i == maxGather-1; got != want {
				t.Fatalf("round %d: got flushed %v behind message %d, want the flush behind message %d", round, got, i+1, maxGather)
			}
		}
		if wrong := q.unsent(); wrong != "" {
			t.Error(wrong)
		}
		g.leave(nil, 0, 1, 0)
	}
	at := int64(1000)
	g.expect(4)
	g.leave(q.owe(0), 1, 1, at)
	g.leave(q.owe(1), 1, 1, at+gatherTime-1)
	if q.conns[0].Queued() == 0 {
		t.Error("got a flush before its time, want it held back while others are expected")
	}
	g.leave(nil, 0, 1, at+gatherTime)
	if wrong := q.unsent(); wrong != "" {
		t.Errorf("behind %d ns: %s", gatherTime, wrong)
	}
	g.leave(q.owe(0), 1, 1, at+gatherTime)
	if wrong := q.unsent(); wrong != "" {
		t.Error(wrong)
	}
}

// TestGatherOfWhoBlocks: who is about to block leaves what it owes and holds nobody's flush; when it comes back it counts
// again.
func TestGatherOfWhoBlocks(t *testing.T) {
	q, g := newQueues(t, 2), newGather()
	g.expect(2)
	g.leave(q.owe(0), 0, 1, 0) // blocks
	g.leave(q.owe(1), 1, 1, 0)
	if wrong := q.unsent(); wrong != "" {
		t.Error(wrong)
	}
	g.expect(1) // is back
	g.expect(1)
	g.leave(q.owe(1), 1, 1, 0)
	if q.conns[1].Queued() == 0 {
		t.Error("got a flush while the one who came back is at work, want it held back")
	}
	g.leave(q.owe(0), 1, 1, 0)
	if wrong := q.unsent(); wrong != "" {
		t.Error(wrong)
	}
}

// TestGatherLosesNothing: whatever the order, nothing is left lying when nobody is expected.
func TestGatherLosesNothing(t *testing.T) {
	q := newQueues(t, 4)
	rapid.Check(t, func(t *rapid.T) {
		g := newGather()
		active, now := int64(0), int64(0)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now += rapid.Int64Range(0, gatherTime/4).Draw(t, "time")
			if active == 0 || rapid.Bool().Draw(t, "expect") {
				n := rapid.Int64Range(1, 5).Draw(t, "n")
				g.expect(n)
				active += n
				continue
			}
			leaving := rapid.Int64Range(1, active).Draw(t, "leaving")
			var owed []*conn.Conn
			for _, i := range rapid.SliceOfN(rapid.IntRange(0, len(q.conns)-1), 0, 3).Draw(t, "connections") {
				owed = append(owed, q.owe(i)...)
			}
			g.leave(owed, rapid.Int64Range(0, 200).Draw(t, "messages"), leaving, now)
			active -= leaving
			if got := int64(g.active()); got != active {
				t.Fatalf("got %d active, want %d", got, active)
			}
			if wrong := q.unsent(); active == 0 && wrong != "" {
				t.Fatal(wrong)
			}
		}
		if g.leave(nil, 0, active, now); active > 0 && q.unsent() != "" {
			t.Fatal(q.unsent())
		}
	})
}

// TestGatherUnderLoad: the same with many at once, who append to the same connections.
func TestGatherUnderLoad(t *testing.T) {
	q, g := newQueues(t, 5), newGather()
	for range 20 {
		var group sync.WaitGroup
		for range 8 {
			group.Go(func() {
				for range 200 {
					n := 1 + rand.Int64N(3)
					g.expect(n)
					for range n {
						owed := append(q.owe(rand.IntN(5)), q.owe(rand.IntN(5))...)
						g.leave(owed, 1, 1, rand.Int64N(3*gatherTime))
					}
				}
			})
		}
		group.Wait()
		if n := g.active(); n != 0 {
			t.Fatalf("got %d active behind the last, want none", n)
		}
		// A flush may have left the rest to the connection's writer, but none may have been forgotten.
		until(t, "everything is sent", func() bool { return q.unsent() == "" })
	}
}
