package conn

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// reporter is what *testing.T, *testing.B and *rapid.T have in common.
type reporter interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Cleanup(f func())
}

// roomy is a configuration that gets in nobody's way.
var roomy = Config{High: 64 << 20, Low: 32 << 20, MaxQueued: 64 << 20, Class: Requests}

// newBuffers returns a budget that must have everything back when the test ends.
func newBuffers(t reporter, limit int64) *Buffers {
	t.Helper()
	b := NewBuffers(limit)
	t.Cleanup(func() {
		if used, large := b.Used(), b.large.Load(); used != 0 || large != 0 {
			t.Errorf("got %d bytes of buffers in use at the end, %d in large ones, want 0: more or less was put back than taken",
				used, large)
		}
		if n, queued := b.waiting.Load(), len(b.queues[Replies])+len(b.queues[Requests]); n != 0 || queued != 0 {
			t.Errorf("got %d reads (%d in the queue) that wait for memory at the end, want 0", n, queued)
		}
	})
	return b
}

// release ends a connection in a bubble as its owner does: close, wait for the read loop, give back.
func release(t reporter, c *Conn) {
	t.Helper()
	c.Close("test-end")
	synctest.Wait()
	giveBack(t, c)
}

// giveBack is the last act on a closed connection whose read loop has ended.
func giveBack(t reporter, c *Conn) {
	t.Helper()
	c.Release()
	if held, queued := c.Held(), c.Queued(); held != 0 || queued != 0 {
		t.Errorf("got %d bytes held and %d queued after Release, want 0 of both", held, queued)
	}
}

// The frames of the tests: length, who appended it, its number there, and a content that follows from these.
const frameHead = 12

func appendFrame(to []byte, who, serial, size int) []byte {
	size = max(size, frameHead)
	to = binary.BigEndian.AppendUint32(to, uint32(size))
	to = binary.BigEndian.AppendUint32(to, uint32(who))
	to = binary.BigEndian.AppendUint32(to, uint32(serial))
	return append(to, content(who, serial)[:size-frameHead]...)
}

// noise has no period that a buffer has.
var noise = func() []byte {
	p := make([]byte, 3<<20)
	for i := range p {
		p[i] = byte(i % 251)
	}
	return p
}()

func content(who, serial int) []byte { return noise[(who*31+serial)%251:] }

// checkFrame returns who appended the frame in front of p and its number, its size, 0 when it is not whole yet, and an
// error when it is not as it was appended.
func checkFrame(p []byte) (who, serial, size int, err error) {
	if len(p) < frameHead {
		return 0, 0, 0, nil
	}
	size = int(binary.BigEndian.Uint32(p))
	who = int(binary.BigEndian.Uint32(p[4:]))
	serial = int(binary.BigEndian.Uint32(p[8:]))
	if size < frameHead || size > 3<<20 {
		return 0, 0, 0, fmt.Errorf("got a frame of %d bytes where one must begin: a byte was lost, doubled or mixed up", size)
	}
	if len(p) < size {
		return who, serial, 0, nil
	}
	want := content(who, serial)[:size-frameHead]
	if got := p[frameHead:size]; !bytes.Equal(got, want) {
		i := 0
		for got[i] == want[i] {
			i++
		}
		return 0, 0, 0, fmt.Errorf("got %#x at byte %d of frame %d of appender %d, want %#x", got[i], frameHead+i, serial, who, want[i])
	}
	return who, serial, size, nil
}

// writers is the number of writer goroutines that live.
func writers() int {
	stacks := make([]byte, 1<<17)
	stacks = stacks[:runtime.Stack(stacks, true)]
	return bytes.Count(stacks, []byte("conn.(*Conn).writer("))
}
