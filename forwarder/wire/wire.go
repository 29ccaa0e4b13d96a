// Package wire holds the words that every protocol shares: Message, Codec and Status.
//
// It is pure: bytes in, bytes out. It opens no socket, reads no clock, starts no goroutine and keeps no
// memory of what it has seen. A concrete protocol lives in a folder of its own below this one and imports
// only this package.
package wire

import "fmt"

// Kind says what a frame asks of the one who receives it.
type Kind uint8

// The kinds. The zero Kind belongs to a frame of which nothing is known.
const (
	Invalid   Kind = iota
	Request        // wants exactly one reply
	Oneway         // a request that gets no answer, not even an error
	Heartbeat      // wants an ack, from whoever is at the other end of the connection
	Reply          // answers a Request
	Ack            // answers a Heartbeat
	GoAway         // asks the peer to open no new streams on this connection
	Unknown        // a whole request frame whose command this protocol does not define
)

var kindNames = [...]string{"invalid", "request", "oneway", "heartbeat", "reply", "ack", "goaway", "unknown"}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind-%d", uint8(k))
}

// Status is the outcome that a reply carries. The words are those of Bolt, in which every status that
// Relevo itself answers with exists; a codec maps them to and from its own numbers.
type Status uint8

// The statuses. Other stands for a number that the protocol does not define.
const (
	Success Status = iota
	Error
	ServerException
	UnknownStatus
	Busy
	ErrorComm
	NoProcessor
	Timeout
	ClientSendError
	CodecException
	ConnectionClosed
	ServerSerialException
	ServerDeserialException
	Other
	// NumStatus is the number of statuses: the length of an array that is indexed by one.
	NumStatus
)

var statusNames = [NumStatus]string{
	"SUCCESS", "ERROR", "SERVER_EXCEPTION", "UNKNOWN", "SERVER_THREADPOOL_BUSY", "ERROR_COMM", "NO_PROCESSOR",
	"TIMEOUT", "CLIENT_SEND_ERROR", "CODEC_EXCEPTION", "CONNECTION_CLOSED", "SERVER_SERIAL_EXCEPTION",
	"SERVER_DESERIAL_EXCEPTION", "OTHER",
}

// String is the status's name: what metrics carry in the label "status".
func (s Status) String() string {
	if s < NumStatus {
		return statusNames[s]
	}
	return fmt.Sprintf("status-%d", uint8(s))
}

// Tag is what a codec must know of a request, beside its id, to answer it once the frame is gone:
// protocol version, serialization, flags. It is opaque outside the codec that made it.
type Tag uint64

// Message is a view of one frame. Frame aliases the buffer that was decoded, so a Message lives no longer
// than that buffer's bytes: copy what must outlive the batch.
type Message struct {
	Frame   []byte // the whole frame, trailing checksum included
	Tag     Tag
	ID      uint32
	Timeout int32 // milliseconds as sent; 0 unspecified, negative never; requests only
	Kind    Kind
	Status  Status // replies only

	// Offsets into Frame: class is Frame[ClassAt:HeaderAt], the header block Frame[HeaderAt:ContentAt],
	// content Frame[ContentAt:ContentEnd].
	ClassAt, HeaderAt, ContentAt, ContentEnd uint32
}

// Class is the name of the payload's type; it may be empty.
func (m *Message) Class() []byte { return m.Frame[m.ClassAt:m.HeaderAt] }

// HeaderBlock is the undecoded header block; it may be empty.
func (m *Message) HeaderBlock() []byte { return m.Frame[m.HeaderAt:m.ContentAt] }

// Content is the payload; it may be empty.
func (m *Message) Content() []byte { return m.Frame[m.ContentAt:m.ContentEnd] }

// Limits bound what Decode accepts.
type Limits struct {
	MaxFrame  int // bytes of a whole frame
	MaxHeader int // bytes of its header block
}

// Detection is what the first bytes of a connection say about a protocol.
type Detection uint8

// The detections. NeedMore and NotMine are different answers: the first may still become either of the others.
const (
	NotMine Detection = iota
	NeedMore
	Mine
)

// Edit is one change of a frame's header block. Applying the same list of edits twice changes nothing more, as long
// as no key stands in it twice.
type Edit struct {
	Op         EditOp
	Key, Value []byte
}

// EditOp is what an Edit does.
type EditOp uint8

// The operations.
const (
	SetHeader    EditOp = iota // the key has this value, once, whether it was there or not
	AddHeader                  // the key has this value if it was absent; one whose value is null is not
	RemoveHeader               // the key is absent
)

