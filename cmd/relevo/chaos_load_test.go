//go:build linux

package main

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
)

// over says whether the load has ended.
func (l *traffic) over() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

// share is the part of a load's requests that succeeded.
func share(r *bench.Report) float64 { return float64(r.OK) / float64(max(r.Sent, 1)) }

// inShort is a load's report in a line.
func inShort(name string, r *bench.Report) string {
	var bad []string
	for _, s := range slices.Sorted(maps.Keys(r.Statuses)) {
		bad = append(bad, fmt.Sprintf("%s %d", s, r.Statuses[s]))
	}
	latency := "-"
	if l := r.Latency; l != nil {
		latency = fmt.Sprintf("p50 %.0f ms, p99 %.0f ms, max %.0f ms", l.P50/1000, l.P99/1000, l.Max/1000)
	}
	return fmt.Sprintf("%-10s %8d requests, %8.4f %% succeeded, %s; %s%s", name, r.Sent, 100*share(r), latency, strings.Join(bad, ", "), worst(r))
}

// worst is the seconds of a load in which most of its requests failed.
func worst(r *bench.Report) string {
	seconds := map[int64]uint64{}
	for i, p := range r.Timeline {
		if p.Errors > 0 {
			seconds[int64(i)*r.StepMillis/1000] += p.Errors
		}
	}
	order := slices.SortedFunc(maps.Keys(seconds), func(x, y int64) int { return cmp.Or(cmp.Compare(seconds[y], seconds[x]), cmp.Compare(x, y)) })
	var b strings.Builder
	for _, s := range order[:min(3, len(order))] {
		fmt.Fprintf(&b, ", %d in second %d", seconds[s], s)
	}
	return b.String()
}

// stalled is for how long, since this machine was started, something that wanted to run had to wait for a CPU. A test that
// takes its time from others fails for that, too, and this tells it apart. 0 where the kernel does not say.
func stalled() time.Duration {
	text, err := os.ReadFile("/proc/pressure/cpu")
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(text), "total=")
	var micros int64
	_, _ = fmt.Sscan(after, &micros) // else 0
	return time.Duration(micros) * time.Microsecond
}
