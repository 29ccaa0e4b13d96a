package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
	"github.com/relevo-proxy/relevo/cmd/relevo/bench/yard"
	"github.com/relevo-proxy/relevo/cmd/relevo/echo"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// The load of the slow server: its rate does not change, so that what is in flight is the rate times the delay.
const (
	slowRate        = 20_000
	slowConnections = 64
	slowSize        = 64
	slowDuration    = 3 * time.Second // of the measurement, once as many replies come as requests go
	lookEvery       = 100 * time.Millisecond
	enoughToDivide  = 30_000 // requests in flight, from which on memory is more than noise
)

var inFlight = curve{
	name:  "in-flight",
	title: "CPU per request by requests in flight",
	x:     "requests in flight", y: "µs per request",
	text: fmt.Sprintf("An open loop of %s requests/s of %d bytes on %d connections, to a server whose replies take from %v to %v. Memory is the growth of the "+
		"resident size, and of the Go heap in use, from the same load without a delay to its peak with it, divided by the most requests in flight; the goroutines "+
		"are all that the process had more than then. Each point has a process of its own, and is measured once.",
		thousands(slowRate), slowSize, slowConnections, delays[0], delays[len(delays)-1]),
	why: inFlightWhy,
	measure: func(ctx context.Context, r *rig) (m measured, err error) {
		addresses, stop, err := servers(1)
		if err != nil {
			return m, err
		}
		defer stop()
		cost := series{name: "relevo"}
		columns := []column{{name: "RSS bytes each"}, {name: "heap bytes each"}, {name: "goroutines more"}}
		for _, delay := range delays {
			p, err := r.slow(ctx, addresses, delay)
			if err != nil {
				return m, err
			}
			wait := delay.Seconds() * slowRate // that many wait at once, and the others come and go
			cost.points = append(cost.points, point{wait, p.cost})
			rss, heap := "", ""
			if wait >= enoughToDivide {
				rss, heap = fmt.Sprintf("%.0f", p.rss/p.inFlight), fmt.Sprintf("%.0f", p.heap/p.inFlight)
			}
			for i, cell := range []string{rss, heap, fmt.Sprintf("%+.0f", p.goroutines)} {
				columns[i].cells = append(columns[i].cells, cell)
			}
			fmt.Fprintf(os.Stderr, "  %6.0f in flight  %8.2f µs/request  %.0f KiB RSS, %.0f KiB heap, %+.0f goroutines\n",
				p.inFlight, p.cost, p.rss/1024, p.heap/1024, p.goroutines)
		}
		return measured{[]series{cost}, columns}, nil
	},
}

// delays make 64 to 100,000 requests wait at once.
var delays = []time.Duration{
	3200 * time.Microsecond, 32 * time.Millisecond, 320 * time.Millisecond, 1600 * time.Millisecond, 5 * time.Second,
}

// look is what was seen of a process at some moment.
type look struct {
	at                              time.Duration // since the load was started
	cpu                             time.Duration // used so far
	rss, heap, goroutines, inFlight float64
}

// slowPoint is one point of the curve; the memory and the goroutines are growth.
type slowPoint struct {
	look
	cost float64 // µs per request
}

func (r *rig) slow(ctx context.Context, addresses []string, delay time.Duration) (p slowPoint, err error) {
	t, err := r.relevo([]rule{everything}, addresses, 2)
	if err != nil {
		return p, err
	}
	defer t.proc.Stop()
	load := bench.Options{Connections: slowConnections, Rate: slowRate, Size: slowSize, Warmup: warmup, Duration: r.duration}
	looks, err := t.loadAndLook(ctx, load)
	if err != nil {
		return p, err
	}
	before := most(looks)
	load.Headers = []bolt.Pair{{Key: echo.DelayHeader, Value: delay.String()}}
	load.Warmup, load.Duration = load.Warmup+delay, slowDuration
	if looks, err = t.loadAndLook(ctx, load); err != nil {
		return p, err
	}
	p.look = most(looks)
	p.rss, p.heap, p.goroutines = p.rss-before.rss, p.heap-before.heap, p.goroutines-before.goroutines
	p.cost, err = costBetween(looks, load.Warmup, load.Warmup+load.Duration)
	return p, err
}

// costBetween is the CPU time per request from one moment to another of a load at the slow rate. Only there do as many replies
// come as requests go.
func costBetween(looks []look, from, to time.Duration) (float64, error) {
	looks = slices.DeleteFunc(slices.Clone(looks), func(l look) bool { return l.at < from || l.at > to })
	if len(looks) < 2 {
		return 0, errors.New("the process was looked at too seldom")
	}
	first, last := looks[0], looks[len(looks)-1]
	return (last.cpu - first.cpu).Seconds() * 1e6 / ((last.at - first.at).Seconds() * slowRate), nil
}

// most is the most of everything that was seen.
func most(looks []look) (m look) {
	for _, l := range looks {
		m = look{
			max(m.at, l.at), max(m.cpu, l.cpu),
			max(m.rss, l.rss), max(m.heap, l.heap), max(m.goroutines, l.goroutines), max(m.inFlight, l.inFlight),
		}
	}
	return m
}

// loadAndLook sends a load and looks at the process meanwhile.
func (t *target) loadAndLook(ctx context.Context, o bench.Options) (looks []look, err error) {
	looking, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	var failure error
	group.Go(func() { looks, failure = t.lookUntil(looking) }) // ends with looking, or when there is nothing to look at
	_, err = t.load(ctx, o)
	cancel()
	group.Wait()
	return looks, errors.Join(err, failure)
}

func (t *target) lookUntil(ctx context.Context) (looks []look, err error) {
	start := time.Now()
	next := time.NewTicker(lookEvery)
	defer next.Stop()
	for {
		now, err := t.look(context.WithoutCancel(ctx))
		if err != nil {
			return looks, err
		}
		now.at = time.Since(start)
		looks = append(looks, now)
		select {
		case <-next.C:
		case <-ctx.Done():
			return looks, nil
		}
	}
}

func (t *target) look(ctx context.Context) (now look, err error) {
	m, err := yard.Scrape(ctx, t.metrics)
	if err != nil {
		return now, err
	}
	var errs [5]error
	now.rss, errs[0] = t.proc.RSS()
	now.heap, errs[1] = m.Value("go_memstats_heap_inuse_bytes")
	now.goroutines, errs[2] = m.Value("go_goroutines")
	now.inFlight, errs[3] = m.Value(`relevo_cluster_in_flight{cluster="echo"}`)
	now.cpu, errs[4] = t.proc.CPU()
	return now, errors.Join(errs[:]...)
}

// thousands writes a count as people do: 10,000.
func thousands(x float64) string {
	s := fmt.Sprintf("%.0f", x)
	var b strings.Builder
	for i, c := range s {
		if i > 0 && (len(s)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(c)
	}
	return b.String()
}
