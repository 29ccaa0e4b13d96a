package dns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/relevo-proxy/relevo/forwarder/discovery"
)

const (
	maxAliases    = 16 // CNAME records in a row
	targetsAtOnce = 8  // whose addresses are asked for
)

// addresses are those of a name.
type addresses struct {
	list []string
	ttl  uint32 // seconds
}

// resolve asks all that it takes for one set.
func (s *Source) resolve(ctx look) (found, error) {
	s.asker.begin()
	var set []discovery.Endpoint
	var ttl uint32
	if s.port != 0 {
		a, err := s.addressesOf(ctx, s.host, nil)
		if err != nil {
			return found{}, err
		}
		ttl = a.ttl
		for _, ip := range a.list {
			set = append(set, endpoint(ip, s.port, discovery.DefaultWeight))
		}
	} else {
		var err error
		if set, ttl, err = s.services(ctx); err != nil {
			return found{}, err
		}
	}
	if len(set) > MaxEndpoints {
		return found{}, fmt.Errorf("%s: has %d endpoints; there may be %d", s.host, len(set), MaxEndpoints)
	}
	return found{set, time.Duration(ttl) * time.Second}, nil
}

func endpoint(ip string, port uint16, weight int) discovery.Endpoint {
	return discovery.Endpoint{Network: "tcp", Address: net.JoinHostPort(ip, strconv.Itoa(int(port))), Weight: weight}
}

// services follows SRV records, of which the lowest priority counts.
func (s *Source) services(ctx context.Context) (set []discovery.Endpoint, ttl uint32, err error) {
	m, err := s.asker.ask(ctx, s.host, dns.TypeSRV)
	if err != nil {
		return nil, 0, err
	}
	records, ttl := lowest(m, s.host)
	if len(records) == 0 {
		return nil, 0, fmt.Errorf("%s SRV: %w", s.host, errNoData)
	}
	weights := shares(records)
	targets := make([]addresses, len(records))
	errs := make([]error, len(records))
	turns := make(chan struct{}, targetsAtOnce) // never closed
	var wg sync.WaitGroup
	for i, r := range records {
		turns <- struct{}{}
		wg.Go(func() { // ends with ctx at the latest; waited for below
			targets[i], errs[i] = s.addressesOf(ctx, r.Target, m.Extra)
			<-turns
		})
	}
	wg.Wait()
	var gone error
	for i, r := range records {
		switch {
		case errors.Is(errs[i], errNoName) || errors.Is(errs[i], errNoData):
			gone = errs[i] // a server that has left, and the record has not
			continue
		case errs[i] != nil:
			return nil, 0, errs[i]
		}
		ttl = min(ttl, targets[i].ttl)
		for _, ip := range targets[i].list {
			set = append(set, endpoint(ip, r.Port, weights[i]))
		}
	}
	if len(set) == 0 {
		return nil, 0, gone
	}
	return set, ttl, nil
}

// lowest are the SRV records of the lowest priority that lead somewhere, and for how long all hold.
func lowest(m *dns.Msg, name string) (out []*dns.SRV, ttl uint32) {
	name, ttl = aliased(m.Answer, name)
	for _, rr := range m.Answer {
		r, ok := rr.(*dns.SRV)
		if !ok || !strings.EqualFold(r.Hdr.Name, name) || r.Target == "." || r.Port == 0 {
			continue
		}
		ttl = min(ttl, r.Hdr.Ttl)
		if len(out) > 0 && r.Priority < out[0].Priority {
			out = out[:0]
		}
		if len(out) == 0 || r.Priority == out[0].Priority {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b *dns.SRV) int { // servers turn them round, and which one fails is to read the same each time
		return cmp.Or(strings.Compare(a.Target, b.Target), cmp.Compare(a.Port, b.Port))
	})
	return out, ttl
}

// shares are the weights of records as those of endpoints. Those from 1 to 1000 are taken as they are. Where one is larger, or
// is 0 beside others, all are scaled so that the largest is 1000 and 0 is 1, the smallest share that there is; where all are 0, they
// say nothing.
func shares(records []*dns.SRV) []int {
	least, most := math.MaxInt, 0
	for _, r := range records {
		least, most = min(least, int(r.Weight)), max(most, int(r.Weight))
	}
	out := make([]int, len(records))
	for i, r := range records {
		w := int(r.Weight)
		switch {
		case most == 0:
			w = discovery.DefaultWeight
		case most > discovery.MaxWeight || least == 0:
			w = max(discovery.MinWeight, w*discovery.MaxWeight/most)
		}
		out[i] = w
	}
	return out
}

// families are the types of addresses.
var families = []uint16{dns.TypeA, dns.TypeAAAA}

// addressesOf are the addresses of a name, of both families; extra has those that came along with an answer. A set is whole: where
// one family cannot be had there is none, unless there has never been an address of it, since some servers answer questions for
// AAAA with an error for ever.
func (s *Source) addressesOf(ctx context.Context, name string, extra []dns.RR) (addresses, error) {
	out := addresses{ttl: math.MaxUint32}
	var none, failed error
	for _, typ := range families {
		list, ttl := addressRecords(extra, name, typ)
		if len(list) == 0 {
			m, err := s.asker.ask(ctx, name, typ)
			switch {
			case errors.Is(err, errNoName):
				none = err
				continue
			case err != nil && s.had[typ]:
				return addresses{}, err
			case err != nil:
				failed = err
				continue
			}
			list, ttl = addressRecords(m.Answer, name, typ)
		}
		if len(list) > 0 {
			out.list, out.ttl = append(out.list, list...), min(out.ttl, ttl)
		}
	}
	switch {
	case len(out.list) > 0:
		if failed != nil {
			out.ttl = 0 // the other family is asked for again soon
		}
		return out, nil
	case failed != nil:
		return addresses{}, failed
	case none != nil:
		return addresses{}, none
	}
	return addresses{}, fmt.Errorf("%s: %w", name, errNoData)
}

// addressRecords are the addresses of this type that records have for a name, along its aliases.
func addressRecords(records []dns.RR, name string, typ uint16) (out []string, ttl uint32) {
	name, ttl = aliased(records, name)
	for _, rr := range records {
		h := rr.Header()
		if h.Rrtype != typ || h.Class != dns.ClassINET || !strings.EqualFold(h.Name, name) {
			continue
		}
		var raw net.IP
		switch r := rr.(type) {
		case *dns.A:
			raw = r.A
		case *dns.AAAA:
			raw = r.AAAA
		}
		if ip, ok := netip.AddrFromSlice(raw); ok && !ip.IsUnspecified() && !ip.IsMulticast() { // 0.0.0.0 is how some servers say no
			out, ttl = append(out, ip.Unmap().String()), min(ttl, h.Ttl)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), ttl // what comes along with an answer may come twice
}

// aliased is the name to which CNAME records lead from a name, and for how long they hold.
func aliased(records []dns.RR, name string) (string, uint32) {
	ttl := uint32(math.MaxUint32)
	for range maxAliases {
		next := ""
		for _, rr := range records {
			if r, ok := rr.(*dns.CNAME); ok && strings.EqualFold(r.Hdr.Name, name) {
				next, ttl = r.Target, min(ttl, r.Hdr.Ttl)
				break
			}
		}
		if next == "" {
			break
		}
		name = next
	}
	return name, ttl
}
