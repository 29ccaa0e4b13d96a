package conn

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"pgregory.net/rapid"
)

func TestBuffersCountWhatTheyHandOut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := newBuffers(t, 1<<20)
		var out [][]byte
		used := int64(0)
		for _, n := range rapid.SliceOfN(rapid.IntRange(1, 3<<19), 1, 20).Draw(t, "sizes") {
			buf := b.Get(n)
			if len(buf) < n || len(buf) != cap(buf) {
				t.Fatalf("got a buffer of %d bytes (capacity %d) for %d", len(buf), cap(buf), n)
			}
			if len(buf) != Capacity(n) {
				t.Fatalf("got a buffer of %d bytes for %d, want the %d that are reserved for it", len(buf), n, Capacity(n))
			}
			used += int64(len(buf))
			out = append(out, buf[:n])
			if b.Used() != used {
				t.Fatalf("got %d bytes used, want %d", b.Used(), used)
			}
			if told := len(b.Pressure()) == 1; told != (used > b.High()) {
				t.Fatalf("got pressure told %v at %d bytes used of %d, want it told above %d", told, used, b.Max(), b.High())
			}
		}
		for _, buf := range out {
			b.Put(buf)
		}
		b.Put(nil)
	})
}

// large is the size of the frames below: a whole number of MiB, so that a buffer has exactly that size.
const large = 2 << 20

// halfLarge returns n connections, each of which has got the first bytes of a large frame and reads it. They ask for memory
// one after another.
func halfLarge(t reporter, buffers *Buffers, n int) (kernels []*kernel, conns []*Conn, reads []*call[readResult]) {
	for i := range n {
		k := newKernel(1 << 30)
		c := k.conn(t, buffers, roomy)
		t.Cleanup(func() { release(t, c) })
		k.send(appendFrame(nil, i, 0, large)[:readSize:readSize])
		r := startLarge(c, large)
		r.settled()
		kernels, conns, reads = append(kernels, k), append(conns, c), append(reads, r)
	}
	return kernels, conns, reads
}

// startLarge reads as a read loop does: it learns from the first bytes how many the frame has.
func startLarge(c *Conn, n int) *call[readResult] {
	return start(func() readResult {
		if _, err := c.Read(1); err != nil {
			return readResult{err: err}
		}
		p, err := c.Read(n)
		return readResult{string(p), err}
	})
}

func granted(conns []*Conn) (who []int) {
	synctest.Wait()
	for i, c := range conns {
		if c.Held() >= large {
			who = append(who, i)
		}
	}
	return who
}

func TestLargeFramesWaitInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		buffers := newBuffers(t, 7*large) // the share of requests is four of them
		const conns = 12
		kernels, cs, reads := halfLarge(t, buffers, conns)
		for next := range conns {
			want := min(4, conns-next)
			if got := granted(cs[next:]); len(got) != want || got[0] != 0 || got[want-1] != want-1 {
				t.Fatalf("got memory granted to %v, counted from connection %d, want the first %d in order", got, next, want)
			}
			kernels[next].send(appendFrame(nil, next, 0, large)[readSize:])
			if !reads[next].settled() || reads[next].value.err != nil {
				t.Fatalf("connection %d has memory and all bytes of its frame, got %v, want the frame", next, reads[next].value.err)
			}
			if _, _, size, err := checkFrame(cs[next].buf[:cs[next].w]); size != large || err != nil {
				t.Fatalf("got a frame of %d bytes (%v) on connection %d, want %d", size, err, next, large)
			}
			release(t, cs[next])
		}
		if passed := time.Since(begin); passed != 0 {
			t.Errorf("got %v that passed, want none: somebody polled", passed)
		}
	})
}

// Forty connections wait, each with a small buffer: together more than the share that they wait for.
func TestWaitingReadsDoNotUseUpWhatTheyWaitFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, conns, _ := halfLarge(t, newBuffers(t, ((large+100)/60+1)*100), 40)
		for i, c := range conns {
			if got := granted(conns[i:]); len(got) != 1 || got[0] != 0 {
				t.Fatalf("got memory granted to %v, counted from connection %d, want it alone: all others wait for ever", got, i)
			}
			release(t, c)
		}
	})
}

