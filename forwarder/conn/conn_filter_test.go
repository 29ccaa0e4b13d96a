package conn

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestFilterGates: each gate of a filter stops the reads at once and lets them go on at once, and each by itself.
func TestFilterGates(t *testing.T) {
	gates := map[string]func(*Conn, bool){"filter": (*Conn).GateFilter, "held": (*Conn).GateHeld}
	for name, gate := range gates {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newKernel(1 << 20)
				c := k.conn(t, newBuffers(t, 1<<20), roomy)
				defer release(t, c)
				read := startRead(c, 1)
				synctest.Wait()
				gate(c, true)
				gate(c, true)
				k.send([]byte("bytes"))
				if read.settled() || k.unread() != 5 || !c.Gated() {
					t.Fatalf("got a read with the gate shut (%d bytes unread, gated = %v), want it to wait", k.unread(), c.Gated())
				}
				for _, other := range gates {
					other(c, true)
				}
				gate(c, false)
				if read.settled() {
					t.Fatalf("got a read with the other gate shut, want it to wait")
				}
				for _, other := range gates {
					other(c, false)
				}
				if !read.settled() || read.value.bytes != "bytes" || c.Gated() {
					t.Errorf("got %q, %v and gated = %v with the gates open, want the bytes", read.value.bytes, read.value.err, c.Gated())
				}
			})
		})
	}
}

// TestAwait: it reads nothing, waits for what Read waits for, and says what Read says.
func TestAwait(t *testing.T) {
	await := func(c *Conn) *call[error] { return start(c.Await) }
	for name, c := range map[string]struct {
		wake func(*Conn)
		want error
	}{
		"open":   {func(c *Conn) { c.GateFilter(false) }, nil},
		"closed": {func(c *Conn) { c.Close("test") }, ErrClosed},
		"paused": {(*Conn).Pause, ErrPaused},
		"leave":  {(*Conn).Leave, ErrLeaving},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newKernel(1 << 20)
				buffers := newBuffers(t, 1<<20)
				conn := k.conn(t, buffers, roomy)
				defer release(t, conn)
				k.send([]byte("bytes"))
				if a := await(conn); !a.settled() || a.value != nil {
					t.Fatalf("got %v from Await with the gate open, want nil at once", a.value)
				}
				conn.GateFilter(true)
				a := await(conn)
				if a.settled() {
					t.Fatalf("got %v from Await with the gate shut, want it to wait", a.value)
				}
				c.wake(conn)
				if !a.settled() || !errors.Is(a.value, c.want) {
					t.Errorf("got %v from Await, want %v", a.value, c.want)
				}
				if k.unread() != 5 || buffers.Used() != 0 {
					t.Errorf("got %d of 5 bytes unread and %d bytes of buffers, want Await to read nothing", k.unread(), buffers.Used())
				}
			})
		})
	}
}

// TestInFrameOfAnother: a read loop that holds part of a frame itself is in the middle of one for the gates between
// frames and for read_timeout.
func TestInFrameOfAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := roomy
		cfg.ReadTimeout = 10 * time.Second
		k := newKernel(1 << 20)
		c := k.conn(t, newBuffers(t, 1<<20), cfg)
		defer release(t, c)
		c.InFrame(true)
		c.GateMemory(true)
		read := startRead(c, 1)
		if read.settled() {
			t.Fatalf("got %q, %v with nothing sent, want the read to wait for the peer", read.value.bytes, read.value.err)
		}
		c.Overdue(1, true)
		if got := c.Overdue(1+int64(10*time.Second), true); got != ReasonReadTimeout {
			t.Errorf("got verdict %q 10 s behind the last byte of a frame that has begun, want %q", got, ReasonReadTimeout)
		}
		k.send([]byte("the rest"))
		if !read.settled() || read.value.bytes != "the rest" {
			t.Errorf("got %q, %v with the memory gate shut, want the rest of the frame", read.value.bytes, read.value.err)
		}
		c.InFrame(false)
		k.send([]byte("next"))
		next := startRead(c, 1)
		if next.settled() {
			t.Errorf("got %q between frames with the memory gate shut, want it to wait", next.value.bytes)
		}
		c.GateMemory(false)
		if !next.settled() || next.value.bytes != "next" {
			t.Errorf("got %q, %v with the gate open, want the bytes", next.value.bytes, next.value.err)
		}
	})
}

// TestLimit bounds what one read brings.
func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(1 << 20)
		c := k.conn(t, newBuffers(t, 1<<20), roomy)
		defer release(t, c)
		k.send([]byte("0123456789"))
		for _, step := range []struct {
			limit int
			want  string
		}{{3, "012"}, {4, "3456"}, {0, "789"}} {
			c.Limit(step.limit)
			if read := startRead(c, 1); !read.settled() || read.value.bytes != step.want {
				t.Errorf("got %q, %v with a limit of %d, want %q", read.value.bytes, read.value.err, step.limit, step.want)
			}
		}
	})
}

// TestBuffersOfAnother: what the read loop holds beside the connection's own buffers counts as the connection's, and a
// large one is waited for.
func TestBuffersOfAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(1 << 20)
		buffers := newBuffers(t, 8<<20)
		c := k.conn(t, buffers, roomy)
		defer release(t, c)
		small, large := c.Get(100), c.Reserve(4<<20)
		if want := int64(len(small) + len(large)); c.Held() != want || buffers.Used() != want || len(large) < 4<<20 {
			t.Fatalf("got %d bytes held and %d used with buffers of %d and %d, want their sum", c.Held(), buffers.Used(), len(small), len(large))
		}
		waits := start(func() []byte { return c.Reserve(2 << 20) })
		if waits.settled() {
			t.Fatalf("got %d bytes behind the share for requests, want Reserve to wait", len(waits.value))
		}
		c.Disown(large)
		if c.Held() != int64(len(small)) {
			t.Errorf("got %d bytes held behind Disown, want the %d that are left", c.Held(), len(small))
		}
		buffers.Put(large)
		if !waits.settled() || len(waits.value) < 2<<20 {
			t.Fatalf("got %d bytes once there was room, want 2 MiB", len(waits.value))
		}
		waits2 := start(func() []byte { return c.Reserve(4 << 20) })
		if waits2.settled() {
			t.Fatalf("got %d bytes behind the share for requests, want Reserve to wait", len(waits2.value))
		}
		c.Close("test")
		if !waits2.settled() || waits2.value != nil {
			t.Errorf("got %d bytes from Reserve on a closed connection, want nil", len(waits2.value))
		}
		c.Put(small)
		c.Put(waits.value)
		c.Put(nil)
		other := buffers.Get(10)
		c.Claim(other)
		c.Put(other)
	})
}
