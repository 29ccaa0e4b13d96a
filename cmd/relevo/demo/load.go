package demo

import (
	"fmt"
	"strings"
	"time"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// requestTimeout is long: on a machine that is busy with something else a late reply is no lost one.
const requestTimeout = 10 * time.Second

// load is one kind of traffic.
type load struct {
	name    string
	options bench.Options
}

// loads are sent one after another: many small requests, few large ones with a checksum, and a schedule.
var loads = []load{
	{"8 x 16, 1 KiB, v1", bench.Options{Connections: 8, InFlight: 16, Size: 1 << 10, Version: bolt.V1}},
	{"4 x 4, 64 KiB, v2-crc", bench.Options{Connections: 4, InFlight: 4, Size: 64 << 10, Version: bolt.V2CRC}},
	{"1000/s, 256 B, v2", bench.Options{Connections: 16, Rate: 1000, Size: 256, Version: bolt.V2}},
}

// loadHead is what stands above loadCells.
var loadHead = []string{"load", "requests", "errors", "per second", "p50", "p90", "p99", "p99.9", "max"}

// loadCells is a report as a row: requests, errors, requests a second, latencies.
func loadCells(name string, r *bench.Report) []string {
	cells := []string{name, fmt.Sprint(r.Sent), fmt.Sprint(bad(r)), fmt.Sprintf("%.0f", r.Throughput)}
	if l := r.Latency; l != nil {
		for _, us := range []float64{l.P50, l.P90, l.P99, l.P999, l.Max} {
			cells = append(cells, millis(us))
		}
	}
	return cells
}

// millis is a number of microseconds in milliseconds.
func millis(us float64) string { return fmt.Sprintf("%.2f ms", us/1e3) }

// bad is how often a request came to anything but its own reply with SUCCESS.
func bad(r *bench.Report) uint64 {
	return statuses(r) + r.Timeouts + r.Lost + r.Unfinished + r.Overrun + r.Mismatched + r.Duplicated + r.Malformed
}

func statuses(r *bench.Report) (n uint64) {
	for _, k := range r.Statuses {
		n += k
	}
	return n
}

// failures is what bad counts, in words.
func failures(r *bench.Report) string {
	var list []string
	for _, c := range []struct {
		n    uint64
		what string
	}{
		{statuses(r), "answered with another status"},
		{r.Timeouts, "timed out"},
		{r.Lost, "lost"},
		{r.Unfinished, "unfinished"},
		{r.Overrun, "not sent in time"},
		{r.Mismatched, "mismatched"},
		{r.Duplicated, "duplicated"},
		{r.Malformed, "malformed"},
	} {
		if c.n > 0 {
			list = append(list, fmt.Sprintf("%d %s", c.n, c.what))
		}
	}
	return fmt.Sprintf("of %d requests %s", r.Sent, strings.Join(list, ", "))
}
