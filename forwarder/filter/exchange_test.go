package filter_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

func request(t testing.TB, content string) []byte {
	t.Helper()
	r := bolt.Request{
		Version: bolt.V2CRC, ID: 7, Timeout: 100, Class: "c", Content: []byte(content),
		Headers: []bolt.Pair{{Key: "a", Value: "1"}, {Key: "b", Value: "2"}},
	}
	frame, err := r.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return frame
}

func exchange(t testing.TB, frame []byte) *filter.Exchange {
	t.Helper()
	x := &filter.Exchange{Message: &wire.Message{}, Codec: bolt.Codec{VerifyCRC: true}, MaxHeader: 1000}
	if _, err := x.Codec.Decode(x.Message, frame, wire.Limits{}); err != nil {
		t.Fatal(err)
	}
	return x
}

func set(key, value string) []wire.Edit {
	return []wire.Edit{{Op: wire.SetHeader, Key: []byte(key), Value: []byte(value)}}
}

func pairs(t testing.TB, m *wire.Message) string {
	t.Helper()
	var list []string
	for f, err := range bolt.WalkHeaders(m) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, string(f.Key)+"="+string(f.Value))
	}
	return strings.Join(list, " ")
}

// TestEditTheEdited: each edit works on what the one before has made, and disturbs neither it nor the original.
func TestEditTheEdited(t *testing.T) {
	frame := request(t, "content")
	original := string(frame)
	x := exchange(t, frame)
	if x.Edited() {
		t.Error("the exchange says that it was edited, before it was")
	}
	var made []string // copies of the frames, as Edit made them
	var views [][]byte
	for i, c := range []struct{ key, value, want string }{
		{"c", "3", "a=1 b=2 c=3"},
		{"a", "longer than it was", "a=longer than it was b=2 c=3"},
		{"b", "", "a=longer than it was b= c=3"},
		{"c", strings.Repeat("x", 500), "a=longer than it was b= c=" + strings.Repeat("x", 500)},
		{"d", "4", "a=longer than it was b= c=" + strings.Repeat("x", 500) + " d=4"},
	} {
		if err := x.Edit(set(c.key, c.value)); err != nil {
			t.Fatal(err)
		}
		m := x.Message
		if got := pairs(t, m); got != c.want || !x.Edited() {
			t.Errorf("edit %d: got the headers %q, edited %v, want %q", i, got, x.Edited(), c.want)
		}
		if m.ID != 7 || m.Timeout != 100 || m.Kind != wire.Request || string(m.Content()) != "content" {
			t.Errorf("edit %d: got the message %+v, want nothing but its headers changed", i, m)
		}
		made, views = append(made, string(m.Frame)), append(views, m.Frame)
		if i > 0 && string(views[i-1]) != made[i-1] {
			t.Errorf("edit %d wrote into the frame that it was made from", i)
		}
	}
	if string(frame) != original {
		t.Error("the frame that was read has changed, want it left alone: others may read it")
	}
	if x.Size() < len(made[3])+len(made[4]) {
		t.Errorf("got the size %d, want at least that of the last two frames", x.Size())
	}
	x.Begin()
	if x.Edited() {
		t.Error("the exchange says that it was edited, after Begin")
	}
	if got := string(views[len(views)-1]); got != made[len(made)-1] {
		t.Error("Begin has changed the frame that the last chain made, want it valid until the next but one Edit")
	}
}

// TestEditWithItsOwnHeaders: the values of an edit may lie in the frame.
func TestEditWithItsOwnHeaders(t *testing.T) {
	x := exchange(t, request(t, "content"))
	copied := func() []wire.Edit {
		return []wire.Edit{{Op: wire.SetHeader, Key: []byte("b"), Value: x.Header([]byte("a"))}}
	}
	for _, c := range []struct {
		edits func() []wire.Edit
		want  string
	}{
		{copied, "a=1 b=1"},
		{func() []wire.Edit { return set("a", "longer") }, "a=longer b=1"},
		{copied, "a=longer b=longer"},
	} {
		if err := x.Edit(c.edits()); err != nil {
			t.Fatal(err)
		}
		if got := pairs(t, x.Message); got != c.want {
			t.Errorf("got the headers %q, want %q", got, c.want)
		}
	}
}

// TestEditRefused: Message is as it was, and can still be edited.
func TestEditRefused(t *testing.T) {
	for _, already := range []int{0, 1, 2} {
		x := exchange(t, request(t, "content"))
		for range already {
			if err := x.Edit(set("c", "3")); err != nil {
				t.Fatal(err)
			}
		}
		before, frame := *x.Message, string(x.Message.Frame)
		err := x.Edit(set("a", strings.Repeat("x", 1001)))
		if e, ok := errors.AsType[*wire.DecodeError](err); !ok || e.Reason != "headers-too-large" {
			t.Errorf("after %d edits: got the error %v, want headers-too-large", already, err)
		}
		if diff := cmp.Diff(before, *x.Message); diff != "" || string(x.Message.Frame) != frame || x.Edited() != (already > 0) {
			t.Errorf("after %d edits: edited %v, the message (-before +after):\n%s", already, x.Edited(), diff)
		}
		if err := x.Edit(set("a", "9")); err != nil || string(x.Header([]byte("a"))) != "9" {
			t.Errorf("after %d edits and a refused one: got a=%s and the error %v, want a=9", already, x.Header([]byte("a")), err)
		}
	}
}

