// Package dns finds endpoints in the DNS: by A and AAAA where a name has a port, by SRV where it has none.
//
// It asks by itself instead of package net's resolver, which tells no TTL, and neither its search list nor /etc/hosts: a name is
// taken as it stands. It is policy (source.go), what records mean (lookup.go) and how one question is asked (ask.go).
package dns

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/relevo-proxy/relevo/forwarder/discovery"
)

// MaxEndpoints is how many endpoints a name may lead to.
const MaxEndpoints = 4096

// Options are what a Source is made from.
type Options struct {
	// Name is HOST:PORT, or _service._proto.NAME.
	Name string
	// Servers are whom to ask; none: those in ResolvConf.
	Servers []netip.AddrPort
	// ResolvConf is read again each time; empty: /etc/resolv.conf.
	ResolvConf string
	// MinTTL and MaxTTL bound the time from one look to the next.
	MinTTL, MaxTTL time.Duration
	// Known is the set that the name had when somebody else last looked: its families of addresses must answer from the start.
	Known []discovery.Endpoint
}

// Source is a name in the DNS. It implements discovery.Source.
type Source struct {
	// Static after New.
	host   string // absolute, with its final dot
	port   uint16 // 0: SRV records say it
	asker  asker
	lookup func(*Source, look) (found, error) // (*Source).resolve, but in tests
	minTTL time.Duration
	maxTTL time.Duration
	known  []discovery.Endpoint
	random func() float64 // from 0 to 1

	// Owned by Run.
	had map[uint16]bool // the types of addresses that there have been
}

// New returns a source that has not asked yet. The error says that the name is none.
func New(o Options) (*Source, error) {
	s := &Source{
		asker: asker{servers: o.Servers, resolvConf: o.ResolvConf}, lookup: (*Source).resolve,
		minTTL: o.MinTTL, maxTTL: max(o.MinTTL, o.MaxTTL), known: o.Known, random: rand.Float64,
	}
	if s.asker.resolvConf == "" {
		s.asker.resolvConf = "/etc/resolv.conf"
	}
	if strings.HasPrefix(o.Name, "_") {
		s.host = dns.Fqdn(o.Name)
		return s, nil
	}
	host, port, err := net.SplitHostPort(o.Name)
	if err != nil {
		return nil, fmt.Errorf("the name %s: %w", o.Name, err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return nil, fmt.Errorf("the name %s has no port", o.Name)
	}
	s.host, s.port = dns.Fqdn(host), uint16(n)
	return s, nil
}

var _ discovery.Source = (*Source)(nil)
