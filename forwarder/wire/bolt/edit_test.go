package bolt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// rawFrame is a frame to write whose header block is any bytes, and whose CRC is wrong by fault.
type rawFrame struct {
	version        Version
	typ            byte
	class          string
	block, content []byte
	fault          uint32
}

func (r rawFrame) append() []byte {
	command := uint16(cmdRequest)
	if r.typ == typeResponse {
		command = cmdResponse
	}
	tag := newTag(r.version, r.typ, command, CodecProtobuf)
	b := appendHead(nil, tag, 7)
	if r.typ == typeResponse {
		b = append(b, 0, 2)
	} else {
		b = append(b, be32(3000)...)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(r.class)))
	b = binary.BigEndian.AppendUint16(b, uint16(len(r.block)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.content)))
	b = slices.Concat(b, []byte(r.class), r.block, r.content)
	if b = appendCRC(b, 0, tag); tagHasCRC(tag) {
		wrong(b, r.fault)
	}
	return b
}

func blockOf(fields []Field) []byte {
	var b []byte
	for _, f := range fields {
		for _, v := range [][]byte{f.Key, f.Value} {
			if v == nil {
				b = append(b, 0xff, 0xff, 0xff, 0xff)
			} else {
				b = append(append(b, be32(uint32(len(v)))...), v...)
			}
		}
	}
	return b
}

// editList does to a list of pairs what edits do to a block. It is not ok where a pair that is written, or all of them
// in the end, are longer than limit.
func editList(fields []Field, edits []wire.Edit, limit int) (_ []Field, ok bool) {
	fields = slices.Clone(fields)
	for _, e := range edits {
		is := func(f Field) bool { return f.Key != nil && bytes.Equal(f.Key, e.Key) }
		pair := Field{append([]byte{}, e.Key...), append([]byte{}, e.Value...)}
		i := slices.IndexFunc(fields, is)
		if e.Op == wire.RemoveHeader {
			fields = slices.DeleteFunc(fields, is)
			continue
		}
		if e.Op == wire.AddHeader && i >= 0 {
			continue
		}
		if len(blockOf([]Field{pair})) > limit {
			return nil, false
		}
		if i < 0 {
			fields = append(fields, pair)
			continue
		}
		fields[i] = pair
		fields = append(fields[:i+1], slices.DeleteFunc(fields[i+1:], is)...)
	}
	return fields, len(blockOf(fields)) <= limit
}

// checkEdited holds AppendEdited of a whole frame and of its head against editList, and does it twice.
func checkEdited(t fataler, frame []byte, edits []wire.Edit, maxHeader int) {
	t.Helper()
	var m wire.Message
	if n, err := (Codec{}).Decode(&m, frame, noLimits); err != nil || n != len(frame) {
		t.Fatalf("Decode of %x = %d, %v, want all of it", frame, n, err)
	}
	limit := maxShort
	if maxHeader > 0 {
		limit = min(limit, maxHeader)
	}
	reason := ""
	fields, ok := reference(m.HeaderBlock())
	if !ok {
		reason = wire.ReasonBadHeaderBlock
	} else if fields, ok = editList(fields, edits, limit); !ok {
		reason = wire.ReasonHeadersTooLarge
	}
	block := blockOf(fields)
	wantHead := slices.Concat(frame[:m.HeaderAt], block)
	binary.BigEndian.PutUint16(wantHead[m.ClassAt-6:], uint16(len(block)))
	want := slices.Concat(wantHead, m.Content())
	if VersionOf(&m) == V2CRC {
		want = append(want, be32(crc32.ChecksumIEEE(want)^crcError(frame))...)
	}
	keys := map[string]bool{}
	for _, e := range edits {
		keys[string(e.Key)] = true
	}

	decode := func(m *wire.Message, b []byte) (int, error) { return Codec{}.Decode(m, b, noLimits) }
	readHead := func(m *wire.Message, b []byte) (int, error) {
		n, _, err := Codec{}.Head(m, b, noLimits)
		return n, err
	}
	for _, part := range []struct {
		what string
		read func(*wire.Message, []byte) (int, error)
		want []byte
	}{{"the frame", decode, want}, {"its head", readHead, wantHead}} {
		before := bytes.Clone(frame)
		if _, err := part.read(&m, frame); err != nil {
			t.Fatalf("reading %s of %x: %v", part.what, frame, err)
		}
		b, err := Codec{}.AppendEdited([]byte("before"), &m, edits, maxHeader)
		if !bytes.Equal(frame, before) {
			t.Fatalf("AppendEdited of %s %x changed what it read", part.what, before)
		}
		if reason != "" {
			de, ok := errors.AsType[*wire.DecodeError](err)
			if !ok || de.Reason != reason || string(b) != "before" {
				t.Fatalf("AppendEdited of %s %x with %q = %q, %v, want %s and no byte appended", part.what, before, edits, b, err, reason)
			}
			continue
		}
		got, ok := bytes.CutPrefix(b, []byte("before"))
		if err != nil || !ok || !bytes.Equal(got, part.want) {
			t.Fatalf("AppendEdited of %s %x with %q = %x, %v, want %x appended", part.what, before, edits, got, err, part.want)
		}
		if n, err := part.read(&m, got); err != nil || n != len(got) {
			t.Fatalf("reading %s as edited, %x, = %d, %v, want all %d bytes", part.what, got, n, err, len(got))
		}
		if len(keys) < len(edits) {
			continue // no promise is made of a list in which a key stands twice
		}
		again, err := Codec{}.AppendEdited(nil, &m, edits, maxHeader)
		if err != nil || !bytes.Equal(again, got) {
			t.Fatalf("AppendEdited of %s %x with %q for the second time = %x, %v, want no change", part.what, got, edits, again, err)
		}
	}
}

