package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
	"github.com/relevo-proxy/relevo/cmd/relevo/echo"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
	"github.com/relevo-proxy/relevo/upgrade"
)

const (
	upgradeTimeout = time.Minute // from the request for an upgrade until the old process is gone
	relayTimeout   = 5 * time.Minute
)

// relayLoad runs while processes follow each other.
var relayLoad = load{"64 x 8, 1 KiB, v1", bench.Options{Connections: 64, InFlight: 8, Size: 1 << 10, Version: bolt.V1}}

// relaySettings let a machine that is busy with something else take its time: how long a pause was is printed.
const relaySettings = "runtime_dir: %q\nupgrade: {handover_timeout: 10s}\n"

// relay is what a process needs to be replaced: a folder for its pid file and its reports. Who loses its parent becomes a
// child of this process, which waits for the end of all.
func (s *site) relay(folder string) error {
	s.runtime = filepath.Join(folder, "run")
	if err := os.MkdirAll(s.runtime, 0o700); err != nil {
		return err
	}
	for i := range s.files {
		s.files[i].text += fmt.Sprintf(relaySettings, s.runtime)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("becoming the reaper of processes that lose their parent: %w", err)
	}
	return nil
}

// replace has the process replaced so many times under a load, which lasts until that is done, and prints what came of both.
// The error says what was not as it must be.
func (d *demo) replace(ctx context.Context, s *site, m *member, times int) ([]*bench.Report, error) {
	before := d.upstream.Stats()
	loaded, stop := context.WithTimeout(ctx, relayTimeout)
	defer stop()
	o := relayLoad.options
	o.Addr, o.Duration, o.Timeout, o.Rate = s.entry(), relayTimeout, requestTimeout, d.rate
	var (
		report *bench.Report
		failed error
	)
	ended := make(chan struct{})
	go func() { // ends with loaded, and is waited for below
		defer close(ended)
		report, failed = bench.Run(loaded, o)
	}()

	kept, err := d.upgrades(loaded, s, m, times, before)
	stop()
	<-ended
	if err = errors.Join(err, failed); report == nil {
		return nil, err
	}
	d.requests += report.Sent
	fmt.Fprintln(d.out)
	t := newTable(loadHead...)
	t.row(loadCells(relayLoad.name, report)...)
	t.print(d.out)
	if bad(report) > 0 {
		err = errors.Join(err, fmt.Errorf("%s: %s", relayLoad.name, failures(report)))
	}
	reports := []*bench.Report{report}
	if err != nil {
		return reports, err
	}
	after := d.upstream.Stats()
	if err := whole(report, before.Requests, kept.Accepted, after.Accepted, after.Requests); err != nil {
		return reports, err
	}
	_, err = fmt.Fprintf(d.out, "\n"+indent+"Sent %d, answered %d, run by the server %d.\n"+
		indent+"Kept: all %d connections of clients, and %s to the server; none was made anew. Nothing was lost.\n",
		report.Sent, report.OK, after.Requests-before.Requests, report.Dials, plural(after.Accepted-before.Accepted, "connection"))
	return reports, err
}

// whole says what a load and the echo server have seen of the upgrades. They have seen nothing if the server got each request
// once, and neither side a new connection. The server's requests are those before and behind the load, its connections those
// before the first upgrade and behind the last.
func whole(r *bench.Report, requestsBefore, acceptedBefore, accepted, requests uint64) error {
	var errs []error
	if want := uint64(r.Options.Connections); r.Dials != want || r.Reconnects > 0 {
		errs = append(errs, fmt.Errorf("clients connected %d times, %d of them again; want %d and 0", r.Dials, r.Reconnects, want))
	}
	if accepted != acceptedBefore {
		errs = append(errs, fmt.Errorf("the server accepted %d connections during the upgrades; want none", accepted-acceptedBefore))
	}
	if got := requests - requestsBefore; got != r.Sent {
		errs = append(errs, fmt.Errorf("the server got %d requests; %d were sent", got, r.Sent))
	}
	return errors.Join(errs...)
}

// upgrades has the process replaced, with as much load before each time and behind the last as half of another load; the
// first time only when the server has got more than before. It returns what the server has counted by then.
func (d *demo) upgrades(ctx context.Context, s *site, m *member, times int, before echo.Stats) (kept echo.Stats, err error) {
	for kept = before; kept.Requests == before.Requests; kept = d.upstream.Stats() {
		if err := m.during(ctx, pollPeriod); err != nil {
			return kept, fmt.Errorf("waiting for a request to come through: %w", err)
		}
	}
	for n := range times {
		if err := m.during(ctx, d.load/2); err != nil {
			return kept, err
		}
		r, err := m.upgrade(ctx, s.runtime)
		if err != nil {
			return kept, fmt.Errorf("upgrade %d: %w", n+1, err)
		}
		c := r.Carried
		fmt.Fprintf(d.out, indent+"upgrade %d: process %d to process %d, pause %s, carried: %s, %s under way\n", r.ID, r.From, r.To,
			millis(r.Pause*1e6), plural(c.Downstreams+c.Upstreams, "connection"), plural(c.Streams+c.Requests+c.Replies+c.Uploads, "request"))
	}
	return kept, m.during(ctx, d.load/2)
}

// during lets a time pass in which the process must not end.
func (m *member) during(ctx context.Context, t time.Duration) error {
	passed := time.NewTimer(t)
	defer passed.Stop()
	select {
	case <-passed.C:
		return nil
	case <-m.gone:
		return m.died()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// upgrade asks the process whose pid is in the folder for an upgrade and waits for its outcome, and for its end.
func (m *member) upgrade(ctx context.Context, folder string) (upgrade.Report, error) {
	ctx, cancel := context.WithTimeout(ctx, upgradeTimeout)
	defer cancel()
	last, err := upgrade.ReadReport(folder)
	if err != nil {
		return last, err
	}
	pid, err := upgrade.ReadPID(folder)
	if err == nil && pid == 0 {
		err = errors.New("there is no pid file")
	}
	if err != nil {
		return last, err
	}
	if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
		return last, fmt.Errorf("asking process %d: %w", pid, err)
	}
	for {
		r, err := upgrade.ReadReport(folder)
		switch {
		case err != nil:
			return r, err
		case r.ID <= last.ID || !r.Outcome.Final():
		case r.Outcome != upgrade.Done:
			return r, fmt.Errorf("%s at the step %s: %s", r.Outcome, r.Step, r.Reason)
		default:
			owner, err := upgrade.ReadPID(folder)
			if err != nil {
				return r, err
			}
			if runs, err := upgrade.Runs(r.From); err == nil && !runs && owner == r.To {
				return r, nil
			}
		}
		if err := m.during(ctx, pollPeriod); err != nil {
			return r, fmt.Errorf("waiting for it: %w", err)
		}
	}
}

// plural is a number of things.
func plural(n uint64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
