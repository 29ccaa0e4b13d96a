package bolt

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"hash/crc32"
	"os"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// noLimits is what a test uses whose subject is not the limits.
var noLimits = wire.Limits{}

// vector is a frame captured between real peers, and what another implementation read in it.
type vector struct {
	Name      string     `json:"name"`
	From      string     `json:"from"`
	Proto     byte       `json:"proto"`
	Ver1      byte       `json:"ver1"`
	Type      byte       `json:"type"`
	Command   uint16     `json:"cmdcode"`
	Ver2      byte       `json:"ver2"`
	ID        uint32     `json:"requestId"`
	Codec     byte       `json:"codec"`
	Switch    byte       `json:"switch"`
	Timeout   int32      `json:"timeout"`
	Status    uint16     `json:"respstatus"`
	ClassLen  uint32     `json:"classLen"`
	HeaderLen uint32     `json:"headerLen"`
	Content   uint32     `json:"contentLen"`
	Fixed     uint32     `json:"fixedHeaderBytes"`
	Class     string     `json:"className"`
	Header    orderedMap `json:"header"`
	CRC       string     `json:"crc32"`
	Total     int        `json:"totalBytes"`
	Hex       string     `json:"hex"`

	frame []byte
}

// orderedMap keeps the order in which the pairs stand in the file, which is that of the wire.
type orderedMap []Pair

func (o *orderedMap) UnmarshalJSON(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if _, err := d.Token(); err != nil {
		return err
	}
	for d.More() {
		k, err := d.Token()
		if err != nil {
			return err
		}
		v, err := d.Token()
		if err != nil {
			return err
		}
		*o = append(*o, Pair{k.(string), v.(string)})
	}
	return nil
}

func vectors(tb testing.TB) []vector {
	tb.Helper()
	b, err := os.ReadFile("testdata/bolt.jsonl")
	if err != nil {
		tb.Fatal(err)
	}
	var vs []vector
	for line := range bytes.Lines(b) {
		var v vector
		if err := json.Unmarshal(line, &v); err != nil {
			tb.Fatal(err)
		}
		if v.frame, err = hex.DecodeString(v.Hex); err != nil {
			tb.Fatal(err)
		}
		vs = append(vs, v)
	}
	if len(vs) < 50 {
		tb.Fatalf("testdata/bolt.jsonl has %d vectors, want the 56 that were captured", len(vs))
	}
	return vs
}

func (v *vector) kind() wire.Kind {
	switch {
	case v.Type == typeOneway:
		return wire.Oneway
	case v.Type == typeRequest && v.Command == cmdHeartbeat:
		return wire.Heartbeat
	case v.Type == typeRequest:
		return wire.Request
	case v.Command == cmdHeartbeat:
		return wire.Ack
	}
	return wire.Reply
}

func (v *vector) version() Version {
	switch {
	case v.Proto == proto1:
		return V1
	case v.CRC != "":
		return V2CRC
	}
	return V2
}

func mustDecode(tb testing.TB, frame []byte) wire.Message {
	tb.Helper()
	var m wire.Message
	n, err := Codec{VerifyCRC: true}.Decode(&m, frame, noLimits)
	if err != nil || n != len(frame) {
		tb.Fatalf("Decode of a whole frame of %d bytes = %d, %v, want all of it", len(frame), n, err)
	}
	return m
}

