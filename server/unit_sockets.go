package server

import (
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/server/config"
	"github.com/relevo-proxy/relevo/systemd"
	"github.com/relevo-proxy/relevo/upgrade/handoff"
)

// place is where the configuration wants a socket to listen.
type place struct {
	name, network, address string
	door                   bool
}

// stored is a socket that systemd is to keep.
type stored struct {
	place
	socket syscall.Conn
}

// places are all of them.
func places(c *config.Config) (out []place) {
	add := func(name string, a config.Address, door bool) {
		network, address := a.Split()
		out = append(out, place{name, network, address, door})
	}
	for _, l := range c.Listeners {
		add(l.Name, l.Address, false)
	}
	if c.Metrics != nil {
		add(doorMetrics, c.Metrics.Address, true)
	}
	if a := c.Admin; a != nil {
		if a.Address != "" {
			add(doorAdmin, a.Address, true)
		}
		if a.TCP != nil {
			add(doorAdminTCP, a.TCP.Address, true)
		}
	}
	return out
}

func placeOf(l handoff.Listener) place { return place{l.Name, l.Network, l.Address, l.Door} }

// storeName is the name of its socket in systemd's store. It is the address, as names change; but every port 0 is another one.
func (p place) storeName() string {
	key := p.address
	if p.network == "unix" {
		key = "unix:" + key
	} else if strings.HasSuffix(key, ":0") {
		key = p.name + "@" + key
	}
	return systemd.StoreName(key)
}

// noteStored notes the road's sockets but those that are systemd's own. Some may be in the store already, and systemd knows them
// again; but it forgets all when the unit is masked, and takes them again from the next process behind that.
func (s *Server) noteStored(spec *forwarder.Spec) {
	sockets := s.road.Sockets()
	for i := range spec.Listeners {
		l := &spec.Listeners[i]
		if socket := sockets[l.Name]; socket != nil && !l.Kept {
			s.stored = append(s.stored, stored{place{l.Name, l.Network, l.Address, false}, socket})
		}
	}
}

// syncTimeout bounds the wait for systemd to close what is not wanted.
const syncTimeout = 2 * time.Second

// sockets are those that systemd has for this configuration. What nothing in it claims is closed, and systemd's copy with it
// if it comes from the store, before anything is opened: it may be in the way.
func (u *unit) sockets(c *config.Config) []inherited {
	list, err := systemd.Sockets()
	if err != nil {
		u.log.Warn("a socket is not used", zap.Error(err))
	}
	out, rest := match(list, places(c))
	for _, in := range out {
		u.log.Info("systemd has the socket", zap.String("name", in.Name), zap.String("address", in.Address), zap.Bool("from_the_store", !in.Kept))
		if got := in.Socket.Addr(); in.Kept && !listensAt(got, in.Network, in.Address) {
			u.log.Warn("the socket unit and the configuration differ: the socket unit's address it is", zap.String("name", in.Name),
				zap.String("configured", in.Address), zap.Stringer("address", got))
		}
	}
	forgot := false
	for _, s := range rest {
		if s.Stored {
			u.log.Info("a socket in systemd's store is not wanted any more", zap.String("name", s.Name))
			u.say(func(n systemd.Notifier) error { return n.Forget(s.Name) })
			forgot = true
		} else {
			u.log.Warn("the socket unit listens where the configuration wants nothing: who connects there waits for ever",
				zap.String("name", s.Name), zap.Stringer("address", s.Listener.Addr()))
		}
		_ = s.Listener.Close() // a copy
	}
	if forgot {
		u.say(func(n systemd.Notifier) error { return n.Sync(syncTimeout) })
	}
	return out
}

// match gives each place the socket that is meant for it: by the place's name, which a socket unit can give; by the address at
// which it listens; or by its name in the store.
func match(list []systemd.Socket, wanted []place) (out []inherited, rest []systemd.Socket) {
	named := make(map[string]bool)
	for _, p := range wanted {
		named[p.name] = true
	}
	used := make([]bool, len(list))
	for _, p := range wanted {
		for _, fits := range []func(s *systemd.Socket) bool{
			func(s *systemd.Socket) bool { return !s.Stored && s.Name == p.name },
			func(s *systemd.Socket) bool {
				return !s.Stored && !named[s.Name] && listensAt(s.Listener.Addr(), p.network, p.address)
			},
			func(s *systemd.Socket) bool {
				return s.Stored && s.Name == p.storeName() && reachable(s.Listener.Addr())
			},
		} {
			i := 0
			for i < len(list) && (used[i] || list[i].Listener.Addr().Network() != p.network || !fits(&list[i])) {
				i++
			}
			if i < len(list) {
				used[i] = true
				l := handoff.Listener{Name: p.name, Network: p.network, Address: p.address, Door: p.door, Kept: !list[i].Stored}
				out = append(out, inherited{l, list[i].Listener})
				break
			}
		}
	}
	for i := range list {
		if !used[i] {
			rest = append(rest, list[i])
		}
	}
	return out, rest
}

// listensAt says whether a socket's own address is the configured one. A host name is none.
func listensAt(addr net.Addr, network, address string) bool {
	switch a := addr.(type) {
	case *net.UnixAddr:
		return network == "unix" && a.Name == address
	case *net.TCPAddr:
		host, port, err := net.SplitHostPort(address)
		if network != "tcp" || err != nil || port != strconv.Itoa(a.Port) {
			return false
		}
		switch strings.ToLower(host) {
		case "":
			return a.IP.IsUnspecified()
		case "localhost":
			return a.IP.IsLoopback()
		}
		ip, err := netip.ParseAddr(host)
		return err == nil && (ip.Unmap() == a.AddrPort().Addr().Unmap() || ip.IsUnspecified() && a.IP.IsUnspecified())
	}
	return false
}

// reachable says whether a unix socket still has its file.
func reachable(addr net.Addr) bool {
	a, ok := addr.(*net.UnixAddr)
	if !ok {
		return true
	}
	info, err := os.Lstat(a.Name)
	return err == nil && info.Mode()&os.ModeSocket != 0
}
