package handoff

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// seeds are frames of every kind.
func seeds(f *testing.F) [][]byte {
	f.Helper()
	var all [][]byte
	for _, k := range kinds(f) {
		all = append(all, framed(f, newMessage(k)))
		for seed := range 3 {
			all = append(all, framed(f, messages[k].Example(seed)))
		}
	}
	return append(all, framed(f, conns(3)))
}

// FuzzDecode holds the codec to its contract on any bytes: it does not panic, what it allocates is in proportion to what
// there is, and what it accepts it writes so that it reads the same.
func FuzzDecode(f *testing.F) {
	for _, p := range seeds(f) {
		f.Add(p[1], p[2], p[headerLen:])
	}
	f.Fuzz(func(t *testing.T, kind, files byte, payload []byte) {
		fr := frame{Kind(kind), int(files), len(payload)}
		var m Message
		var err error
		// An element is a byte at least, and the largest one is a few hundred in memory.
		if got, want := allocated(func() { m, err = fr.decode(payload) }), uint64(1024*len(payload)+1<<20); got > want {
			t.Fatalf("decoding %d bytes allocates %d, want at most %d", len(payload), got, want)
		}
		if err != nil {
			if m != nil {
				t.Fatalf("got %+v beside the error %v", m, err)
			}
			return
		}
		if _, unknown := m.(*Unknown); unknown {
			return
		}
		first := framed(t, m)
		again, err := decoded(first)
		if err != nil {
			t.Fatalf("what was accepted is refused when it is written again: %v", err)
		}
		if second := framed(t, again); !bytes.Equal(first, second) {
			t.Fatalf("a message is\n%x first and\n%x then", first, second)
		}
	})
}

// FuzzReceive holds the receiver to its contract on any stream with any descriptors: it ends, and leaves none open.
func FuzzReceive(f *testing.F) {
	for _, p := range seeds(f) {
		f.Add(p, p[2], uint16(len(p)/2), byte(0))
	}
	f.Add(append(framed(f, conns(2)), framed(f, conns(1))...), byte(2), uint16(len(framed(f, conns(2)))), byte(1))
	f.Fuzz(func(t *testing.T, p []byte, first byte, cut uint16, second byte) {
		if len(p) == 0 || len(p) > 64<<10 {
			return
		}
		at := min(max(int(cut), 1), len(p))
		a, b := pair(t)
		canary := newCanary(t)
		put(t, a, p[:at], canary.raws(int(first)%maxFiles)...)
		if at < len(p) {
			put(t, a, p[at:], canary.raws(int(second)%maxFiles)...)
		}
		a.Close()
		if err := b.SetReadDeadline(time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		ends := 0
		for i := 0; ends < 2; i++ {
			if i > len(p) {
				t.Fatalf("%d bytes have more messages than bytes", len(p))
			}
			m, files, err := b.Receive()
			closeFiles(files)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("got %v from a stream that has ended", err)
			}
			if err != nil && len(files) > 0 || err == nil && len(files) != filesOf(m) {
				t.Fatalf("got %d descriptors with %T, %v", len(files), m, err)
			}
			if b.ended != nil {
				ends++
			}
		}
		if cap(b.in) > 4*len(p)+growIn {
			t.Fatalf("%d bytes have taken %d of memory", len(p), cap(b.in))
		}
		if errors.Is(b.ended, io.EOF) && !errors.Is(b.ended, io.ErrUnexpectedEOF) && len(b.queue) > 0 {
			t.Fatalf("the stream has ended well with %d descriptors that no frame names", len(b.queue))
		}
		canary.checkGone(t, b)
	})
}

// FuzzRoundTrip draws messages from the fuzzer's bytes.
func FuzzRoundTrip(f *testing.F) {
	for seed := range 32 {
		var b [2 << 10]byte
		noise := rand.NewChaCha8([32]byte{byte(seed)})
		_, _ = noise.Read(b[:]) // it never fails
		f.Add(b[:])
	}
	f.Fuzz(rapid.MakeFuzz(func(t *rapid.T) {
		k := rapid.SampledFrom(kinds(t)).Draw(t, "kind")
		p := framed(t, messages[k].Draw(t, "message"))
		m, err := decoded(p)
		if err != nil {
			t.Fatalf("%v", err)
		}
		if !bytes.Equal(p, framed(t, m)) {
			t.Fatalf("%s reads otherwise than it was written", k)
		}
	}))
}
