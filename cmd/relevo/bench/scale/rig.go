package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
	"github.com/relevo-proxy/relevo/cmd/relevo/bench/yard"
	"github.com/relevo-proxy/relevo/cmd/relevo/echo"
)

const (
	warmup  = 300 * time.Millisecond // before what is measured: connections are made, buffers grow
	timeout = time.Minute            // of a request: replies may be slow on purpose
	service = "com.relevo.Echo:1.0"
)

// rig starts what a curve needs.
type rig struct {
	options
	yard *yard.Yard
}

// target is a proxy that a load can be sent to.
type target struct {
	name    string
	address string
	metrics string // the URL of Relevo's, empty for others
	proc    *yard.Process
}

// servers starts n echo servers in this process. Whoever calls it calls stop, which returns when they have ended.
func servers(n int) (addresses []string, stop func(), err error) {
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	stop = func() { cancel(); group.Wait() }
	for range n {
		s, err := echo.Listen(echo.Options{Listen: "127.0.0.1:0"})
		if err != nil {
			stop()
			return nil, nil, err
		}
		addresses = append(addresses, s.Addr().String())
		group.Go(func() { _ = s.Run(ctx) }) // ends with ctx; a listener that broke shows in the requests
	}
	return addresses, stop, nil
}

// rule is one entry under rules, without its cluster.
type rule string

const everything rule = "{cluster: echo, timeout: 1m}"

// relevo starts a Relevo with these rules and endpoints, and so many connections to each.
func (r *rig) relevo(rules []rule, endpoints []string, each int) (*target, error) {
	var b strings.Builder
	listen, err := yard.FreeAddress()
	if err != nil {
		return nil, err
	}
	metrics, err := yard.FreeAddress()
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(&b, "listeners: [{name: bench, address: %q, protocol: bolt, accept_rate: none, max_streams: 16384}]\n", listen)
	b.WriteString("routes:\n  - name: rpc\n    rules:\n")
	for _, one := range rules {
		fmt.Fprintf(&b, "      - %s\n", one)
	}
	fmt.Fprintf(&b, "clusters:\n  - name: echo\n    protocol: bolt\n    max_requests: 1000000\n    max_connections: 4096\n    max_pending: 100000\n    connections_per_endpoint: %d\n    endpoints:\n", each)
	for _, one := range endpoints {
		fmt.Fprintf(&b, "      - {address: %q}\n", one)
	}
	fmt.Fprintf(&b, "metrics: {address: %q}\nlog: {level: warn}\n", metrics)
	config := filepath.Join(r.yard.Scratch, "relevo.yaml")
	if err := os.WriteFile(config, []byte(b.String()), 0o600); err != nil {
		return nil, err
	}
	t := &target{name: "relevo", address: listen, metrics: "http://" + metrics + "/metrics"}
	t.proc, err = r.yard.Launch(yard.Command{Name: t.name, Address: listen, Args: []string{r.options.relevo, "run", "-c", config}})
	return t, err
}

// bare starts the bare relay before a server.
func (r *rig) bare(server string) (*target, error) {
	listen, err := yard.FreeAddress()
	if err != nil {
		return nil, err
	}
	t := &target{name: "bare relay", address: listen}
	t.proc, err = r.yard.Launch(yard.Command{Name: t.name, Address: listen, Args: []string{r.floor, "-listen", listen, "-server", server}})
	return t, err
}

// haproxyConfig has the address to listen at and the one to forward to left open.
const haproxyConfig = `global
  nbthread 2
  maxconn 4500
defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
frontend bench
  bind %s
  default_backend echo
backend echo
  server echo %s
`

// relay starts haproxy as a relay of bytes before a server.
func (r *rig) relay(server string) (*target, error) {
	listen, err := yard.FreeAddress()
	if err != nil {
		return nil, err
	}
	config := filepath.Join(r.yard.Scratch, "haproxy.cfg")
	if err := os.WriteFile(config, fmt.Appendf(nil, haproxyConfig, listen, server), 0o600); err != nil {
		return nil, err
	}
	t := &target{name: "haproxy tcp", address: listen}
	t.proc, err = r.yard.Launch(yard.Command{Name: t.name, Address: listen, Args: []string{r.haproxy, "-db", "-f", config}})
	return t, err
}

// load sends requests to a target and returns what came of it. That any of them failed is an error: such a run says nothing.
func (t *target) load(ctx context.Context, o bench.Options) (*bench.Report, error) {
	o.Addr, o.PID, o.Timeout = t.address, t.proc.PID, timeout
	if o.Service == "" {
		o.Service = service
	}
	report, err := bench.Run(ctx, o)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", t.name, err)
	case report.Failed():
		return nil, fmt.Errorf("%s with %d connections, %d requests in flight on each: of %d requests %d came back (%d timed out, %d lost, %d overrun, %v)",
			t.name, o.Connections, o.InFlight, report.Sent, report.OK, report.Timeouts, report.Lost, report.Overrun, report.Statuses)
	case report.Process == nil || report.Process.Error != "":
		return nil, errors.New("no CPU time was measured")
	}
	return report, t.proc.Alive()
}
