package conn

import (
	"errors"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
)

// A connection is detached in the middle of a frame in both directions, and goes on elsewhere.
func TestDetachAndAdopt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		buffers := newBuffers(t, 1<<20)
		k := newKernel(300)
		c := k.conn(t, buffers, roomy)
		if _, ok := c.Detach(); ok {
			t.Fatal("a connection in use was detached, want false")
		}
		k.send([]byte("half of"))
		r := startRead(c, 100)
		c.Touch(42)
		out := append(appendFrame(nil, 1, 0, 200), appendFrame(nil, 1, 1, 200)...)
		c.Append(out[:200])
		c.Append(out[200:])
		c.Flush()
		synctest.Wait()
		c.Pause()
		if !r.settled() || writers() != 0 {
			t.Fatalf("got the read ended %v and %d writers of a paused connection, want both ended", r.settled(), writers())
		}
		for range 2 { // a hand-over that fails changes nothing
			d, ok := c.Detach()
			if !ok {
				t.Fatal("a paused connection was not detached")
			}
			want := Detached{
				Unread: []byte("half of"), Unsent: []Queued{{Frames: out, Sent: 300}},
				LastRead: 42, RX: 7, TX: 300,
			}
			if d.Socket != Socket(k) {
				t.Error("got another socket than the connection's")
			}
			d.Socket = nil
			if diff := cmp.Diff(want, d); diff != "" {
				t.Errorf("the detached state is wrong (-want +got):\n%s", diff)
			}
		}
		d, _ := c.Detach()
		late := appendFrame(nil, 1, 2, 200)
		if v := c.Append(late); v != First {
			t.Errorf("got verdict %d on a paused connection, want First", v)
		}
		atOnce(t, "Flush of a paused connection", c.Flush)
		if got := len(k.take(1000)); got != 300 {
			t.Errorf("got %d bytes in the kernel, want the 300 from before the pause", got)
		}
		release(t, c)

		heir := newKernel(50)
		d.Socket = heir
		c, err := adopt(d, heir.system(), buffers, roomy)
		if err != nil {
			t.Fatalf("adopting: %v", err)
		}
		defer release(t, c)
		heir.send([]byte(" it"))
		synctest.Wait()
		if heir.callsOf(reading)+heir.callsOf(writing) != 0 {
			t.Error("an adopted connection read or wrote before it was told to")
		}
		if rx, tx := c.Bytes(); rx != 7 || tx != 300 || c.LastRead() != 42 || c.Queued() != 100 || c.w-c.r != 7 {
			t.Errorf("got %d and %d bytes, last read %d, %d queued, %d unread, want 7, 300, 42, 100, 7",
				rx, tx, c.LastRead(), c.Queued(), c.w-c.r)
		}
		r = startRead(c, 10)
		c.Flush()
		if !r.settled() || r.value.bytes != "half of it" {
			t.Errorf("got %q, %v, want both halves", r.value.bytes, r.value.err)
		}
		if got := string(heir.takeAll()); got != string(out[300:]) {
			t.Errorf("got %q, want the rest of the frame, %q", got, out[300:])
		}
		startRead(c, 1)
		synctest.Wait()
		if c.Held() != 0 {
			t.Errorf("got %d bytes held with nothing left, want 0", c.Held())
		}
	})
}

func TestAdoptedQueueAboveHighShutsTheGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := roomy
		cfg.High, cfg.Low = 100, 50
		k := newKernel(1000)
		c, err := adopt(Detached{Socket: k, Unsent: []Queued{{make([]byte, 200), 99}}}, k.system(), newBuffers(t, 1<<20), cfg)
		if err != nil {
			t.Fatalf("adopting: %v", err)
		}
		defer release(t, c)
		k.send([]byte("x"))
		r := startRead(c, 1)
		if r.settled() || !c.Gated() {
			t.Fatalf("got the read ended %v, gated %v with %d bytes queued, want it to wait", r.settled(), c.Gated(), c.Queued())
		}
		c.Flush()
		if !r.settled() || r.value.bytes != "x" {
			t.Errorf("got the read ended %v with %q, want the gate open and the byte", r.settled(), r.value.bytes)
		}
	})
}

