package bolt

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// checkHead holds Head against Decode: the same errors and needs, and the same message but for what is behind the head.
func checkHead(t fataler, b []byte, lim wire.Limits) {
	t.Helper()
	left := wire.Message{Frame: []byte("of an earlier frame"), ID: 99, Timeout: 99, Status: wire.Busy, ContentEnd: 99}
	got, want := left, left
	n, wantErr := Codec{}.Decode(&want, b, lim)
	head, whole, err := Codec{}.Head(&got, b, lim)
	if diff := cmp.Diff(wantErr, err); diff != "" {
		t.Fatalf("Head of %x has another error than Decode (-want +got):\n%s", b, diff)
	}
	if err != nil {
		if diff := cmp.Diff(want, got); diff != "" || head != 0 || whole != 0 {
			t.Fatalf("Head of %x = %d, %d beside its error, and leaves another message than Decode (-want +got):\n%s", b, head, whole, diff)
		}
		return
	}
	fixed := v1RequestLen
	if len(b) > 2 && b[0] == proto2 {
		fixed = v2RequestLen
	}
	if len(b) > 2 && b[b[0]] == typeResponse { // the type stands behind as many bytes as the version says
		fixed -= 2
	}
	if len(b) < fixed {
		if head != n || whole != 0 {
			t.Fatalf("Head of %x = %d, %d, want a need of %d as Decode has it", b, head, whole, n)
		}
		return
	}
	if n > 1<<20 {
		return // not worth filling up
	}
	full := b
	if n > len(b) {
		full = append(bytes.Clone(b), make([]byte, n-len(b))...)
	}
	if k, err := (Codec{}).Decode(&want, full, lim); err != nil || k != n {
		t.Fatalf("Decode of %x filled up = %d, %v, want %d", b, k, err, n)
	}
	if head != int(want.ContentAt) {
		t.Fatalf("Head of %x = %d, want %d", b, head, want.ContentAt)
	}
	if head > len(b) {
		if whole != 0 {
			t.Fatalf("Head of %x needs %d bytes and says %d for the frame, want 0", b, head, whole)
		}
		return
	}
	if len(got.Frame) != head || cap(got.Frame) != head || &got.Frame[0] != &b[0] {
		t.Fatalf("Head of %x has a frame of length %d and capacity %d, want the head itself, %d bytes, safe to append to", b, len(got.Frame), cap(got.Frame), head)
	}
	// The bytes are the same: cmp would look at each of them.
	want.Frame, want.ContentEnd, got.Frame = nil, want.ContentAt, nil
	if diff := cmp.Diff(want, got); diff != "" || whole != n {
		t.Fatalf("Head of %x says %d for the frame, want %d, and reads otherwise than Decode (-want +got):\n%s", b, whole, n, diff)
	}
}

func TestHeadOfVectors(t *testing.T) {
	for _, v := range vectors(t) {
		// Beyond the head nothing but the frame's end is worth a look.
		for i := range v.Fixed + v.ClassLen + v.HeaderLen + 2 {
			i = min(i, uint32(v.Total))
			checkHead(t, v.frame[:i], wire.Limits{MaxFrame: v.Total, MaxHeader: int(v.HeaderLen)})
		}
		checkHead(t, v.frame[:v.Total-1], noLimits)
		checkHead(t, append(bytes.Clone(v.frame), 0xff), noLimits)
		checkHead(t, v.frame[:v.Fixed], wire.Limits{MaxFrame: v.Total - 1})
		checkHead(t, v.frame[:v.Fixed], wire.Limits{MaxHeader: int(v.HeaderLen) - 1})

		var got []int
		for have := 0; ; {
			var m wire.Message
			head, whole, err := Codec{}.Head(&m, v.frame[:have], noLimits)
			if err != nil {
				t.Fatalf("%s from %s: Head of the first %d bytes: %v, want a need", v.Name, v.From, have, err)
			}
			if head <= have {
				got = append(got, whole)
				break
			}
			got = append(got, head)
			have = head
		}
		want := []int{1, 2, int(v.Fixed), int(v.Fixed + v.ClassLen + v.HeaderLen), v.Total}
		if v.Proto == proto2 {
			want[1] = 3
		}
		if want[2] == want[3] {
			want = slices.Delete(want, 3, 4)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s from %s: Head asked for other lengths than version, type, fixed header, head, then the frame (-want +got):\n%s", v.Name, v.From, diff)
		}
	}
}

