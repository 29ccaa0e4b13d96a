package health

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

// The bounds of resolving. How long a name's addresses may be used its server knows, but the system's resolver does not tell.
const (
	maxHelpers   = 8                // goroutines that resolve
	nameKept     = 30 * time.Second // how long the addresses of a name are used before it is asked for anew
	nameRetried  = 2 * time.Second  // the same where it could not be resolved
	nameTimeout  = 10 * time.Second // for one name
	nameForgot   = 10 * time.Minute // without a check that has asked for it
	maxAddresses = 8                // of one name
)

// host is an address behind a name.
type host struct {
	addr netip.Addr
	zone uint32
}

// name is what is known of a host name.
type name struct {
	hosts   []host
	err     error // of the last try; hosts are then from one before
	tried   int64
	used    int64
	asking  bool
	waiting []*entry
}

// answer is what a helper has found.
type answer struct {
	name  string
	hosts []host
	err   error
}

// names are the host names of endpoints, and what their addresses are. One that cannot be resolved any more keeps its last
// addresses: that is no news of the endpoint.
type names struct {
	// Static after newNames.
	lookUp func(ctx context.Context, host string) ([]netip.Addr, error)
	wake   func() // has Run come for the answers

	// Owned by Run.
	known map[string]*name

	mu sync.Mutex
	// Guarded by mu.
	wanted  []string
	answers []answer
	helpers int

	running sync.WaitGroup // the helpers
}

func newNames(wake func()) *names {
	lookUp := func(ctx context.Context, host string) ([]netip.Addr, error) {
		return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	}
	return &names{lookUp: lookUp, wake: wake, known: make(map[string]*name)}
}

// of is what is known of a name. While it is being asked for, waits is true, and the entry will be among those that take returns.
func (n *names) of(ctx context.Context, host string, e *entry, now int64) (known *name, waits bool) {
	k := n.known[host]
	if k == nil {
		k = &name{}
		n.known[host] = k
	}
	k.used = now
	kept := nameKept
	if k.err != nil {
		kept = nameRetried
	}
	if k.tried != 0 && now-k.tried < int64(kept) {
		return k, false
	}
	k.waiting = append(k.waiting, e)
	if !k.asking {
		k.asking = true
		n.want(ctx, host)
	}
	return k, true
}

// want has a helper ask for a name.
func (n *names) want(ctx context.Context, host string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.wanted = append(n.wanted, host)
	if n.helpers < maxHelpers {
		n.helpers++
		n.running.Go(func() { n.help(ctx) }) // ends when no name is wanted, or with Run
	}
}

// help asks for names for as long as any are wanted.
func (n *names) help(ctx context.Context) {
	for {
		n.mu.Lock()
		if len(n.wanted) == 0 || ctx.Err() != nil {
			n.helpers--
			n.mu.Unlock()
			return
		}
		a := answer{name: n.wanted[0]}
		n.wanted = n.wanted[1:]
		n.mu.Unlock()
		a.hosts, a.err = n.resolve(ctx, a.name)
		n.mu.Lock()
		n.answers = append(n.answers, a)
		n.mu.Unlock()
		n.wake()
	}
}

func (n *names) resolve(ctx context.Context, name string) ([]host, error) {
	ctx, cancel := context.WithTimeout(ctx, nameTimeout)
	defer cancel()
	addresses, err := n.lookUp(ctx, name)
	if err != nil {
		return nil, err
	}
	var hosts []host
	for _, a := range addresses[:min(len(addresses), maxAddresses)] {
		h := host{addr: a.Unmap().WithZone("")}
		if zone := a.Zone(); zone != "" {
			if h.zone, err = zoneOf(zone); err != nil {
				continue
			}
		}
		hosts = append(hosts, h)
	}
	if len(hosts) == 0 {
		if err == nil {
			err = fmt.Errorf("%s has no address", name)
		}
		return nil, err
	}
	return hosts, nil
}

// zoneOf is the number of the interface that a zone names.
func zoneOf(zone string) (uint32, error) {
	if i, err := net.InterfaceByName(zone); err == nil {
		return uint32(i.Index), nil
	}
	number, err := strconv.ParseUint(zone, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("there is no network interface %s", zone)
	}
	return uint32(number), nil
}

// take learns what helpers have found, and returns who has waited for it.
func (n *names) take(now int64) (waited []*entry) {
	n.mu.Lock()
	answers := n.answers
	n.answers = nil
	n.mu.Unlock()
	for _, a := range answers {
		k := n.known[a.name]
		k.tried, k.err, k.asking = now, a.err, false
		if a.err == nil {
			k.hosts = a.hosts
		}
		waited = append(waited, k.waiting...)
		k.waiting = nil
	}
	return waited
}

// forget forgets names that nobody has asked for in a while.
func (n *names) forget(now int64) {
	for host, k := range n.known {
		if !k.asking && now-k.used > int64(nameForgot) {
			delete(n.known, host)
		}
	}
}

// rest waits for the helpers, whose context has ended, and forgets what they were to find.
func (n *names) rest() {
	n.running.Wait()
	n.wanted, n.answers = nil, nil
	for _, k := range n.known {
		k.asking, k.waiting = false, nil
	}
}
