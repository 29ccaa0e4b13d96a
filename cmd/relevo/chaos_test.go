//go:build linux

package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
)

// Twenty servers, each a process, that are killed, stopped, slowed, and made to answer busy or garbage at random, under half
// of the load that they can carry: idempotent requests succeed all the same, nothing else is executed twice, and
// in the end no server is forgotten.

// chaosFleet can carry twice the load, with every worker at its delay.
var chaosFleet = fleetShape{servers: 20, workers: 4, delay: 40 * time.Millisecond, queue: 40}

const (
	chaosClients = 8     // connections of each of both loads
	leastShare   = 0.999 // of the idempotent requests succeed
	evenRequests = 200   // for each server, to see whether all get the same
	leastEven    = 0.5   // of the mean, that each gets
	mostEven     = 1.5
)

func TestChaos(t *testing.T) {
	d, _ := timeOf(t, chaosTime, 10*time.Second)
	chaos(t, d, 0)
}

// The same, and every five seconds another process takes over.
func TestChaosWithUpgrades(t *testing.T) {
	d, long := timeOf(t, chaosTime, 10*time.Second)
	every := 5 * time.Second
	if !long {
		every /= 2
	}
	chaos(t, d, every)
}

// chaos is a run for so long, with an upgrade every so often, 0 for none.
func chaos(t *testing.T, d, every time.Duration) {
	seed := seedOf(t)
	t.Logf("seed %d (%s)", seed, chaosSeed)
	rate := chaosFleet.capacity() / 2
	numbers := int(rate*d.Seconds()/chaosClients) + 1000
	f := newFleet(t, chaosFleet, 2, chaosClients+2, numbers)
	address, line := adminOf(t)
	listener := steadyAddress(t)
	c := newChain(t, os.Args[0], patientUpgrades, f.configuration(listener, resilient())+line)
	k := newMonkey(f, c, newDesk(address), "fleet", seed)
	before := c.read(t)

	var clients told
	load := func(service string, l lane) *traffic {
		return clients.load(t, bench.Options{Addr: listener, Connections: chaosClients, Rate: rate / 2, Duration: d, Service: l.service(service)})
	}
	idempotent, other := load(againService, 0), load(onceService, 1)
	waited, longest, last := stalled(), time.Duration(0), time.Now()
	upgrades, pause := c.during(t, every, func() bool {
		now := time.Now()
		longest, last = max(longest, now.Sub(last)), now
		k.step(t)
		return !idempotent.over() && !other.over()
	})
	waited = stalled() - waited
	k.end(t)
	again, once := idempotent.wait(t), other.wait(t)
	took := f.recovers(t, k.desk, "fleet")
	c.until(t, func(m reading) error { return m.is(0, "relevo_cluster_slow_start") }) // until then they get less

	even := f.even(t, &clients, listener, rate)
	m := c.until(t, func(m reading) error { return errors.Join(m.idle(), m.is(0, "relevo_recovered_panics_total")) })
	t.Logf("%v, %d upgrades, the longest pause was %.3f s; all servers were usable %v after the last fault; somebody waited for a CPU for %v, the longest step took %v\n"+
		"%s\n%s\n%s\n%v\n%s", d, upgrades, pause, took.Round(time.Millisecond), waited.Round(time.Millisecond), longest.Round(time.Millisecond),
		inShort(againService, again), inShort(onceService, once), even, k, policyCounters(m))

	if share(again) < leastShare {
		t.Errorf("%.4f %% of the idempotent requests succeeded, want %.1f %%", 100*share(again), 100*leastShare)
	}
	if err := errors.Join(k.all(), f.board.once(1, once.OK), f.board.atLeast(0, again.OK), m.monotonic(before)); err != nil {
		t.Error(err)
	}
	c.stop(t)
}

// during has the chain upgrade every so often, 0 for never, for as long as step says so, and returns how many upgrades
// there were, and the longest pause in seconds. Steps go on while an upgrade is under way.
func (p *chain) during(t *testing.T, every time.Duration, step func() bool) (upgrades int, pause float64) {
	t.Helper()
	var asked time.Time // zero: no upgrade is under way
	next := time.Now().Add(every)
	for on := true; on || !asked.IsZero(); time.Sleep(10 * time.Millisecond) {
		on = on && step()
		now := time.Now()
		switch {
		case every == 0:
		case !asked.IsZero():
			r, err := p.reported()
			if err == nil && r.Outcome != "done" {
				t.Fatalf("upgrade %d is reported as\n%s", p.last+1, r.text)
			}
			if err == nil {
				p.succeeded(t, r)
				upgrades++
				pause = max(pause, r.Pause)
				asked = time.Time{}
			} else if now.Sub(asked) > patience {
				t.Fatalf("upgrade %d has no end after %v: %v", p.last+1, patience, err)
			}
		case on && now.After(next):
			p.ask(t)
			asked, next = now, now.Add(every)
		}
	}
	return upgrades, pause
}

// even sends requests while all is well and says how they were shared out, or fails the test if that is not fair.
func (f *fleet) even(t *testing.T, clients *told, listener string, rate float64) string {
	t.Helper()
	n := len(f.servers)
	before := make([]uint64, n)
	for i := range f.servers {
		before[i] = f.board.tries(i)
	}
	r := clients.load(t, bench.Options{Addr: listener, Rate: rate, Count: uint64(n * evenRequests), Service: unnoted.service(onceService)}).wait(t)
	if r.OK != r.Sent {
		t.Errorf("with all servers well again %d of %d requests succeeded, and there were %v", r.OK, r.Sent, r.Statuses)
	}
	least, most := r.Sent, uint64(0)
	for i := range f.servers {
		got := f.board.tries(i) - before[i]
		least, most = min(least, got), max(most, got)
		if s := float64(got) / evenRequests; s < leastEven || s > mostEven {
			t.Errorf("with all servers well again server %d got %d requests, where the mean is %d; want %.1f to %.1f of it", i, got, evenRequests, leastEven, mostEven)
		}
	}
	return fmt.Sprintf("%-10s %8d requests, %d to %d a server", "even", r.Sent, least, most)
}

// policySeries are parts of the names of metrics that say what policies did.
var policySeries = regexp.MustCompile(`^relevo_(cluster|endpoint|route|outlier|health)_.*(retr|eject|passed_over|health|panic|probes|closes|connect_failures)`)

// policyCounters is what the proxy counts of what its policies did, a line for each metric, by what labels its series
// have beside the endpoint's.
func policyCounters(m reading) string {
	sums := map[string]uint64{}
	for _, s := range m {
		if !policySeries.MatchString(s.name) {
			continue
		}
		var key strings.Builder
		key.WriteString(s.name)
		for _, l := range slices.Sorted(maps.Keys(s.labels)) {
			if l != "endpoint" && l != "cluster" {
				fmt.Fprintf(&key, " %s=%s", l, s.labels[l])
			}
		}
		sums[key.String()] += uint64(s.value)
	}
	var lines []string
	for _, key := range slices.Sorted(maps.Keys(sums)) {
		lines = append(lines, fmt.Sprintf("%s %d", key, sums[key]))
	}
	return strings.Join(lines, "\n")
}
