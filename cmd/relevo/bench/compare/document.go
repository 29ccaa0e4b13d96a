package main

import (
	"fmt"
	"strings"
	"time"
)

const explanation = `# Benchmarks

Relevo beside haproxy in TCP mode and nginx with its stream module, measured in turns in one run: medians of %d rounds of %s each.
The load generator, the proxy and the echo server share the cores of one machine, on the loopback interface.

The figure that counts is **CPU µs/request**: the proxy's own CPU time, user and system, per request and its reply. It does not
depend on who else uses the cores. **x haproxy** is its ratio to haproxy's in the same run, and **goal** the ratio that the project
wants to reach; what is above it is work to come.
Throughput and latency are those of a machine with nothing to spare in the closed loops; ` + "`direct`" + ` is the echo server without a
proxy. haproxy and nginx forward bytes (layer 4); Relevo decodes each frame, picks a route by its service, numbers it anew on one
shared connection and matches its reply (layer 7). RSS is the proxy's resident size at the end of the run.

` + "`relevo`" + ` runs inline, as it does by default where nothing on the route may block: its read loops carry the requests.
` + "`relevo worker`" + ` is the same program with ` + "`forwarding: worker`" + `: a worker carries each request and waits for its reply, so that at
most ` + "`workers.max`" + ` of them, 256 a processor, are in flight at a time; the others wait for a worker.
%s%s
A workload is connections x requests in flight on each x bytes of content. In the open loops requests come at a fixed rate,
whether or not replies do, and latency counts from when a request was due.

`

const baselineExplanation = `
` + "`relevo baseline`" + ` is another build of Relevo, inline too and with the configuration of ` + "`relevo`" + `, in the same rounds. **x baseline** is
the ratio of ` + "`relevo`" + `'s CPU time per request to the baseline's.
`

const floorExplanation = `
` + "`bare relay`" + ` is a small Go program that does the same wire work, reading frames, numbering them anew on one shared
connection and matching replies, and nothing else: no routes, limits, deadlines or statistics (` + "`cmd/relevo/bench/floor`" + `).
**x bare** is the ratio to its CPU time per request: Relevo's distance from the floor.
`

// distance is what the profiles say of Relevo's distance from the bare relay.
const distance = `
## What is above its goal

Inline with many requests in flight on few connections. Three quarters of a request are the kernel's there: copying its bytes, and
waking who waits for them; of the rest no function has more than a thirtieth. The bare relay's distance is for the most part that of
its larger writes: it is faster, so more has come when it reads again. Tried, and left because it did not measure better: profile-guided
optimization, yielding to other connections before a flush or a read, reads of 128 KiB. A worker's two hand-overs over a channel cost
170 ns each; coroutines would be 85, and a goroutine more for each worker that blocks.
`

// document is the page: what was measured, on what, and the tables.
func document(o options, machine string, targets []*target, chosen []workload, results []result, beside []neighbourResult) string {
	var b strings.Builder
	baseline, floor := "", ""
	if o.baseline != "" {
		baseline = baselineExplanation
	}
	if o.floor != "" {
		floor = floorExplanation
	}
	fmt.Fprintf(&b, explanation, o.rounds, o.duration, baseline, floor)
	writeTable(&b, o, targets, chosen, results)
	if o.floor != "" {
		b.WriteString(distance)
	}

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

// writeTable writes a row for each workload and target. Only with a baseline, or a floor, is there a column for it.
func writeTable(b *strings.Builder, o options, targets []*target, chosen []workload, results []result) {
	columns := []string{"workload", "", "CPU µs/request", "x haproxy"}
	if o.baseline != "" {
		columns = append(columns, "x baseline")
	}
	if o.floor != "" {
		columns = append(columns, "x bare")
	}
	columns = append(columns, "goal", "requests/s", "p50 ms", "p99 ms", "RSS MiB", "failed")
	writeRow(b, columns...)
	fmt.Fprintf(b, "|---|---|%s\n", strings.Repeat("--:|", len(columns)-2))
	for _, w := range chosen {
		for i, t := range targets {
			label := ""
			if i == 0 {
				label = w.String()
			}
			writeRow(b, append([]string{label, t.name}, cells(o, results, w, t)...)...)
		}
	}
}

func writeRow(b *strings.Builder, cells ...string) {
	fmt.Fprintf(b, "| %s |\n", strings.Join(cells, " | "))
}

// cells are the figures of a row.
func cells(o options, results []result, w workload, t *target) []string {
	m := medians(results, w, t.name)
	to := func(target string) string {
		if t.proc == nil {
			return ""
		}
		return ratio(m.cpu, medians(results, w, target).cpu)
	}
	cpu, rss, goal, baseline := "", "", "", ""
	if t.proc != nil {
		cpu, rss = fmt.Sprintf("%.2f", m.cpu), fmt.Sprintf("%.0f", mebibytes(m.rss))
	}
	if g := w.goalOf(t.name); g > 0 {
		goal = fmt.Sprintf("%.1f", g)
	}
	if t.name == relevoName {
		baseline = to(baselineName)
	}
	row := []string{cpu, to(haproxyName)}
	if o.baseline != "" {
		row = append(row, baseline)
	}
	if o.floor != "" {
		row = append(row, to(floorName))
	}
	return append(row, goal, fmt.Sprintf("%.0f", m.rate), fmt.Sprintf("%.3f", m.p50), fmt.Sprintf("%.3f", m.p99), rss, fmt.Sprint(m.bad))
}

// command is what to type to measure the same again.
func command(o options) string {
	line := fmt.Sprintf("go run ./cmd/relevo/bench/compare -rounds %d -duration %s", o.rounds, o.duration)
	if o.floor != "" {
		line = "make build build-floor && " + line + " -floor bin/floor"
	} else {
		line = "make build && " + line
	}
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
