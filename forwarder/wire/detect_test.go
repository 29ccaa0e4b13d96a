package wire

import (
	"bytes"
	"testing"
)

// magic is a codec that knows its protocol by the bytes that it begins with.
type magic struct {
	Codec
	begins string
}

func (c magic) Detect(b []byte) Detection {
	switch {
	case bytes.HasPrefix(b, []byte(c.begins)):
		return Mine
	case bytes.HasPrefix([]byte(c.begins), b):
		return NeedMore
	}
	return NotMine
}

func TestDetectFirst(t *testing.T) {
	ab, abcd, xy, none := magic{begins: "ab"}, magic{begins: "abcd"}, magic{begins: "xy"}, magic{}
	for _, tc := range []struct {
		what   string
		codecs []Codec
		bytes  string
		want   Detection
		codec  Codec
	}{
		{"no codecs", nil, "ab", NotMine, nil},
		{"no bytes", []Codec{ab, xy}, "", NeedMore, nil},
		{"no bytes, and a codec that takes anything", []Codec{none, ab}, "", Mine, none},
		{"the first codec's bytes", []Codec{ab, xy}, "abz", Mine, ab},
		{"the second codec's bytes", []Codec{ab, xy}, "xyz", Mine, xy},
		{"the second codec's first byte", []Codec{ab, xy}, "x", NeedMore, nil},
		{"two codecs say mine: the order decides", []Codec{ab, none}, "ab", Mine, ab},
		{"two codecs say mine: the other order", []Codec{none, ab}, "ab", Mine, none},
		{"an earlier codec needs more, a later one says mine", []Codec{abcd, ab}, "abc", NeedMore, nil},
		{"the earlier codec has what it needs", []Codec{abcd, ab}, "abcd", Mine, abcd},
		{"the earlier codec has seen enough", []Codec{abcd, ab}, "abce", Mine, ab},
		{"a later codec needs more, an earlier one says mine", []Codec{ab, abcd}, "abc", Mine, ab},
		{"nobody's bytes", []Codec{abcd, ab, xy}, "xab", NotMine, nil},
	} {
		codec, got := DetectFirst(tc.codecs, []byte(tc.bytes))
		if got != tc.want || codec != tc.codec {
			t.Errorf("%s: DetectFirst = %v, %d, want %v, %d", tc.what, codec, got, tc.codec, tc.want)
		}
	}
}