var (
	drawField = rapid.Custom(func(t *rapid.T) []byte {
		if rapid.IntRange(0, 4).Draw(t, "null") == 0 {
			return nil
		}
		// Few letters, so that keys collide.
		return []byte(rapid.StringOfN(rapid.SampledFrom([]rune("ab")), 0, 3, -1).Draw(t, "text"))
	})
	drawFrame = rapid.Custom(func(t *rapid.T) rawFrame {
		fields := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Field {
			return Field{drawField.Draw(t, "key"), drawField.Draw(t, "value")}
		}), 0, 12).Draw(t, "fields")
		return rawFrame{
			version: rapid.SampledFrom([]Version{V1, V2, V2CRC, V2CRC}).Draw(t, "version"),
			typ:     rapid.SampledFrom([]byte{typeRequest, typeOneway, typeResponse}).Draw(t, "type"),
			class:   rapid.SampledFrom([]string{"", "c", ClassRequest}).Draw(t, "class"),
			block:   blockOf(fields),
			content: bytes.Repeat([]byte("relevo"), 100)[:rapid.SampledFrom([]int{0, 1, 3, 4, 5, 64, 600}).Draw(t, "content")],
			fault:   rapid.SampledFrom([]uint32{0, 0, 1, 0xdeadbeef}).Draw(t, "fault"),
		}
	})
	drawEdits = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) wire.Edit {
		return wire.Edit{
			Op:  rapid.SampledFrom([]wire.EditOp{wire.SetHeader, wire.AddHeader, wire.RemoveHeader}).Draw(t, "op"),
			Key: drawField.Draw(t, "key"), Value: drawField.Draw(t, "value"),
		}
	}), 0, 4)
)

func TestAppendEditedLikeList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		frame := drawFrame.Draw(t, "frame")
		frame.block = append(frame.block, make([]byte, rapid.SampledFrom([]int{0, 0, 0, 0, 0, 1, 3}).Draw(t, "stray"))...)
		edits := drawEdits.Draw(t, "edits")
		maxHeader := rapid.SampledFrom([]int{-1, 0, 1 << 20, 60, 30, 8}).Draw(t, "limit")
		checkEdited(t, frame.append(), edits, maxHeader)
	})
}

func set(key, value string) wire.Edit {
	return wire.Edit{Op: wire.SetHeader, Key: []byte(key), Value: []byte(value)}
}

func add(key, value string) wire.Edit {
	return wire.Edit{Op: wire.AddHeader, Key: []byte(key), Value: []byte(value)}
}
func remove(key string) wire.Edit { return wire.Edit{Op: wire.RemoveHeader, Key: []byte(key)} }

