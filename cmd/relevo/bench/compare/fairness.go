package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
	"github.com/relevo-proxy/relevo/cmd/relevo/bench/yard"
)

// Fairness: what a quiet connection, with a request every two milliseconds, sees of others that send as much as they can.
const (
	fairDuration   = 4 * time.Second
	fairRate       = 500 // requests a second of the quiet connection
	floodLead      = time.Second
	floodConns     = 8
	floodInFlight  = 64
	fairnessSize   = 1 << 10
	fairnessTarget = "make bench-fairness"
)

const fairnessExplanation = `## Fairness

One quiet connection sends %d requests/s of 1 KiB, on its own (alone) and beside %d connections that flood (beside): each keeps %d requests of
1 KiB in flight. Medians of %d rounds of %v each, in turns; max is the longest of all. All share the cores of one machine, so the quiet
one waits for a core beside any proxy; **direct** is the echo server without one.%s

| | alone p50 ms | p99 ms | beside p50 ms | p99 ms | p99.9 ms | max ms | p99 x alone | flood, requests/s | failed |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|
`

// fairResult is one run of the quiet connection.
type fairResult struct {
	target string
	beside bool
	quiet  bench.Report
	flood  bench.Report // empty alone
}

// fairness measures, and writes that section of the page.
func fairness(ctx context.Context, o options, targets []*target) error {
	var results []fairResult
	for round := range o.rounds {
		for turn := range targets {
			t := targets[(round+turn)%len(targets)]
			for _, beside := range []bool{round%2 == 0, round%2 == 1} {
				r, err := fairRun(ctx, o, t, beside)
				if ctx.Err() != nil {
					return errors.New("interrupted: nothing is written")
				}
				if err != nil {
					return fmt.Errorf("%s: %w", t.name, err)
				}
				results = append(results, r)
				fmt.Fprintf(os.Stderr, "fairness  round %d  %-15s  beside %-5v  %s\n", round+1, t.name, beside, figuresOf(r.quiet))
			}
		}
	}
	section, bad := fairnessSection(ctx, o, targets, results)
	fmt.Print(section)
	if bad > 0 {
		return fmt.Errorf("%d requests failed: see the table", bad)
	}
	if o.out == "" {
		return nil
	}
	return yard.WriteSection(o.out, "fairness", fairnessTarget, section)
}

// fairRun is one run of the quiet connection. What floods beside it has ended when it returns.
func fairRun(ctx context.Context, o options, t *target, beside bool) (r fairResult, err error) {
	r = fairResult{target: t.name, beside: beside}
	var group sync.WaitGroup
	if beside {
		length := floodLead + warmup + fairDuration
		var failure error
		// Ends when the generator does: within its duration and the slack.
		group.Go(func() {
			r.flood, failure = generate(ctx, o, length, "--addr", t.address, "--service", service, "--connections", strconv.Itoa(floodConns),
				"--in-flight", strconv.Itoa(floodInFlight), "--size", strconv.Itoa(fairnessSize), "--duration", length.String())
		})
		defer func() {
			group.Wait()
			err = errors.Join(err, failure)
		}()
		lead := time.NewTimer(floodLead)
		defer lead.Stop()
		select {
		case <-lead.C:
		case <-ctx.Done():
		}
	}
	r.quiet, err = generate(ctx, o, fairDuration, "--addr", t.address, "--service", service, "--connections", "1", "--rate", strconv.Itoa(fairRate),
		"--size", strconv.Itoa(fairnessSize), "--warmup", warmup.String(), "--duration", fairDuration.String())
	if err == nil && r.quiet.Latency == nil {
		err = errors.New("no request of the quiet connection came back")
	}
	return r, err
}

// fairnessSection is the section, and how many requests failed.
func fairnessSection(ctx context.Context, o options, targets []*target, results []fairResult) (section string, bad uint64) {
	var b strings.Builder
	before := ""
	if o.baseline != "" {
		before = "\n**" + baselineName + "** is Relevo before its reads, writes and batches were tuned (" + yard.FirstLine(ctx, o.baseline, "version") + ")."
	}
	fmt.Fprintf(&b, fairnessExplanation, fairRate, floodConns, floodInFlight, o.rounds, fairDuration, before)
	for _, t := range targets {
		of := func(beside bool, get func(*fairResult) float64) (all []float64) {
			for i := range results {
				if r := &results[i]; r.target == t.name && r.beside == beside {
					all = append(all, get(r))
				}
			}
			return all
		}
		latency := func(beside bool, get func(*bench.Latency) float64) float64 {
			return yard.Median(of(beside, func(r *fairResult) float64 { return get(r.quiet.Latency) / 1e3 }))
		}
		p50 := func(l *bench.Latency) float64 { return l.P50 }
		p99 := func(l *bench.Latency) float64 { return l.P99 }
		longest, failed := 0.0, uint64(0)
		for _, beside := range []bool{false, true} {
			of(beside, func(r *fairResult) float64 {
				failed += figuresOf(r.quiet).bad + figuresOf(r.flood).bad
				if r.beside {
					longest = max(longest, r.quiet.Latency.Max/1e3)
				}
				return 0
			})
		}
		fmt.Fprintf(&b, "| %s | %.3f | %.3f | %.3f | %.3f | %.3f | %.3f | %s | %.0f | %d |\n", t.name, latency(false, p50), latency(false, p99),
			latency(true, p50), latency(true, p99), latency(true, func(l *bench.Latency) float64 { return l.P999 }), longest,
			ratio(latency(true, p99), latency(false, p99)), yard.Median(of(true, func(r *fairResult) float64 { return r.flood.Throughput })), failed)
		bad += failed
	}
	fmt.Fprintf(&b, "\nMeasured on %s on %s with %s and\n    %s\n", time.Now().UTC().Format(time.DateOnly), yard.Machine(ctx),
		yard.FirstLine(ctx, o.relevo, "version"), fairnessTarget)
	return b.String(), bad
}
