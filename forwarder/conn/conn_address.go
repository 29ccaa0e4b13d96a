package conn

import (
	"net/netip"
	"strconv"
	"syscall"
)

// Addresses are those of this end and of the peer, as the kernel has them: ADDRESS:PORT, or the path of a unix socket; empty where
// there is none, or the connection is closed. It asks the kernel.
func (c *Conn) Addresses() (local, remote string) {
	_ = c.raw.Control(func(fd uintptr) { // it is closed: then nothing is known
		if a, err := syscall.Getsockname(int(fd)); err == nil {
			local = addressText(a)
		}
		if a, err := syscall.Getpeername(int(fd)); err == nil {
			remote = addressText(a)
		}
	})
	return local, remote
}

func addressText(a syscall.Sockaddr) string {
	switch a := a.(type) {
	case *syscall.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)).String()
	case *syscall.SockaddrInet6:
		ip := netip.AddrFrom16(a.Addr).Unmap()
		if a.ZoneId != 0 {
			ip = ip.WithZone(strconv.FormatUint(uint64(a.ZoneId), 10))
		}
		return netip.AddrPortFrom(ip, uint16(a.Port)).String()
	case *syscall.SockaddrUnix:
		return a.Name
	default:
		return ""
	}
}