func TestWaitersLeaveTheQueue(t *testing.T) {
	for name, leave := range map[string]struct {
		do   func(*Conn)
		want error
	}{
		"close": {func(c *Conn) { c.Close("test") }, ErrClosed},
		"pause": {func(c *Conn) { c.Pause() }, ErrPaused},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, conns, reads := halfLarge(t, newBuffers(t, ((large+100)/60+1)*100), 6)
				for _, i := range []int{1, 3, 5} { // in front, in the middle and behind
					leave.do(conns[i])
					if !reads[i].settled() || !errors.Is(reads[i].value.err, leave.want) {
						t.Fatalf("got %v from read %d, which waits for memory, want %v at once", reads[i].value.err, i, leave.want)
					}
				}
				for _, pair := range [][2]int{{0, 2}, {2, 4}} {
					release(t, conns[pair[0]])
					if got := granted(conns); len(got) != 1 || got[0] != pair[1] {
						t.Fatalf("got memory granted to %v, want connection %d: the others have gone", got, pair[1])
					}
				}
				conns[1].Resume()
				if r := startLarge(conns[1], large); r.settled() != conns[1].Closed() {
					t.Fatalf("read 1 returned %v, want it to wait for memory again", r.value.err)
				}
			})
		})
	}
}

// One that gives up its place in front may have kept a smaller one behind it from memory that is there.
func TestTheNextMayFitWhereTheFirstDidNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBuffers(t, 400<<20)
		first := b.reserve(100<<20, Requests)
		tooMuch := b.reserve(150<<20, Requests)
		small := b.reserve(70<<10, Requests)
		if !b.granted(first) || b.granted(tooMuch) || b.granted(small) {
			t.Fatalf("got grants %v %v %v of 100, 150 MiB and 70 KiB in 200 MiB, want the first alone, the last behind the second",
				b.granted(first), b.granted(tooMuch), b.granted(small))
		}
		if buf := b.collect(tooMuch); buf != nil {
			t.Errorf("got %d bytes for a ticket that was not granted, want nil", len(buf))
		}
		if !b.granted(small) {
			t.Error("the small one still waits, want it granted now that the one in front has left")
		}
		b.Put(b.collect(first))
		b.Put(b.collect(small))
	})
}

// A frame as large as the share fits, whatever its connection holds already; one byte more never will.
func TestFrameOfTheWholeShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		buffers := newBuffers(t, ((large+100)/60+1)*100)
		share := int(buffers.limit(Requests)) &^ (1<<20 - 1) // buffers have whole MiB
		for _, test := range []struct {
			need int
			want string
		}{{share, ""}, {share + 1, ReasonNoMemory}} {
			k := newKernel(1)
			c := k.conn(t, buffers, roomy)
			k.send(make([]byte, share+1))
			if !startLarge(c, test.need).settled() {
				t.Fatalf("a read of %d bytes waits, with a share of %d and nobody else there", test.need, share)
			}
			if got := c.Reason(); got != test.want {
				t.Errorf("got reason %q for a frame of %d bytes with a share of %d, want %q", got, test.need, share, test.want)
			}
			release(t, c)
		}
	})
}

// The connection that waits for memory may be the one whose write queue holds it, and its writer gives it back.
func TestMemoryComesFromTheOwnWriteQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		buffers := newBuffers(t, ((large+100)/60+1)*100)
		k := newKernel(1000)
		c := k.conn(t, buffers, roomy)
		defer release(t, c)
		if v := c.AppendOwned(buffers.Get(large)); v != First {
			t.Fatalf("got verdict %d for a frame that was handed over, want First", v)
		}
		c.Flush()
		k.send(make([]byte, large))
		r := startLarge(c, large)
		if r.settled() {
			t.Fatal("the read got memory, want it to wait: the share is used up by the queue")
		}
		if got := len(k.takeAll()); got != large {
			t.Fatalf("got %d bytes written, want %d", got, large)
		}
		if !r.settled() || len(r.value.bytes) != large {
			t.Errorf("got %d bytes, %v, want the frame now that the queue has given its memory back", len(r.value.bytes), r.value.err)
		}
	})
}

// The half of a large frame that another process had read is memory that others may wait for: it does not wait itself.
func TestAdoptedHalvesDoNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		buffers := newBuffers(t, ((large+100)/60+1)*100)
		_, _, waiting := halfLarge(t, buffers, 2)
		if waiting[1].settled() {
			t.Fatal("the second read has memory, want it to wait")
		}
		frame := appendFrame(nil, 9, 9, large)
		k := newKernel(1)
		c, err := adopt(Detached{Socket: k, Unread: frame[:large-100]}, k.system(), buffers, roomy)
		if err != nil {
			t.Fatalf("adopting: %v", err)
		}
		defer release(t, c)
		k.send(frame[large-100:])
		r := startRead(c, large)
		if !r.settled() || r.value.bytes != string(frame) {
			t.Errorf("got %d bytes, %v of a frame whose first part was adopted, want all %d", len(r.value.bytes), r.value.err, large)
		}
	})
}

