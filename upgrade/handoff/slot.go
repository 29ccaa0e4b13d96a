package handoff

import (
	"encoding/binary"
	"fmt"
	"iter"
)

// Slot is one exchange in the slot of a server connection's stream table. A hundred thousand of them must not cost the
// pause, so they travel as fixed records in one byte string, not as maps.
type Slot struct {
	ID         uint32 // under which the request was sent
	Downstream uint32 // Ref; 0: its client is gone
	Target     uint32 // index, counted from 1
	Label      uint32 // index, counted from 1; 0: none
	Record     uint32 // index, counted from 1; 0: none
	ClientID   uint32
	Timeout    int32
	Deadline   int64
	Start      int64
	Tag        uint64
	Attempts   uint8
}

// The byte string begins with the size of a record. A release that knows more of a slot writes longer records, of which
// this one reads the beginning; slotSize is the shortest there has ever been.
const (
	slotHead = 2
	slotSize = 56
)

// AppendSlot appends s to dst, which is empty before the first one and otherwise holds slots and nothing else.
func AppendSlot(dst []byte, s *Slot) []byte {
	le := binary.LittleEndian
	if len(dst) == 0 {
		dst = le.AppendUint16(dst, slotSize)
	}
	dst = le.AppendUint32(dst, s.ID)
	dst = le.AppendUint32(dst, s.Downstream)
	dst = le.AppendUint32(dst, s.Target)
	dst = le.AppendUint32(dst, s.Label)
	dst = le.AppendUint32(dst, s.Record)
	dst = le.AppendUint32(dst, s.ClientID)
	dst = le.AppendUint32(dst, uint32(s.Timeout))
	dst = append(dst, s.Attempts, 0, 0, 0)
	dst = le.AppendUint64(dst, uint64(s.Deadline))
	dst = le.AppendUint64(dst, uint64(s.Start))
	return le.AppendUint64(dst, s.Tag)
}

// Slots walks the slots that AppendSlot has written. It is an error, found before the first one, when b is not a whole
// number of records. There are none in an empty b.
func Slots(b []byte) (iter.Seq[Slot], error) {
	size, _, err := slotLayout(b)
	if err != nil {
		return nil, err
	}
	return func(yield func(Slot) bool) {
		for at := slotHead; at < len(b); at += size {
			if !yield(decodeSlot(b[at : at+slotSize])) {
				return
			}
		}
	}, nil
}

// SlotCount is the number of slots in b.
func SlotCount(b []byte) (int, error) {
	_, n, err := slotLayout(b)
	return n, err
}

// slotLayout returns how long a record is and how many there are.
func slotLayout(b []byte) (size, n int, err error) {
	if len(b) == 0 {
		return slotSize, 0, nil
	}
	if len(b) < slotHead {
		return 0, 0, fmt.Errorf("reading slots: %d bytes, their head has %d", len(b), slotHead)
	}
	size = int(binary.LittleEndian.Uint16(b))
	if size < slotSize {
		return 0, 0, fmt.Errorf("reading slots: records of %d bytes, they have at least %d", size, slotSize)
	}
	if rest := (len(b) - slotHead) % size; rest != 0 {
		return 0, 0, fmt.Errorf("reading slots: %d bytes are left over behind records of %d", rest, size)
	}
	return size, (len(b) - slotHead) / size, nil
}

func decodeSlot(b []byte) Slot {
	le := binary.LittleEndian
	return Slot{
		ID:         le.Uint32(b[0:]),
		Downstream: le.Uint32(b[4:]),
		Target:     le.Uint32(b[8:]),
		Label:      le.Uint32(b[12:]),
		Record:     le.Uint32(b[16:]),
		ClientID:   le.Uint32(b[20:]),
		Timeout:    int32(le.Uint32(b[24:])),
		Attempts:   b[28],
		Deadline:   int64(le.Uint64(b[32:])),
		Start:      int64(le.Uint64(b[40:])),
		Tag:        le.Uint64(b[48:]),
	}
}
