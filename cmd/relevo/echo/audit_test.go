package echo

import (
	"encoding/binary"
	"math"
	"testing"

	"pgregory.net/rapid"

	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

func stamp(number, conn uint64) []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, number), conn)
}

// The audit is a set of stamps.
func TestAuditAgainstSet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := newAudit()
		type key struct{ number, conn uint64 }
		seen := map[key]bool{}
		var want, got Stats
		for range rapid.IntRange(0, 60).Draw(t, "contents") {
			k := key{
				rapid.SampledFrom([]uint64{0, 1, 63, 64, pageBits - 1, pageBits, math.MaxUint64}).Draw(t, "number"),
				rapid.SampledFrom([]uint64{0, 1, math.MaxUint64}).Draw(t, "conn"),
			}
			content := append(stamp(k.number, k.conn), "and more"...)
			switch short := rapid.IntRange(0, 9).Draw(t, "short") == 0; {
			case short:
				content = content[:rapid.IntRange(0, stampLen-1).Draw(t, "length")]
				want.OnewaysUnchecked++
			case seen[k]:
				want.OnewaysDuplicate++
			default:
				want.OnewaysDistinct++
				seen[k] = true
			}
			a.see(content)
		}
		a.addTo(&got)
		if got != want {
			t.Fatalf("counted %+v, want %+v", got, want)
		}
	})
}

func TestAuditIsBounded(t *testing.T) {
	a := newAudit()
	for n := range uint64(maxPages + 3) {
		a.see(stamp(n*pageBits, 1))
	}
	a.see(stamp(1, 1)) // on a page that there is
	var got Stats
	a.addTo(&got)
	if want := (Stats{OnewaysDistinct: maxPages + 1, OnewaysUnchecked: 3}); got != want || len(a.pages) != maxPages {
		t.Errorf("counted %+v on %d pages, want %+v", got, len(a.pages), want)
	}
}

func TestAuditOfOneways(t *testing.T) {
	for _, on := range []bool{true, false} {
		s, nc := start(t, Options{Audit: on})
		for id, content := range [][]byte{stamp(1, 7), stamp(2, 7), stamp(1, 8), stamp(2, 7), []byte("short")} {
			send(t, nc, frame(t, bolt.Request{ID: uint32(id), Oneway: true, Content: content}))
		}
		for range 2 { // what wants a reply is not audited
			send(t, nc, frame(t, bolt.Request{ID: 9, Content: stamp(1, 7)}))
			(&reader{nc: nc}).mustNext(t)
		}
		got := s.Stats()
		want := [...]uint64{5, 0, 0, 0}
		if on {
			want = [...]uint64{5, 3, 1, 1}
		}
		if got := [...]uint64{got.Oneways, got.OnewaysDistinct, got.OnewaysDuplicate, got.OnewaysUnchecked}; got != want {
			t.Errorf("audit %v: of one-way requests all, distinct, duplicate, unchecked are %v, want %v", on, got, want)
		}
	}
}
