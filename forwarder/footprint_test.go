package forwarder

import (
	"math"
	"runtime"
	"testing"

	"github.com/relevo-proxy/relevo/forwarder/stream"
)

// TestBytesOfAStream: what a request in flight takes of memory is its place in the stream table. A table doubles when seven of
// eight places are taken: it is at its best just before, and at its worst just after. What it then leaves to be collected is little.
func TestBytesOfAStream(t *testing.T) {
	const slots = 1 << 16
	const full = slots / 8 * 7
	const best, worst, left = 128, 256, 32 // bytes a stream
	heap := func() float64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	base := heap()
	table := stream.New[exchange](2 * slots)
	insert := func() {
		if _, _, ok := table.Insert(new(exchange), math.MaxInt64); !ok {
			t.Fatal("the table refuses a stream, and has room for more")
		}
	}
	for range full {
		insert()
	}
	before := heap() - base
	if each := before / full; each > best {
		t.Errorf("got %.0f bytes a stream of a full table, want %d at most", each, best)
	}
	var was, is runtime.MemStats
	runtime.ReadMemStats(&was)
	insert() // doubles the table
	runtime.ReadMemStats(&is)
	after := heap() - base
	if after < 1.5*before {
		t.Fatalf("the table did not double behind %d streams: what this test knows of it is out of date", full)
	}
	if each := after / (full + 1); each > worst {
		t.Errorf("got %.0f bytes a stream of a table that has just doubled, want %d at most", each, worst)
	}
	if each := (float64(is.TotalAlloc-was.TotalAlloc) - (after - before)) / (full + 1); each > left {
		t.Errorf("got %.0f bytes a stream that doubling leaves to be collected, want %d at most", each, left)
	}
	runtime.KeepAlive(table)
}
