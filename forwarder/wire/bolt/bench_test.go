package bolt

import (
	"testing"

	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// benchmarkRequest is a request as sofa-rpc-node sends it, with content of the given size.
func benchmarkRequest(b *testing.B, v Version, content int) []byte {
	b.Helper()
	r := Request{
		Version: v, Codec: CodecHessian2, ID: 1, Timeout: 3000, Class: ClassRequest,
		Headers: []Pair{{"service", "com.sample.test.HelloService:1.0"}}, Content: make([]byte, content),
	}
	frame, err := r.Append(nil)
	if err != nil {
		b.Fatal(err)
	}
	return frame
}

var benchmarkLimits = wire.Limits{MaxFrame: 64 << 20, MaxHeader: 16 << 10}

func BenchmarkDecode(b *testing.B) {
	for _, v := range []Version{V1, V2, V2CRC} {
		b.Run(v.String(), func(b *testing.B) {
			b.ReportAllocs()
			frame := benchmarkRequest(b, v, 1024)
			var codec wire.Codec = Codec{}
			var m wire.Message
			for b.Loop() {
				if n, err := codec.Decode(&m, frame, benchmarkLimits); err != nil || n != len(frame) {
					b.Fatal(n, err)
				}
			}
		})
	}
	b.Run("v1-reply", func(b *testing.B) {
		b.ReportAllocs()
		frame, err := (&Response{Codec: CodecHessian2, ID: 1, Class: ClassResponse, Content: make([]byte, 1024)}).Append(nil)
		if err != nil {
			b.Fatal(err)
		}
		var codec wire.Codec = Codec{}
		var m wire.Message
		for b.Loop() {
			if n, err := codec.Decode(&m, frame, benchmarkLimits); err != nil || n != len(frame) {
				b.Fatal(n, err)
			}
		}
	})
}

func BenchmarkHeaders(b *testing.B) {
	for _, v := range vectors(b) {
		if v.kind() != wire.Request || v.Proto != proto1 || v.ID != 1 && v.ID != 5 {
			continue
		}
		b.Run(map[int]string{1: "one-key-of-1", 7: "one-key-of-7"}[len(v.Header)], func(b *testing.B) {
			b.ReportAllocs()
			var codec wire.Codec = Codec{}
			m := mustDecode(b, v.frame)
			keys, values := [][]byte{[]byte("service")}, make([][]byte, 1)
			for b.Loop() {
				if err := codec.Headers(&m, keys, values); err != nil || values[0] == nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// The 16M are not a power of two, for which the distance would have few digits and the CRC few steps.
func BenchmarkPatchRequest(b *testing.B) {
	for _, bc := range []struct {
		name    string
		version Version
		content int
	}{{"v1/1K", V1, 1 << 10}, {"v2-crc/1K", V2CRC, 1 << 10}, {"v2-crc/16M", V2CRC, 16<<20 - 4321}} {
		b.Run(bc.name, func(b *testing.B) {
			b.ReportAllocs()
			frame := benchmarkRequest(b, bc.version, bc.content)
			var codec wire.Codec = Codec{}
			id := uint32(0)
			for b.Loop() {
				id++
				codec.PatchRequest(frame, id, int32(id))
			}
		})
	}
}

func BenchmarkHead(b *testing.B) {
	b.ReportAllocs()
	frame := benchmarkRequest(b, V2CRC, 1024)
	var codec wire.Codec = Codec{}
	var m wire.Message
	for b.Loop() {
		if _, whole, err := codec.Head(&m, frame, benchmarkLimits); err != nil || whole != len(frame) {
			b.Fatal(whole, err)
		}
	}
}

// The 16M and the 1K differ by the copying: the CRC costs the same for both.
func BenchmarkAppendEdited(b *testing.B) {
	edits := []wire.Edit{set("service", "com.sample.test.OtherService:1.0"), add("trace", "0a0b0c"), remove("x-internal")}
	for _, bc := range []struct {
		name    string
		version Version
		content int
	}{{"v1/1K", V1, 1 << 10}, {"v2-crc/1K", V2CRC, 1 << 10}, {"v2-crc/16M", V2CRC, 16 << 20}} {
		b.Run(bc.name, func(b *testing.B) {
			b.ReportAllocs()
			m := mustDecode(b, benchmarkRequest(b, bc.version, bc.content))
			var codec wire.Codec = Codec{}
			dst := make([]byte, 0, len(m.Frame)+1024)
			for b.Loop() {
				if _, err := codec.AppendEdited(dst, &m, edits, benchmarkLimits.MaxHeader); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A round is 64K of a frame's content. The rest is made anew for each, so that the frame never ends.
func BenchmarkPass(b *testing.B) {
	for _, codec := range []wire.Codec{Codec{}, Codec{VerifyCRC: true}} {
		b.Run(map[bool]string{false: "moved", true: "verified"}[codec.(Codec).VerifyCRC], func(b *testing.B) {
			b.ReportAllocs()
			piece := make([]byte, 64<<10)
			var r wire.Rest
			for b.Loop() {
				r = wire.Rest{Left: 1 << 20, Checksum: crcLen}
				if err := codec.Pass(&r, piece); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
