//go:build linux

package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
)

// Ten times the load that servers can carry: they go on carrying what they can, the proxy stays within its memory and can
// be asked what goes on, and behind it everything is as before.

const (
	overloadFactor   = 10
	overloadClients  = 32  // connections
	overloadMemory   = 256 // MiB that the proxy may take
	leastGoodput     = 0.9 // of the peak
	longestAdmin     = 100 // ms until the admin door answers, 99 of 100 times
	longestRecovery  = 5 * time.Second
	overloadProbes   = 50 * time.Millisecond // from one question at the admin door to the next
	overloadRecovery = longestRecovery + 2*time.Second
)

func TestOverload(t *testing.T) {
	d, long := timeOf(t, overloadTime, 5*time.Second)
	shape := fleetShape{servers: 4, workers: 8, delay: 20 * time.Millisecond, queue: 32}
	if !long { // there are two cores for everything, and the race detector
		shape.delay = 100 * time.Millisecond
	}
	f := newFleet(t, shape, 0, 0, 0)
	address, line := adminOf(t)
	listener := steadyAddress(t)
	// As many at once as all workers can have, and once as many that wait for them.
	most := 2 * shape.servers * shape.workers
	c := newChain(t, os.Args[0], patientUpgrades, f.configuration(listener, policies{cluster: fmt.Sprintf("max_requests: %d, ", most)})+line,
		fmt.Sprintf("GOMEMLIMIT=%dMiB", overloadMemory))
	var clients told
	load := func(o bench.Options) *traffic {
		o.Addr, o.Service, o.Connections = listener, onceService, overloadClients
		return clients.load(t, o)
	}

	// With as many in flight as are let in, no server is ever without work.
	peak := load(bench.Options{InFlight: most / overloadClients, Duration: max(d/10, 2*time.Second)}).wait(t)
	if peak.OK != peak.Sent {
		t.Errorf("with the load that the servers can carry %d of %d requests succeeded, and there were %v", peak.OK, peak.Sent, peak.Statuses)
	}
	w := watch(t, c, newDesk(address))
	over := load(bench.Options{Rate: overloadFactor * shape.capacity(), Duration: d})
	for !over.over() {
		time.Sleep(10 * time.Millisecond)
	}
	too := over.wait(t)
	answers, rss := w.end()
	after := load(bench.Options{Rate: shape.capacity() / 2, Duration: overloadRecovery}).wait(t)

	goodput := float64(too.OK) / too.Elapsed / peak.Throughput
	p99 := answers[len(answers)*99/100]
	took := recovered(after)
	t.Logf("capacity %.0f a second, peak %.0f; the goodput of %v at ten times that is %.1f %% of it\n%s\n%s\n%s\n"+
		"admin door: %d answers, p50 %v, p99 %v, max %v; resident memory at most %d MiB; well again after %v",
		shape.capacity(), peak.Throughput, d, 100*goodput, inShort("peak", peak), inShort("overload", too), inShort("after", after),
		len(answers), answers[len(answers)/2], p99, answers[len(answers)-1], rss>>20, took)

	if goodput < leastGoodput {
		t.Errorf("the goodput is %.1f %% of the peak, want %.0f %%", 100*goodput, 100*leastGoodput)
	}
	if took > longestRecovery {
		t.Errorf("requests fail for %v behind the overload, want %v at most", took, longestRecovery)
	}
	if long && p99 > longestAdmin*time.Millisecond {
		t.Errorf("the admin door answers within %v 99 of 100 times, want %d ms", p99, longestAdmin)
	}
	if long && rss > overloadMemory<<20 {
		t.Errorf("the proxy takes %d MiB, want at most %d", rss>>20, overloadMemory)
	}
	m := c.until(t, func(m reading) error { return errors.Join(m.idle(), m.is(0, "relevo_recovered_panics_total")) })
	if local := m.local(); local["max-requests"] == 0 {
		t.Errorf("the proxy has answered %v itself, want some for max-requests", local)
	}
	c.stop(t)
}

// recovered is how long behind the beginning of a load its requests succeed as they should: from then on all but one in a
// thousand do, since this machine may take its time from us for a moment.
func recovered(r *bench.Report) time.Duration {
	var sent, errors uint64
	at := len(r.Timeline)
	for i, p := range slices.Backward(r.Timeline) {
		sent, errors = sent+p.Sent, errors+p.Errors
		if float64(errors) <= (1-leastShare)*float64(sent) {
			at = i
		}
	}
	return time.Duration(at) * time.Duration(r.StepMillis) * time.Millisecond
}

// watcher asks a proxy's admin door, and the kernel for its memory, again and again.
type watcher struct {
	stop chan struct{}
	wg   sync.WaitGroup

	// Owned by the goroutine until it has ended.
	took []time.Duration
	rss  uint64 // bytes, the most
}

// watch begins to. A question without its answer fails the test.
func watch(t *testing.T, c *chain, d desk) *watcher {
	w := &watcher{stop: make(chan struct{})}
	t.Cleanup(func() { w.end() })
	pid := c.now.process.Pid
	w.wg.Go(func() { // ends with stop
		for rest(w.stop, overloadProbes) {
			begin := time.Now()
			a, err := d.try(t, http.MethodGet, "/v1/clusters", "")
			if err != nil || a.code != http.StatusOK {
				t.Errorf("the admin door says %d, %v", a.code, err)
				return
			}
			w.took = append(w.took, time.Since(begin))
			n, err := residentMemory(pid)
			if err != nil {
				t.Error(err)
				return
			}
			w.rss = max(w.rss, n)
		}
	})
	return w
}

// end ends it, and returns how long each answer took, the shortest first, and the most memory that was seen.
func (w *watcher) end() ([]time.Duration, uint64) {
	select {
	case <-w.stop:
	default:
		close(w.stop)
	}
	w.wg.Wait()
	slices.Sort(w.took)
	if len(w.took) == 0 {
		w.took = []time.Duration{0}
	}
	return w.took, w.rss
}

// residentMemory is what a process has of the machine's memory, in bytes.
func residentMemory(pid int) (uint64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	var all, resident uint64
	if _, err := fmt.Sscan(string(text), &all, &resident); err != nil {
		return 0, fmt.Errorf("the memory of process %d is %q: %w", pid, text, err)
	}
	return resident * uint64(os.Getpagesize()), nil
}

// What a load's timeline says of a recovery, or the test above proves nothing.
func TestRecovered(t *testing.T) {
	for _, c := range []struct {
		errors []uint64 // of 1000 requests in each step
		want   int
	}{
		{[]uint64{0, 0, 0}, 0},
		{[]uint64{500, 4, 0, 1}, 2}, // of 2000 one failed
		{[]uint64{500, 0, 0, 0}, 1},
		{[]uint64{0, 0, 0, 2}, 0},
		{[]uint64{0, 0, 0, 500}, 4},
	} {
		r := bench.Report{StepMillis: 100}
		for _, n := range c.errors {
			r.Timeline = append(r.Timeline, bench.Point{Sent: 1000, Errors: n})
		}
		if got, want := recovered(&r), time.Duration(c.want)*100*time.Millisecond; got != want {
			t.Errorf("with %v errors all is well after %v, want %v", c.errors, got, want)
		}
	}
}
