// Package bolt is the Bolt protocol of SOFARPC, versions 1 and 2, as docs/wire/bolt.md describes it.
//
// It turns bytes into wire.Messages, renumbers frames in place, and writes the frames that a forwarder
// answers with; Request and Response write whole frames for clients, servers and tests. It does not look
// into payloads: class and content are opaque, and so is the serialization that codec names. Like its parent
// it opens no socket, reads no clock, starts no goroutine and remembers nothing from one frame to the next.
package bolt

import (
	"fmt"

	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// The protocol versions: the first byte of a frame.
const (
	proto1 = 1
	proto2 = 2
)

// ver1CRC is the value of ver1, the second byte of a v2 frame, with which the switch byte may ask for a CRC.
const ver1CRC = 2

// switchCRC is the bit of a v2 frame's switch byte that, together with ver1CRC, says that a CRC follows.
const switchCRC = 1

// The frame types. The type alone decides the layout of the fixed header.
const (
	typeResponse = 0
	typeRequest  = 1
	typeOneway   = 2
)

// The command codes.
const (
	cmdHeartbeat = 0
	cmdRequest   = 1
	cmdResponse  = 2
	cmdGoAway    = 100
)

// The lengths of the fixed headers, and of the CRC at the end.
const (
	v1ResponseLen = 20
	v1RequestLen  = 22
	v2ResponseLen = 22
	v2RequestLen  = 24
	crcLen        = 4
)

// The classes that SOFARPC's requests and responses name, whatever their serialization.
const (
	ClassRequest  = "com.alipay.sofa.rpc.core.request.SofaRequest"
	ClassResponse = "com.alipay.sofa.rpc.core.response.SofaResponse"
)

// The serializations that real peers name in the codec byte.
const (
	CodecHessian2 byte = 1
	CodecProtobuf byte = 11
	CodecJSON     byte = 12
)

// CodecName is the name of a serialization, for people: "hessian2", "protobuf", "json", or "codec-N".
func CodecName(codec byte) string {
	switch codec {
	case CodecHessian2:
		return "hessian2"
	case CodecProtobuf:
		return "protobuf"
	case CodecJSON:
		return "json"
	}
	return fmt.Sprintf("codec-%d", codec)
}

// Codec is the wire.Codec of both versions, mixed on one connection as they come. Its zero value is ready.
type Codec struct {
	// VerifyCRC makes Decode refuse a frame whose CRC is wrong. It costs a pass over every frame that has
	// one; without it a wrong CRC travels on and stays wrong, for the receiver to see.
	VerifyCRC bool
}

var _ wire.Codec = Codec{}

// Name is "bolt".
func (Codec) Name() string { return "bolt" }

// Version is what a client chooses between: the frame layout, and whether a CRC ends the frame. The zero
// Version is V1.
type Version uint8

// The versions.
const (
	V1    Version = iota
	V2            // proto 2, ver1 1: cannot carry a CRC
	V2CRC         // proto 2, ver1 2, switch bit 0 set: ends with a CRC
)

var versionNames = [...]string{"v1", "v2", "v2-crc"}

// String is "v1", "v2" or "v2-crc".
func (v Version) String() string {
	if int(v) < len(versionNames) {
		return versionNames[v]
	}
	return fmt.Sprintf("version-%d", uint8(v))
}

// ParseVersion is the inverse of Version.String.
func ParseVersion(s string) (Version, error) {
	for i, name := range versionNames {
		if s == name {
			return Version(i), nil
		}
	}
	return 0, fmt.Errorf("bolt version %q: want v1, v2 or v2-crc", s)
}

// VersionOf is the version of a decoded frame. A v2 frame that could carry a CRC (ver1 2) and does not is V2.
func VersionOf(m *wire.Message) Version {
	switch {
	case tagProto(m.Tag) != proto2:
		return V1
	case tagHasCRC(m.Tag):
		return V2CRC
	}
	return V2
}

// CodecOf is the serialization that a decoded frame names.
func CodecOf(m *wire.Message) byte { return tagCodec(m.Tag) }
