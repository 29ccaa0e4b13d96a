package config

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDiscoveryFaults(t *testing.T) {
	for text, want := range map[string]string{
		"{file: /etc/a.yaml}":                   "",
		"{dns: 'a.b:1', servers: ['[::1]:53']}": "",
		"{dns: _rpc._tcp.a.b, min_ttl: 1s}":     "",
		"{}":                                    ": one of file, dns must be there",
		"{file: /a, dns: 'a:1'}":                ": file and dns exclude each other",
		"{file: /a, dns: 'a:1', min_ttl: 1m, max_ttl: 59s}": ": file and dns exclude each other\nclusters[0] (c).discovery.min_ttl: 1m must not be more than max_ttl, which is 59s",
		"{file: a}":                                  `.file: "a" is not an absolute path`,
		"{file: /a, servers: ['1.1.1.1:53']}":        ".servers: has a meaning only with dns",
		"{file: /a, max_ttl: 1m}":                    ".max_ttl: has a meaning only with dns",
		"{dns: a.b}":                                 `.dns: "a.b" is no name with a port: host:port, or _service._proto.name for SRV records`,
		"{dns: _rpc.a.b}":                            `.dns: "_rpc.a.b" is no name of a service: host:port, or _service._proto.name for SRV records`,
		"{dns: _rpc._tcp}":                           `.dns: "_rpc._tcp" is no name of a service: host:port, or _service._proto.name for SRV records`,
		"{dns: '_rpc._tcp.a:1'}":                     `.dns: "_rpc._tcp.a:1" is no name of a service: host:port, or _service._proto.name for SRV records`,
		"{dns: 'a:0'}":                               `.dns: "0" is not a port: a number from 1 to 65535`,
		"{dns: '127.0.0.1:1'}":                       `.dns: "127.0.0.1" is an address: it belongs into endpoints`,
		"{dns: 'a b:1'}":                             `.dns: "a b" is not a host name`,
		"{dns: 'a:1', servers: ['dns.internal:53']}": `.servers[0]: "dns.internal:53" is not IP:PORT`,
		"{dns: 'a:1', servers: ['1.1.1.1']}":         `.servers[0]: "1.1.1.1" is not IP:PORT`,
		"{dns: 'a:1', min_ttl: 1m, max_ttl: 59s}":    ".min_ttl: 1m must not be more than max_ttl, which is 59s",
		"{dns: 'a:1', min_ttl: 0s}":                  ".min_ttl: 0s is out of range: 1s to 1h",
	} {
		_, err := Parse([]byte("listeners: [{name: in, address: ':1', protocol: bolt}]\nroutes: [{name: r, rules: [{cluster: c}]}]\n" +
			"clusters: [{name: c, protocol: bolt, discovery: " + text + "}]\n"))
		got := ""
		if err != nil {
			got = strings.TrimPrefix(err.Error(), "clusters[0] (c).discovery")
		}
		if got != want {
			t.Errorf("%s gives\n%s, want\n%s", text, got, want)
		}
	}
	_, err := Parse([]byte("listeners: [{name: in, address: ':1', protocol: bolt}]\nroutes: [{name: r, rules: [{cluster: c}]}]\n" +
		"clusters: [{name: c, protocol: bolt, discovery: {file: /a}, endpoints: [{address: 'a:1'}]}]\n"))
	if err == nil || err.Error() != "clusters[0] (c): endpoints and discovery exclude each other" {
		t.Errorf("both give %v", err)
	}
}

func TestParseEndpoints(t *testing.T) {
	want := []Endpoint{{"127.0.0.1:1", 100, false}, {"unix:/a", 5, true}}
	for _, text := range []string{
		"- address: 127.0.0.1:1\n- {address: 'unix:/a', weight: 5, drain: true}\n",
		`[{"address": "127.0.0.1:1"}, {"address": "unix:/a", "weight": 5, "drain": true}]`,
	} {
		got, err := ParseEndpoints([]byte(text))
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s gives %v and (-want +got):\n%s", text, err, diff)
		}
	}
	for text, want := range map[string]string{
		"":                              "must be a list of endpoints, of at least one",
		"[]":                            "must be a list of endpoints, of at least one",
		"endpoints: [{address: 'a:1'}]": "must be a list of endpoints, of at least one",
		"- address: a:1\n- address: A:1\n- {}\n- {address: a, colour: red}\n- {address: 'b:0', weight: 1001}\n": "" +
			"[1].address: A:1 is the address of [0] as well\n[2].address: is missing\n[3].address: \"a\" has no port: must be host:port or unix:/path\n" +
			"[3].colour: there is no such field\n[4].address: port 0 cannot be connected to\n[4].weight: 1001 is out of range: 1 to 1000",
		"- a:1": "[0]: must be a mapping of fields to values, not text",
		"{":     "reading YAML: line 1: did not find expected node content",
		strings.Repeat("- address: a:1\n", MaxEndpoints+1): "has 30001 endpoints; there may be 30000",
	} {
		set, err := ParseEndpoints([]byte(text))
		if err == nil || err.Error() != want {
			t.Errorf("%.80q gives %v, %v; want\n%s", text, set, err, want)
		}
	}
	example, err := ParseEndpoints([]byte(read(t, root+"/examples/discovery/endpoints.yaml")))
	if err != nil || len(example) != 3 {
		t.Errorf("the example of a file gives %v, %v", example, err)
	}
	var many strings.Builder
	for i := range MaxEndpoints {
		fmt.Fprintf(&many, "- {address: 'h%d.internal:12200', weight: 10}\n", i)
	}
	if set, err := ParseEndpoints([]byte(many.String())); err != nil || len(set) != MaxEndpoints {
		t.Errorf("as many as there may be give %d, %v", len(set), err)
	}
}
