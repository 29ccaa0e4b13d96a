package handoff

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAgree(t *testing.T) {
	for _, test := range []struct {
		min, max, oldest, newest uint
		want                     uint // 0: none
	}{
		{1, 1, 1, 1, 1},
		{1, 1, 1, 2, 1}, // an older release hands over to a newer one
		{1, 2, 1, 1, 1}, // a newer one to an older one
		{2, 3, 1, 2, 2},
		{1, 3, 2, 4, 3},
		{3, 4, 1, 2, 0},
		{1, 2, 3, 4, 0},
		{0, 0, 1, 1, 0}, // says nothing
		{2, 1, 1, 2, 0}, // says nonsense
	} {
		got, err := agree(&Offer{Min: test.min, Max: test.max, Release: "9.9"}, test.oldest, test.newest)
		if got != test.want || (err == nil) != (test.want != 0) {
			t.Errorf("%+v: got %d, %v", test, got, err)
		}
	}
	_, err := Agree(&Offer{Min: 70, Max: 80, Release: "9.9"})
	if err == nil || !strings.Contains(err.Error(), "70 to 80") || !strings.Contains(err.Error(), "1 to 1") || !strings.Contains(err.Error(), "9.9") {
		t.Errorf("got %v, want an error that says both ranges and who offers", err)
	}
}

// The releases around this one, as far as two messages go: one does not have some fields yet, one has more.
type (
	olderEnd struct {
		Counts struct {
			Downstreams uint64 `cbor:"1,keyasint"`
		} `cbor:"1,keyasint"`
	}
	newerEnd struct {
		Counts struct {
			Downstreams uint64            `cbor:"1,keyasint"`
			Bytes       uint64            `cbor:"7,keyasint"`
			Streams     map[string][]int  `cbor:"40,keyasint"`
			Deep        [][][]map[int]any `cbor:"41,keyasint"`
		} `cbor:"1,keyasint"`
		Checksum []byte `cbor:"2,keyasint"`
		Named    string `cbor:"name"`
	}
)

func (*olderEnd) kind() Kind { return KindEnd }
func (*newerEnd) kind() Kind { return KindEnd }

func TestNeighbouringReleasesUnderstandEachOther(t *testing.T) {
	older := &olderEnd{}
	older.Counts.Downstreams = 3
	newer := &newerEnd{Checksum: []byte{1, 2}, Named: "x"}
	newer.Counts.Downstreams = 3
	newer.Counts.Bytes = 5
	newer.Counts.Streams = map[string][]int{"a": {1, 2}}
	newer.Counts.Deep = [][][]map[int]any{{{{1: "x"}}}}
	for _, test := range []struct {
		name string
		sent Message
		want Message
	}{
		{"from one that misses fields", older, &End{Counts{Downstreams: 3}}},
		{"from one that has more", newer, &End{Counts{Downstreams: 3, Bytes: 5}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			a, b := pair(t)
			if err := a.Send(soon(), test.sent); err != nil {
				t.Fatal(err)
			}
			got, _, err := b.Receive()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("it is understood otherwise (-want +got):\n%s", diff)
			}
		})
	}
	ours := framed(t, &End{Counts{Downstreams: 3, Upstreams: 4, Bytes: 5}})[headerLen:]
	t.Run("to one that misses fields", func(t *testing.T) {
		var got olderEnd
		if err := decMode.Unmarshal(ours, &got); err != nil {
			t.Fatal(err)
		}
		if got.Counts.Downstreams != 3 {
			t.Errorf("got %+v, want 3 downstreams", got)
		}
	})
	t.Run("to one that has more", func(t *testing.T) {
		var got newerEnd
		if err := decMode.Unmarshal(ours, &got); err != nil {
			t.Fatal(err)
		}
		if got.Counts.Downstreams != 3 || got.Counts.Bytes != 5 || got.Checksum != nil {
			t.Errorf("got %+v, want 3 downstreams, 5 bytes, and nothing that was not sent", got)
		}
	})
}
