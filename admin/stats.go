package admin

import (
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"

	dto "github.com/prometheus/client_model/go"

	"github.com/relevo-proxy/relevo/forwarder/stats"
)

// metric is one series as the API writes it: a value, or a histogram, or a summary.
type metric struct {
	Name      string            `json:"name"`
	Type      string            `json:"type"` // counter, gauge, histogram or summary
	Help      string            `json:"help,omitempty"`
	Labels    map[string]string `json:"labels"`
	Value     *number64         `json:"value,omitempty"`
	Histogram *histogram        `json:"histogram,omitempty"`
	Summary   *summary          `json:"summary,omitempty"`
}

// histogram is how many were observed, their sum, and how many of them were at most so large.
type histogram struct {
	Count   uint64   `json:"count"`
	Sum     number64 `json:"sum"`
	Buckets []bucket `json:"buckets"`
}

type bucket struct {
	LE    number64 `json:"le"`
	Count uint64   `json:"count"`
}

// summary is how many were observed, their sum, and quantiles.
type summary struct {
	Count     uint64     `json:"count"`
	Sum       number64   `json:"sum"`
	Quantiles []quantile `json:"quantiles"`
}

type quantile struct {
	Quantile number64 `json:"quantile"`
	Value    number64 `json:"value"`
}

// number64 is a number that JSON has no word for where it is not finite: a string then.
type number64 float64

// MarshalJSON writes the number.
func (n number64) MarshalJSON() ([]byte, error) {
	text := strconv.FormatFloat(float64(n), 'g', -1, 64)
	if v := float64(n); math.IsNaN(v) || math.IsInf(v, 0) {
		text = strconv.Quote(text)
	}
	return []byte(text), nil
}

// serveStats serves what metrics serves as JSON, or of it what has a name that begins so.
func serveStats(reg *stats.Registry, build BuildInfo) http.Handler {
	all := gatherer(reg, build)
	busy := make(chan struct{}, maxScrapes) // one element a request; never closed
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case busy <- struct{}{}:
			defer func() { <-busy }()
		default:
			w.Header().Set("Retry-After", retryAfter)
			writeProblem(w, http.StatusServiceUnavailable, fmt.Sprintf("the metrics are read %d times at once already", maxScrapes))
			return
		}
		families, err := all.Gather()
		if err != nil && len(families) == 0 {
			writeProblem(w, http.StatusInternalServerError, "gather the metrics: "+err.Error())
			return
		}
		prefix, list := r.URL.Query().Get("name"), []metric{}
		for _, f := range families {
			if strings.HasPrefix(f.GetName(), prefix) {
				list = appendMetrics(list, f)
			}
		}
		serveJSON(func() any {
			return struct {
				Metrics []metric `json:"metrics"`
			}{list}
		}).ServeHTTP(w, r)
	})
}

func appendMetrics(list []metric, f *dto.MetricFamily) []metric {
	for _, m := range f.GetMetric() {
		out := metric{Name: f.GetName(), Type: strings.ToLower(f.GetType().String()), Help: f.GetHelp(), Labels: map[string]string{}}
		for _, l := range m.GetLabel() {
			out.Labels[l.GetName()] = l.GetValue()
		}
		switch f.GetType() {
		case dto.MetricType_HISTOGRAM:
			h := m.GetHistogram()
			out.Histogram = &histogram{h.GetSampleCount(), number64(h.GetSampleSum()), []bucket{}}
			for _, b := range h.GetBucket() {
				out.Histogram.Buckets = append(out.Histogram.Buckets, bucket{number64(b.GetUpperBound()), b.GetCumulativeCount()})
			}
		case dto.MetricType_SUMMARY:
			s := m.GetSummary()
			out.Summary = &summary{s.GetSampleCount(), number64(s.GetSampleSum()), []quantile{}}
			for _, q := range s.GetQuantile() {
				out.Summary.Quantiles = append(out.Summary.Quantiles, quantile{number64(q.GetQuantile()), number64(q.GetValue())})
			}
		case dto.MetricType_COUNTER:
			out.Value = new(number64(m.GetCounter().GetValue()))
		case dto.MetricType_GAUGE:
			out.Value = new(number64(m.GetGauge().GetValue()))
		default: // none of ours, nor of the libraries'
			continue
		}
		list = append(list, out)
	}
	return list
}