func TestOwnedFrameIsNotCopied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 100 << 10
		buffers := newBuffers(t, 16<<20)
		from, to := newKernel(1), newKernel(1<<20)
		down, up := from.conn(t, buffers, roomy), to.conn(t, buffers, roomy)
		defer release(t, down)
		defer release(t, up)
		frame := appendFrame(nil, 1, 1, size)
		from.send(append(frame[:size:size], "the next frame"...))

		p, err := down.Read(size)
		if err != nil || len(p) != size {
			t.Fatalf("got %d bytes, %v from Read, want the frame and nothing behind it, %d bytes", len(p), err, size)
		}
		owned := down.Own(size)
		if unsafe.SliceData(owned) != unsafe.SliceData(p) {
			t.Fatal("Own copied the frame, want the read buffer itself")
		}
		if down.Held() != 0 || down.w-down.r != 0 {
			t.Errorf("got %d bytes held, %d unread by the connection that gave its buffer away, want 0", down.Held(), down.w-down.r)
		}
		if v := up.AppendOwned(owned); v != First {
			t.Fatalf("got verdict %d, want First", v)
		}
		if unsafe.SliceData(up.queue[0].buf) != unsafe.SliceData(p) {
			t.Error("AppendOwned copied the frame, want the buffer itself in the queue")
		}
		if held := up.Held(); held != size256K || buffers.Used() != held {
			t.Errorf("got %d bytes held and %d used, want %d of both: the buffer has moved", held, buffers.Used(), size256K)
		}
		up.Flush()
		if got := string(to.takeAll()); got != string(frame) {
			t.Errorf("got %d bytes that differ from the frame of %d", len(got), size)
		}
		if r := startRead(down, 1); !r.settled() || r.value.bytes != "the next frame" {
			t.Errorf("got %q, %v behind the frame that was given away, want the next one", r.value.bytes, r.value.err)
		}
	})
}

func TestOwnLeavesSmallFramesToBeCopied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(1)
		c := k.conn(t, newBuffers(t, 16<<20), roomy)
		defer release(t, c)
		k.send(make([]byte, 100))
		if _, err := c.Read(100); err != nil {
			t.Fatalf("reading: %v", err)
		}
		if c.Own(100) != nil || c.w-c.r != 100 {
			t.Error("Own gave a small read buffer away, want nil and the bytes where they were")
		}
		k.send(make([]byte, 100<<10))
		if _, err := c.Read(100 << 10); err != nil {
			t.Fatalf("reading: %v", err)
		}
		if c.Own(50) != nil || c.Own(101<<10) != nil {
			t.Error("Own gave a buffer away that holds another number of bytes than the frame, want nil")
		}
	})
}

// Whoever is refused keeps its buffer.
func TestRefusedOwnedFrameStaysTheCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		buffers := newBuffers(t, 16<<20)
		c := newKernel(0).conn(t, buffers, Config{High: 1000, MaxQueued: 10})
		frame := buffers.Get(100)
		for i, want := range []Verdict{First, Appended, Full} {
			if v := c.Append(make([]byte, 10)); v != want {
				t.Errorf("got verdict %d for append %d with %d bytes queued and a bound of 10, want %d", v, i, c.Queued(), want)
			}
		}
		held := c.Held()
		if v := c.AppendOwned(frame); v != Full {
			t.Errorf("got verdict %d above the bound, want Full", v)
		}
		c.Close("test")
		if v := c.AppendOwned(frame); v != Refused {
			t.Errorf("got verdict %d on a closed connection, want Refused", v)
		}
		if v := c.Append(frame); v != Refused {
			t.Errorf("got verdict %d on a closed connection, want Refused", v)
		}
		if c.Held() != held {
			t.Errorf("got %d bytes held, want %d as before: nothing was taken", c.Held(), held)
		}
		buffers.Put(frame)
		release(t, c)
	})
}

// Replies come first: however many requests are read, the largest reply gets its memory once that is free.
func TestRequestsDoNotStarveReplies(t *testing.T) {
	b := newBuffers(t, 10*size1M+1000)
	get := func(mib int, class Class) *ticket { return b.reserve(mib*size1M, class) }
	requests := []*ticket{get(3, Requests), get(3, Requests)}
	reply := get(7, Replies)
	later := []*ticket{get(3, Requests), get(3, Requests)}
	state := func(wantReply, wantLater bool, why string) {
		t.Helper()
		if r, l := b.granted(reply), b.granted(later[0]); r != wantReply || l != wantLater {
			t.Fatalf("got the reply of 7 MiB granted %v, a later request of 3 granted %v, want %v, %v: %s", r, l, wantReply, wantLater, why)
		}
	}
	state(false, false, "6 of 10 MiB are used")
	b.Put(b.collect(requests[0]))
	state(false, false, "the reply is first, and 3 MiB are still used")
	b.Put(b.collect(requests[1]))
	state(true, false, "all is free, and the reply is first")
	b.Put(b.collect(reply))
	state(true, true, "no reply waits")
	for _, t := range later {
		b.Put(b.collect(t))
	}
}
