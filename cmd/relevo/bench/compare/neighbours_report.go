package main

import (
	"fmt"
	"strings"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench/yard"
)

const neighbourExplanation = `
## Bad neighbours

What it costs the others when some misbehave. %d connections send %d requests/s of 1 KiB, in an open loop, in turns on their own
(quiet) and beside a bad neighbour (disturbed): medians of %d rounds of %s each, max the longest of all. Latency is that of the
replies that came. Requests that met the endpoint that never answers end by their deadline of %s: they are counted as timeouts,
and are not among the failed. Memory is the most that was seen in a look every %s: what Relevo counts
(` + "`relevo_buffered_bytes`" + `), and the resident size of its process. max_buffered is %.0f MiB.

The large frames keep all cores busy, and so whoever runs beside them waits for a core: equally busy is the same small requests
through Relevo while the same large frames go straight to their server, so that **x busy** is what Relevo adds to that.

| case | | p50 ms | p99 ms | p99.9 ms | max ms | p99 x quiet | p99 x busy | failed | timeouts | large ok / failed | large MB/s | buffered MiB | RSS MiB |
|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|
`

// neighbourhoodSection is the part of the page about neighbours.
func neighbourhoodSection(results []neighbourResult) string {
	var b strings.Builder
	fmt.Fprintf(&b, neighbourExplanation, smallConnections, smallRate, neighbourRounds, neighbourDuration, smallTimeout, lookEvery,
		mebibytes(maxBuffered))
	for _, c := range neighbourCases {
		base := neighbourMedians(results, c, quiet).p99
		beside := neighbourMedians(results, c, busy).p99
		for i, condition := range c.conditions {
			f := neighbourMedians(results, c, condition)
			label, toQuiet, toBusy, large, rate := "", "", "", "", ""
			if i == 0 {
				label = c.name
			}
			if condition != quiet {
				toQuiet = ratio(f.p99, base)
			}
			if condition == disturbed {
				toBusy = ratio(f.p99, beside)
			}
			if c.large && condition != quiet {
				large, rate = fmt.Sprintf("%d / %d", f.largeOK, f.largeBad), fmt.Sprintf("%.0f", f.largeRate)
			}
			fmt.Fprintf(&b, "| %s | %s | %.3f | %.3f | %.3f | %.3f | %s | %s | %d | %d | %s | %s | %.0f | %.0f |\n",
				label, condition, f.p50, f.p99, f.p999, f.most, toQuiet, toBusy, f.bad, f.timeouts, large, rate,
				mebibytes(f.peak.Buffered), mebibytes(f.peak.RSS))
		}
	}
	return b.String()
}

// neighbourFigures are what the table shows of a run, or of several.
type neighbourFigures struct {
	p50, p99, p999 float64 // ms, of small requests
	most           float64 // ms: a maximum, never a median
	bad            uint64  // small requests without the right reply; sums, as are the others
	timeouts       uint64  // small requests that met the silent endpoint
	largeOK        uint64
	largeBad       uint64
	largeRate      float64 // MB/s, both directions
	peak           peak    // a maximum
}

// timeoutStatus is the status of the reply to a request whose deadline has passed.
const timeoutStatus = "TIMEOUT"

// neighbourFiguresOf picks the figures of one run.
func neighbourFiguresOf(c neighbourCase, r neighbourResult) neighbourFigures {
	f := neighbourFigures{bad: figuresOf(r.Small).bad, peak: r.Peak}
	if l := r.Small.Latency; l != nil {
		f.p50, f.p99, f.p999, f.most = l.P50/1000, l.P99/1000, l.P999/1000, l.Max/1000
	}
	if c.silent && r.Condition == disturbed {
		f.timeouts = r.Small.Statuses[timeoutStatus]
		f.bad -= f.timeouts
	}
	if r.Large != nil {
		f.largeOK, f.largeBad, f.largeRate = r.Large.OK, figuresOf(*r.Large).bad, r.Large.BytesPerS/1e6
	}
	return f
}

func (f neighbourFigures) String() string {
	return fmt.Sprintf("p50 %.3f ms  p99 %.3f ms  p99.9 %.3f ms  max %.3f ms  bad %d  timeouts %d  large %d/%d %.0f MB/s  buffered %.0f MiB  RSS %.0f MiB",
		f.p50, f.p99, f.p999, f.most, f.bad, f.timeouts, f.largeOK, f.largeBad, f.largeRate, mebibytes(f.peak.Buffered), mebibytes(f.peak.RSS))
}

// neighbourMedians puts the rounds of a case in one condition together.
func neighbourMedians(results []neighbourResult, c neighbourCase, wanted condition) neighbourFigures {
	var m neighbourFigures
	var p50, p99, p999, rate []float64
	for _, r := range results {
		if r.Case != c.name || r.Condition != wanted {
			continue
		}
		f := neighbourFiguresOf(c, r)
		p50, p99, p999, rate = append(p50, f.p50), append(p99, f.p99), append(p999, f.p999), append(rate, f.largeRate)
		m.most = max(m.most, f.most)
		m.bad, m.timeouts = m.bad+f.bad, m.timeouts+f.timeouts
		m.largeOK, m.largeBad = m.largeOK+f.largeOK, m.largeBad+f.largeBad
		m.peak.add(f.peak)
	}
	m.p50, m.p99, m.p999, m.largeRate = yard.Median(p50), yard.Median(p99), yard.Median(p999), yard.Median(rate)
	return m
}

// failedBeside says so when a request failed that had no part in the disturbance, or a large frame did.
func failedBeside(results []neighbourResult) error {
	var small, large uint64
	for _, c := range neighbourCases {
		for _, r := range results {
			if r.Case == c.name {
				f := neighbourFiguresOf(c, r)
				small, large = small+f.bad, large+f.largeBad
			}
		}
	}
	if small+large > 0 {
		return fmt.Errorf("%d requests and %d large frames failed beside bad neighbours: see the table", small, large)
	}
	return nil
}

// ratio is a/b for the table, nothing where there is no b.
func ratio(a, b float64) string {
	if b <= 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", a/b)
}

func mebibytes(n float64) float64 { return n / (1 << 20) }
