package bench

import (
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// maxLatency is the longest latency that is told apart; longer ones count as this one.
const maxLatency = int64(10 * time.Minute)

// histogram is latencies in nanoseconds, to three significant figures.
type histogram struct {
	h *hdrhistogram.Histogram
}

// The unit is 128 ns: finer differences than that are noise, and each halving costs a row of counts.
func newHistogram() histogram {
	return histogram{hdrhistogram.New(128, maxLatency, 3)}
}

func (h histogram) record(v, n int64) {
	_ = h.h.RecordValues(min(max(v, 0), maxLatency), n) // within its range: it has no error left
}

func (h histogram) merge(o histogram) { h.h.Merge(o.h) }

// quantile is the latency that the share q (0 to 1) of all values does not exceed; 0 without values.
func (h histogram) quantile(q float64) time.Duration {
	if h.h.TotalCount() == 0 {
		return 0
	}
	return time.Duration(h.h.ValueAtQuantile(q * 100))
}

func (h histogram) max() time.Duration {
	if h.h.TotalCount() == 0 {
		return 0
	}
	return time.Duration(h.h.Max())
}

func (h histogram) mean() time.Duration { return time.Duration(h.h.Mean()) }
