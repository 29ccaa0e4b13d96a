package bolt

import (
	"bytes"
	"encoding/hex"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// TestAppendReplyIsTheServersAck takes a real server's word for what acks a heartbeat.
func TestAppendReplyIsTheServersAck(t *testing.T) {
	vs, checked := vectors(t), 0
	for i, v := range vs {
		if v.kind() != wire.Heartbeat {
			continue
		}
		m := mustDecode(t, v.frame)
		got := Codec{}.AppendReply(nil, m.Tag, m.ID, wire.Success)
		if want := vs[i+1]; want.kind() != wire.Ack || !bytes.Equal(got, want.frame) {
			t.Errorf("%s: the ack is %x, want %x as the server sent it", v.Name, got, want.frame)
		}
		checked++
	}
	if checked != 4 {
		t.Errorf("the vectors have %d heartbeats, want one for each of 4 variants", checked)
	}
}

func TestAppendReplyToEveryRequest(t *testing.T) {
	for _, v := range vectors(t) {
		if v.kind() != wire.Request {
			continue
		}
		m := mustDecode(t, v.frame)
		for s := range wire.NumStatus {
			b := Codec{}.AppendReply([]byte("before"), m.Tag, 0xfffefdfc, s)
			after, ok := bytes.CutPrefix(b, []byte("before"))
			if !ok {
				t.Fatalf("%s: AppendReply did not append: %x", v.Name, b)
			}
			reply := mustDecode(t, after)
			want := wire.Message{
				Frame: after, Tag: reply.Tag, ID: 0xfffefdfc, Kind: wire.Reply, Status: s,
				ClassAt: v.Fixed - 2, HeaderAt: v.Fixed - 2, ContentAt: v.Fixed - 2, ContentEnd: v.Fixed - 2,
			}
			if s == wire.Other {
				want.Status = wire.UnknownStatus
			}
			if diff := cmp.Diff(want, reply); diff != "" {
				t.Errorf("%s: the reply with status %v reads otherwise (-want +got):\n%s", v.Name, s, diff)
			}
			got := []byte{tagProto(reply.Tag), tagVer1(reply.Tag), tagVer2(reply.Tag), tagCodec(reply.Tag), tagSwitch(reply.Tag)}
			if want := []byte{v.Proto, v.Ver1, v.Ver2, v.Codec, v.Switch}; !bytes.Equal(got, want) {
				t.Errorf("%s: proto, ver1, ver2, codec and switch of the reply are %v, want %v as in the request", v.Name, got, want)
			}
		}
	}
}

// TestAppendReplyKeepsTheSwitch has the case that no vector has: the bit set, and no CRC.
func TestAppendReplyKeepsTheSwitch(t *testing.T) {
	m := mustDecode(t, unhex(t, "02 01 01 0001 05 00000007 0b 01 00000bb8 0000 0000 00000000"))
	got := hex.EncodeToString(Codec{}.AppendReply(nil, m.Tag, 8, wire.NoProcessor))
	if want := hex.EncodeToString(unhex(t, "02 01 00 0002 05 00000008 0b 01 0006 0000 0000 00000000")); got != want {
		t.Errorf("the reply is %s, want %s: ver2 and switch copied, no CRC", got, want)
	}
}

// TestAppendReplyAnyTag: a tag of another codec's must not cause a panic, nor a frame that cannot be read.
func TestAppendReplyAnyTag(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := Codec{}.AppendReply(nil, wire.Tag(rapid.Uint64().Draw(t, "tag")), 7, wire.Timeout)
		var m wire.Message
		n, err := Codec{VerifyCRC: true}.Decode(&m, b, noLimits)
		if err != nil || n != len(b) || m.ID != 7 || m.Status != wire.Timeout || (m.Kind != wire.Reply && m.Kind != wire.Ack) {
			t.Fatalf("AppendReply wrote %x, which reads as %d, %v, %v %d %v, want a reply with id 7 and TIMEOUT", b, n, err, m.Kind, m.ID, m.Status)
		}
	})
}

func TestAppendHeartbeat(t *testing.T) {
	for _, v := range vectors(t) {
		if v.Name != "v1 heartbeat" || v.From != "client" {
			continue
		}
		if got := (Codec{}).AppendHeartbeat(nil, v.ID); !bytes.Equal(got, v.frame) {
			t.Errorf("AppendHeartbeat(%d) = %x, want %x as a real client sends it", v.ID, got, v.frame)
		}
		return
	}
	t.Error("the vectors have no v1 heartbeat, want one")
}

