package accesslog

import (
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/relevo-proxy/relevo/forwarder/stats"
)

// The buffer is a queue of as many records as it has places, taken in chunks.
func TestBufferIsABoundedQueue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		places := rapid.SampledFrom([]int{1, 2, 63, 64, 65, 200}).Draw(t, "places")
		b := newBuffer(places)
		var model []uint32
		next := uint32(0)
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "put") {
				for range rapid.IntRange(1, 100).Draw(t, "records") {
					ok := b.put(&stats.Record{ID: next})
					if ok != (len(model) < places) {
						t.Fatalf("putting into a buffer of %d places that holds %d: got %v", places, len(model), ok)
					}
					if ok {
						model = append(model, next)
					}
					next++
				}
			} else if c := b.take(); c == nil {
				if len(model) > 0 {
					t.Fatalf("nothing is taken out of a buffer that holds %d", len(model))
				}
			} else {
				var ids []uint32
				for _, r := range c.records {
					ids = append(ids, r.ID)
				}
				if len(ids) == 0 || len(ids) > chunkRecords || len(ids) > len(model) || !slices.Equal(ids, model[:len(ids)]) {
					t.Fatalf("took %v, want the oldest of %v", ids, model)
				}
				model = model[len(ids):]
				b.give(c)
			}
			if n := b.waiting(); n != len(model) {
				t.Fatalf("%d wait, want %d", n, len(model))
			}
		}
	})
}

func TestBufferWakesOnceAtItsMark(t *testing.T) {
	b := newBuffer(10)
	woken := func() bool {
		select {
		case <-b.wake:
			return true
		default:
			return false
		}
	}
	put := func() { b.put(&stats.Record{}) }
	put()
	if woken() {
		t.Error("a buffer wakes somebody who has not armed it")
	}
	if !b.arm(1) {
		t.Error("arming for 1 while 1 waits does not say so")
	}
	if b.arm(3) {
		t.Error("arming for 3 while 1 waits says that they wait already")
	}
	put()
	if woken() {
		t.Error("woken at 2, want at 3")
	}
	put()
	if !woken() {
		t.Error("not woken at 3")
	}
	put()
	if woken() {
		t.Error("woken again without being armed again")
	}
	b.arm(5)
	b.give(b.take())
	for range 5 {
		put()
	}
	if woken() {
		t.Error("woken while the writer does not sleep")
	}
}

func TestBufferKeepsFewChunks(t *testing.T) {
	b := newBuffer(maxBuffer)
	for range (maxFree + 10) * chunkRecords {
		b.put(&stats.Record{Service: "s"})
	}
	for c := b.take(); c != nil; c = b.take() {
		b.give(c)
	}
	n := 0
	for c := b.free; c != nil; c = c.next {
		n++
		if r := c.records[:1][0]; r.Service != "" {
			t.Fatal("a free chunk holds a record's text")
		}
	}
	if n != maxFree || b.frees != n {
		t.Errorf("%d free chunks, counted %d, want %d", n, b.frees, maxFree)
	}
}

func TestBufferFromManyGoroutines(t *testing.T) {
	const goroutines, each = 4, 5000
	b := newBuffer(goroutines * each)
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range each {
				if !b.put(&stats.Record{ID: uint32(g), Attempts: i}) {
					t.Errorf("the buffer is full before its bound")
					return
				}
			}
		})
	}
	var next [goroutines]int
	for n := 0; n < goroutines*each; {
		if !b.arm(1) {
			<-b.wake
		}
		c := b.take()
		if c == nil {
			continue
		}
		for _, r := range c.records {
			if r.Attempts != next[r.ID] {
				t.Fatalf("goroutine %d: record %d comes where %d is next", r.ID, r.Attempts, next[r.ID])
			}
			next[r.ID]++
		}
		n += len(c.records)
		b.give(c)
	}
	wg.Wait()
}

func TestPutAllocatesNothing(t *testing.T) {
	b := newBuffer(1000)
	r := answered()
	for range 200 {
		b.put(&r)
	}
	n := testing.AllocsPerRun(1000, func() {
		for range 10 {
			b.put(&r)
		}
		b.give(b.take())
	})
	if n > 0 {
		t.Errorf("10 records put and taken allocate %v times, want 0", n)
	}
}
