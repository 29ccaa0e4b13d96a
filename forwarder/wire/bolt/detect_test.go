package bolt

import (
	"bytes"
	"math"
	"testing"

	"pgregory.net/rapid"

	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// otherProtocols are first bytes of clients that do not speak Bolt, and after how many of them that shows.
var otherProtocols = []struct {
	name, bytes string
	at          int
}{
	{"HTTP/1", "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", 1},
	{"HTTP/1 POST", "POST /service HTTP/1.1\r\n", 1},
	{"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 1},
	{"TLS ClientHello", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 1},
	{"SSLv2 ClientHello", "\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10", 1},
	{"Redis", "*1\r\n$4\r\nPING\r\n", 1},
	{"Redis inline", "PING\r\n", 1},
	{"Dubbo", "\xda\xbb\xc2\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x05", 1},
	{"PostgreSQL", "\x00\x00\x00\x08\x04\xd2\x16\x2f", 1},
	{"SOCKS 5", "\x05\x01\x00", 1},
	{"PROXY protocol 2", "\r\n\r\n\x00\r\nQUIT\n", 1},
	{"SSH", "SSH-2.0-OpenSSH_9.6\r\n", 1},
	{"zeros", "\x00\x00\x00\x00", 1},
	{"ones", "\x01\x01\x01\x01", 3},
	{"twos", "\x02\x02\x02\x02", 4},
	{"counting up", "\x01\x02\x03\x04", 3},
}

func TestDetectOtherProtocols(t *testing.T) {
	for _, p := range otherProtocols {
		for i := range len(p.bytes) + 1 {
			want := wire.NeedMore
			if i >= p.at {
				want = wire.NotMine
			}
			if got := (Codec{}).Detect([]byte(p.bytes[:i])); got != want {
				t.Errorf("%s: Detect of %d bytes = %d, want %d", p.name, i, got, want)
			}
		}
	}
}

func TestDetectVectors(t *testing.T) {
	requests := 0
	for _, v := range vectors(t) {
		if v.Type == typeResponse {
			if got := (Codec{}).Detect(v.frame); got != wire.NotMine {
				t.Errorf("%s from %s: Detect of a response = %d, want NotMine: no client begins with one", v.Name, v.From, got)
			}
			continue
		}
		requests++
		for i := range len(v.frame) + 1 {
			want := wire.NeedMore
			if i >= int(v.Fixed) {
				want = wire.Mine
			}
			if got := (Codec{}).Detect(v.frame[:i]); got != want {
				t.Errorf("%s from %s: Detect of the first %d bytes = %d, want %d", v.Name, v.From, i, got, want)
			}
		}
	}
	if requests < 20 {
		t.Errorf("the vectors have %d requests, want more than 20", requests)
	}
}

// TestDetectFields has one field of a frame wrong at a time, and the byte at which that shows.
func TestDetectFields(t *testing.T) {
	const never = math.MaxInt
	for _, tc := range []struct {
		what, hex string
		at        int // how many bytes make it NotMine
	}{
		{"v1 request", "01 01 0001 01 00000007 01 00000bb8 0000 0000 00000000", never},
		{"v1 oneway", "01 02 0001 01 00000007 01 ffffffff 002c 0000 00000000", never},
		{"v1 heartbeat", "01 01 0000 01 00000007 01 00000bb8 0000 0000 00000000", never},
		{"v1 request, all that is not looked at full of ones", "01 01 0001 01 ffffffff ff ffffffff 0000 0000 00000000", never},
		{"v2 request, all that is not looked at full of ones", "02 02 01 0001 01 ffffffff ff ff ffffffff 0000 0000 00000000", never},
		{"v1 response", "01 00 0002 01 00000007 01 0000 0000 0000 00000000 0000", 2},
		{"v1 type of no one's", "01 03 0001 01 00000007 01 00000bb8 0000 0000 00000000", 2},
		{"v1 command with a high byte", "01 01 0101 01 00000007 01 00000bb8 0000 0000 00000000", 3},
		{"v1 command of a response", "01 01 0002 01 00000007 01 00000bb8 0000 0000 00000000", 4},
		{"v1 goaway, which nobody begins with", "01 01 0064 01 00000007 01 00000bb8 0000 0000 00000000", 4},
		{"v1 oneway heartbeat", "01 02 0000 01 00000007 01 00000bb8 0000 0000 00000000", 4},
		{"v1 ver2 at its largest", "01 01 0001 0f 00000007 01 00000bb8 0000 0000 00000000", never},
		{"v1 ver2 beyond", "01 01 0001 10 00000007 01 00000bb8 0000 0000 00000000", 5},
		{"v1 lengths at their largest", "01 01 0001 01 00000007 01 00000bb8 7fff 7fff 0ffeffec", never},
		{"v1 class too long", "01 01 0001 01 00000007 01 00000bb8 8000 0000 00000000", 15},
		{"v1 header block too long", "01 01 0001 01 00000007 01 00000bb8 0000 8000 00000000", 17},
		{"v1 content too long by its first byte", "01 01 0001 01 00000007 01 00000bb8 0000 0000 11000000", 19},
		{"v1 content too long together with the fixed header", "01 01 0001 01 00000007 01 00000bb8 0000 0000 10000000", 19},
		{"v1 content too long by its last byte", "01 01 0001 01 00000007 01 00000bb8 7fff 7fff 0ffeffed", 22},
		{"v2 ver1 of no one's", "02 03 01 0001 01 00000007 01 00 00000bb8 0000 0000 00000000", 2},
		{"v2 ver1 0", "02 00 01 0001 01 00000007 01 00 00000bb8 0000 0000 00000000", 2},
		{"v2 response", "02 01 00 0002 01 00000007 01 00 0000 0000 0000 00000000 0000", 3},
		{"v2 command with a high byte", "02 01 01 0101 01 00000007 01 00 00000bb8 0000 0000 00000000", 4},
		{"v2 command of a response", "02 01 01 0002 01 00000007 01 00 00000bb8 0000 0000 00000000", 5},
		{"v2 ver2 beyond", "02 01 01 0001 ff 00000007 01 00 00000bb8 0000 0000 00000000", 6},
		{"v2 class too long", "02 01 01 0001 01 00000007 01 00 00000bb8 8000 0000 00000000", 17},
		{"v2 header block too long", "02 01 01 0001 01 00000007 01 00 00000bb8 0000 ffff 00000000", 19},
		{"v2 content too long by its third byte", "02 01 01 0001 01 00000007 01 00 00000bb8 7fff 7fff 0fffffff", 22},
	} {
		b := unhex(t, tc.hex)
		fixed := v1RequestLen
		if b[0] == proto2 {
			fixed = v2RequestLen
		}
		checkDetect(t, b)
		for i := range len(b) + 1 {
			want := wire.NeedMore
			switch {
			case i >= tc.at:
				want = wire.NotMine
			case i >= fixed:
				want = wire.Mine
			}
			if got := (Codec{}).Detect(b[:i]); got != want {
				t.Errorf("%s: Detect of %d bytes = %d, want %d", tc.what, i, got, want)
			}
		}
	}
}

// checkDetect holds Detect to its contract on all beginnings of b: an answer once given stays, Mine is a frame that
// Decode takes, NeedMore can still become one, and NotMine comes at the first byte that contradicts.
func checkDetect(t *testing.T, b []byte) {
	t.Helper()
	before := wire.NeedMore
	for i := range min(len(b), 2*v2RequestLen) + 1 {
		got := Codec{}.Detect(b[:i])
		if before != wire.NeedMore && got != before {
			t.Fatalf("Detect of the first %d bytes of %x = %d after %d, want no change of mind", i, b, got, before)
		}
		before = got
		switch got {
		case wire.Mine:
			var m wire.Message
			n, err := Codec{}.Decode(&m, b[:i], wire.Limits{MaxFrame: detectFrame + crcLen, MaxHeader: maxShort})
			if err != nil || n < v1RequestLen {
				t.Fatalf("Detect of %x = Mine, Decode = %d, %v, want a frame or a need", b[:i], n, err)
			}
		case wire.NeedMore:
			whole := []byte{proto1, typeRequest, 0, cmdRequest, 1, v1RequestLen - 1: 0}
			if i > 0 && b[0] == proto2 {
				whole = []byte{proto2, 1, typeRequest, 0, cmdRequest, 1, v2RequestLen - 1: 0}
			}
			if i >= len(whole) || (Codec{}).Detect(append(bytes.Clone(b[:i]), whole[i:]...)) != wire.Mine {
				t.Fatalf("Detect of %x = NeedMore, and with the rest of a request it is still not Mine", b[:i])
			}
		case wire.NotMine:
		}
	}
}

func TestDetectAnyBytes(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(rt, "bytes")
		checkDetect(t, b)
		if len(b) > 0 && b[0] != proto1 && b[0] != proto2 && (Codec{}).Detect(b) != wire.NotMine {
			rt.Fatalf("Detect of %x is not NotMine, want it to be by its first byte", b)
		}
		// Bytes about a request, so that the rare answers come up.
		frame := rawFrame{version: rapid.SampledFrom([]Version{V1, V2, V2CRC}).Draw(rt, "version"), typ: typeRequest}.append()
		frame[rapid.IntRange(0, len(frame)-1).Draw(rt, "at")] = rapid.Byte().Draw(rt, "byte")
		checkDetect(t, frame)
	})
}

