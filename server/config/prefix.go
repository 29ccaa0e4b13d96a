package config

import (
	"fmt"
	"net/netip"
	"strings"
)

// Prefix is a network of IP addresses as 10.0.0.0/8, or one address.
type Prefix string

// Netip is p as package netip has it; a bare address is the network of it alone. A p that is not valid is the zero
// netip.Prefix.
func (p Prefix) Netip() netip.Prefix {
	prefix, err := parsePrefix(string(p))
	if err != nil {
		return netip.Prefix{}
	}
	return prefix
}

func parsePrefix(text string) (netip.Prefix, error) {
	given := text
	if !strings.Contains(text, "/") {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("%s is neither an IP address nor a network such as 10.0.0.0/8 or fd00::/8", quote(text))
		}
		text += fmt.Sprintf("/%d", ip.BitLen())
	}
	prefix, err := netip.ParsePrefix(text)
	switch {
	case strings.Contains(text, "%"):
		return netip.Prefix{}, fmt.Errorf("%s has a zone, which a network has not", quote(given))
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("%s is neither an IP address nor a network such as 10.0.0.0/8 or fd00::/8", quote(given))
	case prefix.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("%s is an IPv4 address in IPv6 notation: write it as IPv4, as which such clients are looked up", quote(given))
	case prefix != prefix.Masked():
		return netip.Prefix{}, fmt.Errorf("%s has bits behind its length: the network is %s, the address alone is %s",
			quote(text), prefix.Masked(), prefix.Addr())
	}
	return prefix, nil
}

// canonical is p in the one form that all its spellings share.
func (p Prefix) canonical() string {
	if prefix := p.Netip(); prefix.IsValid() {
		return prefix.String()
	}
	return string(p)
}
