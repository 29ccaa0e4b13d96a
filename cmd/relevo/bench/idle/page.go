package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench/yard"
)

const introduction = `## Idle connections

%d client connections, on each of which there was one request of 1 KiB, and which then said nothing; then all of them busy at once for %v,
with %d requests in flight on each; then idle again. **RSS** is the growth of the resident size of Relevo's process since it had one
connection, divided by their number: what an idle connection costs. **Stacks** and **heap** are what the Go runtime has in use for
them; what the runtime keeps for later, and its own tables, are in RSS only. The goal is 6 KiB of RSS.

| | RSS KiB each | stacks KiB each | heap KiB each | RSS MiB in all |
|---|--:|--:|--:|--:|
`

// section is the part of the page.
func (f found) section(ctx context.Context, o options) string {
	var b strings.Builder
	fmt.Fprintf(&b, introduction, o.connections, peakTime, pipelined)
	each := func(now, before float64) string { return fmt.Sprintf("%.1f", (now-before)/float64(o.connections)/1024) }
	for _, r := range f.rows {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %.0f |\n", r.what, each(r.look.rss, f.before.rss), each(r.look.stacks, f.before.stacks),
			each(r.look.heap, f.before.heap), r.look.rss/(1<<20))
	}
	fmt.Fprintf(&b, "\n%.0f s after the peak memory was, and stayed, within a twentieth of what it was after %.0f s.\n", f.back.Seconds(), f.final.Seconds())
	b.WriteString("\n" + yard.Wrap(why) + "\n")
	b.WriteString(f.collector(o))
	fmt.Fprintf(&b, "\nMeasured on %s with:\n\n- %s\n- %s\n\n    make bench-idle\n", time.Now().UTC().Format(time.DateOnly), yard.Machine(ctx),
		yard.FirstLine(ctx, o.relevo, "version"))
	return b.String()
}

// collector is the line about garbage.
func (f found) collector(o options) string {
	if f.load == nil {
		return ""
	}
	cpu, _ := sum(f.cycles)
	used := f.load.Process.CPU * float64(f.load.OK) // µs
	mean, longest := sum(f.all)
	if n := len(f.all); n > 0 {
		mean /= time.Duration(n)
	}
	return "\n" + yard.Wrap(fmt.Sprintf("**Collecting garbage** beside %d connections with %d requests/s of 1 KiB: %d collections in %v took %.2f %% of the process's CPU time. In its "+
		"whole life a collection took %.1f ms of CPU time on average (%d of them), and stopped the process for %.2f ms at most.",
		o.connections, loadRate, len(f.cycles), o.load, 100*float64(cpu.Microseconds())/max(used, 1), mean.Seconds()*1000, len(f.all), longest.Seconds()*1000)) + "\n"
}

// sum returns the CPU time of all, and the longest pause.
func sum(all []cycle) (cpu, longest time.Duration) {
	for _, c := range all {
		cpu += c.cpu
		longest = max(longest, c.paused)
	}
	return cpu, longest
}

// why says what holds the memory: found with a heap profile and the depth of the stacks. Whoever changes the road looks again.
const why = "Behind the first request of each the stack of its read loop is 4 KiB, because the road of a request is deeper than the 2 KiB that a goroutine begins " +
	"with. It waits eleven calls down: within half of that, but too deep for the collector, which halves stacks of which less than a quarter " +
	"is in use. The heap holds, for each connection, some 800 bytes for the connection itself and what it is called back by, 250 for the socket of " +
	"package net, 150 for the client, and the runtime's goroutine, 450; what is beside it in RSS are the runtime's own tables, of which the " +
	"network poller's descriptor is the largest. No idle connection has a buffer.\n\n" +
	"What a peak leaves is buffers in pools. They are emptied by the second collection behind it, and only then their memory can go back to the " +
	"system. As forwarding makes no garbage, collections are minutes apart; so Relevo looks at its memory every 30 s and gives back what a peak has left."
