package bolt

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// AppendEdited implements wire.Codec, for requests and replies. The edits are done one after another: setting puts the
// value where the first pair with the key stands and drops the others, or appends the pair; adding appends it unless
// there is a pair with the key, be its value null; removing drops all pairs with the key. An edit's key never equals a
// null one, and a nil value is written as an empty one. All other pairs stay byte for byte, nulls and duplicates too.
//
// The block that results is bounded by maxHeader, where that is above 0, and by 32767 bytes, because Java reads its
// length as signed. A pair that alone is longer than that is refused even if a later edit would remove it.
//
// A CRC is moved along with the change, as PatchRequest does it: one that was wrong leaves as wrong. What is appended
// to the head of a frame is a head: content and CRC stay to be passed on (see Head).
//
// It does not allocate where dst has room for m.Frame and all the pairs that may be written. dst must not overlap
// m.Frame, nor what the edits refer to.
func (Codec) AppendEdited(dst []byte, m *wire.Message, edits []wire.Edit, maxHeader int) ([]byte, error) {
	if !wellFormed(m.HeaderBlock()) {
		return dst, wire.ErrHeaderBlock
	}
	limit := maxShort
	if maxHeader > 0 {
		limit = min(limit, maxHeader)
	}
	start := len(dst)
	out := slices.Grow(dst, len(m.Frame)+growth(edits))
	out = append(out, m.Frame[:m.ContentAt]...)
	out, err := editBlock(out, start+int(m.HeaderAt), edits, limit)
	if err != nil {
		return dst, err
	}
	header := len(out) - start - int(m.HeaderAt)
	if header > limit {
		return dst, blockTooLarge(header, limit)
	}
	content := uint64(binary.BigEndian.Uint32(m.Frame[m.ClassAt-4:]))
	if total := uint64(len(out)-start) + content + uint64(crcLenOf(m.Tag)); total > maxFrame {
		return dst, &wire.DecodeError{Reason: wire.ReasonHeadersTooLarge, Detail: fmt.Sprintf("frame of %d bytes with them, limit %d", total, maxFrame)}
	}
	binary.BigEndian.PutUint16(out[start+int(m.ClassAt)-6:], uint16(header))

	head := len(out)
	out = append(out, m.Frame[m.ContentAt:]...)
	if len(out) > head && tagHasCRC(m.Tag) {
		at := len(out) - crcLen
		crc := binary.BigEndian.Uint32(out[at:])
		crc ^= headChange(m.Frame[:m.ContentAt], out[start:head], uint32(at-head))
		binary.BigEndian.PutUint32(out[at:], crc)
	}
	return out, nil
}

// headChange is by what the CRC of a frame changes when its head does and the next n bytes, up to the CRC, do not.
// The CRC of two parts is that of the first, moved past the second, plus that of the second, which drops out.
func headChange(before, after []byte, n uint32) uint32 {
	return crcShift(crc32.ChecksumIEEE(before)^crc32.ChecksumIEEE(after), n)
}

func blockTooLarge(size, limit int) error {
	return &wire.DecodeError{Reason: wire.ReasonHeadersTooLarge, Detail: fmt.Sprintf("%d bytes after the edit, limit %d", size, limit)}
}

// editBlock does the edits on the header block out[at:], which is well-formed.
func editBlock(out []byte, at int, edits []wire.Edit, limit int) ([]byte, error) {
	for i := range edits {
		e := &edits[i]
		block := out[at:]
		place := -1
		switch e.Op {
		case wire.SetHeader:
			var n int
			place, n = cutPairs(block, e.Key)
			out = out[:at+n]
		case wire.AddHeader:
			if !hasPair(block, e.Key) {
				place = len(block)
			}
		case wire.RemoveHeader:
			_, n := cutPairs(block, e.Key)
			out = out[:at+n]
		}
		if place < 0 {
			continue
		}
		if size := pairLen(e); size > limit {
			return nil, blockTooLarge(size, limit)
		}
		out = insertPair(out, at+place, e)
	}
	return out, nil
}

// pairLen is the length on the wire of the pair that e writes.
func pairLen(e *wire.Edit) int { return 4 + len(e.Key) + 4 + len(e.Value) }

// growth bounds by how much the edits can make a block longer.
func growth(edits []wire.Edit) int {
	n := 0
	for i := range edits {
		// A longer pair is refused before it is written.
		if size := pairLen(&edits[i]); edits[i].Op != wire.RemoveHeader && size <= maxShort {
			n += size
		}
	}
	return n
}

// nextPair reads the pair at p. A negative end says that there is no whole one.
func nextPair(b []byte, p int) (keyAt, keyEnd, end int) {
	keyAt, keyEnd = field(b, p)
	if keyEnd < 0 {
		return 0, 0, -1
	}
	_, end = field(b, keyEnd)
	return keyAt, keyEnd, end
}

func wellFormed(b []byte) bool {
	for p := 0; p < len(b); {
		if _, _, p = nextPair(b, p); p < 0 {
			return false
		}
	}
	return true
}

func keyIs(b []byte, keyAt, keyEnd int, key []byte) bool {
	return string(b[keyAt:keyEnd]) == string(key) && (len(key) > 0 || !isNull(b, keyAt))
}

func hasPair(b, key []byte) bool {
	for p := 0; p < len(b); {
		keyAt, keyEnd, end := nextPair(b, p)
		if keyIs(b, keyAt, keyEnd, key) {
			return true
		}
		p = end
	}
	return false
}

// cutPairs takes the pairs with this key out of b, in one pass however many there are. It returns where the first of
// them stood, which is the end where there was none, and how many bytes of b are left.
func cutPairs(b, key []byte) (place, n int) {
	place = -1
	for p := 0; p < len(b); {
		keyAt, keyEnd, end := nextPair(b, p)
		if !keyIs(b, keyAt, keyEnd, key) {
			if place >= 0 {
				copy(b[n:], b[p:end])
			}
			n += end - p
		} else if place < 0 {
			place = n
		}
		p = end
	}
	if place < 0 {
		place = n
	}
	return place, n
}

// insertPair puts the pair of e into out at this offset.
func insertPair(out []byte, at int, e *wire.Edit) []byte {
	size, end := pairLen(e), len(out)
	out = slices.Grow(out, size)[:end+size]
	copy(out[at+size:], out[at:end])
	binary.BigEndian.PutUint32(out[at:], uint32(len(e.Key)))
	at += 4
	at += copy(out[at:], e.Key)
	binary.BigEndian.PutUint32(out[at:], uint32(len(e.Value)))
	copy(out[at+4:], e.Value)
	return out
}
