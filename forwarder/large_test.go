package forwarder_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// streamEcho is a script that echoes v1 requests without holding them.
func streamEcho(c *peer) {
	head := make([]byte, 22)
	for {
		if _, err := io.ReadFull(c, head); err != nil || head[0] != 1 {
			return
		}
		be := binary.BigEndian
		if _, err := io.CopyN(io.Discard, c, int64(be.Uint16(head[14:]))+int64(be.Uint16(head[16:]))); err != nil {
			return
		}
		if head[1] == 1 && head[3] == 0 { // a heartbeat
			if _, err := c.Write(append([]byte{1, 0, 0, 0, 1}, append(head[5:10:10], make([]byte, 10)...)...)); err != nil {
				return
			}
			continue
		}
		reply := append([]byte{1, 0, 0, 2, 1}, append(head[5:10:10], make([]byte, 6)...)...)
		if _, err := c.Write(append(reply, head[18:22]...)); err != nil {
			return
		}
		if _, err := io.CopyN(c, c, int64(be.Uint32(head[18:]))); err != nil {
			return
		}
	}
}

// sendLarge makes one call with a frame that others use too, and says how it ended.
func sendLarge(t *testing.T, c *peer, frame, content []byte) (status wire.Status, closed bool) {
	var group sync.WaitGroup
	defer group.Wait()
	_ = c.SetDeadline(time.Now().Add(6 * patience))
	group.Go(func() { _, _ = c.Write(frame) }) // ends with the last byte, or the connection
	head := make([]byte, 20)
	if _, err := io.ReadFull(c, head); err != nil {
		if isTimeout(err) {
			t.Errorf("got nothing for %v, want a reply or the end of the connection", 6*patience)
		}
		c.hangUp()
		return 0, true
	}
	status = bolt.StatusOf(binary.BigEndian.Uint16(head[10:]))
	buf, at := make([]byte, 64<<10), 0
	for end := int(binary.BigEndian.Uint32(head[16:])); at < end; {
		n, err := c.Read(buf[:min(len(buf), end-at)])
		if err != nil {
			c.hangUp()
			return status, true
		}
		if !bytes.Equal(buf[:n], content[at:at+n]) {
			t.Errorf("got other bytes than were sent somewhere in %d to %d", at, at+n)
			break
		}
		at += n
	}
	if status == wire.Success && at != len(content) {
		t.Errorf("got %d bytes of content, want %d", at, len(content))
	}
	return status, false
}

// TestManyLargeFramesAtOnce: 64 connections send 16 MiB each (a quarter, with the race detector, of the budget too) with
// room for a few. All end, with a reply or for a counted
// reason; the budget holds all the time; small requests beside them do not notice.
func TestManyLargeFramesAtOnce(t *testing.T) {
	t.Run("whole", func(t *testing.T) { manyLargeFrames(t, 0) })
	t.Run("in pieces", func(t *testing.T) { manyLargeFrames(t, 1<<20) })
}

func manyLargeFrames(t *testing.T, streamAbove int) {
	size, budget := 16<<20-4096, int64(128<<20)
	if testing.Short() || raceEnabled { // the detector looks at every byte that is read or written
		size, budget = size/4, budget/4
	}
	s := withSteady(t, spec(serve(t, streamEcho).address))
	s.Routes[0].Rules[0].Timeout = time.Minute
	s.Listeners[0].StreamAbove = streamAbove
	s.Clusters[0].MaxPendingBytes = 1 << 30
	p := startProxy(t, s, budget)
	most := watch(p)
	others := startNeighbours(t, p.address, steadyService)
	defer others.stop()
	content := noise(1, size)
	frame := frameOf(t, 1, string(content))
	var group sync.WaitGroup
	var good, answered, closed atomic.Int64
	for range 64 {
		c := dial(t, p.address)
		group.Go(func() { // ends with its one call
			switch status, cut := sendLarge(t, c, frame, content); {
			case cut:
				closed.Add(1)
			case status == wire.Success:
				good.Add(1)
			default:
				answered.Add(1)
			}
		})
	}
	group.Wait()
	others.goOn()
	t.Logf("%d echoed, %d answered locally, %d closed, at most %d MiB buffered", good.Load(), answered.Load(), closed.Load(), most()>>20)
	if good.Load() < 16 {
		t.Errorf("got %d of 64 large requests echoed, want at least those that fit at a time, and some more", good.Load())
	}
	if got := most(); got > budget {
		t.Errorf("got %d bytes buffered at a time, want at most the budget of %d", got, budget)
	}
	p.wantCount(float64(answered.Load()), "relevo_listener_local_replies_total")
	var cut float64
	for _, reason := range []string{"buffer-pressure", "no-memory", "queue-full"} {
		cut += p.value("relevo_listener_closes_total", "reason="+reason)
	}
	if cut != float64(closed.Load()) {
		t.Errorf("got %v closes with a reason of memory, want the %d that clients saw: %v", cut, closed.Load(), p.series("relevo_listener_closes_total"))
	}
}