// inPieces passes a whole frame on as a head, edited where there are edits, and pieces of the sizes in cuts, which
// are gone through again and again (0 is a piece too, if not all are). It returns what went out, and the last error.
func inPieces(t fataler, c Codec, frame []byte, edits []wire.Edit, id uint32, timeout int32, cuts []int) ([]byte, error) {
	t.Helper()
	frame = bytes.Clone(frame)
	var m wire.Message
	n, whole, err := c.Head(&m, frame, noLimits)
	if err != nil || n > len(frame) || whole != len(frame) {
		t.Fatalf("Head of %x = %d, %d, %v, want the whole to be %d", frame, n, whole, err, len(frame))
	}
	head := m.Frame
	if edits != nil {
		if head, err = c.AppendEdited(nil, &m, edits, 0); err != nil {
			return nil, err
		}
	}
	r := c.Follow(&m, head, id, timeout, whole)
	out := bytes.Clone(head)
	if r.Left != len(frame)-n {
		t.Fatalf("Follow of a head of %d bytes of %d leaves %d, want %d", n, len(frame), r.Left, len(frame)-n)
	}
	if slices.Max(append(cuts, 0)) == 0 {
		cuts = []int{len(frame)}
	}
	for i := 0; r.Left > 0; i++ {
		if err != nil {
			t.Fatalf("Pass = %v with %d bytes to come, want no error before the last one", err, r.Left)
		}
		size := min(cuts[i%len(cuts)], r.Left)
		piece := frame[n : n+size : n+size]
		left := r.Left
		err = c.Pass(&r, piece)
		if r.Left != left-size {
			t.Fatalf("Pass of %d bytes with %d to come leaves %d, want %d", size, left, r.Left, left-size)
		}
		out, n = append(out, piece...), n+size
	}
	return out, err
}

// checkPieces holds the pieces of a request against the frame as a whole.
func checkPieces(t fataler, frame []byte, edits []wire.Edit, id uint32, timeout int32, cuts []int) {
	t.Helper()
	var m wire.Message
	if n, err := (Codec{}).Decode(&m, frame, noLimits); err != nil || n != len(frame) {
		t.Fatalf("Decode of %x = %d, %v, want all of it", frame, n, err)
	}
	want, wantErr := bytes.Clone(frame), error(nil)
	if edits != nil {
		want, wantErr = Codec{}.AppendEdited(nil, &m, edits, 0)
	}
	got, err := inPieces(t, Codec{}, frame, edits, id, timeout, cuts)
	if diff := cmp.Diff(wantErr, err); diff != "" {
		t.Fatalf("%x in pieces has another error than as a whole (-want +got):\n%s", frame, diff)
	}
	if err != nil {
		return
	}
	Codec{}.PatchRequest(want, id, timeout)
	if !bytes.Equal(got, want) {
		t.Fatalf("%x in pieces of %d leaves as\n%x, want as the whole does\n%x", frame, cuts, got, want)
	}

	fault := uint32(0)
	if VersionOf(&m) == V2CRC {
		if fault = crcError(frame); crcError(got) != fault {
			t.Fatalf("the CRC of %x was wrong by %08x and leaves wrong by %08x, want no change", frame, fault, crcError(got))
		}
	}
	got, err = inPieces(t, Codec{VerifyCRC: true}, frame, edits, id, timeout, cuts)
	if !bytes.Equal(got, want) {
		t.Fatalf("%x in pieces of %d leaves as\n%x when verified, want as the whole does\n%x", frame, cuts, got, want)
	}
	_, wantErr = Codec{VerifyCRC: true}.Decode(&m, frame, noLimits)
	if diff := cmp.Diff(wantErr, err); diff != "" || (err != nil) != (fault != 0) {
		t.Fatalf("the last Pass of %x = %v with a CRC wrong by %08x, want what Decode says (-want +got):\n%s", frame, err, fault, diff)
	}
}

func TestPieces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := drawFrame.Draw(t, "frame")
		raw.typ = rapid.SampledFrom([]byte{typeRequest, typeOneway}).Draw(t, "request's type")
		edits := drawEdits.Draw(t, "edits")
		if rapid.Bool().Draw(t, "in place") {
			edits = nil
		}
		cuts := rapid.SliceOfN(rapid.SampledFrom([]int{0, 1, 2, 3, 4, 5, 7, 60, 601, 602, 603}), 0, 5).Draw(t, "cuts")
		checkPieces(t, raw.append(), edits, rapid.Uint32().Draw(t, "id"), rapid.Int32().Draw(t, "timeout"), cuts)
	})
}

