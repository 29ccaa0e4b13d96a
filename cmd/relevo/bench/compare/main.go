// Command compare runs Relevo and other proxies side by side on one machine and writes what each of them costs.
//
// All of them forward to the same echo server, take turns within a round, and the turns rotate from round to round, so that
// whatever else the machine does meets all of them alike. The figure that counts is the proxy's own CPU time per request.
//
// It is no part of the product. It starts every process that it measures, and ends those and no other.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench/yard"
)

type options struct {
	relevo   string
	baseline string // another relevo; empty for none
	floor    string // the bare relay; empty for none
	rounds   int
	duration time.Duration
	only     string
	out      string // empty for standard output
	raw      string // empty for nowhere
	direct   bool
	beside   bool
	fair     bool
}

func main() {
	var o options
	flag.StringVar(&o.relevo, "relevo", "bin/relevo", "the binary to measure, which is load generator and echo server too")
	flag.StringVar(&o.baseline, "baseline", "", "another relevo binary, of an earlier release perhaps, to run inline in the same rounds")
	flag.StringVar(&o.floor, "floor", "", "the binary of cmd/relevo/bench/floor, to measure a bare relay, too")
	flag.IntVar(&o.rounds, "rounds", 5, "how often each proxy runs each workload")
	flag.DurationVar(&o.duration, "duration", 3*time.Second, "length of one run")
	flag.StringVar(&o.only, "workloads", "", "names separated by commas, of "+strings.Join(workloadNames(), ", ")+" (default all)")
	flag.StringVar(&o.out, "out", "", "the Markdown file to write (default, or -: standard output)")
	flag.StringVar(&o.raw, "raw", "bin/benchmarks.json", "where each run's report goes; empty for nowhere")
	flag.BoolVar(&o.direct, "direct", true, "measure the echo server without a proxy, too")
	flag.BoolVar(&o.beside, "neighbours", true, "measure what bad neighbours cost the others, too")
	flag.BoolVar(&o.fair, "fairness", false, "measure what a connection sees of others that flood, and nothing else, and write that section alone")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := compare(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

// compare returns only after every process that it started has ended.
func compare(ctx context.Context, o options) (err error) {
	chosen, err := choose(o.only)
	if err != nil {
		return err
	}
	if o.rounds < 1 || o.duration <= 0 {
		return errors.New("-rounds and -duration must be positive")
	}
	if o.out == "-" {
		o.out = ""
	}
	if o.relevo, err = yard.Binary(o.relevo); err != nil {
		return fmt.Errorf("%w: build it with `make build`", err)
	}
	if o.baseline != "" {
		if o.baseline, err = yard.Binary(o.baseline); err != nil {
			return fmt.Errorf("-baseline: %w", err)
		}
	}
	if o.floor != "" {
		if o.floor, err = yard.Binary(o.floor); err != nil {
			return fmt.Errorf("-floor: %w", err)
		}
	}

	return yard.Run(ctx, func(ctx context.Context, y *yard.Yard) error { return inYard(ctx, y, o, chosen) })
}

// inYard measures, and writes what came of it.
func inYard(ctx context.Context, y *yard.Yard, o options, chosen []workload) error {
	targets, err := start(ctx, y, o)
	if err != nil {
		return err
	}
	if o.fair {
		return fairness(ctx, o, targets)
	}
	results, err := measure(ctx, o, targets, chosen)
	if err != nil {
		return err
	}

	var beside []neighbourResult
	if o.beside {
		n, err := settle(y, o)
		if err != nil {
			return err
		}
		if beside, err = measureNeighbours(ctx, o, n); err != nil {
			return err
		}
	}

	if o.raw != "" {
		raw, err := json.MarshalIndent(everything{results, beside}, "", "  ")
		if err != nil {
			return err
		}
		if err := yard.WriteFile(o.raw, append(raw, '\n')); err != nil {
			return err
		}
	}
	page := document(o, yard.Machine(ctx), targets, chosen, results, beside)
	if o.out == "" {
		_, err = os.Stdout.WriteString(page)
	} else {
		err = yard.WriteText(o.out, page)
	}
	return errors.Join(err, failed(results), failedBeside(beside))
}

// everything is what the raw file holds.
type everything struct {
	Runs       []result          `json:"runs"`
	Neighbours []neighbourResult `json:"neighbours,omitempty"`
}

// failed says so when a request failed: such a run is written down, but it compares nothing.
func failed(results []result) error {
	var bad uint64
	for _, r := range results {
		bad += figuresOf(r.Report).bad
	}
	if bad > 0 {
		return fmt.Errorf("%d requests failed: see the table", bad)
	}
	return nil
}
