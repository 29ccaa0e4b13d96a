package conn

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestReadWaitsForEnough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(1 << 20)
		c := k.conn(t, newBuffers(t, 1<<20), roomy)
		defer release(t, c)
		r := startRead(c, 10)
		for _, part := range []string{"123", "456", "789"} {
			k.send([]byte(part))
			if r.settled() {
				t.Fatalf("Read(10) returned %q with %v before 10 bytes had come", r.value.bytes, r.value.err)
			}
		}
		k.send([]byte("0ab"))
		if !r.settled() || r.value.bytes != "1234567890ab" || r.value.err != nil {
			t.Fatalf("got %q, %v from Read(10), want all 12 bytes that had come", r.value.bytes, r.value.err)
		}
		if rx, _ := c.Bytes(); rx != 12 {
			t.Errorf("got %d bytes read, want 12", rx)
		}
	})
}

// A read that waits for the peer holds memory only when it has a part of something.
func TestIdleConnectionHoldsNoBuffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(1 << 20)
		c := k.conn(t, newBuffers(t, 1<<20), roomy)
		defer release(t, c)
		holds := func(want int64, when string) {
			t.Helper()
			synctest.Wait()
			if got := c.Held(); got != want || c.buffers.Used() != want {
				t.Errorf("got %d bytes held and %d used %s, want %d of both", got, c.buffers.Used(), when, want)
			}
		}
		startRead(c, 4)
		holds(0, "before the first byte")
		k.send([]byte("ab"))
		holds(size4K, "with the beginning of a frame")
		k.send([]byte("cd"))
		synctest.Wait()
		startRead(c, 4)
		holds(0, "while the second read waits")
		k.send([]byte("abcdef"))
		synctest.Wait()
		c.GateMemory(true)
		startRead(c, 4)
		holds(0, "while the gate is shut and nothing is unread")
	})
}

func TestPauseAndResumeWakeAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(1 << 20)
		c := k.conn(t, newBuffers(t, 1<<20), roomy)
		defer release(t, c)
		begin := time.Now()
		for range 3 {
			r := startRead(c, 1)
			if r.settled() {
				t.Fatalf("Read returned %q, %v with nothing to read", r.value.bytes, r.value.err)
			}
			c.Pause()
			if !r.settled() || !errors.Is(r.value.err, ErrPaused) {
				t.Fatalf("got %v from a read that was waiting when Pause came, want ErrPaused at once", r.value.err)
			}
			if r := startRead(c, 1); !r.settled() || !errors.Is(r.value.err, ErrPaused) {
				t.Fatalf("got %v from a read of a paused connection, want ErrPaused at once", r.value.err)
			}
			k.send([]byte("while paused"))
			synctest.Wait()
			if k.unread() == 0 {
				t.Fatal("a paused connection read from the kernel")
			}
			c.Resume()
			if r := startRead(c, 1); !r.settled() || r.value.bytes != "while paused" {
				t.Fatalf("got %q, %v after Resume, want what had come meanwhile", r.value.bytes, r.value.err)
			}
		}
		if passed := time.Since(begin); passed != 0 {
			t.Errorf("got %v that passed, want none: somebody polled", passed)
		}
		if calls := k.callsOf(reading); calls > 12 {
			t.Errorf("got %d reads of the kernel in 3 rounds, want at most 4 a round: the loop spins", calls)
		}
	})
}

