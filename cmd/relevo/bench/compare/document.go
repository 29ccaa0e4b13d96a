package main

import (
	"fmt"
	"strings"
	"time"
)

const explanation = `# Benchmarks

Relevo beside haproxy in TCP mode, measured in turns in one run: medians of %d rounds of %s each. The load generator, the
proxy and the echo server share the cores of one machine, on the loopback interface.

The figure that counts is **CPU µs/request**: the proxy's own CPU time, user and system, per request and its reply. It does not
depend on who else uses the cores. **x haproxy** is its ratio to haproxy's in the same run, and **goal** the ratio that the project
wants to reach; what is above it is work to come.
Throughput and latency are those of a machine with nothing to spare in the closed loops; ` + "`direct`" + ` is the echo server without a
proxy. haproxy forwards bytes (layer 4); Relevo decodes each frame, picks a route by its service, numbers it anew on one shared
connection and matches its reply (layer 7).

` + "`relevo`" + ` runs inline, as it does by default where nothing on the route may block: its read loops carry the requests.
` + "`relevo worker`" + ` is the same program with ` + "`forwarding: worker`" + `: a worker carries each request and waits for its reply, so that at
most ` + "`workers.max`" + ` of them, 256 a processor, are in flight at a time; the others wait for a worker.
%s
A workload is connections x requests in flight on each x bytes of content. In the open loops requests come at a fixed rate,
whether or not replies do, and latency counts from when a request was due.

`

const baselineExplanation = `
` + "`relevo baseline`" + ` is another build of Relevo, inline too and with the configuration of ` + "`relevo`" + `, in the same rounds. **x baseline** is
the ratio of ` + "`relevo`" + `'s CPU time per request to the baseline's.
`

// document is the page: what was measured, on what, and the tables.
func document(o options, machine string, targets []*target, chosen []workload, results []result, beside []neighbourResult) string {
	var b strings.Builder
	more := ""
	if o.baseline != "" {
		more = baselineExplanation
	}
	fmt.Fprintf(&b, explanation, o.rounds, o.duration, more)
	writeTable(&b, o, targets, chosen, results)

	if len(beside) > 0 {
		b.WriteString(neighbourhoodSection(beside))
	}

	fmt.Fprintf(&b, "\nMeasured on %s with:\n\n", time.Now().UTC().Format(time.DateOnly))
	fmt.Fprintf(&b, "- %s\n", machine)
	for _, t := range targets {
		if t.version != "" {
			fmt.Fprintf(&b, "- %s: %s\n", t.name, t.version)
		}
	}
	fmt.Fprintf(&b, "\n    %s\n", command(o))
	return b.String()
}

// others are the sections of an earlier page that other benches write, each between marks that name it. cmd/relevo's
// upgrade_bench_test.go has them too.
func others(page string) string {
	var kept strings.Builder
	for _, name := range []string{"upgrades", "configuration"} {
		begin := strings.Index(page, "<!-- "+name+": from here on")
		if begin < 0 {
			continue
		}
		last := "<!-- " + name + ": up to here -->\n"
		if end := strings.Index(page[begin:], last); end >= 0 {
			kept.WriteString("\n" + page[begin:begin+end+len(last)])
		}
	}
	return kept.String()
}

// writeTable writes a row for each workload and target. Only with a baseline is there a column for it.
func writeTable(b *strings.Builder, o options, targets []*target, chosen []workload, results []result) {
	head, line := "", ""
	if o.baseline != "" {
		head, line = " x baseline |", "--:|"
	}
	fmt.Fprintf(b, "| workload | | CPU µs/request | x haproxy |%s goal | requests/s | p50 ms | p99 ms | failed |\n", head)
	fmt.Fprintf(b, "|---|---|--:|--:|%s--:|--:|--:|--:|--:|\n", line)
	for _, w := range chosen {
		haproxy := medians(results, w, haproxyName).cpu
		baseline := medians(results, w, baselineName).cpu
		for i, t := range targets {
			m := medians(results, w, t.name)
			label, cpu, toHaproxy, toBaseline, goal := "", "", "", "", ""
			if i == 0 {
				label = w.String()
			}
			if t.proc != nil {
				cpu, toHaproxy = fmt.Sprintf("%.2f", m.cpu), ratio(m.cpu, haproxy)
			}
			if t.name == relevoName {
				toBaseline = ratio(m.cpu, baseline)
			}
			if g := w.goalOf(t.name); g > 0 {
				goal = fmt.Sprintf("%.1f", g)
			}
			if o.baseline != "" {
				toBaseline = " " + toBaseline + " |"
			}
			fmt.Fprintf(b, "| %s | %s | %s | %s |%s %s | %.0f | %.3f | %.3f | %d |\n",
				label, t.name, cpu, toHaproxy, toBaseline, goal, m.rate, m.p50, m.p99, m.bad)
		}
	}
}

// command is what to type to measure the same again.
func command(o options) string {
	line := fmt.Sprintf("make build && go run ./cmd/relevo/bench/compare -rounds %d -duration %s", o.rounds, o.duration)
	if o.baseline != "" {
		line += " -baseline PATH" // where it lay says nothing elsewhere: its version is named
	}
	if o.only != "" {
		line += " -workloads " + o.only
	}
	if !o.direct {
		line += " -direct=false"
	}
	if !o.beside {
		line += " -neighbours=false"
	}
	if o.out != "" {
		line += " -out docs/benchmarks.md"
	}
	return line
}
