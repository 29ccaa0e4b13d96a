package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench/yard"
)

// lookEvery is the time between two looks.
const lookEvery = 50 * time.Millisecond

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
	metrics, err := yard.Scrape(ctx, n.metrics)
	if err != nil {
		return now, err
	}
	var errs [3]error
	now.Buffered, errs[0] = metrics.Value(bufferedMetric)
	now.Gated, errs[1] = metrics.Value(gatedMetric)
	now.RSS, errs[2] = n.relevo.RSS()
	return now, errors.Join(errs[:]...)
}
