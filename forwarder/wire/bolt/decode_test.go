package bolt

import (
	"bytes"
	"errors"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/relevo-proxy/relevo/forwarder/wire"
)

func TestDecodeKinds(t *testing.T) {
	for _, tc := range []struct {
		what, hex string
		want      wire.Kind
	}{
		{"v1 request", "01 01 0001 01 00000007 01 00000bb8 0000 0000 00000000", wire.Request},
		{"v1 oneway", "01 02 0001 01 00000007 01 00000bb8 0000 0000 00000000", wire.Oneway},
		{"v1 heartbeat", "01 01 0000 01 00000007 01 00000bb8 0000 0000 00000000", wire.Heartbeat},
		{"v1 goaway", "01 01 0064 01 00000007 01 00000bb8 0000 0000 00000000", wire.GoAway},
		{"v1 request with a command of no one's", "01 01 0009 01 00000007 01 00000bb8 0000 0000 00000000", wire.Unknown},
		{"v1 request with the command of a response", "01 01 0002 01 00000007 01 00000bb8 0000 0000 00000000", wire.Unknown},
		{"v1 request whose command has a high byte", "01 01 0101 01 00000007 01 00000bb8 0000 0000 00000000", wire.Unknown},
		{"v1 oneway heartbeat, which must not be answered", "01 02 0000 01 00000007 01 00000bb8 0000 0000 00000000", wire.Oneway},
		{"v1 oneway with a command of no one's", "01 02 0009 01 00000007 01 00000bb8 0000 0000 00000000", wire.Oneway},
		{"v1 reply", "01 00 0002 01 00000007 01 0000 0000 0000 00000000", wire.Reply},
		{"v1 ack", "01 00 0000 01 00000007 01 0000 0000 0000 00000000", wire.Ack},
		{"v2 request", "02 01 01 0001 01 00000007 01 00 00000bb8 0000 0000 00000000", wire.Request},
		{"v2 oneway", "02 01 02 0001 01 00000007 01 00 00000bb8 0000 0000 00000000", wire.Oneway},
		{"v2 heartbeat", "02 01 01 0000 01 00000007 01 00 00000bb8 0000 0000 00000000", wire.Heartbeat},
		{"v2 goaway", "02 01 01 0064 01 00000007 01 00 00000bb8 0000 0000 00000000", wire.GoAway},
		{"v2 request with a command of no one's", "02 01 01 0009 01 00000007 01 00 00000bb8 0000 0000 00000000", wire.Unknown},
		{"v2 reply", "02 01 00 0002 01 00000007 01 00 0000 0000 0000 00000000", wire.Reply},
		{"v2 ack", "02 01 00 0000 01 00000007 01 00 0000 0000 0000 00000000", wire.Ack},
		{"v2 request with the switch bit and ver1 1: no CRC follows", "02 01 01 0001 01 00000007 01 01 00000bb8 0000 0000 00000000", wire.Request},
		{"v2 request with ver1 2 and another switch bit: no CRC follows", "02 02 01 0001 01 00000007 01 02 00000bb8 0000 0000 00000000", wire.Request},
		{"v2 request with ver1 3: no CRC follows", "02 03 01 0001 01 00000007 01 01 00000bb8 0000 0000 00000000", wire.Request},
		{"v1 request with a ver2 of no one's, which is copied", "01 01 0001 f7 00000007 01 00000bb8 0000 0000 00000000", wire.Request},
	} {
		b := unhex(t, tc.hex)
		var m wire.Message
		n, err := Codec{VerifyCRC: true}.Decode(&m, b, noLimits)
		if err != nil || n != len(b) || m.Kind != tc.want || m.ID != 7 {
			t.Errorf("%s: Decode = %d, %v with kind %v and id %d, want all %d bytes, kind %v, id 7", tc.what, n, err, m.Kind, m.ID, len(b), tc.want)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	const v1Request = "01 01 0001 01 00000007 01 00000bb8 "
	const v2CRCRequest = "02 02 01 0001 01 00000007 01 01 00000bb8 "
	small := wire.Limits{MaxFrame: 100, MaxHeader: 10}
	for _, tc := range []struct {
		what, hex string
		limits    wire.Limits
		reason    string
		kind      wire.Kind
	}{
		{"HTTP", "47 45 54", small, wire.ReasonBadProtocol, wire.Invalid},
		{"version 0", "00", small, wire.ReasonBadProtocol, wire.Invalid},
		{"version 3", "03", small, wire.ReasonBadProtocol, wire.Invalid},
		{"v1 type 3", "01 03", small, wire.ReasonBadType, wire.Invalid},
		{"v2 type 3", "02 01 03", small, wire.ReasonBadType, wire.Invalid},
		{"v1 response with a request's command", "01 00 0001 01 00000007 01 0000 0000 0000 00000000", small, wire.ReasonBadType, wire.Invalid},
		{"v2 response with a command of no one's", "02 01 00 0102 01 00000007 01 00 0000 0000 0000 00000000", small, wire.ReasonBadType, wire.Invalid},
		{"one byte over the limit", v1Request + "0000 0000 0000004f", small, wire.ReasonFrameTooLarge, wire.Request},
		{"the CRC over the limit", v2CRCRequest + "0000 0000 0000004a", small, wire.ReasonFrameTooLarge, wire.Request},
		{"all lengths at their largest", v1Request + "ffff ffff ffffffff", small, wire.ReasonFrameTooLarge, wire.Request},
		{"all lengths at their largest, no limit", v1Request + "ffff ffff ffffffff", noLimits, wire.ReasonFrameTooLarge, wire.Request},
		{"all lengths at their largest, a limit of all an int holds", v2CRCRequest + "ffff ffff ffffffff", wire.Limits{MaxFrame: math.MaxInt}, wire.ReasonFrameTooLarge, wire.Request},
		{"a sum that wraps to 22 in 32 bits", v1Request + "0000 0000 fffffffe", small, wire.ReasonFrameTooLarge, wire.Request},
		{"a length that is negative as an int32, a negative limit", v1Request + "0000 0000 80000000", wire.Limits{MaxFrame: math.MinInt}, wire.ReasonFrameTooLarge, wire.Request},
		{"a header block one byte over the limit", v1Request + "0000 000b 00000000", small, wire.ReasonHeadersTooLarge, wire.Request},
		{"a oneway over the limit", "01 02 0001 01 00000007 01 00000bb8 0000 0000 0000004f", small, wire.ReasonFrameTooLarge, wire.Oneway},
		{"a heartbeat over the limit", "01 01 0000 01 00000007 01 00000bb8 0000 0000 0000004f", small, wire.ReasonFrameTooLarge, wire.Heartbeat},
		{"a response over the limit", "01 00 0002 01 00000007 01 0007 0000 0000 00000051", small, wire.ReasonFrameTooLarge, wire.Reply},
		{"a wrong CRC", v2CRCRequest + "0000 0000 00000000 00000000", small, wire.ReasonBadChecksum, wire.Request},
	} {
		// What an earlier frame left in m must not be seen.
		m := mustDecode(t, unhex(t, v1Request+"0001 0000 00000001 aabb"))
		b := unhex(t, tc.hex)
		checkHead(t, b, tc.limits)
		n, err := Codec{VerifyCRC: true}.Decode(&m, b, tc.limits)
		de, ok := errors.AsType[*wire.DecodeError](err)
		if !ok || de.Reason != tc.reason || de.Detail == "" {
			t.Errorf("%s: Decode = %d, %v, want reason %s with a detail", tc.what, n, err, tc.reason)
			continue
		}
		if m.Kind != tc.kind {
			t.Errorf("%s: kind %v beside the error, want %v", tc.what, m.Kind, tc.kind)
		}
		if m.Frame != nil || m.ClassAt|m.HeaderAt|m.ContentAt|m.ContentEnd != 0 {
			t.Errorf("%s: m still shows parts of a frame, want none: %+v", tc.what, m)
		}
		if tc.kind == wire.Invalid {
			if m.ID != 0 || m.Tag != 0 {
				t.Errorf("%s: id %d and tag %x, want nothing known", tc.what, m.ID, m.Tag)
			}
			continue
		}
		if m.ID != 7 {
			t.Errorf("%s: id %d, want 7 so that a request can be answered", tc.what, m.ID)
		}
		if tc.kind == wire.Request {
			reply := mustDecode(t, Codec{}.AppendReply(nil, m.Tag, m.ID, wire.CodecException))
			if reply.Kind != wire.Reply || reply.ID != 7 || reply.Status != wire.CodecException {
				t.Errorf("%s: the reply made from m has kind %v, id %d, status %v, want reply, 7, CODEC_EXCEPTION", tc.what, reply.Kind, reply.ID, reply.Status)
			}
		}
	}
}

func TestDecodeAcceptsUpToTheLimit(t *testing.T) {
	r := Request{Version: V2CRC, Codec: 1, Headers: []Pair{{"k", "v"}}, Content: make([]byte, 62)}
	frame, err := r.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	var m wire.Message
	lim := wire.Limits{MaxFrame: 100, MaxHeader: 10}
	if n, err := (Codec{}).Decode(&m, frame, lim); len(frame) != 100 || n != 100 || err != nil {
		t.Errorf("Decode of a frame of %d bytes = %d, %v, want 100 at a limit of 100", len(frame), n, err)
	}
	lim.MaxFrame--
	if n, err := (Codec{}).Decode(&m, frame, lim); err == nil {
		t.Errorf("Decode of 100 bytes at a limit of 99 = %d, want an error", n)
	}
	big := unhex(t, "01 01 0001 01 00000007 01 00000bb8 0000 0000 7fffffe9")
	if n, err := (Codec{}).Decode(&m, big, noLimits); n != math.MaxInt32 || err != nil {
		t.Errorf("Decode of the fixed header of a frame of 2 GiB - 1 without a limit = %d, %v, want to need %d", n, err, math.MaxInt32)
	}
}

func TestDecodeWrongCRC(t *testing.T) {
	for _, v := range vectors(t) {
		if v.CRC == "" {
			continue
		}
		frame := bytes.Clone(v.frame)
		frame[len(frame)-1] ^= 0x10
		var m wire.Message
		if n, err := (Codec{}).Decode(&m, frame, noLimits); err != nil || n != len(frame) {
			t.Errorf("%s from %s: Decode of a wrong CRC, not asked to verify = %d, %v, want the frame", v.Name, v.From, n, err)
		}
		if n, err := (Codec{VerifyCRC: true}).Decode(&m, frame, noLimits); err == nil || m.Kind != v.kind() || m.ID != v.ID {
			t.Errorf("%s from %s: Decode of a wrong CRC, asked to verify = %d, %v, kind %v, id %d, want an error with the id", v.Name, v.From, n, err, m.Kind, m.ID)
		}
	}
}

func TestDecodeMixedVersionsOnOneConnection(t *testing.T) {
	var stream []byte
	vs := vectors(t)
	for _, v := range vs {
		stream = append(stream, v.frame...)
	}
	var m wire.Message
	for _, v := range vs {
		n, err := Codec{VerifyCRC: true}.Decode(&m, stream, wire.Limits{MaxFrame: 1 << 20, MaxHeader: 1 << 15})
		if err != nil {
			t.Fatalf("%s from %s: Decode in the middle of a stream: %v", v.Name, v.From, err)
		}
		if diff := cmp.Diff(v.frame, m.Frame); diff != "" {
			t.Fatalf("%s from %s: Decode cut the stream elsewhere (-want +got):\n%s", v.Name, v.From, diff)
		}
		stream = stream[n:]
	}
	if len(stream) != 0 {
		t.Errorf("%d bytes are left of the stream, want none", len(stream))
	}
}

func TestStatusNumbers(t *testing.T) {
	names := map[uint16]string{
		0: "SUCCESS", 1: "ERROR", 2: "SERVER_EXCEPTION", 3: "UNKNOWN", 4: "SERVER_THREADPOOL_BUSY", 5: "ERROR_COMM", 6: "NO_PROCESSOR",
		7: "TIMEOUT", 8: "CLIENT_SEND_ERROR", 9: "CODEC_EXCEPTION", 0x10: "CONNECTION_CLOSED", 0x11: "SERVER_SERIAL_EXCEPTION",
		0x12: "SERVER_DESERIAL_EXCEPTION",
	}
	for code := range math.MaxUint16 + 1 {
		s := StatusOf(uint16(code))
		name, known := names[uint16(code)]
		if !known {
			if s != wire.Other {
				t.Errorf("StatusOf(%#x) = %v, want OTHER: the protocol has no such status", code, s)
			}
			continue
		}
		if s.String() != name {
			t.Errorf("StatusOf(%#x) = %v, want %s", code, s, name)
		}
		if got := StatusCode(s); got != uint16(code) {
			t.Errorf("StatusCode(%v) = %#x, want %#x", s, got, code)
		}
	}
	for s := wire.Other; s != 0; s++ {
		if got := StatusCode(s); got != 3 {
			t.Errorf("StatusCode(%v) = %#x, want 3, UNKNOWN: clients throw on a number of no one's", s, got)
		}
	}
}
