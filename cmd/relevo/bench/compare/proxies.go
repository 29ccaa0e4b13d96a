package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench/yard"
)

// target is something that the generator sends requests to.
type target struct {
	name    string
	version string
	address string
	proc    *yard.Process // nil for the echo server alone: its own cost is not the question
}

const (
	relevoName   = "relevo" // inline
	baselineName = "relevo baseline"
	workerName   = "relevo worker"
	haproxyName  = "haproxy tcp"
	nginxName    = "nginx stream"
	floorName    = "bare relay"
	directName   = "direct"
)

// versionTimeout is what a program gets to say what it was built with.
const versionTimeout = 10 * time.Second

// proxy is one of the compared programs, and how it is started.
type proxy struct {
	name    string
	version string // empty where another one's stands for it
	file    string // the config file's name
	config  string // its content, with the address to listen at and the one to forward to left open, in this order
	command func(file, address, server string) []string
}

// relevoConfig is what the baseline gets too, so it names only fields that every release knows. With nothing on the route that
// may block, it runs inline.
const relevoConfig = relevoListener + relevoRest

// workerConfig has each request carried by a worker.
const workerConfig = relevoListener + `    forwarding: worker
` + relevoRest

const relevoListener = `listeners:
  - name: bench
    address: %s
    protocol: bolt
    routes: bench
`

const relevoRest = `routes:
  - name: bench
    rules:
      - match: {service: "` + service + `"}
        cluster: echo
clusters:
  - name: echo
    protocol: bolt
    endpoints:
      - {address: %s}
log: {level: warn}
`

// service is what the generator calls, and what the rule matches: each request pays for the look-up.
const service = "com.relevo.Echo:1.0"

// The most connections of a workload are 200, and few enough descriptors are asked for to get them anywhere.
const haproxyConfig = `global
  nbthread 2
  maxconn 1000
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

// noConfig is for who is told by flags: the file says what was told, and nobody reads it.
const noConfig = "%s %s\n"

// One process, so that its CPU time is that of one pid. The first verb is for the line that loads the module.
const nginxConfig = `%sdaemon off;
master_process off;
error_log stderr error;
pid nginx.pid;
events { worker_connections 1000; }
stream {
  server {
    listen %%s;
    proxy_pass %%s;
    proxy_timeout 1h;
  }
}
`

// start starts the echo server and a proxy of each kind before it, and returns them in the order of the table.
func start(ctx context.Context, y *yard.Yard, o options) ([]*target, error) {
	echo, err := yard.FreeAddress()
	if err != nil {
		return nil, err
	}
	if _, err := launch(y, "echo", echo, o.relevo, "echo", "bolt", "--listen", echo); err != nil {
		return nil, err
	}

	proxies, err := installed(ctx, o, y.Scratch)
	if err != nil {
		return nil, err
	}
	var targets []*target
	for _, p := range proxies {
		address, err := yard.FreeAddress()
		if err != nil {
			return nil, err
		}
		config := filepath.Join(y.Scratch, p.file)
		if err := os.WriteFile(config, fmt.Appendf(nil, p.config, address, echo), 0o600); err != nil {
			return nil, err
		}
		proc, err := launch(y, p.name, address, p.command(config, address, echo)...)
		if err != nil {
			return nil, err
		}
		targets = append(targets, &target{name: p.name, version: p.version, address: address, proc: proc})
	}
	if o.direct {
		targets = append(targets, &target{name: directName, address: echo})
	}
	return targets, nil
}

// installed returns the proxies to compare: Relevo in both its modes, its baseline if one was given, haproxy, and nginx where
// it can forward streams.
func installed(ctx context.Context, o options, scratch string) ([]proxy, error) {
	haproxy, err := yard.Find("haproxy")
	if err != nil {
		return nil, fmt.Errorf("%w: `make bench` sees to it", err)
	}
	runs := func(program ...string) func(string, string, string) []string {
		return func(file, _, _ string) []string { return append(slices.Clip(program), file) }
	}
	proxies := []proxy{{relevoName, yard.FirstLine(ctx, o.relevo, "version"), "relevo.yaml", relevoConfig, runs(o.relevo, "run", "-c")}}
	if o.baseline != "" {
		version := yard.FirstLine(ctx, o.baseline, "version")
		proxies = append(proxies, proxy{baselineName, version, "relevo-baseline.yaml", relevoConfig, runs(o.baseline, "run", "-c")})
	}
	proxies = append(
		proxies,
		proxy{workerName, "", "relevo-worker.yaml", workerConfig, runs(o.relevo, "run", "-c")},
		proxy{
			haproxyName, yard.FirstLine(ctx, haproxy, "-v"), "haproxy.cfg", haproxyConfig,
			runs(haproxy, "-db", "-f"),
		},
	)
	if o.floor != "" {
		proxies = append(proxies, proxy{floorName, "", "floor.conf", noConfig, func(_, address, server string) []string {
			return []string{o.floor, "-listen", address, "-server", server}
		}})
	}
	nginx, err := yard.Find("nginx")
	if err != nil {
		return proxies, nil // it is welcome, not needed
	}
	if load, ok := nginxStream(ctx, nginx); ok {
		proxies = append(proxies, proxy{
			nginxName, yard.FirstLine(ctx, nginx, "-v"), "nginx.conf", fmt.Sprintf(nginxConfig, load),
			runs(nginx, "-p", scratch, "-e", "stderr", "-c"),
		})
	}
	return proxies, nil
}

// nginxStream reports whether this nginx can forward streams, and the line of configuration that it needs for it.
func nginxStream(ctx context.Context, nginx string) (load string, ok bool) {
	_, built, err := yard.Output(ctx, versionTimeout, nginx, "-V")
	if err != nil {
		return "", false
	}
	flags := strings.Fields(string(built))
	if slices.Contains(flags, "--with-stream") {
		return "", true
	}
	for _, flag := range flags {
		folder, found := strings.CutPrefix(flag, "--modules-path=")
		module := filepath.Join(folder, "ngx_stream_module.so")
		if _, err := os.Stat(module); found && err == nil {
			return "load_module " + module + ";\n", true
		}
	}
	return "", false
}

// launch starts a process that listens at the address.
func launch(y *yard.Yard, name, address string, args ...string) (*yard.Process, error) {
	return y.Launch(yard.Command{Name: name, Address: address, Args: args})
}
