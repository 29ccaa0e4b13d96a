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
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

type options struct {
	relevo   string
	baseline string // another relevo; empty for none
	rounds   int
	duration time.Duration
	only     string
	out      string // empty for standard output
	raw      string // empty for nowhere
	direct   bool
	beside   bool
}

func main() {
	var o options
	flag.StringVar(&o.relevo, "relevo", "bin/relevo", "the binary to measure, which is load generator and echo server too")
	flag.StringVar(&o.baseline, "baseline", "", "another relevo binary, of an earlier release perhaps, to run inline in the same rounds")
	flag.IntVar(&o.rounds, "rounds", 5, "how often each proxy runs each workload")
	flag.DurationVar(&o.duration, "duration", 3*time.Second, "length of one run")
	flag.StringVar(&o.only, "workloads", "", "names separated by commas, of "+strings.Join(workloadNames(), ", ")+" (default all)")
	flag.StringVar(&o.out, "out", "", "the Markdown file to write (default, or -: standard output)")
	flag.StringVar(&o.raw, "raw", "bin/benchmarks.json", "where each run's report goes; empty for nowhere")
	flag.BoolVar(&o.direct, "direct", true, "measure the echo server without a proxy, too")
	flag.BoolVar(&o.beside, "neighbours", true, "measure what bad neighbours cost the others, too")
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
	if o.relevo, err = binary(o.relevo); err != nil {
		return fmt.Errorf("%w: build it with `make build`", err)
	}
	if o.baseline != "" {
		if o.baseline, err = binary(o.baseline); err != nil {
			return fmt.Errorf("-baseline: %w", err)
		}
	}

	scratch, err := os.MkdirTemp("", "relevo-compare-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	ctx, cancel := context.WithCancel(ctx)
	yard := &yard{ctx: ctx, scratch: scratch}
	defer yard.wait()
	defer cancel()

	targets, err := start(yard, o)
	if err != nil {
		return err
	}
	results, err := measure(ctx, o, targets, chosen)
	if err != nil {
		return err
	}

	var beside []neighbourResult
	if o.beside {
		n, err := settle(yard, o)
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
		if err := writeFile(o.raw, append(raw, '\n')); err != nil {
			return err
		}
	}
	page := document(o, machine(ctx), targets, chosen, results, beside)
	if o.out == "" {
		_, err = os.Stdout.WriteString(page)
	} else {
		var before []byte
		if before, err = os.ReadFile(o.out); err == nil || errors.Is(err, fs.ErrNotExist) {
			err = writeFile(o.out, []byte(page+others(string(before))))
		}
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

// binary returns the absolute path of a program: a bare name would be looked up on the path, not in this folder.
func binary(name string) (string, error) {
	absolute, err := filepath.Abs(name)
	if err != nil {
		return "", err
	}
	_, err = os.Stat(absolute)
	return absolute, err
}

func writeFile(name string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, content, 0o644)
}
