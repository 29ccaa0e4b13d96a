package config

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestDurations(t *testing.T) {
	tests := []struct {
		text string
		want Duration
		form string
	}{
		{"0s", 0, "0s"},
		{"3s", Duration(3 * time.Second), "3s"},
		{"500ms", Duration(500 * time.Millisecond), "500ms"},
		{"1.5s", Duration(1500 * time.Millisecond), "1.5s"},
		{"90m", Duration(90 * time.Minute), "1h30m"},
		{"15m0s", Duration(15 * time.Minute), "15m"},
		{"168h", Duration(168 * time.Hour), "168h"},
		{"1h0m5s", Duration(time.Hour + 5*time.Second), "1h0m5s"},
		{"10m10s", Duration(10*time.Minute + 10*time.Second), "10m10s"},
		{"7us", Duration(7 * time.Microsecond), "7µs"},
		{"none", None, "none"},
	}
	for _, tt := range tests {
		var got Duration
		if err := got.set(node{kind: textNode, text: tt.text}); err != nil {
			t.Errorf("reading the duration %s: %v", tt.text, err)
		}
		if got != tt.want || got.String() != tt.form {
			t.Errorf("the duration %s is %d, %s; want %d, %s", tt.text, got, got, tt.want, tt.form)
		}
	}
	if None.D() != 0 {
		t.Errorf("None.D() is %v, want 0", None.D())
	}
}

func TestDurationErrors(t *testing.T) {
	tests := []struct {
		kind       kind
		text, want string
	}{
		{numberNode, "30", "30 needs a unit: 3s, 500ms"},
		{numberNode, "0", "0 needs a unit: 3s, 500ms"},
		{textNode, "1.5", "1.5 needs a unit: 3s, 500ms"},
		{textNode, "-3s", "-3s is negative; a duration is not"},
		{textNode, "2562048h", "2562048h is longer than a duration can be"},
		{textNode, "3d", `"3d" is not a duration: write a number with its unit (ms, s, m, h): 3s, 500ms, 1h30m`},
		{textNode, "+3s", `"+3s" is not a duration: write a number with its unit (ms, s, m, h): 3s, 500ms, 1h30m`},
		{listNode, "", "must be a duration such as 3s or 500ms, not a list"},
	}
	for _, tt := range tests {
		var d Duration
		err := d.set(node{kind: tt.kind, text: tt.text})
		if err == nil || err.Error() != tt.want {
			t.Errorf("reading the duration %q: %v, want %s", tt.text, err, tt.want)
		}
	}
}

func TestSizes(t *testing.T) {
	tests := []struct {
		text string
		want Size
		form string
	}{
		{"0", 0, "0"},
		{"4096", 4096, "4KiB"},
		{"4097B", 4097, "4097"},
		{"16MiB", 16 << 20, "16MiB"},
		{"1024KiB", 1 << 20, "1MiB"},
		{"1GiB", 1 << 30, "1GiB"},
		{"8388607TiB", 8388607 << 40, "8388607TiB"},
		{"9223372036854775807", 1<<63 - 1, "9223372036854775807"},
		{"none", NoSize, "none"},
	}
	for _, tt := range tests {
		var got Size
		if err := got.set(node{kind: textNode, text: tt.text}); err != nil {
			t.Errorf("reading the size %s: %v", tt.text, err)
		}
		if got != tt.want || got.String() != tt.form {
			t.Errorf("the size %s is %d, %s; want %d, %s", tt.text, got, got, tt.want, tt.form)
		}
	}
	for _, text := range []string{"", "16MB", "16 MiB", "1.5MiB", "KiB", "8388608TiB", "9223372036854775808", "-1", "0x10", "010", "+1"} {
		var got Size
		if err := got.set(node{kind: textNode, text: text}); err == nil {
			t.Errorf("%q was read as the size %v, want an error", text, got)
		}
	}
}

func TestPercentages(t *testing.T) {
	tests := []struct {
		text string
		want Percent
		form string
	}{
		{"0%", 0, "0%"},
		{"0.01%", 1, "0.01%"},
		{"0.5%", 50, "0.5%"},
		{"12.50%", 1250, "12.5%"},
		{"12.05%", 1205, "12.05%"},
		{"100%", 10000, "100%"},
		{"999999999%", 99999999900, "999999999%"},
		{"none", NoPercent, "none"},
	}
	for _, tt := range tests {
		var got Percent
		if err := got.set(node{kind: textNode, text: tt.text}); err != nil {
			t.Errorf("reading the percentage %s: %v", tt.text, err)
		}
		if got != tt.want || got.String() != tt.form {
			t.Errorf("the percentage %s is %d, %s; want %d, %s", tt.text, got, got, tt.want, tt.form)
		}
	}
	bad := []struct {
		kind       kind
		text, want string
	}{
		{numberNode, "5", "5 needs a percent sign: 5%, 0.5%"},
		{numberNode, "0.5", "0.5 needs a percent sign: 5%, 0.5%"},
		{textNode, "-5%", "-5% is negative; a percentage is not"},
		{textNode, "0.001%", `"0.001%" is not a percentage: write a number with at most two decimals and its sign: 5%, 0.5%`},
		{textNode, "5 %", `"5 %" is not a percentage: write a number with at most two decimals and its sign: 5%, 0.5%`},
		{textNode, "05%", `"05%" is not a percentage: write a number with at most two decimals and its sign: 5%, 0.5%`},
		{textNode, "None", `"None" is not a percentage: write a number with at most two decimals and its sign: 5%, 0.5%`},
		{boolNode, "true", "must be a percentage such as 5% or 0.5%, not a boolean"},
	}
	for _, tt := range bad {
		var p Percent
		if err := p.set(node{kind: tt.kind, text: tt.text}); err == nil || err.Error() != tt.want {
			t.Errorf("reading the percentage %q: %v, want %s", tt.text, err, tt.want)
		}
	}
}

