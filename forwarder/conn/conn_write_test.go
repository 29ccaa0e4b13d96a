package conn

import (
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

func TestFlushNeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(1000)
		c := k.conn(t, newBuffers(t, 16<<20), roomy)
		defer release(t, c)
		begin := time.Now()
		frame := appendFrame(nil, 1, 1, 1000)

		c.Append(frame)
		atOnce(t, "Flush of what the kernel takes", c.Flush)
		if n := writers(); n != 0 {
			t.Errorf("got %d writers with nothing left to write, want none", n)
		}
		for round := range 3 {
			c.Append(frame)
			c.Append(frame)
			atOnce(t, "Flush of more than the kernel takes", c.Flush)
			if n := writers(); n != 1 {
				t.Errorf("got %d writers with %d bytes queued, want 1", n, c.Queued())
			}
			c.Append(frame)
			atOnce(t, "Flush while the writer waits", c.Flush)
			if n := writers(); n != 1 {
				t.Errorf("got %d writers, want 1: the second flush must leave its bytes to the first", n)
			}
			calls := k.callsOf(writing)
			got := k.takeAll()
			if len(got) != 4000-1000*min(round, 1) {
				t.Fatalf("got %d bytes from the writer in round %d, want all that were queued", len(got), round)
			}
			for ; len(got) > 0; got = got[1000:] {
				if _, _, size, err := checkFrame(got); err != nil || size != 1000 {
					t.Fatalf("got a frame of %d bytes, %v, want it as it was appended", size, err)
				}
			}
			if n := writers(); n != 0 || c.Held() != 0 {
				t.Errorf("got %d writers and %d bytes held with nothing left to write, want 0 of both", n, c.Held())
			}
			if calls = k.callsOf(writing) - calls; calls > 12 {
				t.Errorf("got %d writes for 4 frames, want at most 12: the writer spins", calls)
			}
		}
		if passed := time.Since(begin); passed != 0 {
			t.Errorf("got %v that passed, want none: somebody polled", passed)
		}
	})
}

func TestCloseWakesReaderAndWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(10)
		c := k.conn(t, newBuffers(t, 16<<20), roomy)
		r := startRead(c, 1)
		c.Append(make([]byte, 100))
		c.Flush()
		if r.settled() || writers() != 1 {
			t.Fatalf("got the read ended %v and %d writers, want both waiting", r.settled(), writers())
		}
		begin := time.Now()
		atOnce(t, "Close", func() { c.Close("test") })
		if !r.settled() || writers() != 0 || !time.Now().Equal(begin) {
			t.Errorf("got the read ended %v, %d writers and %v passed, want both woken at once", r.settled(), writers(), time.Since(begin))
		}
		atOnce(t, "Flush of a closed connection", c.Flush)
		if calls := k.callsOf(writing); calls != 2 {
			t.Errorf("got %d writes, want the 2 before the close", calls)
		}
		release(t, c)
	})
}

func TestWriteErrorCloses(t *testing.T) {
	for name, window := range map[string]int{"in a flush": 1 << 20, "in the writer": 10} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newKernel(window)
				c := k.conn(t, newBuffers(t, 16<<20), roomy)
				defer release(t, c)
				if window < 100 {
					c.Append(make([]byte, 100))
					c.Flush()
					synctest.Wait()
					k.reset()
				} else {
					k.reset()
					c.Append(make([]byte, 100))
					c.Flush()
				}
				synctest.Wait()
				if c.Reason() != ReasonReset || writers() != 0 {
					t.Errorf("got reason %q and %d writers after an error of the kernel, want %q and none", c.Reason(), writers(), ReasonReset)
				}
				if v := c.Append(make([]byte, 1)); v != Refused {
					t.Errorf("got verdict %d, want Refused", v)
				}
			})
		})
	}
}

func TestOverdueWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(100)
		cfg := roomy
		cfg.WriteTimeout = 10 * time.Second
		c := k.conn(t, newBuffers(t, 1<<20), cfg)
		defer release(t, c)
		begin := time.Now()
		at := func(when time.Duration, want string) {
			t.Helper()
			time.Sleep(time.Until(begin.Add(when)))
			synctest.Wait()
			if got := c.Overdue(int64(when), true); got != want {
				t.Errorf("got verdict %q at %v with %d bytes queued, want %q", got, when, c.Queued(), want)
			}
		}
		at(1*time.Second, "")
		at(100*time.Second, "")
		c.Append(make([]byte, 400))
		c.Flush()
		at(101*time.Second, "") // first seen: 100 taken, 300 queued
		at(111*time.Second-1, "")
		k.take(1)
		at(111*time.Second, "") // progress, if little
		at(121*time.Second-1, "")
		at(121*time.Second, ReasonWriteTimeout)
		k.take(1)
		at(122*time.Second, "")
		k.takeAll()
		at(140*time.Second, "")
		c.Append(make([]byte, 400)) // the time begins anew
		c.Flush()
		at(141*time.Second, "")
		at(151*time.Second-1, "")
		at(151*time.Second, ReasonWriteTimeout)
		k.takeAll()
	})
}

// The time begins when the peer was first seen to take nothing, not when there was last nothing to take.
func TestOverdueWriteBeginsWithTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const s = time.Second
		k := newKernel(100)
		cfg := roomy
		cfg.WriteTimeout = 10 * s
		c := k.conn(t, newBuffers(t, 1<<20), cfg)
		defer release(t, c)
		c.Append(make([]byte, 100)) // from now on the kernel is full
		c.Flush()
		for _, step := range []struct {
			at   time.Duration
			want string
		}{{1 * s, ""}, {50 * s, ""}, {60 * s, ""}, {70*s - 1, ""}, {70 * s, ReasonWriteTimeout}} {
			if step.at == 60*s {
				c.Append(make([]byte, 100))
				c.Flush()
				synctest.Wait()
			}
			if got := c.Overdue(int64(step.at), true); got != step.want {
				t.Errorf("got verdict %q at %v with %d bytes queued since 60s, want %q", got, step.at, c.Queued(), step.want)
			}
		}
	})
}

func TestOverdueIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := roomy
		cfg.IdleTimeout = time.Minute
		c := newKernel(0).conn(t, newBuffers(t, 1<<20), cfg)
		defer release(t, c)
		at := func(when time.Duration, busy bool, want string) {
			t.Helper()
			if got := c.Overdue(int64(when), busy); got != want {
				t.Errorf("got verdict %q at %v (busy %v, gated %v), want %q", got, when, busy, c.Gated(), want)
			}
		}
		const s = time.Second
		c.Touch(int64(100 * s))
		at(160*s-1, false, "")
		at(160*s, false, ReasonIdle)
		at(160*s, true, "")
		at(900*s, true, "")
		at(901*s, false, "") // a request that took long has just been answered
		at(960*s-1, false, "")
		at(960*s, false, ReasonIdle)
		c.Touch(int64(961 * s))
		at(1021*s-1, false, "")
		at(1021*s, false, ReasonIdle)
		c.GateMemory(true)
		at(2000*s, false, "") // it may not read, so it is not to blame
		c.GateMemory(false)
		at(2001*s, false, "")
		at(2060*s, false, ReasonIdle)
	})
}

func TestIdleZeroMeansForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newKernel(0).conn(t, newBuffers(t, 1<<20), roomy)
		defer release(t, c)
		if got := c.Overdue(1<<62, false); got != "" {
			t.Errorf("got verdict %q without an idle timeout, want none", got)
		}
	})
}

