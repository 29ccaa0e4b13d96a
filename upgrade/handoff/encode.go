package handoff

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// A frame is a header and a payload. The header never changes, in no version:
//
//	0     'R'
//	1     kind
//	2:4   descriptors that belong to the message, little-endian
//	4:8   length of the payload, little-endian
const (
	headerLen   = 8
	headerMagic = 'R'
)

// MaxFiles is the number of descriptors up to which messages should be filled. The kernel takes a few more in one message.
const MaxFiles = 200

// maxFiles is what the kernel takes, its SCM_MAX_FD.
const maxFiles = 253

// MaxMessage bounds a payload, in bytes.
const MaxMessage = 1 << 30

// encMode writes maps with their keys in order and every number as short as it can be: equal messages are equal bytes.
var encMode = must(cbor.CoreDetEncOptions().UserBufferEncMode())

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // a literal of this package is wrong, every test sees it
	}
	return v
}

// appendFrame writes m to the end of to, as a frame with so many descriptors. What it has written when it returns an error
// is of no use.
func appendFrame(to *bytes.Buffer, m Message, files int) error {
	if want := filesOf(m); files != want {
		return fmt.Errorf("encoding %s: %d descriptors for a message that names %d", m.kind(), files, want)
	}
	if files > maxFiles {
		return fmt.Errorf("encoding %s: %d descriptors in one message, the kernel takes %d", m.kind(), files, maxFiles)
	}
	if newMessage(m.kind()) == nil {
		return fmt.Errorf("encoding %s: not a kind of this release", m.kind())
	}
	to.Grow(headerLen + sizeOf(m))
	at := to.Len()
	to.Write(make([]byte, headerLen))
	if err := encMode.MarshalToBuffer(m, to); err != nil {
		return fmt.Errorf("encoding %s: %w", m.kind(), err)
	}
	return encodeHeader(to.Bytes()[at:], frame{m.kind(), files, to.Len() - at - headerLen})
}

// encodeHeader writes the header into the first headerLen bytes of b.
func encodeHeader(b []byte, f frame) error {
	if f.length > MaxMessage {
		return fmt.Errorf("encoding %s: %d bytes, at most %d go into one message", f.kind, f.length, MaxMessage)
	}
	b[0] = headerMagic
	b[1] = byte(f.kind)
	binary.LittleEndian.PutUint16(b[2:4], uint16(f.files))
	binary.LittleEndian.PutUint32(b[4:8], uint32(f.length))
	return nil
}

// filesOf is the number of descriptors that m names.
func filesOf(m Message) int {
	switch m := m.(type) {
	case *Listeners:
		return len(m.List)
	case *Conns:
		return len(m.Downstreams) + len(m.Upstreams)
	}
	return 0
}

// sizeOf is about how long the payload of m is, so that a long one is written into one buffer of its size and not copied
// from one to the next.
func sizeOf(m Message) int {
	const each = 256 // about what a connection or an exchange has beside its bytes
	n := 4 * each
	switch m := m.(type) {
	case *Conns:
		for i := range m.Downstreams {
			d := &m.Downstreams[i]
			n += each + sizeOfBytes(&d.Bytes)
			if d.Upload != nil {
				n += 2*each + len(d.Upload.Head) + len(d.Upload.Edited) + len(d.Upload.Exchange.Frame)
			}
		}
		for i := range m.Upstreams {
			u := &m.Upstreams[i]
			n += each + len(u.Slots) + sizeOfBytes(&u.Bytes)
			for k := range u.Kept {
				n += 32 + len(u.Kept[k].Copy)
			}
		}
	case *Exchanges:
		n += each * (len(m.List) + len(m.Endpoints) + len(m.Listeners) + len(m.Records) + len(m.Targets) + len(m.Labels))
		for i := range m.List {
			n += len(m.List[i].Frame)
		}
	case *Counters:
		n += each*len(m.Series) + len(m.Failures)
	}
	return n
}

func sizeOfBytes(b *Bytes) int {
	n := len(b.Unread)
	for i := range b.Unsent {
		n += 16 + len(b.Unsent[i].Frames)
	}
	return n
}