// capitals is a codec whose protocol begins with two capital letters.
type capitals struct{ wire.Codec }

func (capitals) Detect(b []byte) wire.Detection {
	for _, c := range b[:min(len(b), 2)] {
		if c < 'A' || c > 'Z' {
			return wire.NotMine
		}
	}
	if len(b) < 2 {
		return wire.NeedMore
	}
	return wire.Mine
}

func TestDetectFirstBesideAnother(t *testing.T) {
	request := rawFrame{version: V2, typ: typeRequest}.append()
	for _, codecs := range [][]wire.Codec{{Codec{}, capitals{}}, {capitals{}, Codec{}}} {
		for _, tc := range []struct {
			what  string
			bytes []byte
			codec wire.Codec
			want  wire.Detection
		}{
			{"nothing", nil, nil, wire.NeedMore},
			{"a capital", []byte("G"), nil, wire.NeedMore},
			{"capitals", []byte("GET"), capitals{}, wire.Mine},
			{"Bolt's first byte", request[:1], nil, wire.NeedMore},
			{"all of a fixed header but a byte", request[:v2RequestLen-1], nil, wire.NeedMore},
			{"a fixed header", request[:v2RequestLen], Codec{}, wire.Mine},
			{"nobody's bytes", []byte("get"), nil, wire.NotMine},
		} {
			codec, got := wire.DetectFirst(codecs, tc.bytes)
			if codec != tc.codec || got != tc.want {
				t.Errorf("%s: DetectFirst = %v, %d, want %v, %d in either order", tc.what, codec, got, tc.codec, tc.want)
			}
		}
	}
}
