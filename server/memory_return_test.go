package server

import (
	"runtime"
	"runtime/debug"
	"testing"
)

// TestReturnsMemoryAfterAPeak: once behind each peak, and ever less often while the memory is taken again.
func TestReturnsMemoryAfterAPeak(t *testing.T) {
	const mib = 1 << 20
	var r returns
	look := func(want bool, held uint64) {
		t.Helper()
		if got := r.due(held * mib); got != want {
			t.Fatalf("with %d MiB a return is due: %v, want %v", held, got, want)
		}
	}
	look(false, 15)
	look(true, 32) // more than at the start
	r.done(20 * mib)
	look(false, 35) // not worth it
	look(true, 84)
	r.done(60 * mib)
	look(false, 61)
	look(false, 30) // others have given back
	look(true, 60)
	r.done(30 * mib)
	for _, pause := range []int{1, 3, 7, 15, 15} {
		for range pause {
			look(false, 90)
		}
		look(true, 90)
		r.done(30 * mib)
	}
	look(false, 30) // it is not taken again
	look(true, 90)
}

// TestHeldMemoryFollowsTheHeap: what is allocated is held, and is not any more once it is given back.
func TestHeldMemoryFollowsTheHeap(t *testing.T) {
	before := heldMemory()
	much := make([]byte, 64<<20)
	for i := 0; i < len(much); i += 4096 {
		much[i] = 1
	}
	if held := heldMemory(); held < before+60<<20 {
		t.Errorf("%d bytes are held with 64 MiB more than %d", held, before)
	}
	runtime.KeepAlive(much)
	debug.FreeOSMemory()
	if held := heldMemory(); held > before+16<<20 {
		t.Errorf("%d bytes are held once they are given back, want about %d", held, before)
	}
}
