package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
	"github.com/relevo-proxy/relevo/cmd/relevo/bench/yard"
)

const (
	lookEvery = 500 * time.Millisecond
	peakTime  = 5 * time.Second // for which all are busy
	loadRate  = 10_000          // requests a second, for the collector
	loadSize  = 1 << 10
)

// look is what the process holds at some moment, in bytes.
type look struct {
	after             time.Duration // since the moment that its row names
	rss, stacks, heap float64
}

// row is a line of the table.
type row struct {
	what string
	look look
}

// found is what was measured.
type found struct {
	before look // with one connection
	rows   []row
	back   time.Duration // from the end of the peak until memory had gone back
	final  time.Duration // the time that was waited for that
	load   *bench.Report
	cycles []cycle // of the collector, under the load
	all    []cycle // and in the whole life of the process, from the first row on
}

// moments are when the table tells what was left, after something has ended.
var moments = []time.Duration{time.Second, 10 * time.Second, 60 * time.Second}

func measure(ctx context.Context, y *yard.Yard, o options) (f found, err error) {
	s, stop, err := settle(y, o)
	if err != nil {
		return f, err
	}
	defer stop()
	defer s.proc.Stop()

	first, err := dial(ctx, s.address, 1)
	if err != nil {
		return f, err
	}
	defer first.close()
	if err := first.call(1); err != nil {
		return f, err
	}
	if f.before, err = s.look(ctx); err != nil {
		return f, err
	}
	all, err := dial(ctx, s.address, o.connections)
	if err != nil {
		return f, err
	}
	defer all.close()
	if err := all.call(1); err != nil {
		return f, err
	}
	if _, err := f.watch(ctx, s, o.settle, "after one request on each"); err != nil {
		return f, err
	}

	busy, err := s.peak(ctx, all)
	if err != nil {
		return f, fmt.Errorf("%w; Relevo said: %s; it closed: %s", err, s.trace.last(), s.closes(ctx))
	}
	f.add("the most while all were busy", busy)
	looks, err := f.watch(ctx, s, o.watch, "after all were busy")
	if err != nil {
		return f, err
	}
	f.back, f.final = settled(looks), o.watch
	all.close()

	mark := s.trace.len()
	f.load, err = bench.Run(ctx, bench.Options{
		Addr: s.address, Connections: o.connections, Rate: loadRate, Size: loadSize, Duration: o.load, Warmup: 2 * time.Second,
		Timeout: 30 * time.Second, PID: s.proc.PID,
	})
	if err != nil {
		return f, err
	}
	if f.load.Failed() || f.load.Process == nil || f.load.Process.Error != "" {
		return f, fmt.Errorf("of %d requests %d came back", f.load.Sent, f.load.OK)
	}
	f.cycles, err = cycles(s.trace.from(mark))
	every, failure := cycles(s.trace.from(0))
	f.all = every
	return f, errors.Join(err, failure, s.proc.Alive())
}

// watch looks for so long, while nothing happens, and adds the rows of the moments and of the end.
func (f *found) watch(ctx context.Context, s *site, length time.Duration, what string) (looks []look, err error) {
	began := time.Now()
	next := time.NewTicker(lookEvery)
	defer next.Stop()
	left := append(slices.DeleteFunc(slices.Clone(moments), func(d time.Duration) bool { return d >= length }), length)
	for len(left) > 0 {
		// A scrape leaves garbage: only rows have one.
		now := look{after: time.Since(began)}
		if now.rss, err = s.proc.RSS(); err != nil {
			return nil, err
		}
		looks = append(looks, now)
		if now.after >= left[0] {
			if now, err = s.look(ctx); err != nil {
				return nil, err
			}
			f.add(fmt.Sprintf("%g s %s", left[0].Seconds(), what), now)
			left = left[1:]
		}
		select {
		case <-next.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return looks, nil
}

func (f *found) add(what string, l look) {
	f.rows = append(f.rows, row{what, l})
	fmt.Fprintf(os.Stderr, "%-50s %.1f MiB RSS, %.1f MiB stacks, %.1f MiB heap\n", what, l.rss/(1<<20), l.stacks/(1<<20), l.heap/(1<<20))
}

// peak has all connections busy for a time and returns the most of everything meanwhile.
func (s *site) peak(ctx context.Context, all *clients) (most look, err error) {
	done := make(chan error, 1)
	go func() { done <- all.busy(peakTime) }() // ends after the time, and the last replies
	next := time.NewTicker(lookEvery)
	defer next.Stop()
	for {
		select {
		case err := <-done:
			return most, err
		case <-next.C:
		}
		now, err := s.look(ctx)
		if err != nil {
			return most, errors.Join(err, <-done)
		}
		most.rss, most.stacks, most.heap = max(most.rss, now.rss), max(most.stacks, now.stacks), max(most.heap, now.heap)
	}
}

func (s *site) look(ctx context.Context) (now look, err error) {
	m, err := yard.Scrape(ctx, s.metrics)
	if err != nil {
		return now, err
	}
	var errs [3]error
	now.rss, errs[0] = s.proc.RSS()
	now.stacks, errs[1] = m.Value("go_memstats_stack_inuse_bytes")
	now.heap, errs[2] = m.Value("go_memstats_heap_inuse_bytes")
	return now, errors.Join(errs[:]...)
}

// closes are the connections that Relevo has closed, by their reasons, for errors.
func (s *site) closes(ctx context.Context) string {
	m, err := yard.Scrape(ctx, s.metrics)
	if err != nil {
		return err.Error()
	}
	var all []string
	for line := range strings.Lines(string(m)) {
		if rest, ok := strings.CutPrefix(line, "relevo_listener_closes_total"); ok && !strings.HasSuffix(line, " 0\n") {
			all = append(all, strings.TrimSpace(rest))
		}
	}
	return strings.Join(all, ", ")
}

// settled is when memory was within a twentieth of what it was at last, for good.
func settled(looks []look) time.Duration {
	if len(looks) == 0 {
		return 0
	}
	limit := looks[len(looks)-1].rss * 1.05
	for i, l := range slices.Backward(looks) {
		if l.rss > limit {
			return looks[i+1].after
		}
	}
	return looks[0].after
}
