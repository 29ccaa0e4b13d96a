package bolt

import (
	"encoding/binary"
	"math/bits"
)

// PatchRequest implements wire.Codec. A CRC is moved along with the change, not computed anew: the cost does
// not depend on the size of the body, and a frame whose CRC was wrong leaves with one that is as wrong.
func (Codec) PatchRequest(frame []byte, id uint32, timeout int32) {
	if len(frame) >= v1RequestLen && frame[0] == proto1 {
		binary.BigEndian.PutUint32(frame[5:9], id)
		binary.BigEndian.PutUint32(frame[10:14], uint32(timeout))
		return
	}
	if len(frame) < v2RequestLen || frame[0] != proto2 {
		return
	}
	idDiff := binary.BigEndian.Uint32(frame[6:10]) ^ id
	timeoutDiff := binary.BigEndian.Uint32(frame[12:16]) ^ uint32(timeout)
	binary.BigEndian.PutUint32(frame[6:10], id)
	binary.BigEndian.PutUint32(frame[12:16], uint32(timeout))
	if hasCRC(frame) && len(frame) >= v2RequestLen+crcLen && idDiff|timeoutDiff != 0 {
		// Two bytes lie between the fields: the timeout's last byte is six behind the id's.
		crc := crcShift(bits.ReverseBytes32(idDiff), 6) ^ bits.ReverseBytes32(timeoutDiff)
		moveCRC(frame, crc, 16)
	}
}

// PatchReply implements wire.Codec, with the CRC as PatchRequest has it.
func (Codec) PatchReply(frame []byte, id uint32) {
	if len(frame) >= v1ResponseLen && frame[0] == proto1 {
		binary.BigEndian.PutUint32(frame[5:9], id)
		return
	}
	if len(frame) < v2ResponseLen || frame[0] != proto2 {
		return
	}
	idDiff := binary.BigEndian.Uint32(frame[6:10]) ^ id
	binary.BigEndian.PutUint32(frame[6:10], id)
	if hasCRC(frame) && len(frame) >= v2ResponseLen+crcLen && idDiff != 0 {
		moveCRC(frame, bits.ReverseBytes32(idDiff), 10)
	}
}

func hasCRC(frame []byte) bool {
	return frame[1] == ver1CRC && frame[11]&switchCRC != 0
}

// moveCRC changes the CRC at the end of the frame by what a change does whose last four bytes, first byte
// lowest, are diff, and which ends at offset end. Adding is exclusive or, here and in the CRC: that of a sum
// is the sum of the CRCs, and the parts that did not change drop out.
func moveCRC(frame []byte, diff uint32, end int) {
	at := len(frame) - crcLen
	crc := binary.BigEndian.Uint32(frame[at:])
	// Four bytes are in the register, not yet divided: hence the four more.
	crc ^= crcShift(diff, uint32(at-end)+4)
	binary.BigEndian.PutUint32(frame[at:], crc)
}
