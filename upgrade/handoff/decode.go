package handoff

import (
	"encoding/binary"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// The bounds of a payload. They are wider than anything that is written, so that a later release has room.
const (
	maxElements = 1 << 20 // of an array
	maxPairs    = 1 << 16 // of a map
	maxNesting  = 16      // the messages of this release nest 7 deep
)

// decMode checks that the payload is whole and within the bounds before it allocates anything, so that what it allocates
// is in proportion to what has arrived. Text need not be UTF-8: the names that clients send are any bytes.
var decMode = must(cbor.DecOptions{
	DupMapKey:         cbor.DupMapKeyEnforcedAPF,
	IndefLength:       cbor.IndefLengthForbidden,
	TagsMd:            cbor.TagsForbidden,
	UTF8:              cbor.UTF8DecodeInvalid,
	FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
	MaxArrayElements:  maxElements,
	MaxMapPairs:       maxPairs,
	MaxNestedLevels:   maxNesting,
}.DecMode())

// PayloadError is what Receive returns of a payload that is wrong. It costs its message only.
type PayloadError struct {
	Kind Kind
	Err  error
}

func (e *PayloadError) Error() string { return fmt.Sprintf("decoding %s: %v", e.Kind, e.Err) }

// Unwrap is the cause.
func (e *PayloadError) Unwrap() error { return e.Err }

// Unknown is a message of a kind that this release does not know, and which it can do without.
type Unknown struct{ Kind Kind }

func (u *Unknown) kind() Kind { return u.Kind }

// frame is a header that has been read.
type frame struct {
	kind   Kind
	files  int
	length int
}

// decodeHeader reads the first headerLen bytes of a frame.
func decodeHeader(b []byte) (frame, error) {
	if b[0] != headerMagic {
		return frame{}, fmt.Errorf("reading a frame: it begins with %#02x, not with %#02x", b[0], headerMagic)
	}
	f := frame{kind: Kind(b[1]), files: int(binary.LittleEndian.Uint16(b[2:4]))}
	length := binary.LittleEndian.Uint32(b[4:8])
	if length > MaxMessage {
		return frame{}, fmt.Errorf("reading %s: %d bytes, a message has at most %d", f.kind, length, MaxMessage)
	}
	if f.files > maxFiles {
		return frame{}, fmt.Errorf("reading %s: %d descriptors, a message has at most %d", f.kind, f.files, maxFiles)
	}
	f.length = int(length)
	return f, nil
}

// decode reads a payload. The message keeps nothing of b.
func (f frame) decode(b []byte) (Message, error) {
	m := newMessage(f.kind)
	if m == nil {
		return &Unknown{f.kind}, nil
	}
	if err := decMode.Unmarshal(b, m); err != nil {
		return nil, &PayloadError{f.kind, err}
	}
	if want := filesOf(m); f.files != want {
		return nil, &PayloadError{f.kind, fmt.Errorf("%d descriptors came with a message that names %d", f.files, want)}
	}
	return m, nil
}

// newMessage returns an empty message of a kind, nil for one that this release does not know.
func newMessage(k Kind) Message {
	switch k {
	case KindOffer:
		return new(Offer)
	case KindListeners:
		return new(Listeners)
	case KindWarm:
		return new(Warm)
	case KindConns:
		return new(Conns)
	case KindExchanges:
		return new(Exchanges)
	case KindEnd:
		return new(End)
	case KindPrepared:
		return new(Prepared)
	case KindCommit:
		return new(Commit)
	case KindStarted:
		return new(Started)
	case KindAbort:
		return new(Abort)
	case KindFailed:
		return new(Failed)
	case KindCounters:
		return new(Counters)
	case KindFollow:
		return new(Follow)
	default:
		return nil
	}
}
