// Command idle measures the memory that idle connections hold, before and after all of them were busy at once, how long it takes
// until memory goes back to the system, and what collecting garbage costs beside so many connections. It writes that section
// of the page of the benchmarks.
//
// It is client and echo server itself, in one process, and starts a Relevo, which it ends.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench/yard"
	"github.com/relevo-proxy/relevo/cmd/relevo/echo"
)

type options struct {
	relevo      string
	connections int
	settle      time.Duration
	watch       time.Duration
	load        time.Duration
	out         string // empty for standard output
}

func main() {
	var o options
	flag.StringVar(&o.relevo, "relevo", "bin/relevo", "the binary to measure")
	flag.IntVar(&o.connections, "connections", 10_000, "how many there are")
	flag.DurationVar(&o.settle, "settle", 150*time.Second, "how long memory is watched before the peak; by itself the runtime collects garbage every two minutes")
	flag.DurationVar(&o.watch, "watch", 5*time.Minute, "how long it is watched after the peak")
	flag.DurationVar(&o.load, "load", 20*time.Second, "how long the collector is watched under load")
	flag.StringVar(&o.out, "out", "", "the Markdown file whose section is written (default: print it)")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := idle(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "idle:", err)
		os.Exit(1)
	}
}

func idle(ctx context.Context, o options) (err error) {
	if o.connections < 1 || min(o.settle, o.watch, o.load) < time.Second {
		return errors.New("-connections must be 1 at least, -settle, -watch and -load a second")
	}
	if o.relevo, err = yard.Binary(o.relevo); err != nil {
		return fmt.Errorf("%w: build it with `make build`", err)
	}
	var section string
	err = yard.Run(ctx, func(ctx context.Context, y *yard.Yard) error {
		found, err := measure(ctx, y, o)
		section = found.section(ctx, o)
		return err
	})
	switch {
	case ctx.Err() != nil:
		return errors.New("interrupted: nothing is written")
	case err != nil:
		return err
	case o.out == "":
		_, err = os.Stdout.WriteString(section)
		return err
	}
	return yard.WriteSection(o.out, "idle", "make bench-idle", section)
}

const config = `listeners: [{name: bench, address: %q, protocol: bolt, accept_rate: none, max_connections: 20000}]
routes: [{name: rpc, rules: [{cluster: echo, timeout: 1m}]}]
clusters: [{name: echo, protocol: bolt, max_requests: 1000000, max_pending: 100000, max_pending_bytes: 512MiB, endpoints: [{address: %q}]}]
metrics: {address: %q}
log: {level: warn}
`

// site is a Relevo before an echo server in this process.
type site struct {
	address string
	metrics string // the URL
	proc    *yard.Process
	trace   *trace // what its collector says
}

// settle starts both. Whoever calls it calls stop, which returns when the server has ended.
func settle(y *yard.Yard, o options) (s *site, stop func(), err error) {
	server, err := echo.Listen(echo.Options{Listen: "127.0.0.1:0"})
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{}) // closed when the server has ended
	go func() {                  // ends with ctx
		defer close(ended)
		_ = server.Run(ctx) // a listener that broke shows in the requests
	}()
	stop = func() { cancel(); <-ended }
	defer func() {
		if err != nil {
			stop()
		}
	}()
	s = &site{trace: &trace{}}
	if s.address, err = yard.FreeAddress(); err != nil {
		return nil, nil, err
	}
	metrics, err := yard.FreeAddress()
	if err != nil {
		return nil, nil, err
	}
	s.metrics = "http://" + metrics + "/metrics"
	file := filepath.Join(y.Scratch, "relevo.yaml")
	if err = os.WriteFile(file, fmt.Appendf(nil, config, s.address, server.Addr(), metrics), 0o600); err != nil {
		return nil, nil, err
	}
	s.proc, err = y.Launch(yard.Command{
		Name: "relevo", Address: s.address, Args: []string{o.relevo, "run", "-c", file}, Env: []string{"GODEBUG=gctrace=1"}, Log: s.trace,
	})
	return s, stop, err
}