func TestAppendEdited(t *testing.T) {
	const (
		nullKey      = "ffffffff 00000001 78"
		emptyKey     = "00000000 00000001 78"
		serviceNull  = "00000007 73657276696365 ffffffff"
		serviceEmpty = "00000007 73657276696365 00000000"
		serviceLong  = "00000007 73657276696365 00000003 616161"
	)
	for _, tc := range []struct {
		what, block string
		edits       []wire.Edit
		want        string
	}{
		{"no edits", nullKey + serviceA + serviceB, nil, nullKey + serviceA + serviceB},
		{"set what is absent: last", otherX, []wire.Edit{set("service", "a")}, otherX + serviceA},
		{"set in an empty block", "", []wire.Edit{set("service", "a")}, serviceA},
		{"set what is there: in its place", serviceB + otherX, []wire.Edit{set("service", "a")}, serviceA + otherX},
		{"set to a longer value", otherX + serviceB + otherX, []wire.Edit{set("service", "aaa")}, otherX + serviceLong + otherX},
		{"set to a shorter value", otherX + serviceLong + otherX, []wire.Edit{set("service", "a")}, otherX + serviceA + otherX},
		{"set to an empty value", serviceB, []wire.Edit{set("service", "")}, serviceEmpty},
		{"set to nil writes an empty value", serviceB, []wire.Edit{{Op: wire.SetHeader, Key: []byte("service")}}, serviceEmpty},
		{"set drops the later duplicates", serviceB + otherX + serviceB + nullKey + serviceNull, []wire.Edit{set("service", "a")}, serviceA + otherX + nullKey},
		{"set what is null", serviceNull + otherX, []wire.Edit{set("service", "a")}, serviceA + otherX},
		{"set the empty key, not the null one", nullKey + otherX, []wire.Edit{set("", "x")}, nullKey + otherX + emptyKey},
		{"add what is absent: last", otherX, []wire.Edit{add("service", "a")}, otherX + serviceA},
		{"add what is there", serviceB + otherX, []wire.Edit{add("service", "a")}, serviceB + otherX},
		{"add what is there and empty", serviceEmpty, []wire.Edit{add("service", "a")}, serviceEmpty},
		{"add what is there and null", serviceNull + otherX, []wire.Edit{add("service", "a")}, serviceNull + otherX},
		{"remove what is there, with all duplicates", serviceA + otherX + serviceNull + nullKey + serviceB, []wire.Edit{remove("service")}, otherX + nullKey},
		{"remove what is absent", otherX, []wire.Edit{remove("service")}, otherX},
		{"remove all there is", serviceA, []wire.Edit{remove("service")}, ""},
		{"remove a prefix of a key", serviceA, []wire.Edit{remove("servic")}, serviceA},
		{"remove the empty key, not the null one", nullKey + emptyKey + otherX, []wire.Edit{remove("")}, nullKey + otherX},
		{"one after another", serviceB + otherX, []wire.Edit{remove("service"), add("service", "a")}, otherX + serviceA},
		{"all three", serviceB + otherX, []wire.Edit{remove("o"), set("service", "a"), add("o", "x")}, serviceA + otherX},
	} {
		for _, v := range []Version{V1, V2, V2CRC} {
			for _, typ := range []byte{typeResponse, typeRequest, typeOneway} {
				frame := rawFrame{version: v, typ: typ, class: "class", block: unhex(t, tc.block), content: []byte("content"), fault: 5}
				m := mustDecodeAnyCRC(t, frame.append())
				got, err := Codec{}.AppendEdited(nil, &m, tc.edits, 0)
				frame.block = unhex(t, tc.want)
				if want := frame.append(); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s, %v, type %d: AppendEdited made\n%x, %v, want\n%x", tc.what, v, typ, got, err, want)
				}
			}
		}
	}
}

func mustDecodeAnyCRC(tb testing.TB, frame []byte) wire.Message {
	tb.Helper()
	var m wire.Message
	if n, err := (Codec{}).Decode(&m, frame, noLimits); err != nil || n != len(frame) {
		tb.Fatalf("Decode of a whole frame of %d bytes = %d, %v, want all of it", len(frame), n, err)
	}
	return m
}

