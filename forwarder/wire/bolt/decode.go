package bolt

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"iter"
	"math"

	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// maxFrame bounds a frame where the caller's limit does not. The lengths on the wire add up to a little
// over 4 GiB, which neither the offsets in a wire.Message nor an int on every platform can hold.
const maxFrame = math.MaxInt32

// Decode implements wire.Codec. Of Limits, a value of 0 or less is no limit of the caller's: a frame is then
// bounded by 2 GiB - 1 and a header block by the 65535 bytes that its length can say.
//
// It asks for 1 byte, then for as many as tell the type, then for the fixed header, then for the frame.
//
// A oneway frame is always wire.Oneway, whatever its command, because it must never be answered. A request
// whose command is not known is wire.Unknown. A response whose command is not known is an error with
// wire.ReasonBadType: nobody can be answered, and what it would have ended is not known.
//
// With wire.ReasonBadChecksum the id is as trustworthy as the rest of the frame; answering it is harmless,
// because the connection is about to close under every other id as well.
func (c Codec) Decode(m *wire.Message, b []byte, lim wire.Limits) (int, error) {
	if len(b) == 0 {
		return 1, nil
	}
	switch b[0] {
	case proto1:
		return c.decodeV1(m, b, lim)
	case proto2:
		return c.decodeV2(m, b, lim)
	}
	*m = wire.Message{}
	return 0, &wire.DecodeError{Reason: wire.ReasonBadProtocol, Detail: fmt.Sprintf("first byte 0x%02x", b[0])}
}

func (c Codec) decodeV1(m *wire.Message, b []byte, lim wire.Limits) (int, error) {
	if len(b) < 2 {
		return 2, nil
	}
	switch typ := b[1]; typ {
	case typeRequest, typeOneway:
		if len(b) < v1RequestLen {
			return v1RequestLen, nil
		}
		head := binary.BigEndian.Uint64(b[0:8])
		m.Tag = makeTagV1(head, b[9])
		m.ID = binary.BigEndian.Uint32(b[5:9])
		m.Timeout = int32(binary.BigEndian.Uint32(b[10:14]))
		m.Kind = requestKind(typ, uint16(head>>32))
		m.Status = wire.Success
		return c.finish(m, b, lim, v1RequestLen, binary.BigEndian.Uint64(b[14:22]), 0)
	case typeResponse:
		if len(b) < v1ResponseLen {
			return v1ResponseLen, nil
		}
		head := binary.BigEndian.Uint64(b[0:8])
		m.Tag = makeTagV1(head, b[9])
		m.ID = binary.BigEndian.Uint32(b[5:9])
		m.Timeout = 0
		m.Kind = responseKind(uint16(head >> 32))
		m.Status = StatusOf(binary.BigEndian.Uint16(b[10:12]))
		return c.finish(m, b, lim, v1ResponseLen, binary.BigEndian.Uint64(b[12:20]), 0)
	}
	return 0, badType(m, b[1])
}

func (c Codec) decodeV2(m *wire.Message, b []byte, lim wire.Limits) (int, error) {
	if len(b) < 3 {
		return 3, nil
	}
	switch typ := b[2]; typ {
	case typeRequest, typeOneway:
		if len(b) < v2RequestLen {
			return v2RequestLen, nil
		}
		head := binary.BigEndian.Uint64(b[0:8])
		m.Tag = makeTagV2(head, binary.BigEndian.Uint16(b[10:12]))
		m.ID = binary.BigEndian.Uint32(b[6:10])
		m.Timeout = int32(binary.BigEndian.Uint32(b[12:16]))
		m.Kind = requestKind(typ, uint16(head>>24))
		m.Status = wire.Success
		return c.finish(m, b, lim, v2RequestLen, binary.BigEndian.Uint64(b[16:24]), crcLenOf(m.Tag))
	case typeResponse:
		if len(b) < v2ResponseLen {
			return v2ResponseLen, nil
		}
		head := binary.BigEndian.Uint64(b[0:8])
		m.Tag = makeTagV2(head, binary.BigEndian.Uint16(b[10:12]))
		m.ID = binary.BigEndian.Uint32(b[6:10])
		m.Timeout = 0
		m.Kind = responseKind(uint16(head >> 24))
		m.Status = StatusOf(binary.BigEndian.Uint16(b[12:14]))
		return c.finish(m, b, lim, v2ResponseLen, binary.BigEndian.Uint64(b[14:22]), crcLenOf(m.Tag))
	}
	return 0, badType(m, b[2])
}