func TestVectorsDecode(t *testing.T) {
	for _, v := range vectors(t) {
		t.Run(v.Name+" from "+v.From, func(t *testing.T) {
			// Bytes of the next frame must not confuse this one, nor end up in it.
			b := append(bytes.Clone(v.frame), 0xff, 0xfe)
			var m wire.Message
			n, err := Codec{VerifyCRC: true}.Decode(&m, b, noLimits)
			if err != nil || n != v.Total {
				t.Fatalf("Decode = %d, %v, want %d bytes as captured", n, err, v.Total)
			}
			if !bytes.Equal(m.Frame, v.frame) || cap(m.Frame) != n {
				t.Errorf("Frame has length %d and capacity %d, want the frame alone, %d bytes, safe to append to", len(m.Frame), cap(m.Frame), n)
			}
			tag := m.Tag
			type fields struct {
				Proto, Ver1, Type, Ver2, Codec, Switch               byte
				Command                                              uint16
				ID                                                   uint32
				Timeout                                              int32
				Kind                                                 wire.Kind
				Status                                               wire.Status
				Class                                                string
				ClassAt, HeaderAt, ContentAt, ContentEnd, ContentLen uint32
				Version                                              Version
				Headers                                              []Pair
			}
			got := fields{
				Proto: tagProto(tag), Ver1: tagVer1(tag), Type: tagType(tag), Ver2: tagVer2(tag), Codec: CodecOf(&m), Switch: tagSwitch(tag),
				Command: tagCommand(tag), ID: m.ID, Timeout: m.Timeout, Kind: m.Kind, Status: m.Status, Class: string(m.Class()),
				ClassAt: m.ClassAt, HeaderAt: m.HeaderAt, ContentAt: m.ContentAt, ContentEnd: m.ContentEnd, ContentLen: uint32(len(m.Content())),
				Version: VersionOf(&m),
			}
			for f, err := range WalkHeaders(&m) {
				if err != nil {
					t.Fatalf("WalkHeaders stopped at %v, want all pairs", err)
				}
				got.Headers = append(got.Headers, Pair{string(f.Key), string(f.Value)})
			}
			want := fields{
				Proto: v.Proto, Ver1: v.Ver1, Type: v.Type, Ver2: v.Ver2, Codec: v.Codec, Switch: v.Switch,
				Command: v.Command, ID: v.ID, Timeout: v.Timeout, Kind: v.kind(), Status: StatusOf(v.Status), Class: v.Class,
				ClassAt: v.Fixed, HeaderAt: v.Fixed + v.ClassLen, ContentAt: v.Fixed + v.ClassLen + v.HeaderLen,
				ContentEnd: v.Fixed + v.ClassLen + v.HeaderLen + v.Content, ContentLen: v.Content,
				Version: v.version(), Headers: v.Header,
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("Decode read other fields than the capture says (-want +got):\n%s", diff)
			}
			for _, p := range v.Header {
				values := make([][]byte, 1)
				if err := (Codec{}).Headers(&m, [][]byte{[]byte(p.Key)}, values); err != nil || string(values[0]) != p.Value {
					t.Errorf("Headers(%q) = %q, %v, want %q", p.Key, values[0], err, p.Value)
				}
			}
		})
	}
}

// sameVer1 gives a frame that could carry a CRC and does not the ver1 with which V2 is written: two values
// of ver1 mean the same there, and only one is ever written.
func sameVer1(frame []byte) []byte {
	frame = bytes.Clone(frame)
	if frame[0] == proto2 && frame[11]&switchCRC == 0 {
		frame[1] = 1
	}
	return frame
}

func TestVectorsEncode(t *testing.T) {
	for _, v := range vectors(t) {
		m := mustDecode(t, v.frame)
		prefix := []byte("before")
		var got []byte
		var err error
		switch v.kind() {
		case wire.Request, wire.Oneway, wire.Heartbeat:
			r := Request{
				Version: v.version(), Heartbeat: v.kind() == wire.Heartbeat, Oneway: v.kind() == wire.Oneway, Codec: v.Codec, ID: v.ID,
				Timeout: v.Timeout, Class: v.Class, Headers: v.Header, Content: m.Content(),
			}
			got, err = r.Append(prefix)
		case wire.Reply:
			r := Response{
				Version: v.version(), Codec: v.Codec, ID: v.ID, Status: StatusOf(v.Status), Class: v.Class, Headers: v.Header, Content: m.Content(),
			}
			got, err = r.Append(prefix)
		default:
			continue // acks: TestAppendReply
		}
		if err != nil {
			t.Errorf("%s from %s: Append: %v, want the frame", v.Name, v.From, err)
			continue
		}
		if diff := cmp.Diff(string(prefix)+string(sameVer1(v.frame)), string(got)); diff != "" {
			t.Errorf("%s from %s: Append wrote other bytes than were captured (-want +got):\n%s", v.Name, v.From, diff)
		}
	}
}

