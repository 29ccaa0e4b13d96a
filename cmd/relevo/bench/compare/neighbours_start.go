package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench/yard"
)

// neighbourhood is a Relevo of its own, and the servers behind it.
type neighbourhood struct {
	// Static after settle.
	relevo    *yard.Process
	address   string // where Relevo listens
	metrics   string // the URL of its metrics
	largeEcho string // the server of the large frames
}

// What the small requests call where one endpoint of three never answers, and what the large frames call.
const (
	silentService = "com.relevo.Silent:1.0"
	largeService  = "com.relevo.Large:1.0"
)

// maxBuffered is the budget of the neighbourhood's Relevo: a quarter of what the large frames would need all at once.
const maxBuffered = 256 << 20

// Large requests wait here for as long as it takes, instead of being refused, so that none of them gives way to the small ones.
const neighbourConfig = `listeners:
  - name: bench
    address: %[1]s
    protocol: bolt
    routes: bench
    max_frame: 17MiB
routes:
  - name: bench
    rules:
      - match: {service: "` + service + `"}
        cluster: good
      - match: {service: "` + silentService + `"}
        cluster: silent
      - match: {service: "` + largeService + `"}
        cluster: large
        timeout: 60s
clusters:
  - name: good
    protocol: bolt
    endpoints: [{address: %[3]s}, {address: %[4]s}, {address: %[5]s}]
  - name: silent
    protocol: bolt
    endpoints: [{address: %[3]s}, {address: %[4]s}, {address: %[6]s}]
  - name: large
    protocol: bolt
    max_pending_bytes: 1GiB
    endpoints: [{address: %[7]s}]
metrics: {address: %[2]s}
max_buffered: %[8]d
log: {level: warn}
`

// settle starts the neighbourhood.
func settle(y *yard.Yard, o options) (*neighbourhood, error) {
	var free [7]string
	for i := range free {
		var err error
		if free[i], err = yard.FreeAddress(); err != nil {
			return nil, err
		}
	}
	listen, metrics, servers, silent, large := free[0], free[1], free[2:5], free[5], free[6]
	for _, address := range append(servers[:3:3], large) {
		if _, err := launch(y, "echo", address, o.relevo, "echo", "bolt", "--listen", address); err != nil {
			return nil, err
		}
	}
	if _, err := launch(y, "silent echo", silent, o.relevo, "echo", "bolt", "--listen", silent, "--no-reply-rate", "1"); err != nil {
		return nil, err
	}

	config := filepath.Join(y.Scratch, "neighbours.yaml")
	content := fmt.Appendf(nil, neighbourConfig, listen, metrics, servers[0], servers[1], servers[2], silent, large, maxBuffered)
	if err := os.WriteFile(config, content, 0o600); err != nil {
		return nil, err
	}
	relevo, err := launch(y, "relevo with neighbours", listen, o.relevo, "run", "-c", config)
	if err != nil {
		return nil, err
	}
	return &neighbourhood{relevo: relevo, address: listen, metrics: "http://" + metrics + "/metrics", largeEcho: large}, nil
}
