//go:build linux

package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

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
	return fmt.Sprintf("%-10s %8d requests, %8.4f %% succeeded, %s; %s", name, r.Sent, 100*share(r), latency, strings.Join(bad, ", "))
}
