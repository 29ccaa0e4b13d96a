package cluster

import (
	"cmp"
	"fmt"
	"math/bits"
	"runtime"
	"slices"
	"testing"

	"github.com/cespare/xxhash/v2"
)

// ring is the consistent hash that Maglev was chosen before: docs/adr/002-maglev.md has what BenchmarkConsistentHash says of
// both. An endpoint owns the arcs of a circle that end at its points.
type ring []point

type point struct {
	at       uint64
	endpoint int32
}

// pointsEach is how many points an endpoint has, as libketama has it.
const pointsEach = 160

func newRing(addresses []string) ring {
	r := make(ring, 0, len(addresses)*pointsEach)
	for i, a := range addresses {
		hash := xxhash.Sum64String(a)
		for range pointsEach {
			hash = mix(hash)
			r = append(r, point{hash, int32(i)})
		}
	}
	slices.SortFunc(r, func(a, b point) int { return cmp.Compare(a.at, b.at) })
	return r
}

func (r ring) lookUp(hash uint64) int32 {
	i, _ := slices.BinarySearchFunc(r, hash, func(p point, h uint64) int { return cmp.Compare(p.at, h) })
	if i == len(r) {
		i = 0
	}
	return r[i].endpoint
}

// shares are the parts of all keys that each of n endpoints has.
func (r ring) shares(n int) []float64 {
	out := make([]float64, n)
	last := r[len(r)-1].at
	for _, p := range r {
		out[p.endpoint] += float64(p.at-last) / (1 << 64)
		last = p.at
	}
	return out
}

func (t *MaglevTable) shares(n int) []float64 {
	out := make([]float64, n)
	for _, i := range t.slots {
		out[i] += 1 / float64(len(t.slots))
	}
	return out
}

func (t *MaglevTable) lookUp(hash uint64) int32 {
	at, _ := bits.Mul64(hash, uint64(len(t.slots)))
	return t.slots[at]
}

// addressesOf are n addresses as a fleet has them.
func addressesOf(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("10.%d.%d.%d:12200", i>>16, i>>8&255, i&255)
	}
	return out
}

func BenchmarkConsistentHash(b *testing.B) {
	type table interface {
		lookUp(hash uint64) int32
		shares(n int) []float64
	}
	for _, c := range []struct {
		name  string
		build func(addresses []string) table
	}{
		{"ring", func(a []string) table { return newRing(a) }},
		{"maglev", func(a []string) table { return NewMaglevTable(a, slices.Repeat([]int{1}, len(a))) }},
	} {
		for _, n := range []int{10, 1000, 23000} {
			addresses := addressesOf(n)
			b.Run(fmt.Sprintf("%s/endpoints=%d/build", c.name, n), func(b *testing.B) {
				for b.Loop() {
					c.build(addresses)
				}
			})
			b.Run(fmt.Sprintf("%s/endpoints=%d/look-up", c.name, n), func(b *testing.B) {
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				t := c.build(addresses)
				runtime.GC()
				runtime.ReadMemStats(&after)
				var key uint64
				for b.Loop() {
					key += uint64(t.lookUp(mix(key))) + 1 // one behind the other, as a request needs it
				}
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<10), "KiB")
				b.ReportMetric(slices.Max(t.shares(n))*float64(n), "most/mean")
				b.ReportMetric(movedOfShare(t.lookUp, c.build(slices.Delete(slices.Clone(addresses), n/2, n/2+1)).lookUp, n), "moved/share")
			})
		}
	}
}

// movedOfShare is how many keys have another endpoint without endpoint n/2, in multiples of one endpoint's share.
func movedOfShare(before, after func(uint64) int32, n int) float64 {
	const keys = 4 << 20
	moved := 0
	for i := range keys {
		was, is := before(mix(uint64(i))), after(mix(uint64(i)))
		if is >= int32(n/2) {
			is++
		}
		if was != is {
			moved++
		}
	}
	return float64(moved) * float64(n) / keys
}
