package bolt

import (
	"encoding/binary"
	"iter"

	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// nullLen in the place of a length means null: no bytes follow, and it is not the same as empty.
const nullLen = 0xffffffff

// nullMark stands, during a walk, for a value that was found and is null, so that a later pair with the same
// key does not take its place. It is never written.
var nullMark [1]byte

func isNullMark(v []byte) bool { return cap(v) == 1 && &v[:1][0] == &nullMark[0] }

// Headers implements wire.Codec. Where it returns wire.ErrHeaderBlock, all values are nil. A null key equals
// no key, the empty one included.
func (Codec) Headers(m *wire.Message, keys, values [][]byte) error {
	keys = keys[:min(len(keys), len(values))]
	values = values[:len(keys)]
	clear(values)
	b := m.HeaderBlock()
	sawNull := false
	for p := 0; p < len(b); {
		keyAt, keyEnd := field(b, p)
		if keyEnd < 0 {
			clear(values)
			return wire.ErrHeaderBlock
		}
		at, end := field(b, keyEnd)
		if end < 0 {
			clear(values)
			return wire.ErrHeaderBlock
		}
		p = end
		for i, key := range keys {
			if len(key) != keyEnd-keyAt || values[i] != nil || string(key) != string(b[keyAt:keyEnd]) {
				continue
			}
			switch {
			case keyEnd == keyAt && isNull(b, keyAt):
			case end == at && isNull(b, at):
				values[i] = nullMark[:0]
				sawNull = true
			default:
				values[i] = b[at:end:end]
			}
		}
	}
	if sawNull {
		for i, v := range values {
			if isNullMark(v) {
				values[i] = nil
			}
		}
	}
	return nil
}

// Field is one pair of a header block. A nil Key or Value is null; an empty one is not nil.
type Field struct{ Key, Value []byte }

// WalkHeaders yields the pairs of m's header block in the order of the wire, duplicates included, as
// subslices of m.Frame. The error is nil with each of them; where the block is malformed, an empty Field with
// wire.ErrHeaderBlock comes last. It is for printing: Codec.Headers is for looking something up.
func WalkHeaders(m *wire.Message) iter.Seq2[Field, error] {
	return func(yield func(Field, error) bool) {
		b := m.HeaderBlock()
		for p := 0; p < len(b); {
			keyAt, keyEnd := field(b, p)
			if keyEnd < 0 {
				yield(Field{}, wire.ErrHeaderBlock)
				return
			}
			at, end := field(b, keyEnd)
			if end < 0 {
				yield(Field{}, wire.ErrHeaderBlock)
				return
			}
			f := Field{Key: b[keyAt:keyEnd:keyEnd], Value: b[at:end:end]}
			if isNull(b, keyAt) {
				f.Key = nil
			}
			if isNull(b, at) {
				f.Value = nil
			}
			if !yield(f, nil) {
				return
			}
			p = end
		}
	}
}

// field returns where the bytes lie of the key or value whose length stands at p. Those of a null lie, empty,
// behind its length. A negative end says that they do not fit in.
func field(b []byte, p int) (at, end int) {
	at = p + 4
	if at > len(b) {
		return 0, -1
	}
	n := binary.BigEndian.Uint32(b[p:])
	if n == nullLen {
		return at, at
	}
	if uint64(n) > uint64(len(b)-at) {
		return 0, -1
	}
	return at, at + int(n)
}

// isNull tells null from empty by the length that stands before at.
func isNull(b []byte, at int) bool {
	return binary.BigEndian.Uint32(b[at-4:]) == nullLen
}