// Rest is what is still to come of a frame that is passed on in pieces behind its head. Codec.Follow makes it, Pass
// moves it on.
type Rest struct {
	Left     int       // bytes to come, checksum included
	Checksum int       // of them, those of the checksum
	Sums     [2]uint32 // the codec's own: the checksum of what came so far, and by what the new one differs from it
	Seen     [4]byte   // the codec's own: the bytes of the checksum as they came
}

// Codec is one protocol. Its methods are pure and may be called by any number of goroutines at once.
type Codec interface {
	// Name is the protocol's name in the configuration and in metrics.
	Name() string

	// Decode reads the frame at the start of b into m and returns the frame's length. A result greater
	// than len(b) means "need more": the frame is not whole, at least that many bytes are needed before
	// another call can tell more, and m is not valid. An error is always an *wire.DecodeError and means
	// that the stream cannot be followed any further; m.Kind is then Invalid, or, where the fixed header
	// could be read, m.Kind, m.ID and m.Tag are valid, so that a request can still be answered.
	Decode(m *Message, b []byte, lim Limits) (int, error)

	// Headers walks m's header block once and stores the value of keys[i] in values[i], nil where the key
	// is absent or its value null; the first pair with a key wins. The values alias m.Frame. It checks the
	// whole block and returns ErrHeaderBlock when it is malformed.
	Headers(m *Message, keys, values [][]byte) error

	// Detect says whether b, the first bytes that a client sends, are this protocol's: Mine by a whole and
	// plausible fixed header at least, NeedMore while nothing in b contradicts one.
	Detect(b []byte) Detection

	// AppendEdited appends m's frame with its header block changed, lengths and checksum included, and whatever
	// else the block holds in its order. When m is only the head of a frame (see Head), so is what is appended. The
	// error is a *wire.DecodeError: ErrHeaderBlock, or ReasonHeadersTooLarge when the block would pass
	// maxHeader bytes or what the protocol can say; dst is then returned as it was. dst overlaps neither m's frame
	// nor the edits.
	AppendEdited(dst []byte, m *Message, edits []Edit, maxHeader int) ([]byte, error)

	// Head is Decode for a frame of which only the front is there: it reads the fixed header, the class and the
	// header block into m, whose Frame ends there, without content. It returns the head's length and the whole
	// frame's. A head greater than len(b) means "need more", as in Decode, and m and whole are not valid.
	Head(m *Message, b []byte, lim Limits) (head, whole int, err error)

	// Follow writes id and timeout into head, which goes out in front of the rest of the frame of which m is the head
	// as it came. The two may be the same bytes, or head may have been edited. whole is the frame's length as it came.
	Follow(m *Message, head []byte, id uint32, timeout int32, whole int) Rest

	// Pass takes the next piece of the frame, at most r.Left bytes, and makes its checksum, if it has one, right in
	// place. The error, a *wire.DecodeError, says that the frame's own checksum was wrong, if the codec verifies.
	Pass(r *Rest, piece []byte) error

	// PatchRequest writes id and timeout (milliseconds) into a whole request frame, checksum included.
	PatchRequest(frame []byte, id uint32, timeout int32)

	// PatchReply writes id into a whole reply frame, checksum included.
	PatchReply(frame []byte, id uint32)

	// AppendReply appends the empty reply with status s to the request (or the ack to the heartbeat) that
	// had this tag and id.
	AppendReply(dst []byte, tag Tag, id uint32, s Status) []byte

	// AppendHeartbeat appends a heartbeat that real servers ack.
	AppendHeartbeat(dst []byte, id uint32) []byte
}

// DecodeError says why bytes are not a frame. Reason is also the metric's label and the close reason.
type DecodeError struct {
	Reason string // one of the constants below
	Detail string // what was found, for the log
}

func (e *DecodeError) Error() string {
	if e.Detail == "" {
		return e.Reason
	}
	return e.Reason + ": " + e.Detail
}

// The reasons of a DecodeError.
const (
	ReasonBadProtocol     = "bad-protocol"      // the first byte is no version of the protocol
	ReasonBadType         = "bad-type"          // the frame type is not defined, so its layout is unknown
	ReasonFrameTooLarge   = "frame-too-large"   // the lengths add up to more than Limits.MaxFrame
	ReasonHeadersTooLarge = "headers-too-large" // the header block is longer than Limits.MaxHeader
	ReasonBadHeaderBlock  = "bad-header-block"  // stray bytes or a length that overruns the header block
	ReasonBadChecksum     = "bad-checksum"      // the checksum is not that of the bytes
)

// ErrHeaderBlock is the error of a malformed header block. The frame around it is whole: the stream can be
// followed on.
var ErrHeaderBlock = &DecodeError{Reason: ReasonBadHeaderBlock}
