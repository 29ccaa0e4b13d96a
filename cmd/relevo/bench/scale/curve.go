package main

import (
	"context"
	"fmt"
	"os"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
	"github.com/relevo-proxy/relevo/cmd/relevo/bench/yard"
)

// curve is one question, and how it is answered.
type curve struct {
	name    string // of its file, too
	title   string
	x, y    string // what the axes say
	text    string // in the page: what was done
	why     string // in the page: where it bends, and why
	measure func(context.Context, *rig) (measured, error)
}

// measured is a curve's answer.
type measured struct {
	series []series
	notes  []column // further columns of the table, which are not drawn
}

// series is a line of the chart and a column of the table.
type series struct {
	name   string
	points []point // by x
}

type point struct{ x, y float64 }

// column is a further column of the table: a cell for each x of the first series.
type column struct {
	name  string
	cells []string
}

// curves are in the order of the page.
var curves = []curve{connections, routes, endpoints, inFlight}

// costs measures the CPU time of one load on each target, in turns that rotate from round to round, and returns the medians in
// µs per request, in the order of the targets.
func (r *rig) costs(ctx context.Context, targets []*target, what string, o bench.Options) ([]float64, error) {
	o.Warmup, o.Duration = warmup, r.duration
	all := make([][]float64, len(targets))
	for round := range r.rounds {
		for turn := range targets {
			i := (round + turn) % len(targets)
			report, err := targets[i].load(ctx, o)
			if err != nil {
				return nil, err
			}
			all[i] = append(all[i], report.Process.CPU)
			fmt.Fprintf(os.Stderr, "  %-24s round %d  %-12s %8.2f µs/request %8.0f/s\n", what, round+1, targets[i].name, report.Process.CPU, report.Throughput)
		}
	}
	medians := make([]float64, len(targets))
	for i, costs := range all {
		medians[i] = yard.Median(costs)
	}
	return medians, nil
}

// few is the load of the curves whose proxies change from point to point: where nothing but the road costs anything.
var few = bench.Options{Connections: 8, InFlight: 64, Size: 1 << 10}

// totalInFlight is shared out among all connections.
const totalInFlight = 4096

var connections = curve{
	name:  "connections",
	title: "CPU per request by connections",
	x:     "connections", y: "µs per request",
	text: "A closed loop of 4,096 requests of 1 KiB in flight, shared out among all connections: 4,096 on one, or one on each of 4,096.",
	why:  connectionsWhy,
	measure: func(ctx context.Context, r *rig) (m measured, err error) {
		addresses, stop, err := servers(1)
		if err != nil {
			return m, err
		}
		defer stop()
		relevo, err := r.relevo([]rule{everything}, addresses, 1)
		if err != nil {
			return m, err
		}
		targets := []*target{relevo}
		for _, other := range []struct {
			program string
			start   func(string) (*target, error)
		}{{r.floor, r.bare}, {r.haproxy, r.relay}} {
			if other.program == "" {
				continue
			}
			t, err := other.start(addresses[0])
			if err != nil {
				return m, err
			}
			targets = append(targets, t)
		}
		defer stopAll(targets)
		for _, t := range targets {
			m.series = append(m.series, series{name: t.name})
		}
		for _, n := range []int{1, 8, 64, 512, 4096} {
			costs, err := r.costs(ctx, targets, fmt.Sprintf("%d connections", n), bench.Options{Connections: n, InFlight: totalInFlight / n, Size: 1 << 10})
			if err != nil {
				return m, err
			}
			for i, cost := range costs {
				m.series[i].points = append(m.series[i].points, point{float64(n), cost})
			}
		}
		return m, nil
	},
}

func stopAll(targets []*target) {
	for _, t := range targets {
		t.proc.Stop()
	}
}

// prefixLengths is how many lengths the prefixes of the routes have.
const prefixLengths = 32

// The kinds of rules, and how many of each there are at most: a regex more is a look more.
var ruleKinds = []struct {
	name string
	most int
	rule func(i int) rule
}{
	{"exact services", 10_000, func(i int) rule {
		return rule(fmt.Sprintf("{match: {service: %q}, cluster: echo}", other(i)))
	}},
	{fmt.Sprintf("prefixes of %d lengths", prefixLengths), 10_000, func(i int) rule {
		name := other(i) + "abcdefghijklmnopqrstuvwxyzabcdef"[:i%prefixLengths]
		return rule(fmt.Sprintf("{match: {service: {prefix: %q}}, cluster: echo}", name))
	}},
	{"regular expressions", 1000, func(i int) rule {
		return rule(fmt.Sprintf("{match: {service: {regex: %q}}, cluster: echo}", other(i)+".*"))
	}},
}

// other is the name of a service that is not called: all of them differ.
func other(i int) string { return fmt.Sprintf("com.relevo.Other%05d:1.0", i) }

var routes = curve{
	name:  "routes",
	title: "CPU per request by routes",
	x:     "rules", y: "µs per request",
	text: "8 connections with 64 requests of 1 KiB in flight on each; all of them match the last rule, an exact service, and none before it.",
	why:  routesWhy,
	measure: func(ctx context.Context, r *rig) (m measured, err error) {
		addresses, stop, err := servers(1)
		if err != nil {
			return m, err
		}
		defer stop()
		for _, kind := range ruleKinds {
			line := series{name: kind.name}
			for _, n := range []int{1, 10, 100, 1000, 10_000} {
				if n > kind.most {
					break
				}
				var rules []rule
				for i := range n - 1 {
					rules = append(rules, kind.rule(i))
				}
				rules = append(rules, rule(fmt.Sprintf("{match: {service: %q}, cluster: echo}", service)))
				cost, err := r.costOf(ctx, rules, addresses, fmt.Sprintf("%d %s", n, kind.name))
				if err != nil {
					return m, err
				}
				line.points = append(line.points, point{float64(n), cost})
			}
			m.series = append(m.series, line)
		}
		return m, nil
	},
}

// costOf is what a request of the few costs with a Relevo of its own.
func (r *rig) costOf(ctx context.Context, rules []rule, endpoints []string, what string) (float64, error) {
	t, err := r.relevo(rules, endpoints, 1)
	if err != nil {
		return 0, err
	}
	defer t.proc.Stop()
	costs, err := r.costs(ctx, []*target{t}, what, few)
	if err != nil {
		return 0, err
	}
	return costs[0], nil
}

var endpoints = curve{
	name:  "endpoints",
	title: "CPU per request by endpoints",
	x:     "endpoints", y: "µs per request",
	text: "8 connections with 64 requests of 1 KiB in flight on each, shared out among the endpoints by least request.",
	why:  endpointsWhy,
	measure: func(ctx context.Context, r *rig) (m measured, err error) {
		line := series{name: "relevo"}
		for _, n := range []int{1, 10, 100, 1000} {
			addresses, stop, err := servers(n)
			if err != nil {
				return m, err
			}
			cost, err := r.costOf(ctx, []rule{everything}, addresses, fmt.Sprintf("%d endpoints", n))
			stop()
			if err != nil {
				return m, err
			}
			line.points = append(line.points, point{float64(n), cost})
		}
		m.series = []series{line}
		return m, nil
	},
}
