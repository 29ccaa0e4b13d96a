package echo

import (
	"encoding/binary"
	"sync"
)

// stampLen is the length of the stamp that begins a content which can be told from every other one: the number of the
// request on its connection, then the number of the connection, both little-endian. `relevo bench` sends such.
const stampLen = 16

const (
	pageBits = 1 << 12 // numbers in a row that share a page
	maxPages = 1 << 17 // 64 MiB of them, 500 million numbers in a row
)

// audit knows which stamps have been seen: whether what gets no reply arrived exactly once.
type audit struct {
	mu sync.Mutex

	// Guarded by mu.
	pages                          map[pageKey]*[pageBits / 64]uint64
	distinct, duplicate, unchecked uint64
}

// pageKey names a page: of which connection it is, and its place among the pages of that one.
type pageKey struct{ conn, page uint64 }

func newAudit() *audit { return &audit{pages: make(map[pageKey]*[pageBits / 64]uint64)} }

// see notes a content. One that is too short for a stamp, or for which there is no room, is not checked.
func (a *audit) see(content []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(content) < stampLen {
		a.unchecked++
		return
	}
	number, conn := binary.LittleEndian.Uint64(content), binary.LittleEndian.Uint64(content[8:])
	key := pageKey{conn, number / pageBits}
	page := a.pages[key]
	if page == nil {
		if len(a.pages) >= maxPages {
			a.unchecked++
			return
		}
		page = new([pageBits / 64]uint64)
		a.pages[key] = page
	}
	word, bit := &page[number%pageBits/64], uint64(1)<<(number%64)
	if *word&bit != 0 {
		a.duplicate++
		return
	}
	*word |= bit
	a.distinct++
}

// addTo puts what was seen into s.
func (a *audit) addTo(s *Stats) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s.OnewaysDistinct, s.OnewaysDuplicate, s.OnewaysUnchecked = a.distinct, a.duplicate, a.unchecked
}
