package admin

import (
	"fmt"
	"strings"
	"testing"

	"github.com/relevo-proxy/relevo/server/config"
)

// BenchmarkEffective is the configuration with its defaults, of 1000 endpoints.
func BenchmarkEffective(b *testing.B) {
	var text strings.Builder
	text.WriteString(`
listeners: [{name: in, address: "127.0.0.1:1", protocol: bolt}]
routes: [{name: rpc, rules: [{cluster: many}]}]
clusters:
- name: many
  protocol: bolt
  endpoints:
`)
	for i := range 1000 {
		fmt.Fprintf(&text, "  - {address: %q}\n", fmt.Sprintf("10.0.%d.%d:80", i/250, i%250))
	}
	tree, err := config.Parse([]byte(text.String()))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := effective(tree, "clusters/many"); err != nil {
			b.Fatal(err)
		}
	}
}
