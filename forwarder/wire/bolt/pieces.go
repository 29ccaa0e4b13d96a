package bolt

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// Head implements wire.Codec. It refuses what Decode refuses, with the same errors and the same left in m, but for a
// wrong CRC, which Pass finds. It asks for bytes as Decode does, for the head in place of the frame.
func (c Codec) Head(m *wire.Message, b []byte, lim wire.Limits) (head, whole int, err error) {
	fixed := v2RequestLen // the longest one, where the type is not known yet
	if len(b) > 2 {
		fixed = fixedLen(b)
	}
	// Of the fixed header alone Decode says all but where the head ends: it fills m up to the offsets.
	whole, err = c.Decode(m, b[:min(len(b), fixed)], lim)
	if err != nil || len(b) < fixed {
		return whole, 0, err
	}
	m.ClassAt = uint32(fixed)
	m.HeaderAt = m.ClassAt + uint32(binary.BigEndian.Uint16(b[fixed-8:]))
	m.ContentAt = m.HeaderAt + uint32(binary.BigEndian.Uint16(b[fixed-6:]))
	m.ContentEnd = m.ContentAt
	head = int(m.ContentAt)
	if head > len(b) {
		return head, 0, nil
	}
	m.Frame = b[:head:head]
	return head, whole, nil
}

// fixedLen is the length of the fixed header of which b holds the first three bytes, if it has a layout that Decode
// accepts.
func fixedLen(b []byte) int {
	switch {
	case b[0] == proto1 && b[1] == typeResponse:
		return v1ResponseLen
	case b[0] == proto1:
		return v1RequestLen
	case b[2] == typeResponse:
		return v2ResponseLen
	}
	return v2RequestLen
}

// Follow implements wire.Codec. The head of a reply has no timeout: it gets the id alone.
func (c Codec) Follow(m *wire.Message, head []byte, id uint32, timeout int32, whole int) wire.Rest {
	r := wire.Rest{Left: max(0, whole-len(m.Frame))}
	if !tagHasCRC(m.Tag) {
		patchHead(head, m.Tag, id, timeout)
		return r
	}
	r.Checksum = min(crcLen, r.Left)
	// Before the patch: head may be m's own bytes.
	came := crc32.ChecksumIEEE(m.Frame)
	patchHead(head, m.Tag, id, timeout)
	r.Sums[0] = came
	r.Sums[1] = crcShift(came^crc32.ChecksumIEEE(head), uint32(r.Left-r.Checksum))
	return r
}

// patchHead writes id and, if it is a request's, timeout into a frame's head, which no CRC ends.
func patchHead(head []byte, tag wire.Tag, id uint32, timeout int32) {
	idAt, timeoutAt := 5, 10
	if tagProto(tag) == proto2 {
		idAt, timeoutAt = 6, 12
	}
	binary.BigEndian.PutUint32(head[idAt:], id)
	if tagType(tag) != typeResponse {
		binary.BigEndian.PutUint32(head[timeoutAt:], uint32(timeout))
	}
}

// Pass implements wire.Codec. The CRC is moved by what changed in the head, whatever the content: a wrong one stays
// wrong, by the same bits, and only VerifyCRC costs a pass over the bytes. The error comes with the frame's last byte.
// Bytes of piece beyond r.Left are not touched.
func (c Codec) Pass(r *wire.Rest, piece []byte) error {
	piece = piece[:min(len(piece), r.Left)]
	content := min(len(piece), r.Left-r.Checksum)
	r.Left -= len(piece)
	if r.Checksum == 0 {
		return nil
	}
	if c.VerifyCRC {
		r.Sums[0] = crc32.Update(r.Sums[0], crc32.IEEETable, piece[:content])
	}
	for i := content; i < len(piece); i++ {
		r.Checksum--
		r.Seen[crcLen-1-r.Checksum] = piece[i]
		piece[i] ^= byte(r.Sums[1] >> (8 * r.Checksum))
	}
	if got := binary.BigEndian.Uint32(r.Seen[:]); c.VerifyCRC && r.Checksum == 0 && got != r.Sums[0] {
		return &wire.DecodeError{Reason: wire.ReasonBadChecksum, Detail: crcDetail(got, r.Sums[0])}
	}
	return nil
}
