package admin

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// isOurs reports whether a request was made under a name of this door; see Admin.
func (g *Guard) isOurs(r *http.Request) bool {
	configured, _, _ := net.SplitHostPort(g.address) // the configuration has refused what this cannot split
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if isOurs(r.Host, configured, local) {
		return true
	}
	if g.keys == nil {
		return false
	}
	k, _ := g.keys.get(time.Now())
	return k.leaf.VerifyHostname(bareHost(r.Host)) == nil
}

// bareHost is a host without its port.
func bareHost(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.Trim(host, "[]")
}

// isOurs reports whether host, with or without a port, names this door: by a loopback name or address, by
// the configured host, or by the address local that the connection came in on.
func isOurs(host, configured string, local net.Addr) bool {
	host = bareHost(host)
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return host != "" && (strings.EqualFold(host, "localhost") || strings.EqualFold(host, configured))
	}
	ip = ip.Unmap().WithZone("")
	if ip.IsLoopback() {
		return true
	}
	if c, err := netip.ParseAddr(configured); err == nil && !c.IsUnspecified() && c.Unmap().WithZone("") == ip {
		return true
	}
	tcp, ok := local.(*net.TCPAddr)
	return ok && tcp.AddrPort().Addr().Unmap().WithZone("") == ip
}
