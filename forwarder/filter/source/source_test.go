package source

import (
	"fmt"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/relevo-proxy/relevo/forwarder/filter"
)

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// ask is what the filter says to a client of this address.
func ask(f filter.ConnectionFilter, client netip.AddrPort) string {
	object := f.New(filter.NewConnection("in", client, nil))
	return object.(filter.OnNew).OnNew().Reason()
}

func TestSource(t *testing.T) {
	for _, c := range []struct {
		allow, deny     []string
		allowed, denied []string
	}{
		{allowed: []string{"10.0.0.1", "::1", "255.255.255.255"}},
		{
			allow:   []string{"127.0.0.0/8"},
			allowed: []string{"127.0.0.0", "127.0.0.1", "127.255.255.255", "::ffff:127.0.0.1"},
			denied:  []string{"126.255.255.255", "128.0.0.0", "::1", "::ffff:128.0.0.1", "::7f00:1"},
		},
		{
			deny:    []string{"10.1.0.0/16", "2001:db8::/32"},
			allowed: []string{"10.0.255.255", "10.2.0.0", "2001:db7:ffff::", "2001:db9::", "::1"},
			denied:  []string{"10.1.0.0", "10.1.255.255", "::ffff:10.1.2.3", "2001:db8::", "2001:db8:ffff::1"},
		},
		{
			allow:   []string{"127.0.0.0/8"},
			deny:    []string{"127.0.0.9/32"},
			allowed: []string{"127.0.0.8", "127.0.0.10"},
			denied:  []string{"127.0.0.9", "1.1.1.1"},
		},
		{ // the narrower one is not the stronger one: deny wins
			allow:  []string{"10.1.1.1/32"},
			deny:   []string{"10.0.0.0/8"},
			denied: []string{"10.1.1.1", "10.2.2.2", "11.0.0.1"},
		},
		{ // one in another, in an order that does not help, with bits behind the mask
			allow:   []string{"10.1.2.3/16", "10.0.0.0/8", "10.200.0.0/24", "10.0.0.0/24", "10.0.0.0/8", "192.168.0.0/16"},
			allowed: []string{"10.0.0.1", "10.0.1.0", "10.250.0.1", "10.200.1.1", "10.255.255.255", "192.168.3.4"},
			denied:  []string{"9.255.255.255", "11.0.0.0", "192.169.0.0"},
		},
		{
			allow:   []string{"fe80::/10"},
			allowed: []string{"fe80::1%eth0", "fe80::1"},
			denied:  []string{"::1", "fec0::1%eth0"},
		},
		{
			deny:    []string{"::/0"},
			allowed: []string{"1.2.3.4", "::ffff:1.2.3.4"},
			denied:  []string{"::1", "ffff::1"},
		},
		{
			deny:    []string{"::ffff:10.0.0.0/104"},
			allowed: []string{"11.0.0.1", "::1"},
			denied:  []string{"10.0.0.1", "::ffff:10.9.9.9"},
		},
		{deny: []string{"0.0.0.0/0", "::/0"}, denied: []string{"0.0.0.0", "1.1.1.1", "::", "::1"}},
	} {
		f := New(prefixes(c.allow...), prefixes(c.deny...))
		for want, list := range map[string][]string{"": c.allowed, ReasonDenied: c.denied} {
			for _, a := range list {
				if got := ask(f, netip.AddrPortFrom(netip.MustParseAddr(a), 1234)); got != want {
					t.Errorf("got %q for %s with allow %v and deny %v, want %q", got, a, c.allow, c.deny, want)
				}
			}
		}
		if got := ask(f, netip.AddrPort{}); got != "" {
			t.Errorf("got %q for a unix socket with allow %v and deny %v, want it let in: it has no address", got, c.allow, c.deny)
		}
	}
}

// TestNetworks: the set holds what a scan of the list finds.
func TestNetworks(t *testing.T) {
	address := rapid.Custom(func(t *rapid.T) netip.Addr {
		low := byte(rapid.IntRange(0, 7).Draw(t, "low")) // few, so that they meet
		high := byte(rapid.SampledFrom([]int{0, 10, 128}).Draw(t, "high"))
		if rapid.Bool().Draw(t, "v6") {
			a := [16]byte{0: high, 15: low}
			if rapid.Bool().Draw(t, "mapped") {
				a = [16]byte{10: 255, 11: 255, 12: high, 15: low}
			}
			return netip.AddrFrom16(a)
		}
		return netip.AddrFrom4([4]byte{high, 0, 0, low})
	})
	prefix := rapid.Custom(func(t *rapid.T) netip.Prefix {
		a := address.Draw(t, "address").Unmap()
		bits := rapid.IntRange(0, 8).Draw(t, "short")
		if rapid.Bool().Draw(t, "long") {
			bits = a.BitLen() - bits
		}
		return netip.PrefixFrom(a, bits)
	})
	rapid.Check(t, func(t *rapid.T) {
		allow := rapid.SliceOfN(prefix, 0, 12).Draw(t, "allow")
		deny := rapid.SliceOfN(prefix, 0, 12).Draw(t, "deny")
		f := New(allow, deny)
		for range 20 {
			a := address.Draw(t, "client")
			within := func(list []netip.Prefix) (in bool) {
				for _, p := range list {
					in = in || p.Contains(a.Unmap())
				}
				return in
			}
			want := !within(deny) && (len(allow) == 0 || within(allow))
			if got := ask(f, netip.AddrPortFrom(a, 1)) == ""; got != want {
				t.Fatalf("got allowed = %v for %v, want %v as a scan of allow %v and deny %v says", got, a, want, allow, deny)
			}
		}
	})
}

// longest is a list as long as any that the configuration takes.
func longest() []netip.Prefix {
	var out []netip.Prefix
	for i := range 10_000 {
		out = append(out, netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/25", i/100, i%100)))
	}
	return out
}

func TestLongList(t *testing.T) {
	f := New(nil, longest())
	if got := len(f.deny); got != 10_000 {
		t.Fatalf("got %d networks of 10000 that do not meet, want all", got)
	}
	for a, want := range map[string]string{"10.99.99.127": ReasonDenied, "10.99.99.128": "", "10.0.0.0": ReasonDenied, "10.100.0.0": ""} {
		if got := ask(f, netip.AddrPortFrom(netip.MustParseAddr(a), 1)); got != want {
			t.Errorf("got %q for %s, want %q", got, a, want)
		}
	}
}

func BenchmarkLongList(b *testing.B) {
	f := New(longest(), longest())
	a := netip.MustParseAddr("10.50.50.200")
	b.ReportAllocs()
	for b.Loop() {
		f.allows(a)
	}
}
