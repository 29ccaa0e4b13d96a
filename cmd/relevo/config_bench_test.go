//go:build linux

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
	"github.com/relevo-proxy/relevo/cmd/relevo/bench/yard"
)

// benchConfig is what `make bench-config` sets: the program whose configuration changes.
const benchConfig = "RELEVO_BENCH_CONFIG"

// The bench: rounds without changes and rounds with them, in turns, each first every other time.
const (
	configPairs   = 6
	configRound   = 10 * time.Second
	configChanges = 1000 // a minute
	configRate    = 2000 // requests a second
	configClients = 64   // connections
)

// configPhase is a round of load.
type configPhase struct {
	report *bench.Report
	took   []time.Duration // of each change, for who asks
}

// TestBenchConfig measures what changes of the configuration cost requests. It needs minutes and a machine of its own.
func TestBenchConfig(t *testing.T) {
	program := os.Getenv(benchConfig)
	if program == "" {
		t.Skip("`make bench-config` runs this")
	}
	if err := yard.Run(t.Context(), func(ctx context.Context, y *yard.Yard) error { return runBenchConfig(ctx, t, y, program) }); err != nil {
		t.Fatal(err)
	}
}

// runBenchConfig measures. Servers, proxy, clients and who changes are processes of their own: none waits for another's memory
// to be collected.
func runBenchConfig(ctx context.Context, t *testing.T, y *yard.Yard, program string) error {
	var servers [3]string
	for i := range servers {
		address, err := yard.FreeAddress()
		if err != nil {
			return err
		}
		servers[i] = address
		if _, err := y.Launch(yard.Command{Name: "server", Address: address, Args: []string{program, "echo", "bolt", "--listen", address}}); err != nil {
			return err
		}
	}
	s := newStage(t, program, servers)
	loaded, err := os.ReadFile("/proc/loadavg") // by others, before this begins
	if err != nil {
		t.Fatal(err)
	}
	changed := 0
	phase := func(changing bool) (p configPhase) {
		t.Helper()
		ended := make(chan error, 1)
		go func() { // ends by itself; waited for below
			out, said, err := yard.Output(ctx, 3*configRound, program, "bench", "bolt", "--addr", s.listener, "--timeout", "30s", "--warmup", "1s",
				"--connections", strconv.Itoa(configClients), "--rate", strconv.Itoa(configRate), "--duration", configRound.String(), "-o", "json")
			if err != nil {
				err = fmt.Errorf("%w: %s", err, said)
			} else {
				err = json.Unmarshal(out, &p.report)
			}
			ended <- err
		}()
		tick := time.NewTicker(time.Minute / configChanges)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if changing {
					began := time.Now()
					s.change(t, changed)
					p.took = append(p.took, time.Since(began))
					changed++
				}
			case err := <-ended:
				if err != nil {
					t.Fatal(err)
				}
				if r := p.report; r.Failed() || r.OK != r.Sent || r.Reconnects > 0 || r.DialErrors > 0 {
					t.Errorf("of %d requests %d were answered, with these statuses besides: %v; %d were lost, and %d connections were closed; want all, and none",
						r.Sent, r.OK, r.Statuses, r.Lost, r.Reconnects)
				}
				return p
			}
		}
	}
	phase(false) // what the first requests cost is over
	var quiet, changing []configPhase
	for i := range configPairs {
		for j := range 2 {
			if i%2 == j {
				quiet = append(quiet, phase(false))
			} else {
				changing = append(changing, phase(true))
			}
		}
	}
	m := s.chain.read(t)
	for _, server := range []string{servers[0], servers[2]} {
		if n := m.sum("relevo_endpoint_closes_total", "endpoint="+server); n > 0 {
			t.Errorf("%d connections to a server ended that was never taken away", n)
		}
	}
	s.chain.stop(t)
	section, ratio := configSection(t, program, strings.Fields(string(loaded))[0], quiet, changing)
	t.Logf("\n%s", section)
	if page := os.Getenv(benchPage); page != "" && !t.Failed() {
		if err := yard.WriteSection(page, "configuration", "make bench-config", section); err != nil {
			t.Error(err)
		}
	}
	if ratio > 2 {
		t.Errorf("with changes p99 is %.2f x what it is without; want at most 2", ratio)
	}
	return nil
}

// configSection is the section of the page, and how p99 with changes is to p99 without.
func configSection(t *testing.T, program, loaded string, quiet, changing []configPhase) (section string, ratio float64) {
	t.Helper()
	version, err := exec.Command(program, "version").Output()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `## Changes of the configuration

%d connections send %d requests/s of 1 KiB, in an open loop, in turns without changes (quiet) and with %d changes a minute over the admin
socket, each kept as a revision on disk: routes, weights, limits, an endpoint and a listener that come and go. Medians of %d rounds of %v
each, max the longest of all. Clients, proxy and servers, processes of their own, share the cores of one machine. **A change** is from the question to the answer.

| | p50 ms | p99 ms | p99.9 ms | max ms | p99 x quiet | requests | failed | closed | changes | a change p50 ms | p99 ms |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|
`, configClients, configRate, configChanges, configPairs, configRound)
	of := func(phases []configPhase, what func(*bench.Latency) float64) float64 {
		var all []float64
		for _, p := range phases {
			all = append(all, what(p.report.Latency)/1e3)
		}
		return middle(all)
	}
	p99 := func(l *bench.Latency) float64 { return l.P99 }
	ratio = of(changing, p99) / of(quiet, p99)
	for _, row := range []struct {
		name   string
		phases []configPhase
	}{{"quiet", quiet}, {"changing", changing}} {
		var sent, failed, closed uint64
		var longest float64
		var took []time.Duration
		for _, p := range row.phases {
			sent += p.report.Sent
			failed += p.report.Sent - p.report.OK
			closed += p.report.Reconnects
			longest = max(longest, p.report.Latency.Max/1e3)
			took = append(took, p.took...)
		}
		toQuiet, half, most := "", "", ""
		if len(took) > 0 {
			slices.Sort(took)
			ms := func(at int) string { return fmt.Sprintf("%.1f", took[at].Seconds()*1e3) }
			toQuiet, half, most = fmt.Sprintf("%.2f", ratio), ms(len(took)/2), ms(len(took)*99/100)
		}
		fmt.Fprintf(&b, "| %s | %.3f | %.3f | %.3f | %.3f | %s | %d | %d | %d | %d | %s | %s |\n", row.name,
			of(row.phases, func(l *bench.Latency) float64 { return l.P50 }), of(row.phases, p99),
			of(row.phases, func(l *bench.Latency) float64 { return l.P999 }), longest, toQuiet, sent, failed, closed, len(took), half, most)
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&b, "\nNo connection to a server ended but those to the endpoint that was taken away.\n\nMeasured on %s with %d cores, a load average of %s before, Linux %s, %s, and %s\n    make bench-config\n",
		time.Now().UTC().Format(time.DateOnly), runtime.NumCPU(), loaded, unix.ByteSliceToString(u.Release[:]), runtime.Version(), version)
	return b.String(), ratio
}

// middle is the median of some.
func middle[T cmp.Ordered](some []T) T {
	slices.Sort(some)
	return some[len(some)/2]
}