func requestKind(typ byte, command uint16) wire.Kind {
	switch {
	case typ == typeOneway:
		return wire.Oneway
	case command == cmdRequest:
		return wire.Request
	case command == cmdHeartbeat:
		return wire.Heartbeat
	case command == cmdGoAway:
		return wire.GoAway
	}
	return wire.Unknown
}

// responseKind is wire.Invalid for a command that no response has.
func responseKind(command uint16) wire.Kind {
	switch command {
	case cmdResponse:
		return wire.Reply
	case cmdHeartbeat:
		return wire.Ack
	}
	return wire.Invalid
}

func crcLenOf(t wire.Tag) uint32 {
	if tagHasCRC(t) {
		return crcLen
	}
	return 0
}

// finish does what all four layouts share, from the three lengths on: they end each of the fixed headers and
// fill eight bytes together. It sums them in 64 bits, where five such numbers cannot overflow.
func (c Codec) finish(m *wire.Message, b []byte, lim wire.Limits, fixed uint32, lengths uint64, crc uint32) (int, error) {
	if m.Kind == wire.Invalid {
		return 0, badCommand(m)
	}
	header := uint32(uint16(lengths >> 32))
	headerAt := fixed + uint32(lengths>>48)
	contentAt := headerAt + header
	end := uint64(contentAt) + uint64(uint32(lengths))
	total := end + uint64(crc)

	limit := lim.MaxFrame
	if uint(limit-1) >= maxFrame {
		limit = maxFrame
	}
	if total > uint64(limit) {
		return 0, tooLarge(m, wire.ReasonFrameTooLarge, total, limit)
	}
	if lim.MaxHeader > 0 && int(header) > lim.MaxHeader {
		return 0, tooLarge(m, wire.ReasonHeadersTooLarge, uint64(header), lim.MaxHeader)
	}
	n := int(total)
	if n > len(b) {
		return n, nil
	}
	m.Frame = b[:n:n]
	m.ClassAt = fixed
	m.HeaderAt = headerAt
	m.ContentAt = contentAt
	m.ContentEnd = uint32(end)
	if crc != 0 && c.VerifyCRC {
		if err := verifyCRC(m); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// verifyCRC returns an error only where there is one: a nil *DecodeError would not be a nil error.
func verifyCRC(m *wire.Message) error {
	got := binary.BigEndian.Uint32(m.Frame[m.ContentEnd:])
	want := crc32.ChecksumIEEE(m.Frame[:m.ContentEnd])
	if got == want {
		return nil
	}
	return refuse(m, wire.ReasonBadChecksum, crcDetail(got, want))
}

func crcDetail(got, want uint32) string { return fmt.Sprintf("crc 0x%08x, want 0x%08x", got, want) }

func badType(m *wire.Message, typ byte) error {
	*m = wire.Message{}
	return &wire.DecodeError{Reason: wire.ReasonBadType, Detail: fmt.Sprintf("type %d", typ)}
}

func badCommand(m *wire.Message) error {
	command := tagCommand(m.Tag)
	*m = wire.Message{}
	return &wire.DecodeError{Reason: wire.ReasonBadType, Detail: fmt.Sprintf("unknown command %d in a response", command)}
}

func tooLarge(m *wire.Message, reason string, size uint64, limit int) error {
	return refuse(m, reason, fmt.Sprintf("%d bytes, limit %d", size, limit))
}

// refuse leaves of m only what an answer needs, so that nobody reads the offsets of an earlier frame.
func refuse(m *wire.Message, reason, detail string) error {
	*m = wire.Message{Kind: m.Kind, ID: m.ID, Tag: m.Tag, Timeout: m.Timeout, Status: m.Status}
	return &wire.DecodeError{Reason: reason, Detail: detail}
}

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
