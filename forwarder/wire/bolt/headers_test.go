package bolt

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// blockMessage is a message that has nothing but a header block.
func blockMessage(block []byte) *wire.Message {
	return &wire.Message{Frame: block, ContentAt: uint32(len(block)), ContentEnd: uint32(len(block))}
}

const (
	serviceA = "00000007 73657276696365 00000001 61" // service = a
	serviceB = "00000007 73657276696365 00000001 62" // service = b
	otherX   = "00000001 6f 00000001 78"             // o = x
)

func TestHeaders(t *testing.T) {
	null := []byte(nil)
	for _, tc := range []struct {
		what, hex string
		keys      []string
		want      [][]byte
	}{
		{"an empty block", "", []string{"service"}, [][]byte{null}},
		{"no keys", serviceA, nil, nil},
		{"one key", serviceA, []string{"service"}, [][]byte{[]byte("a")}},
		{"a key of the same length is not the key", "00000007 73657276696366 00000001 61", []string{"service"}, [][]byte{null}},
		{"a prefix is not the key", serviceA, []string{"servic"}, [][]byte{null}},
		{"the second pair", otherX + serviceA, []string{"service"}, [][]byte{[]byte("a")}},
		{"two keys in another order", otherX + serviceA, []string{"service", "none", "o"}, [][]byte{[]byte("a"), null, []byte("x")}},
		{"the same key asked for twice", serviceA, []string{"service", "service"}, [][]byte{[]byte("a"), []byte("a")}},
		{"of duplicates the first wins", serviceA + serviceB, []string{"service"}, [][]byte{[]byte("a")}},
		{"of duplicates the first wins, though it is null", "00000007 73657276696365 ffffffff" + serviceB, []string{"service"}, [][]byte{null}},
		{"of duplicates the first wins, though it is empty", "00000007 73657276696365 00000000" + serviceB, []string{"service"}, [][]byte{{}}},
		{"an empty value is not null", "00000001 6f 00000000", []string{"o"}, [][]byte{{}}},
		{"a null value", "00000001 6f ffffffff", []string{"o"}, [][]byte{null}},
		{"an empty key", "00000000 00000001 78", []string{""}, [][]byte{[]byte("x")}},
		{"a null key is not the empty key", "ffffffff 00000001 78" + otherX, []string{"", "o"}, [][]byte{null, []byte("x")}},
		{"a null key and a null value", "ffffffff ffffffff", []string{""}, [][]byte{null}},
		{"an empty key and an empty value", "00000000 00000000", []string{""}, [][]byte{{}}},
	} {
		block := unhex(t, tc.hex)
		keys := make([][]byte, len(tc.keys))
		values := make([][]byte, len(tc.keys))
		for i, k := range tc.keys {
			keys[i], values[i] = []byte(k), []byte("left from the last call")
		}
		if err := (Codec{}).Headers(blockMessage(block), keys, values); err != nil {
			t.Errorf("%s: Headers: %v, want no error", tc.what, err)
		}
		for i, got := range values {
			if !bytes.Equal(got, tc.want[i]) || (got == nil) != (tc.want[i] == nil) {
				t.Errorf("%s: the value of %q is %#v, want %#v", tc.what, tc.keys[i], got, tc.want[i])
			}
			if got != nil && cap(got) != len(got) {
				t.Errorf("%s: the value of %q has capacity %d, want %d: appending to it would overwrite the frame", tc.what, tc.keys[i], cap(got), len(got))
			}
		}
	}
}

func TestHeadersMalformed(t *testing.T) {
	for what, hex := range map[string]string{
		"1 stray byte":                        serviceA + "00",
		"2 stray bytes":                       serviceA + "0000",
		"3 stray bytes":                       serviceA + "ffffff",
		"nothing but a stray byte":            "00",
		"a key and no value":                  serviceA + "00000001 6f",
		"a null key and no value":             serviceA + "ffffffff",
		"a key one byte too long":             "00000002 6f",
		"a value one byte too long":           serviceA + "00000001 6f 00000002 78",
		"a key of 4 GiB less two":             "fffffffe 6f 00000001 78",
		"a value of 4 GiB less two":           "00000001 6f fffffffe 78",
		"a key that is negative as an int32":  "80000000 6f 00000001 78",
		"a value length of three bytes":       "00000001 6f 000000",
		"a duplicate of a key, then a stray":  serviceA + serviceB + "00",
		"a null value, then a stray":          "00000007 73657276696365 ffffffff 00",
		"a length that overruns by all of it": "0000ffff",
	} {
		m := blockMessage(unhex(t, hex))
		values := [][]byte{[]byte("left from the last call")}
		if err := (Codec{}).Headers(m, [][]byte{[]byte("service")}, values); !errors.Is(err, wire.ErrHeaderBlock) {
			t.Errorf("%s: Headers = %v, want wire.ErrHeaderBlock", what, err)
		}
		if values[0] != nil {
			t.Errorf("%s: Headers left the value %q beside its error, want nil", what, values[0])
		}
		var last error
		for f, err := range WalkHeaders(m) {
			if last = err; err != nil && (f.Key != nil || f.Value != nil) {
				t.Errorf("%s: WalkHeaders yielded %v with its error, want an empty field", what, f)
			}
		}
		if !errors.Is(last, wire.ErrHeaderBlock) {
			t.Errorf("%s: WalkHeaders ended with %v, want wire.ErrHeaderBlock", what, last)
		}
	}
}

