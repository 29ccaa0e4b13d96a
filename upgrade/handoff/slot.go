package handoff

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
