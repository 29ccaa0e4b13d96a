package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
	"github.com/relevo-proxy/relevo/cmd/relevo/bench/yard"
)

const (
	// warmup goes before what is measured: connections are made, buffers grow.
	warmup = 500 * time.Millisecond
	// slack is what a run may take beyond its duration: dialling, warming up, waiting for the last replies.
	slack = 30 * time.Second
)

// result is one run of a workload against a target.
type result struct {
	Workload string       `json:"workload"`
	Target   string       `json:"target"`
	Round    int          `json:"round"` // from 1
	Report   bench.Report `json:"report"`
}

// measure runs each workload against each target in each round. The targets take turns; who is first rotates.
func measure(ctx context.Context, o options, targets []*target, chosen []workload) ([]result, error) {
	var results []result
	total := o.rounds * len(chosen) * len(targets)
	for round := range o.rounds {
		for _, w := range chosen {
			for turn := range targets {
				t := targets[(round+turn)%len(targets)]
				report, err := run(ctx, o, t, w)
				if ctx.Err() != nil {
					return nil, errors.New("interrupted: nothing is written")
				}
				if err != nil {
					return nil, err
				}
				r := result{Workload: w.name, Target: t.name, Round: round + 1, Report: report}
				results = append(results, r)
				fmt.Fprintf(os.Stderr, "%3d/%d  round %d  %-11s %-15s %s\n", len(results), total, r.Round, w.name, t.name, figuresOf(report))
			}
		}
	}
	return results, nil
}

func run(ctx context.Context, o options, t *target, w workload) (report bench.Report, err error) {
	args := append([]string{
		"--addr", t.address, "--service", service, "--warmup", warmup.String(), "--duration", o.duration.String(),
	}, w.args()...)
	if t.proc != nil {
		args = append(args, "--pid", strconv.Itoa(t.proc.PID))
	}
	if report, err = generate(ctx, o, o.duration, args...); err != nil {
		return report, fmt.Errorf("%s on %s: %w", w.name, t.name, err)
	}
	if t.proc == nil {
		return report, nil
	}
	if report.Process == nil || report.Process.Error != "" {
		return report, fmt.Errorf("%s on %s: no CPU time was measured", w.name, t.name)
	}
	return report, t.proc.Alive()
}

// generate runs the load generator to its end and returns its report.
func generate(ctx context.Context, o options, length time.Duration, args ...string) (report bench.Report, err error) {
	command := append([]string{o.relevo, "bench", "bolt", "-o", "json"}, args...)
	// The generator ends with an error when a request failed, and reports all the same.
	out, _, failure := yard.Output(ctx, length+slack, command...)
	if err := json.Unmarshal(out, &report); err != nil {
		return report, errors.Join(failure, err)
	}
	return report, nil
}

// figures are what the table shows of a run, or the medians of several.
type figures struct {
	cpu      float64 // µs of the proxy's CPU time per request; 0 where it was not measured
	rate     float64 // requests a second
	p50, p99 float64 // ms
	rss      float64 // bytes of the proxy at the end; 0 where it was not measured
	bad      uint64  // requests without the right reply: a sum, never a median
}

// figuresOf picks the figures of one report.
func figuresOf(r bench.Report) figures {
	f := figures{
		rate: r.Throughput,
		bad:  r.Timeouts + r.Lost + r.Unfinished + r.Overrun + r.Mismatched + r.Duplicated + r.Malformed,
	}
	for _, n := range r.Statuses {
		f.bad += n
	}
	if r.Process != nil {
		f.cpu, f.rss = r.Process.CPU, float64(r.Process.RSS)
	}
	if r.Latency != nil {
		f.p50, f.p99 = r.Latency.P50/1000, r.Latency.P99/1000
	}
	return f
}

func (f figures) String() string {
	return fmt.Sprintf("%6.2f µs/request %8.0f/s  p50 %.3f ms  p99 %.3f ms  bad %d", f.cpu, f.rate, f.p50, f.p99, f.bad)
}

// medians returns the medians over the rounds of a workload on a target.
func medians(results []result, w workload, target string) figures {
	var all []figures
	for _, r := range results {
		if r.Workload == w.name && r.Target == target {
			all = append(all, figuresOf(r.Report))
		}
	}
	middle := func(get func(figures) float64) float64 {
		var values []float64
		for _, f := range all {
			values = append(values, get(f))
		}
		return yard.Median(values)
	}
	m := figures{
		cpu:  middle(func(f figures) float64 { return f.cpu }),
		rate: middle(func(f figures) float64 { return f.rate }),
		p50:  middle(func(f figures) float64 { return f.p50 }),
		p99:  middle(func(f figures) float64 { return f.p99 }),
		rss:  middle(func(f figures) float64 { return f.rss }),
	}
	for _, f := range all {
		m.bad += f.bad
	}
	return m
}
