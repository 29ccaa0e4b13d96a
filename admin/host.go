package admin

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// checkHost answers 421 to requests over TCP that were made under a name which is not ours; see Admin.
func checkHost(address string, next http.Handler) http.Handler {
	configured := ""
	if !strings.HasPrefix(address, "unix:") {
		configured, _, _ = net.SplitHostPort(address) // Listen has refused what this cannot split
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		if local != nil && local.Network() == "unix" || isOurs(r.Host, configured, local) {
			next.ServeHTTP(w, r)
			return
		}
		writeProblem(w, http.StatusMisdirectedRequest,
			"the Host of the request is neither a loopback name nor the address of this door")
	})
}

// isOurs reports whether host, with or without a port, names this door: by a loopback name or address, by
// the configured host, or by the address local that the connection came in on.
func isOurs(host, configured string, local net.Addr) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
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