func TestAppendEditedLimits(t *testing.T) {
	block := func(n int) []byte { return blockOf([]Field{{[]byte("k"), make([]byte, n-9)}}) }
	for _, tc := range []struct {
		what      string
		block     []byte
		edits     []wire.Edit
		maxHeader int
		want      string
	}{
		{"up to the limit", block(91), []wire.Edit{set("s", "")}, 100, ""},
		{"one byte over it", block(92), []wire.Edit{set("s", "")}, 100, wire.ReasonHeadersTooLarge},
		{"back below it", block(120), []wire.Edit{set("k", "v")}, 100, ""},
		{"over it in between", block(91), []wire.Edit{set("s", "longer"), remove("k")}, 100, ""},
		{"over it before, and nothing to do", block(101), nil, 100, wire.ReasonHeadersTooLarge},
		{"up to what Java reads", block(32758), []wire.Edit{add("s", "")}, 0, ""},
		{"one byte over what Java reads", block(32759), []wire.Edit{add("s", "")}, 0, wire.ReasonHeadersTooLarge},
		{"one byte over what Java reads, a limit above that", block(32759), []wire.Edit{add("s", "")}, 65535, wire.ReasonHeadersTooLarge},
		{"a negative limit is none", block(32758), []wire.Edit{add("s", "")}, -1, ""},
		{"a block as long as can be, made short", block(65535), []wire.Edit{remove("k")}, 0, ""},
		{"a pair over it, though removed later", nil, []wire.Edit{set("s", strings.Repeat("v", 92)), remove("s")}, 100, wire.ReasonHeadersTooLarge},
		{"a pair over it that is not added", block(20), []wire.Edit{add("k", strings.Repeat("v", 92))}, 100, ""},
	} {
		frame := rawFrame{version: V2CRC, typ: typeRequest, block: tc.block, content: []byte("content")}.append()
		checkEdited(t, frame, tc.edits, tc.maxHeader)
		m := mustDecode(t, frame)
		_, err := Codec{}.AppendEdited(nil, &m, tc.edits, tc.maxHeader)
		de, _ := errors.AsType[*wire.DecodeError](err)
		if tc.want == "" && err != nil || tc.want != "" && (de == nil || de.Reason != tc.want || de.Detail == "") {
			t.Errorf("%s: AppendEdited = %v, want reason %q with a detail, or none", tc.what, err, tc.want)
		}
	}
}

// TestAppendEditedFrameTooLarge edits the heads of frames about as long as a frame can be.
func TestAppendEditedFrameTooLarge(t *testing.T) {
	edits := []wire.Edit{set("", "")} // the shortest pair, 8 bytes
	for _, tc := range []struct {
		hex string
		ok  bool
	}{
		{"01 01 0001 01 00000007 01 00000bb8 0000 0000 7fffffe1", true},
		{"01 01 0001 01 00000007 01 00000bb8 0000 0000 7fffffe2", false},
		{"02 02 01 0001 01 00000007 01 01 00000bb8 0000 0000 7fffffdb", true},
		{"02 02 01 0001 01 00000007 01 01 00000bb8 0000 0000 7fffffdc", false},
	} {
		b := unhex(t, tc.hex)
		var m wire.Message
		head, whole, err := Codec{}.Head(&m, b, noLimits)
		if head != len(b) || err != nil {
			t.Fatalf("Head of %x = %d, %d, %v, want all of it", b, head, whole, err)
		}
		got, err := Codec{}.AppendEdited(nil, &m, edits, 0)
		if tc.ok {
			if head, whole, headErr := (Codec{}).Head(&m, got, noLimits); err != nil || headErr != nil || head != len(b)+8 || whole != maxFrame {
				t.Errorf("AppendEdited of %x: %v, and its head reads %d, %d, %v, want a frame of %d", b, err, head, whole, headErr, maxFrame)
			}
			continue
		}
		if de, ok := errors.AsType[*wire.DecodeError](err); !ok || de.Reason != wire.ReasonHeadersTooLarge {
			t.Errorf("AppendEdited of %x, which makes a frame longer than 2 GiB - 1, = %v, want %s", b, err, wire.ReasonHeadersTooLarge)
		}
	}
}

func TestAppendEditedDoesNotAllocate(t *testing.T) {
	var codec wire.Codec = Codec{}
	edits := []wire.Edit{set("service", "other:1.0"), add("trace", "0a0b0c"), remove("sofa_head_target_app")}
	dst := make([]byte, 0, 4096)
	for _, v := range vectors(t) {
		m := mustDecode(t, v.frame)
		got := testing.AllocsPerRun(20, func() {
			if b, err := codec.AppendEdited(dst, &m, edits, 1<<14); err != nil || len(b) < len(v.frame)/2 {
				t.Fatalf("AppendEdited = %d bytes, %v, want a frame", len(b), err)
			}
		})
		if got != 0 {
			t.Errorf("%s from %s: AppendEdited into a buffer with room makes %v allocations, want none", v.Name, v.From, got)
		}
	}
}