// TestFrameOverTheShare: a frame that the budget can never hold closes its connection, and says why.
func TestFrameOverTheShare(t *testing.T) {
	s := spec(serveEach(t, echoEach).address)
	s.Listeners[0].StreamAbove = 0
	p := startProxy(t, s, 8<<20)
	others := startNeighbours(t, p.address, service)
	c := dial(t, p.address)
	go func() { _, _ = c.Write(frameOf(t, 1, string(make([]byte, 15<<20)))) }() // ends with the connection
	c.wantEnd()
	p.wantCount(1, "relevo_listener_closes_total", "reason=no-memory")
	others.goOn()
}

// largeReplies is a server that answers every request with so many bytes, and a proxy with room for three of them.
func largeReplies(t *testing.T, size int) *proxy {
	content := noise(2, size)
	s := spec(serveEach(t, func(p *peer, m wire.Message) error {
		if m.Kind != wire.Request {
			return echoEach(p, m)
		}
		return p.reply(m, wire.Success, content)
	}).address)
	s.Routes[0].Rules[0].Timeout, s.Listeners[0].WriteTimeout = time.Minute, time.Minute
	return startProxy(t, s, int64(size)*5) // 78 % are for replies, and a frame takes a little more than its content
}

// ask asks for a large reply with a connection that takes little ahead.
func ask(t *testing.T, p *proxy) *peer {
	t.Helper()
	c := dial(t, p.address)
	if err := c.SetReadBuffer(32 << 10); err != nil {
		t.Fatal(err)
	}
	c.send(frameOf(t, 1, "a large one, please"))
	return c
}

// takeSlowly reads so many bytes at each tick until there are so many, or the connection ends.
func takeSlowly(c *peer, piece int, every time.Duration, size int) (got int, err error) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	buf := make([]byte, piece)
	for got < size {
		n := 0
		if n, err = io.ReadFull(c, buf[:min(piece, size-got)]); err != nil {
			return got + n, err
		}
		got += n
		<-tick.C
	}
	return got, nil
}

// TestReplyWaitsForWhoGetsOn: while large replies are read, however slowly, one that waits for their memory costs nobody
// the connection.
func TestReplyWaitsForWhoGetsOn(t *testing.T) {
	const size = 8 << 20
	p := largeReplies(t, size)
	var group sync.WaitGroup
	for i := range 5 { // two more than there is room for
		c := ask(t, p)
		group.Go(func() { // ends with the reply
			if got, err := takeSlowly(c, 64<<10, 10*time.Millisecond, size); err != nil {
				t.Errorf("client %d: got %v behind %d bytes of its reply, want all of it", i, err, got)
			}
		})
	}
	group.Wait()
	p.wantCount(0, "relevo_listener_closes_total", "reason="+forwarder.ReasonBufferPressure)
	p.wantCount(0, "relevo_endpoint_closes_total", "reason="+forwarder.ReasonBufferPressure)
}

// TestReplyDoesNotWaitForWhoIsStill: when those who have the memory do not get on, the one that has been still for longest
// is closed for a reply that waits, and not one that reads a little.
func TestReplyDoesNotWaitForWhoIsStill(t *testing.T) {
	const size = 8 << 20
	p := largeReplies(t, size)
	ask(t, p)
	ask(t, p)
	slow := ask(t, p)
	eventually(t, func() bool { return p.Buffered() >= 3*size }, say("three large replies to wait for their readers"))
	var group sync.WaitGroup
	group.Go(func() { // ends with the connection
		if _, err := takeSlowly(slow, 4<<10, 10*time.Millisecond, size); !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v at the client that reads slowly, want it to be there to the end of the test", err)
		}
	})
	if got, err := takeSlowly(ask(t, p), 64<<10, time.Millisecond, size); err != nil {
		t.Errorf("got %v behind %d bytes of the reply that waited, want all of it", err, got)
	}
	slow.hangUp()
	group.Wait()
	p.wantCount(1, "relevo_listener_closes_total", "reason="+forwarder.ReasonBufferPressure)
}
