package forwarder

import (
	"math"
	"runtime"
	"testing"

	"github.com/relevo-proxy/relevo/forwarder/stream"
)

// TestBytesOfAStream: what a request in flight takes of memory is its place in the stream table. A table doubles when seven of
// eight places are taken: it is at its best just before, and at its worst just after.
func TestBytesOfAStream(t *testing.T) {
	const slots = 1 << 16
	const full = slots / 8 * 7
	const best, worst = 128, 256 // bytes a stream
	table := stream.New[exchange](2 * slots)
	insert := func() {
		if _, _, ok := table.Insert(exchange{}, math.MaxInt64); !ok {
			t.Fatal("the table refuses a stream, and has room for more")
		}
	}
	for range full {
		insert()
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	insert() // doubles the table
	runtime.ReadMemStats(&after)
	doubled := float64(after.TotalAlloc - before.TotalAlloc)
	if doubled == 0 {
		t.Fatalf("the table did not double behind %d streams: what this test knows of it is out of date", full)
	}
	if each := doubled / (2 * full); each > best {
		t.Errorf("got %.0f bytes a stream of a full table, want %d at most", each, best)
	}
	if each := doubled / (full + 1); each > worst {
		t.Errorf("got %.0f bytes a stream of a table that has just doubled, want %d at most", each, worst)
	}
}
