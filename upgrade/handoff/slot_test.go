package handoff

import (
	"encoding/binary"
	"encoding/hex"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestSlotsReadAsTheyWereWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.SliceOf(rapid.Make[Slot]()).Draw(t, "slots")
		var b []byte
		for i := range want {
			b = AppendSlot(b, &want[i])
		}
		seq, err := Slots(b)
		if err != nil {
			t.Fatalf("%v", err)
		}
		if diff := cmp.Diff(want, slices.Collect(seq), equateEmpty); diff != "" {
			t.Fatalf("slots read otherwise than they were written (-written +read):\n%s", diff)
		}
		if n, err := SlotCount(b); err != nil || n != len(want) {
			t.Fatalf("got %d slots, %v, want %d", n, err, len(want))
		}
	})
}

// The format, byte for byte: another release has written it.
func TestSlotLayout(t *testing.T) {
	got := hex.EncodeToString(AppendSlot(nil, &Slot{
		ID: 0x01020304, Downstream: 2, Target: 3, Label: 4, Record: 5, ClientID: 6, Timeout: -1,
		Deadline: 0x0102030405060708, Start: 9, Tag: 10, Attempts: 11,
	}))
	const want = "3800" + "04030201" + "02000000" + "03000000" + "04000000" + "05000000" + "06000000" + "ffffffff" + "0b000000" +
		"0807060504030201" + "0900000000000000" + "0a00000000000000"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// A later release has longer records. This one reads their beginning.
func TestSlotsOfALaterRelease(t *testing.T) {
	one := AppendSlot(nil, &Slot{ID: 7, Tag: 8})[slotHead:]
	b := binary.LittleEndian.AppendUint16(nil, slotSize+3)
	for range 3 {
		b = append(append(b, one...), 0xff, 0xff, 0xff)
	}
	seq, err := Slots(b)
	if err != nil {
		t.Fatal(err)
	}
	for s := range seq {
		if want := (Slot{ID: 7, Tag: 8}); s != want {
			t.Errorf("got %+v, want %+v", s, want)
		}
	}
	if n, _ := SlotCount(b); n != 3 {
		t.Errorf("got %d slots, want 3", n)
	}
}

func TestSlotsThatAreRefused(t *testing.T) {
	good := AppendSlot(AppendSlot(nil, &Slot{ID: 1}), &Slot{ID: 2})
	for n := 1; n < len(good); n++ {
		if whole := n == slotHead || n == slotHead+slotSize; whole {
			continue
		}
		if _, err := Slots(good[:n]); err == nil {
			t.Errorf("%d of %d bytes are taken for slots, want an error", n, len(good))
		}
	}
	for _, size := range []uint16{0, 1, slotSize - 1} {
		b := slices.Clone(good)
		binary.LittleEndian.PutUint16(b, size)
		if _, err := Slots(b); err == nil {
			t.Errorf("records of %d bytes are taken for slots, want an error", size)
		}
	}
}

func FuzzSlots(f *testing.F) {
	f.Add([]byte(nil))
	f.Add([]byte{slotSize, 0})
	f.Add(AppendSlot(AppendSlot(nil, &Slot{ID: 1}), &Slot{ID: 2, Attempts: 3}))
	f.Add(append([]byte{slotSize + 1, 0}, make([]byte, slotSize+1)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		want, wantErr := SlotCount(b)
		seq, err := Slots(b)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("SlotCount says %v, Slots says %v", wantErr, err)
		}
		if err != nil {
			return
		}
		n := 0
		for range seq {
			n++
		}
		if n != want {
			t.Fatalf("got %d slots, want %d", n, want)
		}
	})
}
