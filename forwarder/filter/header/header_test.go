package header

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

func set(key, value string) wire.Edit {
	return wire.Edit{Op: wire.SetHeader, Key: []byte(key), Value: []byte(value)}
}

func add(key, value string) wire.Edit {
	return wire.Edit{Op: wire.AddHeader, Key: []byte(key), Value: []byte(value)}
}

func remove(key string) wire.Edit { return wire.Edit{Op: wire.RemoveHeader, Key: []byte(key)} }

// request and reply are frames with the headers a=1 and b=2.
func request(t testing.TB) []byte {
	t.Helper()
	r := bolt.Request{Version: bolt.V2CRC, ID: 7, Timeout: 100, Class: "c", Headers: []bolt.Pair{{Key: "a", Value: "1"}, {Key: "b", Value: "2"}}, Content: []byte("content")}
	frame, err := r.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return frame
}

func reply(t testing.TB) []byte {
	t.Helper()
	r := bolt.Response{Version: bolt.V1, ID: 7, Class: "c", Headers: []bolt.Pair{{Key: "a", Value: "1"}, {Key: "b", Value: "2"}}, Content: []byte("content")}
	frame, err := r.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return frame
}

func exchange(t testing.TB, frame []byte) *filter.Exchange {
	t.Helper()
	x := &filter.Exchange{Message: &wire.Message{}, Codec: bolt.Codec{VerifyCRC: true}, MaxHeader: 100}
	if _, err := x.Codec.Decode(x.Message, frame, wire.Limits{}); err != nil {
		t.Fatal(err)
	}
	return x
}

// headers are the headers of the message, as key=value.
func headers(t testing.TB, x *filter.Exchange) (list []string) {
	t.Helper()
	for f, err := range bolt.WalkHeaders(x.Message) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, string(f.Key)+"="+string(f.Value))
	}
	return list
}

func mustNew(t testing.TB, c Config, at filter.Place) *filter.Chain {
	t.Helper()
	f, err := New(c, at)
	if err != nil {
		t.Fatal(err)
	}
	if f.Name() != "headers" {
		t.Errorf("got the name %q, want headers", f.Name())
	}
	if at == filter.AtListener {
		return filter.NewChain([]filter.Filter{f}, nil)
	}
	return filter.NewChain(nil, []filter.Filter{f})
}

// TestPhases: a filter is asked where it has something to do, and nowhere else.
func TestPhases(t *testing.T) {
	edits := []wire.Edit{set("k", "v")}
	for _, c := range []struct {
		name   string
		config Config
		at     filter.Place
		want   string
	}{
		{"request at a listener", Config{Request: edits}, filter.AtListener, "before"},
		{"request at a rule", Config{Request: edits}, filter.AtRule, "after"},
		{"reply at a listener", Config{Reply: edits}, filter.AtListener, "reply"},
		{"reply at a rule", Config{Reply: edits}, filter.AtRule, "reply"},
		{"both at a listener", Config{Request: edits, Reply: edits}, filter.AtListener, "before reply"},
		{"both at a rule", Config{Request: edits, Reply: edits}, filter.AtRule, "after reply"},
	} {
		t.Run(c.name, func(t *testing.T) {
			chain := mustNew(t, c.config, c.at)
			var got []string
			if chain.HasBeforeRoute() {
				got = append(got, "before")
			}
			if chain.HasAfterRoute() {
				got = append(got, "after")
			}
			if chain.HasOnReply() {
				got = append(got, "reply")
			}
			if strings.Join(got, " ") != c.want || chain.Blocks() {
				t.Errorf("got the phases %v, blocking %v, want %s, and not blocking", got, chain.Blocks(), c.want)
			}
		})
	}
}