// deaf is a codec that cannot read what it edits, as long as it is told so.
type deaf struct {
	bolt.Codec
	refuse *bool
}

func (c deaf) Decode(m *wire.Message, b []byte, lim wire.Limits) (int, error) {
	if *c.refuse {
		*m = wire.Message{}
		return 0, &wire.DecodeError{Reason: wire.ReasonBadChecksum}
	}
	return c.Codec.Decode(m, b, lim)
}

// TestEditUnreadable: a frame that cannot be read once it is edited is not taken, and the next edit does not write into
// the frame that it works on.
func TestEditUnreadable(t *testing.T) {
	refuse := false
	x := exchange(t, request(t, "content"))
	x.Codec = deaf{refuse: &refuse}
	for i := range 4 {
		value := strings.Repeat("longer", i)
		if err := x.Edit(set("a", value)); err != nil {
			t.Fatal(err)
		}
		refuse = true
		before := *x.Message
		err := x.Edit(set("a", "lost"))
		if e, ok := errors.AsType[*wire.DecodeError](err); !ok || e.Reason != "bad-checksum" {
			t.Errorf("got the error %v, want bad-checksum", err)
		}
		if diff := cmp.Diff(before, *x.Message); diff != "" {
			t.Errorf("the message (-before +after):\n%s", diff)
		}
		if got, want := pairs(t, x.Message), "a="+value+" b=2"; got != want || string(x.Message.Content()) != "content" {
			t.Errorf("got the headers %q and the content %q, want %q and content", got, x.Message.Content(), want)
		}
		refuse = false
	}
}

// TestEditHead: of a request that is passed on in pieces only the head is edited, and stays a head.
func TestEditHead(t *testing.T) {
	frame := request(t, strings.Repeat("content", 1000))
	x := &filter.Exchange{Message: &wire.Message{}, Codec: bolt.Codec{VerifyCRC: true}, MaxHeader: 1000, Head: true}
	if _, _, err := x.Codec.Head(x.Message, frame[:200], wire.Limits{}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ key, value, want string }{{"c", "3", "a=1 b=2 c=3"}, {"a", "10", "a=10 b=2 c=3"}} {
		if err := x.Edit(set(c.key, c.value)); err != nil {
			t.Fatal(err)
		}
		m := x.Message
		if got := pairs(t, m); got != c.want || len(m.Content()) != 0 || len(m.Frame) != int(m.ContentAt) || m.ID != 7 {
			t.Errorf("got the headers %q and the message %+v, want %q, and a head without content", got, m, c.want)
		}
	}
}

func TestHeaders(t *testing.T) {
	x := exchange(t, request(t, "content"))
	values, err := x.Headers([][]byte{[]byte("b"), []byte("gone"), []byte("a")})
	if err != nil {
		t.Fatal(err)
	}
	if got := string(x.Header([]byte("b"))); got != "2" {
		t.Errorf("got the header b=%s, want 2", got)
	}
	if diff := cmp.Diff([][]byte{[]byte("2"), nil, []byte("1")}, values); diff != "" {
		t.Errorf("the headers, after one more was asked for (-want +got):\n%s", diff)
	}
	if got := x.Header([]byte("gone")); got != nil {
		t.Errorf("got the absent header %q, want nil", got)
	}

	x.Message.Frame[x.Message.ContentAt-2] = 9 // the length of the last value: it passes the block's end
	if _, err := x.Headers([][]byte{[]byte("a")}); !errors.Is(err, wire.ErrHeaderBlock) {
		t.Errorf("got the error %v of a malformed block, want ErrHeaderBlock", err)
	}
	if got := x.Header([]byte("a")); got != nil {
		t.Errorf("got the header %q of a malformed block, want none", got)
	}
}

// views asks for two headers and keeps what it got, as no filter may.
type views struct{ got [][]byte }

func (*views) Name() string { return "views" }

func (f *views) BeforeRoute(x *filter.Exchange) filter.Verdict {
	f.got, _ = x.Headers([][]byte{[]byte("a"), []byte("b")})
	return filter.Continue
}

// TestChainLetsGo: the exchange waits in a pool for the next request, and must not keep the frame of the last one alive.
func TestChainLetsGo(t *testing.T) {
	f := &views{}
	x := exchange(t, request(t, "content"))
	filter.NewChain([]filter.Filter{f}, nil).BeforeRoute(t.Context(), x)
	if diff := cmp.Diff([][]byte{nil, nil}, f.got); diff != "" {
		t.Errorf("what the exchange still shows after the chain (-want +got):\n%s", diff)
	}
}

func TestExchangeDoesNotAllocate(t *testing.T) {
	x := exchange(t, request(t, "content"))
	m := *x.Message
	edits, keys := set("c", "3"), [][]byte{[]byte("a"), []byte("b"), []byte("c")}
	if got := testing.AllocsPerRun(100, func() {
		x.Begin()
		*x.Message = m
		for range 2 {
			if err := x.Edit(edits); err != nil {
				t.Fatal(err)
			}
		}
		if values, err := x.Headers(keys); err != nil || x.Header(keys[0]) == nil || values[2] == nil {
			t.Fatal("a header is missing")
		}
	}); got != 0 {
		t.Errorf("got %v allocations an exchange, want 0", got)
	}
}
