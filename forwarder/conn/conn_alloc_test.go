//go:build !race

// The race detector makes pools forget at random, so allocations are counted without it.

package conn

import (
	"testing"
)

func TestNoAllocations(t *testing.T) {
	const frames, size = 64, 1 << 10
	for name, need := range map[string]int{"a batch a read": frames * size, "a frame a read": size} {
		t.Run(name, func(t *testing.T) {
			buffers := newBuffers(t, 64<<20)
			near, far := socketPair(t)
			a := realConn(t, fileOf(near), buffers, roomy)
			b := realConn(t, fileOf(far), buffers, roomy)
			frame := appendFrame(nil, 1, 1, size)
			allocs := testing.AllocsPerRun(500, func() {
				for range frames {
					if v := a.Append(frame); v != First && v != Appended {
						t.Fatalf("got verdict %d, want the frame taken", v)
					}
				}
				a.Flush()
				for got := 0; got < frames*size; {
					p, err := b.Read(need)
					if err != nil {
						t.Fatalf("reading: %v (%s)", err, b.Reason())
					}
					got += len(p)
					b.Advance(len(p))
				}
			})
			if allocs != 0 {
				t.Errorf("got %v allocations for %d frames appended, flushed, read and marked as read, want 0", allocs, frames)
			}
			for _, c := range []*Conn{a, b} {
				c.Close("test")
				giveBack(t, c)
			}
		})
	}
}

// A read that waits, and a writer that takes over, are not free of allocations for being rare: only the writer's goroutine
// may cost something.
func TestNoAllocationsWhenReadsWait(t *testing.T) {
	buffers := newBuffers(t, 64<<20)
	near, far := socketPair(t)
	a := realConn(t, fileOf(near), buffers, roomy)
	b := realConn(t, fileOf(far), buffers, roomy)
	frame := appendFrame(nil, 1, 1, 1<<10)
	echoed := make(chan struct{}) // closed when b is
	go func() {                   // ends when b is closed
		defer close(echoed)
		for {
			p, err := b.Read(len(frame))
			if err != nil {
				return
			}
			b.Append(p)
			b.Advance(len(p))
			b.Flush()
		}
	}()
	allocs := testing.AllocsPerRun(500, func() {
		a.Append(frame)
		a.Flush()
		p, err := a.Read(len(frame))
		if err != nil {
			t.Fatalf("reading: %v (%s)", err, a.Reason())
		}
		a.Advance(len(p))
	})
	if allocs != 0 {
		t.Errorf("got %v allocations for a frame that goes and comes back, want 0", allocs)
	}
	a.Close("test")
	b.Close("test")
	<-echoed
	giveBack(t, a)
	giveBack(t, b)
}
