package bolt

import (
	"encoding/binary"

	"github.com/relevo-proxy/relevo/forwarder/wire"
)

const (
	// detectFrame bounds a client's first frame where its protocol is not known yet: 256 MiB.
	detectFrame = 256 << 20
	// detectVer2 bounds ver2. Real clients say 1, but nobody checks it.
	detectVer2 = 15
)

// Detect implements wire.Codec. A client begins with a request, a oneway request or a heartbeat; it is Mine from the
// last byte of that frame's fixed header on. What may have any value there (id, codec, switch, timeout) is not looked
// at; the lengths are judged as if the bytes still to come were zero, so that one that is too large already shows in
// its first byte.
func (Codec) Detect(b []byte) wire.Detection {
	var head [v2RequestLen]byte
	n := copy(head[:], b)
	if n == 0 {
		return wire.NeedMore
	}
	typeAt, fixed := 1, v1RequestLen
	switch head[0] {
	case proto1:
	case proto2:
		typeAt, fixed = 2, v2RequestLen
		if n > 1 && head[1] != 1 && head[1] != ver1CRC {
			return wire.NotMine
		}
	default:
		return wire.NotMine
	}
	if !plausibleCommand(head[min(typeAt, n):n]) || !plausibleLengths(head[:fixed]) {
		return wire.NotMine
	}
	if n < fixed {
		return wire.NeedMore
	}
	return wire.Mine
}

// plausibleCommand judges as much as there is of type, command and ver2, which follow each other.
func plausibleCommand(b []byte) bool {
	if len(b) > 0 && b[0] != typeRequest && b[0] != typeOneway {
		return false
	}
	if len(b) > 1 && b[1] != 0 {
		return false
	}
	if len(b) > 2 && b[2] != cmdRequest && (b[2] != cmdHeartbeat || b[0] == typeOneway) {
		return false
	}
	return len(b) <= 3 || b[3] <= detectVer2
}

// plausibleLengths judges the lengths at the end of a fixed header that is filled up with zeros.
func plausibleLengths(fixed []byte) bool {
	lengths := fixed[len(fixed)-8:]
	class := uint64(binary.BigEndian.Uint16(lengths))
	header := uint64(binary.BigEndian.Uint16(lengths[2:]))
	content := uint64(binary.BigEndian.Uint32(lengths[4:]))
	return class <= maxShort && header <= maxShort && uint64(len(fixed))+class+header+content <= detectFrame
}