func TestPrefixes(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"127.0.0.1", "127.0.0.1/32"},
		{"10.0.0.0/8", "10.0.0.0/8"},
		{"0.0.0.0/0", "0.0.0.0/0"},
		{"::1", "::1/128"},
		{"fd00::/8", "fd00::/8"},
		{"FD00:0::/8", "fd00::/8"},
	} {
		if err := checkForm(tt.text, "prefix"); err != nil {
			t.Errorf("reading the network %s: %v", tt.text, err)
		}
		if got := Prefix(tt.text).Netip().String(); got != tt.want {
			t.Errorf("the network %s is %s, want %s", tt.text, got, tt.want)
		}
	}
	for _, tt := range []struct{ text, want string }{
		{"10.0.0.1/8", `"10.0.0.1/8" has bits behind its length: the network is 10.0.0.0/8, the address alone is 10.0.0.1`},
		{"fd00::1/8", `"fd00::1/8" has bits behind its length: the network is fd00::/8, the address alone is fd00::1`},
		{"fe80::1%eth0", `"fe80::1%eth0" has a zone, which a network has not`},
		{"::ffff:10.0.0.0/104", "is an IPv4 address in IPv6 notation"},
		{"::ffff:10.0.0.1", "is an IPv4 address in IPv6 notation"},
		{"10.0.0.0/33", "is neither an IP address nor a network"},
		{"10.0.0/8", "is neither an IP address nor a network"},
		{"localhost", "is neither an IP address nor a network"},
		{"10.0.0.1:80", "is neither an IP address nor a network"},
	} {
		if err := checkForm(tt.text, "prefix"); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("reading the network %s: %v, want %s", tt.text, err, tt.want)
		}
		if got := Prefix(tt.text).Netip(); got.IsValid() {
			t.Errorf("%s is taken for the network %v, want none", tt.text, got)
		}
	}
}

func TestUnitsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d, dAgain := Duration(rapid.Int64Range(0, 1<<63-1).Draw(t, "duration")), Duration(0)
		if err := dAgain.set(node{kind: textNode, text: d.String()}); err != nil || dAgain != d {
			t.Fatalf("the duration %v comes back as %v: %v", d, dAgain, err)
		}
		s, sAgain := Size(rapid.Int64Range(0, 1<<63-1).Draw(t, "size")<<rapid.IntRange(0, 40).Draw(t, "shift")&(1<<63-1)), Size(0)
		if err := sAgain.set(node{kind: textNode, text: s.String()}); err != nil || sAgain != s {
			t.Fatalf("the size %v comes back as %v: %v", s, sAgain, err)
		}
		p, pAgain := Percent(rapid.Int64Range(0, 10000).Draw(t, "percent")), Percent(0)
		if err := pAgain.set(node{kind: textNode, text: p.String()}); err != nil || pAgain != p {
			t.Fatalf("the percentage %v comes back as %v: %v", p, pAgain, err)
		}
	})
}

func TestDidYouMean(t *testing.T) {
	names := []string{"max_frame", "max_header", "timeout", "on"}
	tests := []struct{ name, want string }{
		{"max_frme", " (did you mean max_frame?)"},
		{"max_rfame", " (did you mean max_frame?)"},
		{"maxHeader", " (did you mean max_header?)"},
		{"timeuot", " (did you mean timeout?)"},
		{"no", " (did you mean on?)"},
		{"forwarding", ""},
		{"x", ""},
	}
	for _, tt := range tests {
		if got := didYouMean(tt.name, names); got != tt.want {
			t.Errorf("for %s the suggestion is %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestAddressSplit(t *testing.T) {
	for _, tt := range []struct {
		address       Address
		network, rest string
	}{
		{"127.0.0.1:80", "tcp", "127.0.0.1:80"},
		{"unix:/run/x.sock", "unix", "/run/x.sock"},
	} {
		network, rest := tt.address.Split()
		if network != tt.network || rest != tt.rest {
			t.Errorf("%s is split into %s and %s, want %s and %s", tt.address, network, rest, tt.network, tt.rest)
		}
	}
}