func TestVectorsPatch(t *testing.T) {
	ids := []uint32{0, 1, 0x7fffffff, 0xffffffff, 0x01020304}
	timeouts := []int32{0, -1, 3000, 1 << 30}
	for _, v := range vectors(t) {
		for _, id := range ids {
			for _, timeout := range timeouts {
				frame := bytes.Clone(v.frame)
				want := v
				want.ID = id
				if v.Type == typeResponse {
					Codec{}.PatchReply(frame, id)
				} else {
					Codec{}.PatchRequest(frame, id, timeout)
					want.Timeout = timeout
				}
				if v.CRC != "" {
					at := len(frame) - crcLen
					if got, want := frame[at:], crc32.ChecksumIEEE(frame[:at]); !bytes.Equal(got, be32(want)) {
						t.Fatalf("%s from %s, id %#x, timeout %d: CRC %x after the patch, want %08x, that of the bytes", v.Name, v.From, id, timeout, got, want)
					}
				}
				m := mustDecode(t, frame)
				if m.ID != id || m.Timeout != want.Timeout {
					t.Fatalf("%s from %s: id %#x and timeout %d after the patch, want %#x and %d", v.Name, v.From, m.ID, m.Timeout, id, want.Timeout)
				}
				// The way back leads to the very bytes: nothing else was touched.
				if v.Type == typeResponse {
					Codec{}.PatchReply(frame, v.ID)
				} else {
					Codec{}.PatchRequest(frame, v.ID, v.Timeout)
				}
				if !bytes.Equal(frame, v.frame) {
					t.Fatalf("%s from %s: patching to id %#x and back changed the frame, want the captured bytes", v.Name, v.From, id)
				}
			}
		}
	}
}

func TestVectorsPrefixesNeedMore(t *testing.T) {
	for _, v := range vectors(t) {
		for i := range v.frame {
			var m wire.Message
			need, err := Codec{VerifyCRC: true}.Decode(&m, v.frame[:i:i], wire.Limits{MaxFrame: v.Total, MaxHeader: 65535})
			if err != nil || need <= i || need > v.Total {
				t.Fatalf("%s from %s: Decode of the first %d bytes of %d = %d, %v, want a need between the two", v.Name, v.From, i, v.Total, need, err)
			}
		}
	}
}

// TestNeedIsExact follows the advice: with exactly the bytes asked for, the next call knows more.
func TestNeedIsExact(t *testing.T) {
	for _, v := range vectors(t) {
		var got []int
		for have := 0; have < v.Total; {
			var m wire.Message
			need, err := Codec{}.Decode(&m, v.frame[:have], noLimits)
			if err != nil {
				t.Fatalf("%s from %s: Decode of the first %d bytes: %v, want a need", v.Name, v.From, have, err)
			}
			got = append(got, need)
			have = need
		}
		typeEnd := 2
		if v.Proto == proto2 {
			typeEnd = 3
		}
		want := []int{1, typeEnd, int(v.Fixed)}
		if v.Total > int(v.Fixed) {
			want = append(want, v.Total)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s from %s: Decode asked for other lengths than version, type, fixed header, frame (-want +got):\n%s", v.Name, v.From, diff)
		}
	}
}

func be32(n uint32) []byte { return []byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)} }

// unhex reads hex with spaces, so that a test can show a frame field by field.
func unhex(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(string(bytes.ReplaceAll([]byte(s), []byte(" "), nil)))
	if err != nil {
		tb.Fatalf("test has bad hex %s: %v", strconv.Quote(s), err)
	}
	return b
}
