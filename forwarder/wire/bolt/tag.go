package bolt

import "github.com/relevo-proxy/relevo/forwarder/wire"

// A tag has, from its highest byte down: proto, ver1 (0 in v1), type, command (two bytes), ver2, codec,
// switch (0 in v1). The first six are in the order of a v2 frame, so that making one is a load and a mask.

const (
	tagTypeCommand = 0xffffff << 24       // the bits of type and command
	tagHeadV2      = 0xffffffffffff << 16 // the bits that a v2 frame's first six bytes fill
	tagHeadV1      = 0x0000ffffffff << 16 // the bits that bytes 1 to 4 of a v1 frame fill
)

// makeTagV1 takes the first eight bytes of a v1 frame and its codec.
func makeTagV1(head uint64, codec byte) wire.Tag {
	return wire.Tag(proto1<<56 | head>>8&tagHeadV1 | uint64(codec)<<8)
}

// makeTagV2 takes the first eight bytes of a v2 frame and its codec and switch bytes.
func makeTagV2(head uint64, codecSwitch uint16) wire.Tag {
	return wire.Tag(head&tagHeadV2 | uint64(codecSwitch))
}

// newTag is the tag of a frame made here.
func newTag(v Version, typ byte, command uint16, codec byte) wire.Tag {
	t := uint64(typ)<<40 | uint64(command)<<24 | 1<<16 | uint64(codec)<<8
	switch v {
	case V2:
		t |= proto2<<56 | 1<<48
	case V2CRC:
		t |= proto2<<56 | ver1CRC<<48 | switchCRC
	default:
		t |= proto1 << 56
	}
	return wire.Tag(t)
}

// replyTag is the tag of the frame that answers the request with tag t.
func replyTag(t wire.Tag) wire.Tag {
	command := wire.Tag(cmdResponse)
	if tagCommand(t) == cmdHeartbeat {
		command = cmdHeartbeat
	}
	return t&^tagTypeCommand | typeResponse<<40 | command<<24
}

func tagProto(t wire.Tag) byte     { return byte(t >> 56) }
func tagVer1(t wire.Tag) byte      { return byte(t >> 48) }
func tagType(t wire.Tag) byte      { return byte(t >> 40) }
func tagCommand(t wire.Tag) uint16 { return uint16(t >> 24) }
func tagVer2(t wire.Tag) byte      { return byte(t >> 16) }
func tagCodec(t wire.Tag) byte     { return byte(t >> 8) }
func tagSwitch(t wire.Tag) byte    { return byte(t) }

// tagHasCRC takes all three conditions together: Java clients set the switch bit where no CRC follows.
func tagHasCRC(t wire.Tag) bool {
	return tagProto(t) == proto2 && tagVer1(t) == ver1CRC && tagSwitch(t)&switchCRC != 0
}
