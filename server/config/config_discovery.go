package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
)

// Discovery says where the endpoints of a cluster come from that are not in the configuration.
type Discovery struct {
	// File is the path of a list of endpoints as a cluster has them. DNS is host:port, or _service._proto.name.
	File string `json:"file,omitempty" cfg:"one" form:"file"`
	DNS  string `json:"dns,omitempty" cfg:"one" form:"dns"`
	// Servers are whom to ask, IP:PORT; none: those of /etc/resolv.conf.
	Servers []string `json:"servers,omitempty" most:"8" form:"server"`
	// MinTTL and MaxTTL bound the time from one look to the next.
	MinTTL Duration `json:"min_ttl" default:"5s" min:"1s" max:"1h"`
	MaxTTL Duration `json:"max_ttl" default:"5m" min:"1s" max:"24h"`
}

// Source is the kind of the source, and what it looks for: a path or a name.
func (d *Discovery) Source() (kind, of string) {
	if d.File != "" {
		return "file", d.File
	}
	return "dns", d.DNS
}

// MaxEndpoints is how many endpoints a file may list.
const MaxEndpoints = 30000

// ParseEndpoints makes endpoints of one document of YAML or JSON: a list as a cluster has it, with the same rules. Its error is
// an *Errors with all that is wrong.
func ParseEndpoints(data []byte) ([]Endpoint, error) {
	r := &report{}
	n, err := parseNode(data)
	switch {
	case err != nil:
		r.add(place{}, "%s", err)
	case n.kind != listNode || len(n.items) == 0:
		r.add(place{}, "must be a list of endpoints, of at least one")
	case len(n.items) > MaxEndpoints:
		r.add(place{}, "has %d endpoints; there may be %d", len(n.items), MaxEndpoints)
	}
	if len(r.faults) > 0 {
		return nil, r.errors()
	}
	list := reflect.New(reflect.TypeFor[[]Endpoint]()).Elem()
	d := &decoder{tree(), r}
	d.list(place{}, n, list)
	v := &validator{tree(), r}
	v.list(place{}, &field{typ: list.Type()}, list)
	out, _ := reflect.TypeAssert[[]Endpoint](list)
	v.endpoints(place{}, out)
	return out, r.errors()
}

// discovery reports what has no meaning for a file, and bounds that contradict each other.
func (v *validator) discovery(p place, d *Discovery) {
	const onlyDNS = "has a meaning only with dns"
	if d.File != "" && d.DNS == "" {
		unset := Discovery{}
		v.schema.fillDefaults(reflect.ValueOf(&unset).Elem())
		if len(d.Servers) > 0 {
			v.report.add(p.field("servers"), onlyDNS)
		}
		if d.MinTTL != unset.MinTTL {
			v.report.add(p.field("min_ttl"), onlyDNS)
		}
		if d.MaxTTL != unset.MaxTTL {
			v.report.add(p.field("max_ttl"), onlyDNS)
		}
	}
	if d.MinTTL > d.MaxTTL {
		v.report.add(p.field("min_ttl"), "%v must not be more than max_ttl, which is %v", d.MinTTL, d.MaxTTL)
	}
}

// checkDNS refuses what is neither host:port nor the name of a service.
func checkDNS(name string) error {
	const forms = "host:port, or _service._proto.name for SRV records"
	if strings.HasPrefix(name, "_") {
		if labels := strings.SplitN(name, ".", 3); len(labels) < 3 || !strings.HasPrefix(labels[1], "_") || !validHost(name) {
			return fmt.Errorf("%s is no name of a service: %s", quote(name), forms)
		}
		return nil
	}
	host, port, err := net.SplitHostPort(name)
	if err != nil {
		return fmt.Errorf("%s is no name with a port: %s", quote(name), forms)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
		return fmt.Errorf("%s is not a port: a number from 1 to 65535", quote(port))
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return fmt.Errorf("%s is an address: it belongs into endpoints", quote(host))
	}
	if !validHost(host) {
		return fmt.Errorf("%s is not a host name", quote(host))
	}
	return nil
}

// checkServer refuses what is not the address of a DNS server: its name would have to be asked for.
func checkServer(text string) error {
	at, err := netip.ParseAddrPort(text)
	if err != nil || at.Port() == 0 || at.Addr().IsUnspecified() {
		return errors.New(quote(text) + " is not IP:PORT")
	}
	return nil
}