// The read loop itself stays where it is while a gate is shut, and goes on without anybody starting it again.
func TestGatesStopAndStartTheReadLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(0) // the peer takes nothing
		cfg := roomy
		cfg.High, cfg.Low = 100, 50
		c := k.conn(t, newBuffers(t, 1<<20), cfg)
		defer release(t, c)
		queueShuts := func(shut bool) {
			if shut {
				if c.Append(make([]byte, 101)) == First {
					c.Flush()
				}
				return
			}
			k.change(func() { k.window = len(k.out) + 101 })
			synctest.Wait()
		}
		var got strings.Builder
		go func() { // ends when the connection is closed
			for {
				p, err := c.Read(1)
				if err != nil {
					return
				}
				got.Write(p)
				c.Advance(len(p))
			}
		}()
		begin := time.Now()
		heard := func(want int, when string) {
			t.Helper()
			synctest.Wait()
			if got.Len() != want {
				t.Fatalf("got %d bytes read %s, want %d", got.Len(), when, want)
			}
		}
		sent := 1
		k.send([]byte("a"))
		heard(1, "with the gate open")

		type move struct {
			name string
			shut func(bool)
		}
		queue, memory := move{"queue", queueShuts}, move{"memory", c.GateMemory}
		for _, order := range [][]move{{queue}, {memory}, {queue, memory}, {memory, queue}} {
			before := sent
			for _, m := range order {
				m.shut(true)
				k.send([]byte("b"))
				sent++
				heard(before, "with the gate shut by "+m.name)
			}
			for i, m := range order {
				heard(before, "with the gate shut until "+m.name+" opens it")
				m.shut(false)
				if i == len(order)-1 {
					heard(sent, "with the gate opened by "+m.name+", the last")
				}
			}
			if c.Gated() {
				t.Fatal("the gate is shut, want it open: all that shut it is gone")
			}
		}
		if passed := time.Since(begin); passed != 0 {
			t.Errorf("got %v that passed, want none: somebody polled", passed)
		}
		if calls := k.callsOf(reading); calls > 25 {
			t.Errorf("got %d reads of the kernel for 10 moves, want at most 25: the loop spins", calls)
		}
	})
}

func TestQueueGateAtItsWatermarks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(1000)
		cfg := roomy
		cfg.High, cfg.Low = 2000, 500
		c := k.conn(t, newBuffers(t, 1<<20), cfg)
		defer release(t, c)
		gate := func(want bool, when string) {
			t.Helper()
			synctest.Wait()
			if c.Gated() != want {
				t.Errorf("got gated %v with %d bytes queued %s, want %v", c.Gated(), c.Queued(), when, want)
			}
		}
		c.Append(make([]byte, 2000))
		gate(false, "at High")
		c.Append(make([]byte, 1))
		gate(true, "above High")
		c.Flush()
		gate(true, "between Low and High, falling")
		k.take(500)
		gate(true, "one above Low")
		k.take(1)
		gate(false, "at Low")
		c.Append(make([]byte, 1000))
		gate(false, "between Low and High, rising")
		k.takeAll()
	})
}

// A shared connection is told instead, once each time that the queue comes down to Low after it was above High.
func TestDrained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(0)
		var c *Conn
		told := 0
		cfg := roomy
		cfg.High, cfg.Low = 2000, 500
		cfg.Drained = func() {
			told++
			if told == 3 { // whoever is told may use the connection
				c.Append(make([]byte, 100))
				c.Flush()
			}
			if queued := c.Queued(); queued > 600 {
				t.Errorf("got %d bytes queued when Drained was called, want at most 500 and its own 100", queued)
			}
		}
		c = k.conn(t, newBuffers(t, 1<<20), cfg)
		defer release(t, c)
		fill := func(n int) {
			c.Append(make([]byte, n))
			c.Flush()
		}
		drainTo := func(n int64, want int, why string) {
			t.Helper()
			k.change(func() { k.window = len(k.out) + int(c.Queued()-n) })
			synctest.Wait()
			if c.Gated() {
				t.Error("the gate of a shared connection was shut by its own queue, want it open")
			}
			if told != want {
				t.Fatalf("got Drained called %d times with %d bytes queued, want %d: %s", told, c.Queued(), want, why)
			}
		}
		fill(2000)
		drainTo(0, 0, "it was never above High")
		fill(2001)
		drainTo(501, 0, "it is above Low")
		drainTo(500, 1, "it is at Low")
		drainTo(0, 1, "once is enough")
		fill(5000)
		drainTo(1000, 1, "it is above Low")
		fill(5000)
		drainTo(0, 2, "it was above High again")
		fill(3000)
		drainTo(400, 3, "it is below Low")
		if got := c.Queued(); got != 500 {
			t.Errorf("got %d bytes queued, want the 400 that were left and 100 of whoever was told", got)
		}
	})
}

