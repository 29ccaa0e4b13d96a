package bolt

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// FuzzDecode holds Decode to its contract on any bytes, and the patches on whatever it accepts.
func FuzzDecode(f *testing.F) {
	for _, v := range vectors(f) {
		f.Add(v.frame, v.ID+1, v.Timeout-1, 1<<20, 1<<15)
	}
	f.Fuzz(func(t *testing.T, b []byte, id uint32, timeout int32, maxFrame, maxHeader int) {
		lim := wire.Limits{MaxFrame: maxFrame, MaxHeader: maxHeader}
		checkHead(t, b, lim)
		var m wire.Message
		n, err := Codec{}.Decode(&m, b, lim)
		if err != nil {
			if _, ok := errors.AsType[*wire.DecodeError](err); !ok {
				t.Fatalf("Decode's error is a %T, want a *wire.DecodeError", err)
			}
			if m.Frame != nil {
				t.Fatalf("Decode left a frame beside its error, want none")
			}
			if m.Kind == wire.Request || m.Kind == wire.Heartbeat || m.Kind == wire.Unknown {
				reply := mustDecode(t, Codec{}.AppendReply(nil, m.Tag, m.ID, wire.CodecException))
				if reply.ID != m.ID || VersionOf(&reply) != VersionOf(&m) {
					t.Fatalf("the answer to %x reads %+v, want the same id and version", b, reply)
				}
			}
			return
		}
		if maxFrame > 0 && n > max(maxFrame, v2RequestLen) {
			t.Fatalf("Decode = %d at a limit of %d, want an error", n, maxFrame)
		}
		if n <= 0 {
			t.Fatalf("Decode = %d without an error, want a length", n)
		}
		if n > len(b) {
			// A shorter prefix never needs more than a longer one.
			for _, i := range []int{0, len(b) / 2, max(0, len(b)-1)} {
				var part wire.Message
				if need, err := (Codec{}).Decode(&part, b[:i], lim); err != nil || need <= i && i < len(b) || need > n {
					t.Fatalf("the first %d bytes of %x need %d, %v, all of them need %d", i, b, need, err, n)
				}
			}
			return
		}
		if len(m.Frame) != n || m.ClassAt > m.HeaderAt || m.HeaderAt > m.ContentAt || m.ContentAt > m.ContentEnd || int(m.ContentEnd) > n {
			t.Fatalf("Decode of %x = %d with parts out of bounds: %+v", b, n, m)
		}
		if m.Kind == wire.Invalid {
			t.Fatalf("Decode of %x accepted a frame of which nothing is known", b)
		}
		if trailer := n - int(m.ContentEnd); trailer != 0 && trailer != crcLen || (trailer != 0) != (VersionOf(&m) == V2CRC) {
			t.Fatalf("Decode of %x left %d bytes behind the content of a %v frame", b, trailer, VersionOf(&m))
		}
		_, _, _ = m.Class(), m.HeaderBlock(), m.Content()

		patched := bytes.Clone(m.Frame)
		want := m
		want.ID, want.Frame = id, patched
		if m.Kind == wire.Reply || m.Kind == wire.Ack {
			Codec{}.PatchReply(patched, id)
		} else {
			Codec{}.PatchRequest(patched, id, timeout)
			want.Timeout = timeout
		}
		var got wire.Message
		if k, err := (Codec{}).Decode(&got, patched, lim); err != nil || k != n {
			t.Fatalf("Decode of the patched frame %x = %d, %v, want %d", patched, k, err, n)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("the patched frame differs in more than id and timeout (-want +got):\n%s", diff)
		}
		if VersionOf(&m) == V2CRC {
			if before, after := crcError(m.Frame), crcError(patched); before != after {
				t.Fatalf("the CRC was wrong by %08x and is wrong by %08x after the patch, want no change", before, after)
			}
			var v wire.Message
			if _, err := (Codec{VerifyCRC: true}).Decode(&v, m.Frame, lim); (err == nil) != (crcError(m.Frame) == 0) {
				t.Fatalf("Decode, asked to verify a CRC wrong by %08x = %v", crcError(m.Frame), err)
			}
		}
		if m.Kind == wire.Request || m.Kind == wire.Unknown {
			reply := mustDecode(t, Codec{}.AppendReply(nil, m.Tag, m.ID, wire.Success))
			if reply.Kind != wire.Reply || VersionOf(&reply) != VersionOf(&m) || CodecOf(&reply) != CodecOf(&m) {
				t.Fatalf("the reply to %x reads %+v, want the same version and codec", b, reply)
			}
		}
	})
}

// FuzzHeaders holds the walk against a slow and obvious one.
func FuzzHeaders(f *testing.F) {
	for _, v := range vectors(f) {
		m := mustDecode(f, v.frame)
		f.Add(m.HeaderBlock(), []byte("service"))
	}
	f.Fuzz(func(t *testing.T, block, key []byte) {
		checkHeaders(t, block, [][]byte{key, []byte("service"), {}})
	})
}

// FuzzDetect holds Detect to its contract on any bytes, one more at a time.
func FuzzDetect(f *testing.F) {
	for _, v := range vectors(f) {
		f.Add(v.frame[:min(len(v.frame), 32)])
	}
	for _, p := range otherProtocols {
		f.Add([]byte(p.bytes))
	}
	f.Fuzz(checkDetect)
}

// FuzzAppendEdited holds AppendEdited against the list model, on any block and edits.
func FuzzAppendEdited(f *testing.F) {
	for _, v := range vectors(f) {
		m := mustDecode(f, v.frame)
		f.Add(m.HeaderBlock(), m.Content(), byte(v.version()), v.Type, []byte("service"), []byte("other:1.0"), byte(wire.SetHeader), []byte("k"), []byte("v"), byte(wire.AddHeader), 1<<15)
	}
	f.Fuzz(func(t *testing.T, block, content []byte, version, typ byte, key1, value1 []byte, op1 byte, key2, value2 []byte, op2 byte, maxHeader int) {
		if len(block) > 1<<16-1 {
			t.Skip("no length says this")
		}
		frame := rawFrame{version: Version(version % 3), typ: typ % 3, class: "c", block: block, content: content, fault: uint32(op1 / 3)}.append()
		checkEdited(t, frame, []wire.Edit{
			{Op: wire.EditOp(op1 % 3), Key: key1, Value: value1}, {Op: wire.EditOp(op2 % 3), Key: key2, Value: value2},
		}, maxHeader)
	})
}

// FuzzPieces passes any frame on in pieces and wants what passing it on as a whole makes of it.
func FuzzPieces(f *testing.F) {
	for _, v := range vectors(f) {
		f.Add(v.frame, v.ID+1, v.Timeout-1, []byte("service"), []byte("other:1.0"), byte(wire.SetHeader), []byte{0, 1, 7, 255})
	}
	f.Fuzz(func(t *testing.T, b []byte, id uint32, timeout int32, key, value []byte, op byte, sizes []byte) {
		var m wire.Message
		n, err := Codec{}.Decode(&m, b, wire.Limits{MaxFrame: 1 << 20})
		if err != nil || n > len(b) || m.Kind == wire.Reply || m.Kind == wire.Ack {
			t.Skip("no request to pass on")
		}
		var cuts []int
		for _, s := range sizes {
			cuts = append(cuts, int(s))
		}
		var edits []wire.Edit
		if op%4 < 3 {
			edits = []wire.Edit{{Op: wire.EditOp(op % 4), Key: key, Value: value}}
		}
		checkPieces(t, b[:n], edits, id, timeout, cuts)
	})
}