// Rolling back takes up what Pause put down, a frame that was appended meanwhile included.
func TestResumeWritesWhatWasAppendedMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(50)
		c := k.conn(t, newBuffers(t, 1<<20), roomy)
		defer release(t, c)
		var want []byte
		add := func() {
			frame := appendFrame(nil, 1, len(want), 100)
			want = append(want, frame...)
			if c.Append(frame) == First {
				c.Flush()
			}
			synctest.Wait()
		}
		var got []byte
		for range 5 {
			add()
			c.Pause()
			c.Pause() // twice is fine
			add()
			got = append(got, k.take(50)...)
			add()
			c.Resume()
			c.Resume()
			synctest.Wait()
		}
		got = append(got, k.takeAll()...)
		if string(got) != string(want) {
			t.Errorf("got %d bytes that are not the %d appended", len(got), len(want))
		}
	})
}

func TestClosedConnectionsAreNotDetached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(50)
		c := k.conn(t, newBuffers(t, 1<<20), roomy)
		c.Append(make([]byte, 100))
		c.Flush()
		c.Pause()
		c.Close("test")
		if _, ok := c.Detach(); ok {
			t.Error("a connection that was closed in its pause was detached, want false")
		}
		atOnce(t, "Resume of a closed connection", c.Resume)
		atOnce(t, "Pause of a closed connection", c.Pause)
		if !c.Closed() || c.Reason() != "test" {
			t.Errorf("got closed %v for %q after Resume, want it closed for good", c.Closed(), c.Reason())
		}
		release(t, c)
	})
}

// What stands for a peer that has left takes nothing, and says why.
func TestGone(t *testing.T) {
	c := Gone(ReasonPeerClosed)
	if !c.Closed() || c.Reason() != ReasonPeerClosed || c.Close("again") || c.Queued() != 0 || c.Held() != 0 {
		t.Errorf("got closed %v for %q, want it closed for %q before", c.Closed(), c.Reason(), ReasonPeerClosed)
	}
	if v := c.Append([]byte("frame")); v != Refused {
		t.Errorf("got verdict %d, want Refused", v)
	}
	if v := c.AppendOwned(make([]byte, 100_000)); v != Refused {
		t.Errorf("got verdict %d for a large frame, want Refused", v)
	}
	c.Flush()
	c.Pause()
	c.Resume()
	c.GateMemory(true)
	c.Leave()
	if _, ok := c.Detach(); ok {
		t.Error("got it detached, want nothing to hand over")
	}
	if _, err := c.Read(1); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v from Read, want ErrClosed", err)
	}
	c.Release()
}

// A paused connection is at rest only when its writer has ended, with all that it does for others.
func TestAwaitWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		buffers := newBuffers(t, 1<<20)
		k := newKernel(300)
		entered, let := make(chan struct{}), make(chan struct{})
		cfg := roomy
		cfg.High, cfg.Low = 400, 100
		cfg.Drained = func() { close(entered); <-let }
		c := k.conn(t, buffers, cfg)
		c.Append(appendFrame(nil, 1, 0, 500))
		c.Flush()
		k.take(300) // the writer goes on, and the queue comes down
		<-entered
		c.Pause()
		done := make(chan struct{})
		go func() { c.AwaitWriter(); close(done) }() // ends with the writer
		synctest.Wait()
		select {
		case <-done:
			t.Error("got AwaitWriter back while the writer works for others, want it to wait")
		default:
		}
		close(let)
		<-done
		if n := writers(); n != 0 {
			t.Errorf("got %d writers, want none", n)
		}
		c.Resume()
		atOnce(t, "AwaitWriter of a connection that is not paused", c.AwaitWriter)
		k.take(300)
		release(t, c)
	})
}

// That it was taken over is no byte of the peer's: who looks for signs of life sees none.
func TestAdoptedIsNoSignOfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := roomy
		cfg.ReadTimeout, cfg.IdleTimeout = 50, 1000
		k := newKernel(300)
		c, err := adopt(Detached{Socket: k, Unread: []byte("half"), LastRead: 100, RX: 7, TX: 9}, k.system(), newBuffers(t, 1<<20), cfg)
		if err != nil {
			t.Fatal(err)
		}
		r := startRead(c, 100)
		synctest.Wait()
		if reason := c.Overdue(500, true); reason != "" || c.LastByte() != 100 {
			t.Errorf("got overdue %q and the last byte at %d, want neither a timeout at the first look nor a byte since 100", reason, c.LastByte())
		}
		if reason := c.Overdue(549, true); reason != "" {
			t.Errorf("got overdue %q within its time, want not", reason)
		}
		if reason := c.Overdue(550, true); reason != ReasonReadTimeout {
			t.Errorf("got overdue %q behind its time, want %q", reason, ReasonReadTimeout)
		}
		c.Close("test")
		synctest.Wait()
		_ = r.settled()
		release(t, c)
	})
}
