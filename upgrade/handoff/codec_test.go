package handoff

import (
	"bytes"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

// equateEmpty is what the format does: what is empty comes back as what is missing.
var equateEmpty = cmpopts.EquateEmpty()

// encoded is m as a frame.
func encoded(m Message) ([]byte, error) {
	var b bytes.Buffer
	err := appendFrame(&b, m, filesOf(m))
	return b.Bytes(), err
}

// decoded reads one frame.
func decoded(p []byte) (Message, error) {
	f, err := decodeHeader(p)
	if err != nil {
		return nil, err
	}
	return f.decode(p[headerLen:])
}

// messages generates one of every kind.
var messages = map[Kind]*rapid.Generator[Message]{
	KindOffer:     generated[Offer](),
	KindListeners: generated[Listeners](),
	KindWarm:      generated[Warm](),
	KindConns:     generated[Conns](),
	KindExchanges: generated[Exchanges](),
	KindEnd:       generated[End](),
	KindPrepared:  generated[Prepared](),
	KindCommit:    generated[Commit](),
	KindStarted:   generated[Started](),
	KindAbort:     generated[Abort](),
	KindFailed:    generated[Failed](),
	KindCounters:  generated[Counters](),
	KindFollow:    generated[Follow](),
}

func generated[T any]() *rapid.Generator[Message] {
	return rapid.Map(rapid.Make[T](), func(v T) Message { return any(&v).(Message) })
}

// kinds are all of them, found without the tables that are under test.
func kinds(t reporter) []Kind {
	t.Helper()
	var all []Kind
	for k := range 256 {
		if newMessage(Kind(k)) != nil {
			all = append(all, Kind(k))
		}
	}
	if len(all) != len(messages) {
		t.Fatalf("%d kinds can be decoded, %d are tested", len(all), len(messages))
	}
	return all
}

func TestEveryMessageReadsAsItWasWritten(t *testing.T) {
	for _, k := range kinds(t) {
		t.Run(k.String(), func(t *testing.T) {
			if strings.HasPrefix(k.String(), "KIND-") {
				t.Errorf("kind %d has no name", k)
			}
			rapid.Check(t, func(t *rapid.T) {
				want := messages[k].Draw(t, "message")
				if KindOf(want) != k {
					t.Fatalf("got a message of kind %s, want %s", KindOf(want), k)
				}
				p := framed(t, want)
				got, err := decoded(p)
				if err != nil {
					t.Fatalf("%v", err)
				}
				if diff := cmp.Diff(want, got, equateEmpty); diff != "" {
					t.Fatalf("the message reads otherwise than it was written (-written +read):\n%s", diff)
				}
				if again := framed(t, got); !bytes.Equal(p, again) {
					t.Fatalf("the same message is\n%x first and\n%x then", p, again)
				}
			})
		})
	}
}

// Names are what clients have sent, and need not be UTF-8.
func TestTextIsAnyBytes(t *testing.T) {
	want := &Exchanges{Labels: []Label{{Service: "a\xffb", Method: "\xc0\x80\x00"}}, List: []Exchange{{Record: &Record{Trace: "\xed\xa0\x80"}}}}
	got, err := decoded(framed(t, want))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Message(want), got, equateEmpty); diff != "" {
		t.Errorf("bytes that are no UTF-8 have changed (-written +read):\n%s", diff)
	}
}

// The largest things that an upgrade carries.
func TestLargeMessages(t *testing.T) {
	slots := make([]byte, 0, slotHead+100_000*slotSize)
	for i := range 100_000 {
		slots = AppendSlot(slots, &Slot{ID: uint32(i + 1), Deadline: 1e15})
	}
	for name, m := range map[string]Message{
		"slots":     &Conns{Upstreams: []Upstream{{Ref: 1, Slots: slots}}},
		"unread":    &Conns{Downstreams: []Downstream{{Bytes: Bytes{Unread: make([]byte, 300<<20)}}}},
		"exchanges": &Exchanges{List: make([]Exchange, 200_000)},
	} {
		if _, err := decoded(framed(t, m)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	var head [headerLen]byte
	if err := encodeHeader(head[:], frame{KindConns, 0, MaxMessage}); err != nil {
		t.Error(err)
	}
	if f, err := decodeHeader(head[:]); err != nil || f != (frame{KindConns, 0, MaxMessage}) {
		t.Errorf("got %+v, %v for the header of the longest message", f, err)
	}
	if err := encodeHeader(head[:], frame{KindConns, 0, MaxMessage + 1}); err == nil || !strings.Contains(err.Error(), "at most 1073741824") {
		t.Errorf("got %v for a message of more than 1 GiB, want an error", err)
	}
}

// allocated is how many bytes f allocates, and whatever runs beside it.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// A field's key is its place in the format: no two fields of a struct have the same, and all have one.
func TestEveryFieldHasItsKey(t *testing.T) {
	seen := map[reflect.Type]bool{}
	var walk func(typ reflect.Type)
	walk = func(typ reflect.Type) {
		switch typ.Kind() { //nolint:exhaustive // the rest has no parts
		case reflect.Pointer, reflect.Slice, reflect.Array:
			walk(typ.Elem())
		case reflect.Struct:
			if seen[typ] {
				return
			}
			seen[typ] = true
			keys := map[string]string{}
			for f := range typ.Fields() {
				key, rest, _ := strings.Cut(f.Tag.Get("cbor"), ",")
				if key == "" || !slices.Contains(strings.Split(rest, ","), "keyasint") {
					t.Errorf("%s.%s has the tag %q, want an integer key", typ.Name(), f.Name, f.Tag.Get("cbor"))
				}
				if other, taken := keys[key]; taken {
					t.Errorf("%s.%s has the key %s of %s", typ.Name(), f.Name, key, other)
				}
				keys[key] = f.Name
				walk(f.Type)
			}
		}
	}
	for _, k := range kinds(t) {
		walk(reflect.TypeOf(newMessage(k)))
	}
}