// TestQueueModel appends, flushes, drains, pauses and resumes in any order on a kernel that takes what it likes, beside a
// model of the queue. Only who got First flushes, some time later.
func TestQueueModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rapid.SyncTest(t, func(t *rapid.T) {
			k := newKernel(rapid.IntRange(1, 100_000).Draw(t, "window"))
			k.most = rapid.SampledFrom([]int{0, 1000, 70_000}).Draw(t, "most that one write takes")
			high := rapid.SampledFrom([]int{1000, 200_000}).Draw(t, "high")
			cfg := Config{High: high, Low: high / 2, MaxQueued: 3 * high, Class: Requests}
			buffers := newBuffers(t, 64<<20)
			c := k.conn(t, buffers, cfg)
			defer release(t, c)

			var appended, got, taken int // frames appended, frames that the peer has got, bytes that it has got
			var stream []byte            // got and not yet a whole frame
			var bytes int                // appended
			noted, above, paused := false, false, false
			receive := func(p []byte) {
				taken += len(p)
				for stream = append(stream, p...); ; got++ {
					_, serial, size, err := checkFrame(stream)
					if err != nil {
						t.Fatal(err)
					}
					if size == 0 {
						return
					}
					if serial != got {
						t.Fatalf("got frame %d, want %d: frames were lost, doubled or changed places", serial, got)
					}
					stream = stream[size:]
				}
			}
			check := func() {
				synctest.Wait()
				queued := int(c.Queued())
				_, tx := c.Bytes()
				if int(tx)+queued != bytes {
					t.Fatalf("got %d bytes taken by the kernel and %d queued, want together the %d appended", tx, queued, bytes)
				}
				if held := c.Held(); held < int64(queued) || held != buffers.Used() || queued == 0 && held != 0 {
					t.Fatalf("got %d bytes held, %d used with %d queued, want the same, no less than is queued, and 0 with nothing",
						held, buffers.Used(), queued)
				}
				if above = queued > cfg.High || above && queued > cfg.Low; c.Gated() != (above || paused) {
					t.Fatalf("got gated %v with %d bytes queued, paused %v, watermarks %d and %d, want %v",
						c.Gated(), queued, paused, cfg.High, cfg.Low, above || paused)
				}
				if len(k.out) < k.window && queued > 0 && !noted && !paused {
					t.Fatalf("got %d bytes queued, room in the kernel and nobody who owes a flush: they are left for ever", queued)
				}
			}
			verdict := func(v Verdict, size int) {
				want := Appended
				switch {
				case bytes-int(c.taken.Load()) > cfg.MaxQueued:
					want = Full
				case !noted:
					want = First
				}
				if v != want {
					t.Fatalf("got verdict %d with %d bytes queued, a flush owed %v, want %d", v, c.Queued(), noted, want)
				}
				if v == Full {
					return
				}
				noted = true
				bytes += size
				appended++
			}
			sizes := rapid.OneOf(rapid.IntRange(frameHead, 300), rapid.IntRange(4000, 5000), rapid.IntRange(65_000, 66_000))
			t.Repeat(map[string]func(*rapid.T){
				"": func(*rapid.T) { check() },
				"append": func(t *rapid.T) {
					for range rapid.IntRange(1, 6).Draw(t, "frames") {
						frame := appendFrame(nil, 1, appended, sizes.Draw(t, "size"))
						verdict(c.Append(frame), len(frame))
					}
				},
				"append owned": func(t *rapid.T) {
					size := sizes.Draw(t, "size")
					frame := appendFrame(buffers.Get(size)[:0], 1, appended, size)
					before := appended
					if verdict(c.AppendOwned(frame), size); appended == before {
						buffers.Put(frame)
					}
				},
				"flush": func(*rapid.T) {
					if noted {
						noted = false
						atOnce(t, "Flush", c.Flush)
					}
				},
				"take": func(t *rapid.T) { receive(k.take(rapid.IntRange(1, 100_000).Draw(t, "bytes"))) },
				"pause": func(*rapid.T) {
					c.Pause()
					paused = true
					synctest.Wait()
					if n := writers(); n != 0 {
						t.Fatalf("got %d writers of a paused connection, want none", n)
					}
				},
				"resume": func(*rapid.T) {
					if paused {
						paused, noted = false, false // Resume flushes for whoever owed it
						atOnce(t, "Resume", c.Resume)
					}
				},
			})
			c.Resume()
			paused = false
			if noted {
				noted = false
				c.Flush()
			}
			k.change(func() { k.window = 1 << 30 })
			receive(k.takeAll())
			check()
			if got != appended || taken != bytes || len(stream) != 0 {
				t.Fatalf("got %d frames and %d bytes, want the %d frames and %d bytes that were appended", got, taken, appended, bytes)
			}
			if writers() != 0 {
				t.Fatal("a writer lives with nothing left to write")
			}
		})
	})
}

