package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// target is something that the generator sends requests to.
type target struct {
	name    string
	version string
	address string
	proc    *process // nil for the echo server alone: its own cost is not the question
}

const (
	relevoName   = "relevo" // inline
	baselineName = "relevo baseline"
	workerName   = "relevo worker"
	haproxyName  = "haproxy tcp"
	nginxName    = "nginx stream"
	directName   = "direct"
)

// proxy is one of the compared programs, and how it is started.
type proxy struct {
	name    string
	version string // empty where another one's stands for it
	file    string // the config file's name
	config  string // its content, with the address to listen at and the one to forward to left open, in this order
	command func(file string) []string
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
func start(y *yard, o options) ([]*target, error) {
	echo, err := freeAddress()
	if err != nil {
		return nil, err
	}
	if _, err := y.launch("echo", echo, o.relevo, "echo", "bolt", "--listen", echo); err != nil {
		return nil, err
	}

	proxies, err := installed(y.ctx, o, y.scratch)
	if err != nil {
		return nil, err
	}
	var targets []*target
	for _, p := range proxies {
		address, err := freeAddress()
		if err != nil {
			return nil, err
		}
		config := filepath.Join(y.scratch, p.file)
		if err := os.WriteFile(config, fmt.Appendf(nil, p.config, address, echo), 0o600); err != nil {
			return nil, err
		}
		proc, err := y.launch(p.name, address, p.command(config)...)
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
	haproxy, err := find("haproxy")
	if err != nil {
		return nil, fmt.Errorf("%w: `make bench` sees to it", err)
	}
	runs := func(relevo string) func(string) []string {
		return func(file string) []string { return []string{relevo, "run", "-c", file} }
	}
	proxies := []proxy{{relevoName, firstLineOf(ctx, o.relevo, "version"), "relevo.yaml", relevoConfig, runs(o.relevo)}}
	if o.baseline != "" {
		version := firstLineOf(ctx, o.baseline, "version")
		proxies = append(proxies, proxy{baselineName, version, "relevo-baseline.yaml", relevoConfig, runs(o.baseline)})
	}
	proxies = append(
		proxies,
		proxy{workerName, "", "relevo-worker.yaml", workerConfig, runs(o.relevo)},
		proxy{
			haproxyName, firstLineOf(ctx, haproxy, "-v"), "haproxy.cfg", haproxyConfig,
			func(file string) []string { return []string{haproxy, "-db", "-f", file} },
		},
	)
	nginx, err := find("nginx")
	if err != nil {
		return proxies, nil // it is welcome, not needed
	}
	if load, ok := nginxStream(ctx, nginx); ok {
		proxies = append(proxies, proxy{
			nginxName, firstLineOf(ctx, nginx, "-v"), "nginx.conf", fmt.Sprintf(nginxConfig, load),
			func(file string) []string { return []string{nginx, "-p", scratch, "-c", file, "-e", "stderr"} },
		})
	}
	return proxies, nil
}

// nginxStream reports whether this nginx can forward streams, and the line of configuration that it needs for it.
func nginxStream(ctx context.Context, nginx string) (load string, ok bool) {
	_, built, err := output(ctx, readyTimeout, nginx, "-V")
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

// find looks a daemon up, also where daemons live that are not on everybody's path.
func find(name string) (string, error) {
	if found, err := exec.LookPath(name); err == nil {
		return found, nil
	}
	for _, folder := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if found, err := exec.LookPath(filepath.Join(folder, name)); err == nil {
			return found, nil
		}
	}
	return "", fmt.Errorf("%s is not installed", name)
}

// firstLineOf returns the first line that a program says, which is its version when asked for that.
func firstLineOf(ctx context.Context, command ...string) string {
	out, said, err := output(ctx, readyTimeout, command...)
	if err != nil {
		return "unknown"
	}
	line, _, _ := strings.Cut(string(append(out, said...)), "\n")
	return line
}
