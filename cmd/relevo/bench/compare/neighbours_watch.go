package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	lookEvery   = 50 * time.Millisecond
	lookTimeout = 5 * time.Second // of one look, on a machine that has nothing to spare
	maxScrape   = 4 << 20         // bytes of metrics
)

// The metrics that are looked at.
const (
	bufferedMetric = "relevo_buffered_bytes"
	gatedMetric    = `relevo_listener_connections{listener="bench",state="gated"}`
)

// peak is the most that was seen of something while a run lasted.
type peak struct {
	Buffered float64 `json:"buffered_bytes"` // as Relevo counts them
	RSS      float64 `json:"rss_bytes"`
	Gated    float64 `json:"gated_connections"`
	Looks    int     `json:"looks"`
}

// add takes another look into account.
func (p *peak) add(o peak) {
	p.Buffered, p.RSS, p.Gated = max(p.Buffered, o.Buffered), max(p.RSS, o.RSS), max(p.Gated, o.Gated)
	p.Looks++
}

// watch looks at Relevo's memory again and again, until its end.
type watch struct {
	cancel context.CancelFunc
	group  sync.WaitGroup

	// Owned by the goroutine, and by end behind it.
	most    peak
	failure error
}

// watch starts one. Whoever calls it calls its end.
func (n *neighbourhood) watch(ctx context.Context) *watch {
	ctx, cancel := context.WithCancel(ctx)
	w := &watch{cancel: cancel}
	// Ends with the context, or when Relevo cannot be looked at.
	w.group.Go(func() {
		next := time.NewTicker(lookEvery)
		defer next.Stop()
		for ctx.Err() == nil {
			now, err := n.look(ctx)
			if err != nil {
				w.failure = err
				return
			}
			w.most.add(now)
			select {
			case <-next.C:
			case <-ctx.Done():
			}
		}
	})
	return w
}

// end stops looking and returns the most that was seen.
func (w *watch) end() (peak, error) {
	w.cancel()
	w.group.Wait()
	if errors.Is(w.failure, context.Canceled) {
		return w.most, nil // it was cut short by cancel
	}
	return w.most, w.failure
}

// look reads what Relevo's process holds right now.
func (n *neighbourhood) look(ctx context.Context) (now peak, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, n.metrics, http.NoBody)
	if err != nil {
		return now, err
	}
	reply, err := http.DefaultClient.Do(request)
	if err != nil {
		return now, err
	}
	defer reply.Body.Close()
	content, err := io.ReadAll(io.LimitReader(reply.Body, maxScrape))
	if err != nil {
		return now, err
	}
	if reply.StatusCode != http.StatusOK {
		return now, fmt.Errorf("%s answers %s", n.metrics, reply.Status)
	}
	var errs [3]error
	now.Buffered, errs[0] = metric(string(content), bufferedMetric)
	now.Gated, errs[1] = metric(string(content), gatedMetric)
	now.RSS, errs[2] = kibibytes(field("/proc/"+strconv.Itoa(n.relevo.pid)+"/status", "VmRSS"))
	return now, errors.Join(errs[:]...)
}

// metric returns the value of the series of that name, labels included, in the text form of Prometheus.
func metric(text, series string) (float64, error) {
	name, labels, _ := strings.Cut(strings.TrimSuffix(series, "}"), "{")
	for line := range strings.Lines(text) {
		id, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		if n, l, _ := strings.Cut(strings.TrimSuffix(id, "}"), "{"); n == name && sameLabels(l, labels) {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, fmt.Errorf("there is no metric %s", series)
}

// sameLabels compares two lists of labels, whose values hold no commas, in whatever order.
func sameLabels(a, b string) bool {
	return slices.Equal(slices.Sorted(strings.SplitSeq(a, ",")), slices.Sorted(strings.SplitSeq(b, ",")))
}

// kibibytes returns the bytes of a size as /proc writes it: "1234 kB".
func kibibytes(s string) (float64, error) {
	number, ok := strings.CutSuffix(s, " kB")
	if !ok {
		return 0, fmt.Errorf("%q is not a size in kB", s)
	}
	n, err := strconv.ParseFloat(number, 64)
	return n * 1024, err
}