func TestAppendRefuses(t *testing.T) {
	for what, tc := range map[string]struct {
		class   string
		headers []Pair
		ok      bool
	}{
		"a class of 32767 bytes":                    {class: strings.Repeat("x", 32767), ok: true},
		"a class of 32768 bytes":                    {class: strings.Repeat("x", 32768)},
		"a class of 65536 bytes":                    {class: strings.Repeat("x", 65536)},
		"a header block of 32767 bytes":             {headers: []Pair{{"k", strings.Repeat("x", 32758)}}, ok: true},
		"a header block of 32768 bytes":             {headers: []Pair{{"k", strings.Repeat("x", 32759)}}},
		"a header block of 32768 bytes, all in key": {headers: []Pair{{strings.Repeat("x", 32760), ""}}},
		"a header block of 40000 bytes, all empty":  {headers: make([]Pair, 5000)},
	} {
		dst := []byte("before")
		for _, f := range []interface {
			Append(dst []byte) ([]byte, error)
		}{&Request{Class: tc.class, Headers: tc.headers}, &Response{Class: tc.class, Headers: tc.headers}} {
			got, err := f.Append(dst)
			if (err == nil) != tc.ok {
				t.Errorf("%s: %T.Append = %v, want success: %v", what, f, err, tc.ok)
			}
			if err != nil && string(got) != "before" {
				t.Errorf("%s: %T.Append returned %d bytes beside its error, want dst as it was", what, f, len(got))
			}
		}
	}
}

var (
	anyVersion = rapid.SampledFrom([]Version{V1, V2, V2CRC})
	anyString  = rapid.StringN(0, 40, -1)
	anyHeaders = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Pair {
		return Pair{anyString.Draw(t, "key"), anyString.Draw(t, "value")}
	}), 0, 8)
	anyContent = rapid.SliceOfN(rapid.Byte(), 0, 300)
)

func headersOf(t *rapid.T, m *wire.Message) []Pair {
	got := []Pair{}
	for f, err := range WalkHeaders(m) {
		if err != nil {
			t.Fatalf("WalkHeaders: %v, want the headers that were written", err)
		}
		got = append(got, Pair{string(f.Key), string(f.Value)})
	}
	return got
}

func TestRequestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := Request{
			Version: anyVersion.Draw(t, "version"), Heartbeat: rapid.Bool().Draw(t, "heartbeat"), Oneway: rapid.Bool().Draw(t, "oneway"),
			Codec: rapid.Byte().Draw(t, "codec"), ID: rapid.Uint32().Draw(t, "id"), Timeout: rapid.Int32().Draw(t, "timeout"),
			Class: anyString.Draw(t, "class"), Headers: anyHeaders.Draw(t, "headers"), Content: anyContent.Draw(t, "content"),
		}
		b, err := want.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		var m wire.Message
		if n, err := (Codec{VerifyCRC: true}).Decode(&m, b, noLimits); err != nil || n != len(b) {
			t.Fatalf("Decode of a request of %d bytes = %d, %v, want all of it", len(b), n, err)
		}
		got := Request{
			Version: VersionOf(&m), Heartbeat: tagCommand(m.Tag) == cmdHeartbeat, Oneway: m.Kind == wire.Oneway, Codec: CodecOf(&m),
			ID: m.ID, Timeout: m.Timeout, Class: string(m.Class()), Headers: headersOf(t, &m), Content: m.Content(),
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("the request came back otherwise (-want +got):\n%s", diff)
		}
	})
}

func TestResponseRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := Response{
			Version: anyVersion.Draw(t, "version"), Codec: rapid.Byte().Draw(t, "codec"), ID: rapid.Uint32().Draw(t, "id"),
			Status: wire.Status(rapid.Uint8Range(0, uint8(wire.Other)-1).Draw(t, "status")),
			Class:  anyString.Draw(t, "class"), Headers: anyHeaders.Draw(t, "headers"), Content: anyContent.Draw(t, "content"),
		}
		b, err := want.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		var m wire.Message
		if n, err := (Codec{VerifyCRC: true}).Decode(&m, b, noLimits); err != nil || n != len(b) || m.Kind != wire.Reply {
			t.Fatalf("Decode of a response of %d bytes = %d, %v, kind %v, want all of it, reply", len(b), n, err, m.Kind)
		}
		got := Response{
			Version: VersionOf(&m), Codec: CodecOf(&m), ID: m.ID, Status: m.Status,
			Class: string(m.Class()), Headers: headersOf(t, &m), Content: m.Content(),
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("the response came back otherwise (-want +got):\n%s", diff)
		}
	})
}

func TestVersionNames(t *testing.T) {
	for _, v := range []Version{V1, V2, V2CRC} {
		if got, err := ParseVersion(v.String()); err != nil || got != v {
			t.Errorf("ParseVersion(%q) = %v, %v, want the version back", v, got, err)
		}
	}
	for _, s := range []string{"", "v3", "V1", "v2-CRC"} {
		if got, err := ParseVersion(s); err == nil {
			t.Errorf("ParseVersion(%q) = %v, want an error", s, got)
		}
	}
	if got := Version(math.MaxUint8).String(); got != "version-255" {
		t.Errorf("Version(255).String() = %q, want version-255, and no panic", got)
	}
}

func TestCodecNames(t *testing.T) {
	for codec, want := range map[byte]string{CodecHessian2: "hessian2", CodecProtobuf: "protobuf", CodecJSON: "json", 0: "codec-0", 2: "codec-2"} {
		if got := CodecName(codec); got != want {
			t.Errorf("CodecName(%d) = %q, want %q", codec, got, want)
		}
	}
}
