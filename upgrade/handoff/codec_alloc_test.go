//go:build !race

package handoff

import (
	"bytes"
	"testing"
)

// sizeOf is a guess, but of a large message it is a good one: else its bytes are copied once more.
func TestAllocLargeMessageIsWrittenIntoOneBuffer(t *testing.T) {
	m := &Conns{
		Downstreams: []Downstream{
			{Bytes: Bytes{Unread: make([]byte, 4<<20), Unsent: []Run{{Frames: make([]byte, 3<<20)}}}},
			{Upload: &Upload{Head: make([]byte, 1<<20), Edited: make([]byte, 1<<20), Exchange: Exchange{Frame: make([]byte, 1<<20)}}},
		},
		Upstreams: []Upstream{{Slots: make([]byte, 2<<20), Bytes: Bytes{Unread: make([]byte, 1<<20)}}},
	}
	e := &Exchanges{List: []Exchange{{Frame: make([]byte, 5<<20)}, {Frame: make([]byte, 5<<20)}}}
	for _, m := range []Message{m, e} {
		size := len(framed(t, m))
		var b bytes.Buffer
		if got := allocated(func() { _ = appendFrame(&b, m, filesOf(m)) }); got > uint64(size)*5/4 {
			t.Errorf("writing %s of %d bytes allocates %d, want about as many", m.kind(), size, got)
		}
	}
}