// TestUnsentTellsWhatWasSent closes a connection at any point of its stream.
func TestUnsentTellsWhatWasSent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rapid.SyncTest(t, func(t *rapid.T) {
			k := newKernel(rapid.IntRange(0, 300_000).Draw(t, "window"))
			buffers := newBuffers(t, 64<<20)
			c := k.conn(t, buffers, roomy)
			var stream []byte
			for i, size := range rapid.SliceOfN(rapid.IntRange(frameHead, 40_000), 1, 30).Draw(t, "sizes") {
				frame := appendFrame(nil, 1, i, size)
				stream = append(stream, frame...)
				if c.Append(frame) == First && rapid.Bool().Draw(t, "flush") {
					c.Flush()
				}
			}
			got := k.take(1 << 30)
			if rapid.Bool().Draw(t, "wait for the writer") {
				synctest.Wait()
			}
			c.Close("test")
			var rest []byte
			c.Unsent(func(frames []byte, sent int) {
				rest = append(rest, frames[sent:]...)
				for at := 0; at < len(frames); {
					_, _, size, err := checkFrame(frames[at:])
					if err != nil || size == 0 {
						t.Fatalf("got %d bytes at %d of a chunk (%v), want whole frames", len(frames)-at, at, err)
					}
					at += size
				}
			})
			got = append(got, k.take(1<<30)...)
			if string(got)+string(rest) != string(stream) {
				t.Fatalf("got %d bytes sent and %d unsent of %d, want them to be the stream", len(got), len(rest), len(stream))
			}
			if _, tx := c.Bytes(); int(tx) != len(got) {
				t.Fatalf("got %d bytes counted as written, want the %d that the peer has", tx, len(got))
			}
			c.Unsent(func(frames []byte, _ int) { t.Fatalf("got %d bytes from a second Unsent, want nothing", len(frames)) })
			release(t, c)
		})
	})
}

// TestOverdueSparesASlowPeer: one that takes bytes of the kernel's, though the kernel has no room for ours, is not stuck.
func TestOverdueSparesASlowPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := roomy
		cfg.WriteTimeout = 10 * time.Second
		k := newKernel(1000)
		c := k.conn(t, newBuffers(t, 1<<20), cfg)
		defer release(t, c)
		c.Append(make([]byte, 2000))
		c.Flush()
		synctest.Wait()
		k.change(func() { k.window = 0 }) // a kernel that waits for more room before it takes more of ours
		now := int64(time.Hour)
		taken := c.taken.Load()
		for second := range 60 {
			if got := c.Overdue(now+int64(second)*int64(time.Second), true); got != "" {
				t.Fatalf("got verdict %q after %d s of a peer that takes a byte a second, want none", got, second)
			}
			// The first call counts what went before, the second finds out what the kernel has.
			if still := c.Still(now + int64(second)*int64(time.Second)); second != 1 && still > 0 || second > 1 && c.Moved() != 1 {
				t.Errorf("got %d bytes moved in second %d, and still for %d ns, want 1 and 0", c.Moved(), second, still)
			}
			k.change(func() { k.out = k.out[min(1, len(k.out)):] })
			synctest.Wait()
		}
		if c.taken.Load() != taken {
			t.Errorf("got %d bytes taken by the kernel, want %d as before: this test does not test", c.taken.Load(), taken)
		}
		for _, second := range []time.Duration{60, 69} { // the last byte is seen at 60
			if got := c.Overdue(now+int64(second*time.Second), true); got != "" {
				t.Errorf("got verdict %q at %d s, want none yet", got, second)
			}
		}
		if got := c.Overdue(now+int64(70*time.Second), true); got != ReasonWriteTimeout {
			t.Errorf("got verdict %q 11 s after the last byte that the peer took, want %q", got, ReasonWriteTimeout)
		}
		if still := time.Duration(c.Still(now + int64(70*time.Second))); still != 10*time.Second || c.Moved() != 0 {
			t.Errorf("got %d bytes moved and still for %v, want 0 and the 10s since the last byte was seen", c.Moved(), still)
		}
	})
}
