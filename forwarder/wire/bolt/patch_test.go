package bolt

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"testing"

	"pgregory.net/rapid"

	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// crcError is by how much the CRC at the end of the frame is wrong.
func crcError(frame []byte) uint32 {
	at := len(frame) - crcLen
	return binary.BigEndian.Uint32(frame[at:]) ^ crc32.ChecksumIEEE(frame[:at])
}

func TestPatchMovesTheCRC(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// Sizes about the places where the digits of the distance change.
		size := rapid.SampledFrom([]int{0, 1, 15, 200, 224, 225, 255, 4000, 4096, 65535, 70000, 1 << 20}).Draw(t, "size") + rapid.IntRange(0, 40).Draw(t, "more")
		content := make([]byte, size)
		for i := range content {
			content[i] = byte(i * i >> 3)
		}
		fault := rapid.SampledFrom([]uint32{0, 0, 1, 0x80000000, 0xdeadbeef}).Draw(t, "fault")
		id, timeout := rapid.Uint32().Draw(t, "id"), rapid.Int32().Draw(t, "timeout")

		request := Request{Version: V2CRC, ID: rapid.Uint32().Draw(t, "old id"), Timeout: rapid.Int32().Draw(t, "old timeout"), Content: content}
		frame, err := request.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		wrong(frame, fault)
		Codec{}.PatchRequest(frame, id, timeout)
		if got := crcError(frame); got != fault {
			t.Fatalf("after PatchRequest the CRC of a frame of %d bytes is wrong by %08x, want %08x as before", len(frame), got, fault)
		}

		response := Response{Version: V2CRC, ID: request.ID, Content: content}
		frame, err = response.Append(frame[:0])
		if err != nil {
			t.Fatal(err)
		}
		wrong(frame, fault)
		Codec{}.PatchReply(frame, id)
		if got := crcError(frame); got != fault {
			t.Fatalf("after PatchReply the CRC of a frame of %d bytes is wrong by %08x, want %08x as before", len(frame), got, fault)
		}
	})
}

func wrong(frame []byte, by uint32) {
	at := len(frame) - crcLen
	binary.BigEndian.PutUint32(frame[at:], binary.BigEndian.Uint32(frame[at:])^by)
}

// TestPatchLeavesWhatIsNoCRC: the switch bit alone does not make the last four bytes a CRC.
func TestPatchLeavesWhatIsNoCRC(t *testing.T) {
	request := unhex(t, "02 01 01 0001 01 00000007 01 01 00000bb8 0000 0000 00000004 aabbccdd")
	Codec{}.PatchRequest(request, 8, 9)
	if want := unhex(t, "02 01 01 0001 01 00000008 01 01 00000009 0000 0000 00000004 aabbccdd"); !bytes.Equal(request, want) {
		t.Errorf("PatchRequest made %x, want %x", request, want)
	}
	reply := unhex(t, "02 02 00 0002 01 00000007 01 02 0000 0000 0000 00000004 aabbccdd")
	Codec{}.PatchReply(reply, 8)
	if want := unhex(t, "02 02 00 0002 01 00000008 01 02 0000 0000 0000 00000004 aabbccdd"); !bytes.Equal(reply, want) {
		t.Errorf("PatchReply made %x, want %x", reply, want)
	}
}

func TestPatchNeverPanics(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 0, 30).Draw(t, "bytes")
		if len(b) > 1 {
			b[0], b[1] = b[0]%4, b[1]%4
		}
		Codec{}.PatchRequest(bytes.Clone(b), 1, 2)
		Codec{}.PatchReply(b, 1)
	})
}

func TestCRCArithmetic(t *testing.T) {
	slow := func(a, b uint32) uint32 {
		var p uint32
		for i := 31; i >= 0; i-- {
			if a>>i&1 != 0 {
				p ^= b
			}
			if b&1 != 0 {
				b = b>>1 ^ crc32.IEEE
			} else {
				b >>= 1
			}
		}
		return p
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.Uint32().Draw(t, "a"), rapid.Uint32().Draw(t, "b")
		if got, want := crcMultiply(a, b), slow(a, b); got != want {
			t.Fatalf("crcMultiply(%08x, %08x) = %08x, want %08x as bit by bit", a, b, got, want)
		}
		n := rapid.IntRange(0, 70000).Draw(t, "n")
		want := a
		for range n {
			want = crc32.IEEETable[byte(want)] ^ want>>8
		}
		if got := crcShift(a, uint32(n)); got != want {
			t.Fatalf("crcShift(%08x, %d) = %08x, want %08x as byte by byte", a, n, got, want)
		}
		// Beyond what can be done byte by byte: distances add up, to the last digit.
		i, j := rapid.Uint32Range(0, 1<<31).Draw(t, "i"), rapid.Uint32Range(0, 1<<31-1).Draw(t, "j")
		if got, want := crcShift(crcShift(a, i), j), crcShift(a, i+j); got != want {
			t.Fatalf("a shift of %d after one of %d gives %08x, want %08x as of one of their sum", j, i, got, want)
		}
	})
	if got := crcMultiply(0xffffffff, 0xffffffff); got != slow(0xffffffff, 0xffffffff) {
		t.Errorf("crcMultiply of two operands full of ones = %08x, want %08x: carries leaked", got, slow(0xffffffff, 0xffffffff))
	}
}

func TestNoAllocations(t *testing.T) {
	var codec wire.Codec = Codec{VerifyCRC: true}
	keys, values := [][]byte{[]byte("service"), []byte("none")}, make([][]byte, 2)
	dst := make([]byte, 0, 64)
	var m wire.Message
	for _, v := range vectors(t) {
		frame := bytes.Clone(v.frame)
		got := testing.AllocsPerRun(20, func() {
			if n, err := codec.Decode(&m, frame, noLimits); err != nil || n != len(frame) {
				t.Fatalf("Decode of a whole frame = %d, %v, want %d", n, err, len(frame))
			}
			if _, err := codec.Decode(&m, frame[:len(frame)-1], noLimits); err != nil {
				t.Fatalf("Decode of a part: %v, want a need", err)
			}
			if err := codec.Headers(&m, keys, values); err != nil {
				t.Fatalf("Headers: %v, want no error", err)
			}
			if v.Type == typeResponse {
				codec.PatchReply(frame, m.ID+1)
			} else {
				codec.PatchRequest(frame, m.ID+1, 1)
			}
			dst = codec.AppendReply(dst[:0], m.Tag, m.ID, wire.Busy)
			dst = codec.AppendHeartbeat(dst[:0], m.ID)
		})
		if got != 0 {
			t.Errorf("%s from %s: %v allocations a frame, want none", v.Name, v.From, got)
		}
	}
	bad := blockMessage([]byte{0})
	if got := testing.AllocsPerRun(20, func() { _ = codec.Headers(bad, keys, values) }); got != 0 {
		t.Errorf("Headers of a malformed block makes %v allocations, want none: the connection lives on", got)
	}
}
