package bolt

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"slices"

	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// maxShort bounds class and header block of what is written here: Java reads their lengths as signed.
const maxShort = math.MaxInt16

// heartbeatTimeout is what the heartbeats of real clients say, in milliseconds. Nobody acts upon it.
const heartbeatTimeout = 3000

// AppendReply implements wire.Codec. The reply has the version, codec and switch of the request, and a CRC
// where that had one; class, headers and content are empty, with which real clients fail a call at once.
func (Codec) AppendReply(dst []byte, tag wire.Tag, id uint32, s wire.Status) []byte {
	start := len(dst)
	tag = replyTag(tag)
	dst = appendHead(dst, tag, id)
	dst = binary.BigEndian.AppendUint16(dst, StatusCode(s))
	dst = binary.BigEndian.AppendUint64(dst, 0)
	return appendCRC(dst, start, tag)
}

// AppendHeartbeat implements wire.Codec: a v1 request with command 0, codec hessian2 and a timeout of 3 s, as
// real clients send it. Every server reads v1; with codec 0 the Node server sends no ack.
func (Codec) AppendHeartbeat(dst []byte, id uint32) []byte {
	dst = appendHead(dst, newTag(V1, typeRequest, cmdHeartbeat, CodecHessian2), id)
	dst = binary.BigEndian.AppendUint32(dst, heartbeatTimeout)
	return binary.BigEndian.AppendUint64(dst, 0)
}

// Pair is one header to write. Null cannot be written.
type Pair struct{ Key, Value string }

// Request is a request to write, for clients and tests: a forwarder patches the frame it got.
type Request struct {
	Version   Version
	Heartbeat bool // command 0; real heartbeats have neither class nor headers nor content
	Oneway    bool
	Codec     byte
	ID        uint32
	Timeout   int32 // milliseconds; 0 unspecified, negative never
	Class     string
	Headers   []Pair
	Content   []byte
}

// Append appends the frame to dst. It returns dst as it was, and an error, when class or header block exceed
// 32767 bytes or the frame 2 GiB - 1.
func (r *Request) Append(dst []byte) ([]byte, error) {
	typ, command := byte(typeRequest), uint16(cmdRequest)
	if r.Oneway {
		typ = typeOneway
	}
	if r.Heartbeat {
		command = cmdHeartbeat
	}
	p := payload{r.Class, r.Headers, r.Content}
	size, err := p.size()
	if err != nil {
		return dst, fmt.Errorf("append bolt request: %w", err)
	}
	start := len(dst)
	tag := newTag(r.Version, typ, command, r.Codec)
	dst = slices.Grow(dst, v2RequestLen+size+crcLen)
	dst = appendHead(dst, tag, r.ID)
	dst = binary.BigEndian.AppendUint32(dst, uint32(r.Timeout))
	dst = p.append(dst)
	return appendCRC(dst, start, tag), nil
}

// Response is a response to write, for servers and tests. Codec.AppendReply writes an empty one, or an ack.
type Response struct {
	Version Version
	Codec   byte
	ID      uint32
	Status  wire.Status
	Class   string
	Headers []Pair
	Content []byte
}

// Append appends the frame to dst, with the errors of Request.Append.
func (r *Response) Append(dst []byte) ([]byte, error) {
	p := payload{r.Class, r.Headers, r.Content}
	size, err := p.size()
	if err != nil {
		return dst, fmt.Errorf("append bolt response: %w", err)
	}
	start := len(dst)
	tag := newTag(r.Version, typeResponse, cmdResponse, r.Codec)
	dst = slices.Grow(dst, v2ResponseLen+size+crcLen)
	dst = appendHead(dst, tag, r.ID)
	dst = binary.BigEndian.AppendUint16(dst, StatusCode(r.Status))
	dst = p.append(dst)
	return appendCRC(dst, start, tag), nil
}

// appendHead appends the fixed header up to and including codec and switch.
func appendHead(dst []byte, tag wire.Tag, id uint32) []byte {
	command := tagCommand(tag)
	if tagProto(tag) == proto2 {
		dst = append(dst, proto2, tagVer1(tag), tagType(tag), byte(command>>8), byte(command), tagVer2(tag))
		dst = binary.BigEndian.AppendUint32(dst, id)
		return append(dst, tagCodec(tag), tagSwitch(tag))
	}
	dst = append(dst, proto1, tagType(tag), byte(command>>8), byte(command), tagVer2(tag))
	dst = binary.BigEndian.AppendUint32(dst, id)
	return append(dst, tagCodec(tag))
}

// appendCRC ends the frame that begins at start.
func appendCRC(dst []byte, start int, tag wire.Tag) []byte {
	if !tagHasCRC(tag) {
		return dst
	}
	return binary.BigEndian.AppendUint32(dst, crc32.ChecksumIEEE(dst[start:]))
}

// payload is what requests and responses have in common: the three lengths and what they measure.
type payload struct {
	class   string
	headers []Pair
	content []byte
}

func (p *payload) headerSize() int {
	n := 0
	for _, h := range p.headers {
		n += 4 + len(h.Key) + 4 + len(h.Value)
	}
	return n
}

// size is that of class, header block and content together, or says which of them cannot be written.
func (p *payload) size() (int, error) {
	if len(p.class) > maxShort {
		return 0, fmt.Errorf("class of %d bytes, limit %d", len(p.class), maxShort)
	}
	header := p.headerSize()
	if header > maxShort {
		return 0, fmt.Errorf("header block of %d bytes, limit %d", header, maxShort)
	}
	size := len(p.class) + header
	if room := maxFrame - v2RequestLen - crcLen - size; len(p.content) > room {
		return 0, fmt.Errorf("content of %d bytes, limit %d", len(p.content), room)
	}
	return size + len(p.content), nil
}

func (p *payload) append(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(p.class)))
	dst = binary.BigEndian.AppendUint16(dst, uint16(p.headerSize()))
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(p.content)))
	dst = append(dst, p.class...)
	for _, h := range p.headers {
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(h.Key)))
		dst = append(dst, h.Key...)
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(h.Value)))
		dst = append(dst, h.Value...)
	}
	return append(dst, p.content...)
}
