package conn

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// readFrames is a read loop that counts whole frames of one size, until the connection is closed or asked to leave.
func readFrames(c *Conn, size int, frames *int) error {
	need := 1
	for {
		p, err := c.Read(need)
		if err != nil {
			return err
		}
		whole := len(p) / size
		*frames += whole
		c.Advance(whole * size)
		need = 1
		if len(p) > whole*size {
			need = size
		}
	}
}

// A gate that is shut between frames stops a stream whose reads always end inside one: at the end of that one.
func TestMemoryGateStopsAStreamAtTheNextFrame(t *testing.T) {
	for name, tail := range map[string]int{"a short part": 10, "a long part": 9_000, "no part": 0} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const size = 10_000
				k := newKernel(1)
				c := k.conn(t, newBuffers(t, 16<<20), roomy)
				defer release(t, c)
				frames := 0
				loop := start(func() error { return readFrames(c, size, &frames) })
				k.send(make([]byte, 3*size+tail))
				synctest.Wait()
				c.GateMemory(true)
				synctest.Wait()
				for range 20 {
					k.send(make([]byte, size)) // the peer goes on as if nothing were
					synctest.Wait()
				}
				want := 3
				if tail > 0 {
					want = 4
				}
				if frames != want {
					t.Errorf("got %d frames read behind a gate that was shut %d bytes into a frame, want %d", frames, tail, want)
				}
				if held := c.Held(); held != 0 {
					t.Errorf("got %d bytes held behind the gate, want 0: the connection is between frames", held)
				}
				calls := k.callsOf(reading)
				c.GateMemory(false)
				synctest.Wait()
				if frames != 23 {
					t.Errorf("got %d frames after the gate was opened, want all 23", frames)
				}
				if calls = k.callsOf(reading) - calls; calls > 12 {
					t.Errorf("got %d reads for 200 kB, want at most 12: the loop reads through a keyhole", calls)
				}
				c.Close("test")
				if !loop.settled() {
					t.Error("the loop still runs on a closed connection")
				}
			})
		})
	}
}

// A stronger gate stops the loop in the middle of a frame that the memory gate let pass.
func TestGatesOfBothKindsTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(1)
		c := k.conn(t, newBuffers(t, 16<<20), roomy)
		defer release(t, c)
		k.send([]byte("half"))
		r := startRead(c, 8)
		synctest.Wait()
		c.GateMemory(true)
		if r.settled() {
			t.Fatal("the read ended inside a frame, want it to go on behind the memory gate")
		}
		if calls := k.callsOf(reading); calls > 6 {
			t.Errorf("got %d reads, want at most 6: the loop spins behind its own deadline", calls)
		}
		c.Pause()
		if !r.settled() || !errors.Is(r.value.err, ErrPaused) {
			t.Fatalf("got %v from a read inside a frame, the memory gate shut, want ErrPaused at once", r.value.err)
		}
		c.Resume()
		r = startRead(c, 8)
		k.send([]byte("half"))
		if !r.settled() || r.value.bytes != "halfhalf" {
			t.Errorf("got %q, %v after Resume, want the whole frame, the memory gate still shut", r.value.bytes, r.value.err)
		}
		k.send([]byte("next"))
		if r = startRead(c, 4); r.settled() {
			t.Errorf("got %q, %v, want the next frame behind the gate", r.value.bytes, r.value.err)
		}
		c.GateMemory(false)
		if !r.settled() || r.value.bytes != "next" {
			t.Errorf("got %q, %v after the gate was opened, want the next frame", r.value.bytes, r.value.err)
		}
	})
}

func TestLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(1)
		c := k.conn(t, newBuffers(t, 16<<20), roomy)
		defer release(t, c)
		r := startRead(c, 4)
		synctest.Wait()
		c.Leave()
		if !r.settled() || !errors.Is(r.value.err, ErrLeaving) || c.Closed() {
			t.Fatalf("got %v (closed %v) from a read with nothing unread, want ErrLeaving at once", r.value.err, c.Closed())
		}
		// Only once: whoever changes its mind reads on.
		k.send([]byte("ab"))
		r = startRead(c, 4)
		synctest.Wait()
		c.Leave()
		if r.settled() {
			t.Fatalf("got %v from a read inside a frame, want it to read the rest", r.value.err)
		}
		k.send([]byte("cd"))
		if !r.settled() || r.value.bytes != "abcd" {
			t.Fatalf("got %q, %v, want the rest of the frame that had begun", r.value.bytes, r.value.err)
		}
		if r = startRead(c, 4); !r.settled() || !errors.Is(r.value.err, ErrLeaving) {
			t.Errorf("got %q, %v behind the frame, want ErrLeaving", r.value.bytes, r.value.err)
		}
		done := finish(c, "left")
		time.Sleep(lingerTime)
		if !done.settled() || c.Reason() != "left" {
			t.Errorf("got Finish ended %v with reason %q, want %q", done.settled(), c.Reason(), "left")
		}
	})
}

func TestOverdueRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const s = time.Second
		k := newKernel(1)
		cfg := roomy
		cfg.ReadTimeout, cfg.IdleTimeout = 10*s, 0
		c := k.conn(t, newBuffers(t, 16<<20), cfg)
		defer release(t, c)
		at := func(when time.Duration, want string) {
			t.Helper()
			synctest.Wait()
			if got := c.Overdue(int64(when), true); got != want {
				t.Errorf("got verdict %q at %v, want %q", got, when, want)
			}
		}
		read := func(need int) { startRead(c, need) }
		read(100)
		at(1*s, "")
		at(100*s, "") // nothing has begun
		k.send(make([]byte, 10))
		at(101*s, "")
		at(111*s-1, "")
		k.send(make([]byte, 10))
		at(111*s, "") // progress
		at(121*s-1, "")
		at(121*s, ReasonReadTimeout)
		k.send(make([]byte, 80))
		at(122*s, "") // the frame is whole
		read(100)
		at(200*s, "")
		k.send(make([]byte, 10))
		at(201*s, "")
		c.Pause()
		at(300*s, "") // nobody reads
		c.Resume()
		read(100)
		at(301*s, "")
		at(310*s-1, "")
		if got := c.Stuck(int64(310 * s)); got != int64(310*s) {
			t.Errorf("got stuck for %v, want 310s: nothing was touched", time.Duration(got))
		}
		c.GateMemory(true) // lets the frame pass, so its peer has no excuse
		at(320*s, ReasonReadTimeout)
		c.GateMemory(false)
		k.send(make([]byte, 90))
		at(321*s, "")
		if c.Stuck(int64(330*s)) != 0 || c.LastByte() != int64(321*s) {
			t.Errorf("got stuck %d, last byte at %v between frames, want 0 and 321s", c.Stuck(int64(330*s)), time.Duration(c.LastByte()))
		}
	})
}

// A read that waits for memory does not wait for its peer.
func TestReadTimeoutSparesWhoeverWaitsForMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		buffers := newBuffers(t, 3*large)
		_, conns, reads := halfLarge(t, buffers, 2)
		for _, c := range conns {
			c.cfg.ReadTimeout = 10 * time.Second
		}
		if got := granted(conns); len(got) != 1 || got[0] != 0 {
			t.Fatalf("got memory granted to %v, want the first alone", got)
		}
		for _, now := range []time.Duration{time.Second, time.Minute} {
			want := map[bool]string{true: ReasonReadTimeout}[now == time.Minute]
			if got := conns[0].Overdue(int64(now), true); got != want {
				t.Errorf("got verdict %q at %v for a peer that keeps its frame waiting, want %q", got, now, want)
			}
			if got := conns[1].Overdue(int64(now), true); got != "" {
				t.Errorf("got verdict %q at %v for one that waits for memory, want none", got, now)
			}
		}
		release(t, conns[0])
		if reads[1].settled() {
			t.Errorf("got %v from a read whose frame is not whole, want it to wait for its peer now", reads[1].value.err)
		}
	})
}