func TestReadSaysWhyItEnded(t *testing.T) {
	for name, test := range map[string]struct {
		do   func(*kernel, *Conn)
		want string
	}{
		"end of file": {func(k *kernel, _ *Conn) { k.fin() }, ReasonPeerClosed},
		"reset":       {func(k *kernel, _ *Conn) { k.reset() }, ReasonReset},
		"closed here": {func(_ *kernel, c *Conn) { c.Close(ReasonIdle) }, ReasonIdle},
		"too large":   {func(k *kernel, _ *Conn) { k.send([]byte("x")) }, ReasonNoMemory},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newKernel(1)
				c := k.conn(t, newBuffers(t, 1<<20), roomy)
				defer release(t, c)
				need := 2
				if test.want == ReasonNoMemory {
					need = 1<<19 + 1
				}
				r := startRead(c, need)
				synctest.Wait()
				test.do(k, c)
				if !r.settled() || !errors.Is(r.value.err, ErrClosed) {
					t.Fatalf("got %v from Read, want ErrClosed", r.value.err)
				}
				if got := c.Reason(); got != test.want {
					t.Errorf("got reason %q, want %q", got, test.want)
				}
				if c.Close("second") || c.Reason() != test.want {
					t.Errorf("a second Close changed the reason to %q, want the first to stay", c.Reason())
				}
			})
		})
	}
}

// What was read before the end of file is handed on first.
func TestBytesBeforeEndOfFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(1)
		c := k.conn(t, newBuffers(t, 1<<20), roomy)
		defer release(t, c)
		k.send([]byte("last words"))
		k.fin()
		if r := startRead(c, 1); !r.settled() || r.value.bytes != "last words" {
			t.Errorf("got %q, %v, want the bytes in front of the end of file", r.value.bytes, r.value.err)
		}
		if r := startRead(c, 1); !r.settled() || !errors.Is(r.value.err, ErrClosed) {
			t.Errorf("got %q, %v, want ErrClosed behind the last byte", r.value.bytes, r.value.err)
		}
	})
}

// The buffer of a large frame is made for that frame: reads fill it to the frame's end and no further. What follows must
// not be read through that keyhole.
func TestSmallFramesBehindALargeOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const large, small = 300 << 10, 60 << 10
		k := newKernel(1)
		c := k.conn(t, newBuffers(t, 16<<20), roomy)
		defer release(t, c)
		k.send(make([]byte, large+small))
		if r := startRead(c, large); !r.settled() || len(r.value.bytes) != large {
			t.Fatalf("got %d bytes, %v, want the large frame alone, %d bytes", len(r.value.bytes), r.value.err, large)
		}
		if r := startRead(c, 1); !r.settled() || len(r.value.bytes) != small {
			t.Errorf("got %d bytes behind a large frame, want all %d that have come", len(r.value.bytes), small)
		}
		startRead(c, 1)
		synctest.Wait()
		if c.Held() != 0 {
			t.Errorf("got %d bytes held by an idle connection, want 0", c.Held())
		}
	})
}

// Another process may have read more than this one would.
func TestAdoptManyUnreadFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 40 << 10
		var stream []byte
		for i := range 10 {
			stream = appendFrame(stream, 0, i, size)
		}
		k := newKernel(1)
		c, err := adopt(Detached{Socket: k, Unread: stream[:5*size/2]}, k.system(), newBuffers(t, 16<<20), roomy)
		if err != nil {
			t.Fatalf("adopting: %v", err)
		}
		defer release(t, c)
		k.send(stream[5*size/2:])
		for i := range 10 {
			p, err := c.Read(size)
			if err != nil {
				t.Fatalf("reading frame %d: %v", i, err)
			}
			if _, serial, got, err := checkFrame(p); err != nil || serial != i || got != size {
				t.Fatalf("got frame %d of %d bytes (%v), want frame %d of %d", serial, got, err, i, size)
			}
			c.Advance(size)
		}
	})
}
