package stream

import (
	"fmt"
	"math"
	"testing"
)

func BenchmarkInsertTake(b *testing.B) {
	for _, inFlight := range []int{0, 1000, 40000} {
		b.Run(fmt.Sprintf("inflight=%d", inFlight), func(b *testing.B) {
			table, v, got := New[value](0), value{}, value{}
			ids := make([]uint32, max(1, inFlight))
			for i := range ids {
				ids[i], _, _ = table.Insert(&v, math.MaxInt64)
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				table.Take(ids[i], &got)
				ids[i], _, _ = table.Insert(&value{serial: int64(i)}, math.MaxInt64)
				if i++; i == len(ids) {
					i = 0
				}
			}
		})
	}
}

func BenchmarkInsertTakeParallel(b *testing.B) {
	table := New[value](0)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		var v, got value
		for pb.Next() {
			id, _, _ := table.Insert(&v, math.MaxInt64)
			table.Take(id, &got)
		}
	})
}

// BenchmarkScan65536 visits every slot of a table of 65,536 at half load; nothing expires.
func BenchmarkScan65536(b *testing.B) {
	table, v, got := New[value](DefaultMax*3/4), value{}, value{}
	for range DefaultMax * 3 / 4 {
		table.Insert(&v, math.MaxInt64)
	}
	if len(table.keys) != 65536 {
		b.Fatalf("got %d slots, want 65536", len(table.keys))
	}
	for id := uint32(1); id < DefaultMax*3/4; id += 3 {
		table.Take(id, &got)
	}
	out := make([]Entry[value], 0, 64)
	b.ReportAllocs()
	for b.Loop() {
		table.earliest.Store(0)
		table.Expire(1, out)
	}
}

// BenchmarkGrow is the whole way from the first insert to 131,072 slots, an entry.
func BenchmarkGrow(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		table, v := New[value](DefaultMax), value{}
		for range DefaultMax {
			table.Insert(&v, math.MaxInt64)
		}
	}
}