func TestWalkHeaders(t *testing.T) {
	m := blockMessage(unhex(t, serviceA+"ffffffff 00000000"+"00000000 ffffffff"+serviceB))
	want := []Field{{[]byte("service"), []byte("a")}, {nil, []byte{}}, {[]byte{}, nil}, {[]byte("service"), []byte("b")}}
	var got []Field
	for f, err := range WalkHeaders(m) {
		if err != nil {
			t.Fatalf("WalkHeaders: %v, want no error", err)
		}
		got = append(got, f)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("WalkHeaders yielded other pairs than the block has (-want +got):\n%s", diff)
	}
	for f, err := range WalkHeaders(m) {
		if string(f.Key) != "service" || err != nil {
			t.Errorf("WalkHeaders begins anew with %q, %v, want the first pair", f.Key, err)
		}
		break // must not go on and panic
	}
}

// reference reads a header block the slow and obvious way.
func reference(block []byte) (fields []Field, ok bool) {
	take := func() (v []byte, ok bool) {
		if len(block) < 4 {
			return nil, false
		}
		n := int64(block[0])<<24 | int64(block[1])<<16 | int64(block[2])<<8 | int64(block[3])
		block = block[4:]
		if n == 1<<32-1 {
			return nil, true
		}
		if n > int64(len(block)) {
			return nil, false
		}
		v, block = append([]byte{}, block[:n]...), block[n:]
		return v, true
	}
	for len(block) > 0 {
		k, ok := take()
		if !ok {
			return fields, false
		}
		v, ok := take()
		if !ok {
			return fields, false
		}
		fields = append(fields, Field{k, v})
	}
	return fields, true
}

// fataler is what the tests of testing and of rapid have in common here.
type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

// checkHeaders holds both readers of a block against the reference.
func checkHeaders(t fataler, block []byte, keys [][]byte) {
	t.Helper()
	want, sound := reference(block)
	m := blockMessage(block)

	var walked []Field
	var walkErr error
	for f, err := range WalkHeaders(m) {
		if walkErr = err; err == nil {
			walked = append(walked, f)
		}
	}
	if diff := cmp.Diff(want, walked); diff != "" {
		t.Fatalf("WalkHeaders of %x yielded other pairs than the reference (-want +got):\n%s", block, diff)
	}
	if (walkErr == nil) != sound {
		t.Fatalf("WalkHeaders of %x ended with %v, want an error: %v", block, walkErr, !sound)
	}

	values := make([][]byte, len(keys))
	err := Codec{}.Headers(m, keys, values)
	if (err == nil) != sound {
		t.Fatalf("Headers of %x = %v, want an error: %v", block, err, !sound)
	}
	for i, key := range keys {
		var value []byte
		for _, f := range want {
			if sound && f.Key != nil && bytes.Equal(f.Key, key) {
				value = f.Value
				break
			}
		}
		if diff := cmp.Diff(value, values[i]); diff != "" {
			t.Fatalf("Headers of %x found another value for %q than the reference (-want +got):\n%s", block, key, diff)
		}
	}
}

func TestHeadersLikeReference(t *testing.T) {
	field := rapid.Custom(func(t *rapid.T) []byte {
		if rapid.IntRange(0, 4).Draw(t, "null") == 0 {
			return []byte{0xff, 0xff, 0xff, 0xff}
		}
		// Few letters, so that keys collide.
		s := rapid.StringOfN(rapid.SampledFrom([]rune("ab")), 0, 3, -1).Draw(t, "field")
		return append(be32(uint32(len(s))), s...)
	})
	rapid.Check(t, func(t *rapid.T) {
		block := bytes.Join(rapid.SliceOfN(field, 0, 12).Draw(t, "fields"), nil)
		block = append(block, rapid.SliceOfN(rapid.Byte(), 0, 3).Draw(t, "stray")...)
		var keys [][]byte
		for _, k := range rapid.SliceOfN(rapid.StringOfN(rapid.SampledFrom([]rune("ab")), 0, 3, -1), 0, 4).Draw(t, "keys") {
			keys = append(keys, []byte(k))
		}
		checkHeaders(t, block, keys)
	})
}
