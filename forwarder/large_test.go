package forwarder_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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