// TestPiecesOfVectors cuts what comes behind the head of each captured request in two, everywhere.
func TestPiecesOfVectors(t *testing.T) {
	edits := []wire.Edit{set("service", "other:1.0"), add("trace", "0a0b0c")}
	for _, v := range vectors(t) {
		if v.Type == typeResponse {
			continue
		}
		rest := v.Total - int(v.Fixed+v.ClassLen+v.HeaderLen)
		for cut := range rest + 1 {
			checkPieces(t, v.frame, nil, v.ID+1, v.Timeout-1, []int{cut, rest})
			checkPieces(t, v.frame, edits, 0xfffefdfc, -1, []int{cut, rest})
		}
		damaged := bytes.Clone(v.frame)
		damaged[len(damaged)-1] ^= 0x10
		for _, cuts := range [][]int{{1}, {2}, {3}, {rest}, {max(0, rest-1), 1}, {max(0, rest-3), 2}} {
			checkPieces(t, v.frame, edits, 7, 0, cuts)
			if rest > 0 {
				checkPieces(t, damaged, edits, 7, 0, cuts)
			}
		}
	}
}

// TestPiecesOfReply: a reply has no timeout, and nothing stands in its place.
func TestPiecesOfReply(t *testing.T) {
	for _, v := range vectors(t) {
		if v.Type != typeResponse {
			continue
		}
		want := bytes.Clone(v.frame)
		Codec{}.PatchReply(want, 0xfffefdfc)
		for _, cuts := range [][]int{{1}, {3}, {len(want)}} {
			got, err := inPieces(t, Codec{VerifyCRC: true}, v.frame, nil, 0xfffefdfc, 5, cuts)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s from %s: in pieces of %d the reply leaves as\n%x, %v, want\n%x", v.Name, v.From, cuts, got, err, want)
			}
		}
	}
}

func TestPassLeavesTheNextFrame(t *testing.T) {
	frame := rawFrame{version: V2CRC, typ: typeRequest, content: []byte("content")}.append()
	b := append(bytes.Clone(frame), 0xff, 0xfe)
	var m wire.Message
	c := Codec{VerifyCRC: true}
	head, whole, err := c.Head(&m, b, noLimits)
	if err != nil || head != v2RequestLen || whole != len(frame) {
		t.Fatalf("Head = %d, %d, %v, want %d, %d", head, whole, err, v2RequestLen, len(frame))
	}
	r := c.Follow(&m, m.Frame, 8, 9, whole)
	for range 2 {
		if err := c.Pass(&r, b[head:]); err != nil || r.Left != 0 {
			t.Errorf("Pass of more than the rest = %v with %d bytes left, want none", err, r.Left)
		}
		head = whole
	}
	Codec{}.PatchRequest(frame, 8, 9)
	if want := append(frame, 0xff, 0xfe); !bytes.Equal(b, want) {
		t.Errorf("Pass of more than the rest made %x, want %x: the next frame is not its own", b, want)
	}
}

func TestPiecesWithWrongCRC(t *testing.T) {
	frame := rawFrame{version: V2CRC, typ: typeOneway, content: []byte("content"), fault: 0x00010000}.append()
	_, err := inPieces(t, Codec{VerifyCRC: true}, frame, nil, 8, 9, []int{1})
	de, ok := errors.AsType[*wire.DecodeError](err)
	if !ok || de.Reason != wire.ReasonBadChecksum || de.Detail == "" {
		t.Errorf("the last Pass of a frame with a wrong CRC = %v, want %s with a detail", err, wire.ReasonBadChecksum)
	}
}

func TestPiecesDoNotAllocate(t *testing.T) {
	var codec wire.Codec = Codec{VerifyCRC: true}
	for _, v := range vectors(t) {
		frame := bytes.Clone(v.frame)
		var m wire.Message
		var r wire.Rest
		got := testing.AllocsPerRun(20, func() {
			head, whole, err := codec.Head(&m, frame, noLimits)
			if err != nil || whole != len(frame) {
				t.Fatalf("Head = %d, %d, %v, want a frame of %d", head, whole, err, len(frame))
			}
			r = codec.Follow(&m, m.Frame, m.ID+1, m.Timeout, whole)
			for p := head; p < whole; p += 100 {
				if err := codec.Pass(&r, frame[p:min(p+100, whole)]); err != nil {
					t.Fatalf("Pass: %v, want no error: the CRC was made right in each round", err)
				}
			}
			codec.Detect(frame)
		})
		if got != 0 {
			t.Errorf("%s from %s: %v allocations a frame in pieces, want none", v.Name, v.From, got)
		}
	}
}
