package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path"
	"strconv"
	"strings"
)

// Address is host:port, or unix: and the absolute path of a socket.
type Address string

const (
	unixPrefix = "unix:"
	// maxUnixPath is the longest path in bytes that struct sockaddr_un holds with its final zero.
	maxUnixPath = 107
	maxHost     = 253
)

// Split is a as package net wants it: "tcp" and host:port, or "unix" and a path.
func (a Address) Split() (network, address string) {
	if p, ok := strings.CutPrefix(string(a), unixPrefix); ok {
		return "unix", p
	}
	return "tcp", string(a)
}

var errAddressForm = errors.New("must be host:port or unix:/path")

// checkAddress refuses what cannot be listened on or, for the form "dial", connected to.
func checkAddress(a Address, form string) error {
	network, rest := a.Split()
	switch {
	case network == "unix" && form == "tcp":
		return errors.New("must be host:port; a unix socket is what admin.address says")
	case network == "unix":
		return checkUnixPath(rest)
	case form == "unix":
		return fmt.Errorf("%s is no unix socket, as in unix:/run/relevo/admin.sock; a TCP address is what admin.tcp.address says", quote(rest))
	}
	host, port, err := net.SplitHostPort(rest)
	if err != nil {
		if _, err := netip.ParseAddr(rest); err == nil || strings.Count(rest, ":") == 0 {
			return fmt.Errorf("%s has no port: %w", quote(rest), errAddressForm)
		}
		return fmt.Errorf("%s %w; an IPv6 address stands in brackets", quote(rest), errAddressForm)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || strconv.FormatUint(n, 10) != port {
		return fmt.Errorf("%s is not a port: a number up to 65535", quote(port))
	}
	if n == 0 && form == "dial" {
		return errors.New("port 0 cannot be connected to")
	}
	if host == "" {
		if form == "dial" {
			return errors.New("the host is missing")
		}
		return nil
	}
	ip, err := netip.ParseAddr(host)
	if err != nil && !validHost(host) {
		return fmt.Errorf("%s is neither an IP address nor a host name", quote(host))
	}
	if form == "dial" && ip.IsValid() && ip.Unmap().IsUnspecified() {
		return fmt.Errorf("%s means every address of this host and cannot be connected to", quote(host))
	}
	return nil
}

// isLoopback says that only this host can reach a. One that is malformed is none.
func (a Address) isLoopback() bool {
	_, rest := a.Split()
	host, _, err := net.SplitHostPort(rest)
	if err != nil {
		return false
	}
	ip, _ := netip.ParseAddr(host) // the zero Addr is no loopback address
	return strings.EqualFold(host, "localhost") || ip.Unmap().IsLoopback()
}

func checkUnixPath(p string) error {
	switch {
	case !strings.HasPrefix(p, "/"):
		return fmt.Errorf("%s is not an absolute path: write unix:/run/relevo/name.sock", quote(p))
	case path.Clean(p) != p || p == "/":
		return fmt.Errorf("%s is not the plain path of a socket: write unix:%s", quote(p), clip(path.Clean(p)))
	case len(p) > maxUnixPath:
		return fmt.Errorf("the socket's path has %d bytes; the kernel takes %d", len(p), maxUnixPath)
	case strings.ContainsRune(p, 0):
		return fmt.Errorf("%s holds a zero byte", quote(p))
	}
	return nil
}

// validHost takes names as DNS has them. A last label of digits alone is an IPv4 address with a slip in it.
func validHost(host string) bool {
	if len(host) > maxHost {
		return false
	}
	labels := strings.Split(strings.TrimSuffix(host, "."), ".")
	for _, l := range labels {
		if l == "" || len(l) > 63 || strings.Trim(l, nameCharacters) != "" {
			return false
		}
	}
	return strings.Trim(labels[len(labels)-1], "0123456789") != ""
}

// canonical is a in the one form that all its spellings share.
func (a Address) canonical() string {
	network, rest := a.Split()
	if network == "unix" {
		return string(a)
	}
	host, port, err := net.SplitHostPort(rest)
	if err != nil {
		return rest
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if host == "localhost" {
		host = "127.0.0.1"
	}
	if host == "" {
		host = "::"
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		host = ip.Unmap().String()
	}
	return net.JoinHostPort(host, port)
}

// reach says for a listening address which port it takes, in which families, and whether on all of their
// addresses; [::] takes the port of IPv4 as well. What is no IP address has no family.
func (a Address) reach() (port string, all bool, families []string) {
	host, port, err := net.SplitHostPort(a.canonical())
	ip, ipErr := netip.ParseAddr(host)
	switch {
	case err != nil || ipErr != nil:
		return "", false, nil
	case ip.Is4():
		return port, ip.IsUnspecified(), []string{"v4"}
	case ip.IsUnspecified():
		return port, true, []string{"v4", "v6"}
	default:
		return port, false, []string{"v6"}
	}
}