func TestEdits(t *testing.T) {
	config := Config{
		Request: []wire.Edit{set("a", "10"), add("b", "20"), add("c", "30"), remove("d")},
		Reply:   []wire.Edit{remove("a"), remove("gone"), set("via", "relevo")},
	}
	for _, at := range []filter.Place{filter.AtListener, filter.AtRule} {
		chain := mustNew(t, config, at)
		x := exchange(t, request(t))
		if v := chain.BeforeRoute(t.Context(), x); v.Stopped() {
			t.Fatalf("got the verdict %+v, want Continue", v)
		}
		if v := chain.AfterRoute(t.Context(), x); v.Stopped() {
			t.Fatalf("got the verdict %+v, want Continue", v)
		}
		if diff := cmp.Diff([]string{"a=10", "b=2", "c=30"}, headers(t, x)); diff != "" || !x.Edited() {
			t.Errorf("the request's headers, edited %v (-want +got):\n%s", x.Edited(), diff)
		}
		if m := x.Message; m.ID != 7 || m.Timeout != 100 || string(m.Class()) != "c" || string(m.Content()) != "content" {
			t.Errorf("got the message %+v, want nothing but its headers changed", m)
		}

		x = exchange(t, reply(t))
		if v := chain.OnReply(t.Context(), x); v.Stopped() {
			t.Fatalf("got the verdict %+v, want Continue", v)
		}
		if diff := cmp.Diff([]string{"b=2", "via=relevo"}, headers(t, x)); diff != "" {
			t.Errorf("the reply's headers (-want +got):\n%s", diff)
		}
	}
}

// TestCannotBeEdited: what cannot be given its headers is answered, and its frame is as it was.
func TestCannotBeEdited(t *testing.T) {
	plain := request(t)
	malformed := slices.Clone(plain)
	malformed[exchange(t, plain).Message.ContentAt-2] = 9 // the length of the last value: it passes the block's end
	crc := bolt.Codec{}
	for _, c := range []struct {
		name   string
		frame  []byte
		value  string
		reason string
	}{
		{"malformed", malformed, "v", "bad-header-block"},
		{"too large", plain, strings.Repeat("v", 100), "headers-too-large"},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := &filter.Exchange{Message: &wire.Message{}, Codec: crc, MaxHeader: 100}
			if _, err := crc.Decode(x.Message, c.frame, wire.Limits{}); err != nil {
				t.Fatal(err)
			}
			before := *x.Message
			edits := []wire.Edit{set("k", c.value)}
			want := filter.Stop(wire.CodecException, c.reason)
			if got := mustNew(t, Config{Request: edits}, filter.AtListener).BeforeRoute(t.Context(), x); got != want {
				t.Errorf("of a request: got the verdict %+v, want %+v", got, want)
			}
			if got := mustNew(t, Config{Request: edits}, filter.AtRule).AfterRoute(t.Context(), x); got != want {
				t.Errorf("of a routed request: got the verdict %+v, want %+v", got, want)
			}
			if got := mustNew(t, Config{Reply: edits}, filter.AtRule).OnReply(t.Context(), x); got != want {
				t.Errorf("of a reply: got the verdict %+v, want %+v", got, want)
			}
			if diff := cmp.Diff(before, *x.Message); diff != "" || x.Edited() {
				t.Errorf("edited %v, the message (-before +after):\n%s", x.Edited(), diff)
			}
		})
	}
}

func TestNewErrors(t *testing.T) {
	for _, c := range []struct {
		config Config
		want   string
	}{
		{Config{}, "no header is changed, of requests or of replies"},
		{
			Config{Request: []wire.Edit{set("k", "v"), remove("k")}, Reply: []wire.Edit{add("", "v"), {Op: 3, Key: []byte("k")}}},
			"request: header \"k\" is changed twice\nreply: a header key is empty\nreply: header \"k\": there is no change 3",
		},
	} {
		f, err := New(c.config, filter.AtListener)
		if f != nil || err == nil || err.Error() != c.want {
			t.Errorf("got the filter %v and the error %v, want %s", f, err, c.want)
		}
	}
}

func TestDoesNotAllocate(t *testing.T) {
	chain := mustNew(t, Config{Request: []wire.Edit{set("a", "longer than it was"), add("via", "relevo"), remove("b")}}, filter.AtListener)
	x := exchange(t, request(t))
	m := *x.Message
	if got := testing.AllocsPerRun(100, func() {
		x.Begin()
		*x.Message = m
		if chain.BeforeRoute(t.Context(), x).Stopped() || !x.Edited() {
			t.Fatal("the request was not edited")
		}
	}); got != 0 {
		t.Errorf("got %v allocations a request, want 0", got)
	}
}

func BenchmarkRequest(b *testing.B) {
	chain := mustNew(b, Config{Request: []wire.Edit{set("a", "10"), add("via", "relevo"), remove("b")}}, filter.AtListener)
	x := exchange(b, request(b))
	m := *x.Message
	b.ReportAllocs()
	for b.Loop() {
		x.Begin()
		*x.Message = m
		chain.BeforeRoute(b.Context(), x)
	}
}
