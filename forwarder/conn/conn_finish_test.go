package conn

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

type finished struct {
	err error
	at  time.Time
}

// finish starts Finish and notes when it returned.
func finish(c *Conn, reason string) *call[finished] {
	return start(func() finished {
		err := c.Finish(reason)
		return finished{err, time.Now()}
	})
}

func TestFinishWaitsForTheQueueThenLingers(t *testing.T) {
	for name, test := range map[string]struct {
		during func(*kernel, *Conn)
		want   time.Duration
	}{
		"a silent peer": {func(*kernel, *Conn) {}, lingerTime},
		"a peer that closes": {func(k *kernel, _ *Conn) {
			time.Sleep(100 * time.Millisecond)
			k.fin()
		}, 100 * time.Millisecond},
		"a peer that resets": {func(k *kernel, _ *Conn) {
			time.Sleep(100 * time.Millisecond)
			k.reset()
		}, 100 * time.Millisecond},
		"a peer that goes on sending": {func(k *kernel, _ *Conn) {
			for range 24 {
				time.Sleep(10 * time.Millisecond)
				k.send(make([]byte, 1000))
			}
		}, lingerTime},
		"a peer that sends much": {func(k *kernel, _ *Conn) {
			time.Sleep(100 * time.Millisecond)
			k.send(make([]byte, 2*lingerBytes))
		}, 100 * time.Millisecond},
		"closed by another": {func(_ *kernel, c *Conn) {
			time.Sleep(100 * time.Millisecond)
			c.Close("other")
		}, 100 * time.Millisecond},
		"memory is short": {func(_ *kernel, c *Conn) {
			time.Sleep(100 * time.Millisecond)
			c.GateMemory(true)
		}, lingerTime},
		"memory was short": {func(_ *kernel, c *Conn) {
			c.GateMemory(true)
			time.Sleep(100 * time.Millisecond)
			c.GateMemory(false)
		}, lingerTime},
		"paused while it lingers": {func(_ *kernel, c *Conn) {
			time.Sleep(100 * time.Millisecond)
			c.Pause()
		}, 100 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newKernel(1000)
				c := k.conn(t, newBuffers(t, 1<<20), roomy)
				defer release(t, c)
				c.Append(make([]byte, 3000))
				done := finish(c, "done")
				if done.settled() || k.isFinished() {
					t.Fatalf("got Finish ended %v, the peer told %v with %d bytes queued, want it to wait for them",
						done.settled(), k.isFinished(), c.Queued())
				}
				if got := len(k.takeAll()); got != 3000 {
					t.Fatalf("got %d bytes before the end, want 3000", got)
				}
				if done.settled() || !k.isFinished() {
					t.Fatalf("got Finish ended %v, the peer told %v with all written, want it told, and lingering",
						done.settled(), k.isFinished())
				}
				begin := time.Now()
				go test.during(k, c) // ends by itself
				time.Sleep(time.Hour)
				if !done.settled() {
					t.Fatal("Finish still lingers after an hour")
				}
				if passed := done.value.at.Sub(begin); passed != test.want {
					t.Errorf("got %v of lingering, want %v", passed, test.want)
				}
				if done.value.err != nil || !c.Closed() {
					t.Errorf("got %v from Finish, closed %v, want nil and closed", done.value.err, c.Closed())
				}
				if want := map[bool]string{true: "other", false: "done"}[name == "closed by another"]; c.Reason() != want {
					t.Errorf("got reason %q, want %q", c.Reason(), want)
				}
			})
		})
	}
}

func TestFinishGivesUpAPeerThatTakesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(10)
		c := k.conn(t, newBuffers(t, 1<<20), roomy)
		defer release(t, c)
		c.Append(make([]byte, 100))
		done := finish(c, "done")
		time.Sleep(time.Minute)
		if done.settled() {
			t.Fatal("Finish returned with bytes queued, want it to wait for whoever watches Overdue")
		}
		c.Close(ReasonWriteTimeout)
		if !done.settled() || done.value.err != nil || c.Reason() != ReasonWriteTimeout || k.isFinished() {
			t.Errorf("got Finish ended %v with %v, reason %q, the peer told %v, want it ended at once, nothing told",
				done.settled(), done.value.err, c.Reason(), k.isFinished())
		}
	})
}

// Once the peer was told that no more follows, nothing does.
func TestFinishedTakesNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(100)
		c := k.conn(t, newBuffers(t, 1<<20), roomy)
		defer release(t, c)
		c.Append(make([]byte, 200))
		done := finish(c, "done")
		synctest.Wait()
		if v := c.Append(make([]byte, 300)); v != First {
			t.Fatalf("got verdict %d while Finish waits for the queue, want First: it is waited for too", v)
		}
		if got := len(k.takeAll()); got != 500 {
			t.Errorf("got %d bytes, want 500: all that were appended before the peer was told", got)
		}
		if !k.isFinished() {
			t.Fatal("the peer was not told that no more follows")
		}
		if v := c.Append(make([]byte, 1)); v != Refused {
			t.Errorf("got verdict %d behind the end, want Refused", v)
		}
		atOnce(t, "Flush behind the end", c.Flush)
		if done.settled() {
			t.Error("Finish ended, want it to linger: a refused frame must not cut that short")
		}
		time.Sleep(lingerTime)
		if !done.settled() || c.Reason() != "done" {
			t.Errorf("got Finish ended %v with reason %q, want %q", done.settled(), c.Reason(), "done")
		}
	})
}

// A hand-over may come while a connection waits to be closed: not a byte of its queue is lost.
func TestPauseInterruptsFinish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		buffers := newBuffers(t, 1<<20)
		k := newKernel(100)
		c := k.conn(t, buffers, roomy)
		frame := appendFrame(nil, 1, 1, 5000)
		c.Append(frame)
		done := finish(c, "done")
		got := string(k.take(100))
		synctest.Wait()
		c.Pause()
		if !done.settled() || !errors.Is(done.value.err, ErrPaused) || c.Closed() {
			t.Fatalf("got Finish ended %v with %v, closed %v, want ErrPaused at once, and open",
				done.settled(), done.value.err, c.Closed())
		}
		d, ok := c.Detach()
		if !ok {
			t.Fatal("the paused connection cannot be detached")
		}
		heir := newKernel(100)
		heir.out = k.out
		release(t, c)

		d.Socket = heir
		c, err := adopt(d, heir.system(), buffers, roomy)
		if err != nil {
			t.Fatalf("adopting: %v", err)
		}
		defer release(t, c)
		done = finish(c, "done")
		got += string(heir.takeAll())
		if got != string(frame) {
			t.Errorf("got %d bytes of both processes, want the frame of %d as it was", len(got), len(frame))
		}
		time.Sleep(lingerTime)
		if !done.settled() || c.Reason() != "done" {
			t.Errorf("got Finish ended %v with reason %q, want it ended with %q", done.settled(), c.Reason(), "done")
		}
	})
}

// A hand-over does not wait for a connection that lingers, whenever it comes.
func TestPauseAsThePeerIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(100)
		sys := k.system()
		var c *Conn
		sys.finish = func(fd uintptr) {
			k.sysFinish(fd)
			c.Pause()
		}
		c, err := newConn(k, sys, newBuffers(t, 1<<20), roomy)
		if err != nil {
			t.Fatal(err)
		}
		defer release(t, c)
		done := finish(c, "done")
		if !done.settled() || done.value.err != nil || c.Reason() != "done" {
			t.Errorf("got Finish ended %v with %v, reason %q, want it ended at once, the peer is told", done.settled(), done.value.err, c.Reason())
		}
	})
}
