package bench

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// Report is what came of a run. All of it is about the measurement, none of it about the warm-up, except
// Mismatched, Duplicated, Malformed and the dials, which are defects whenever they happen.
//
// Sent = OK + the Statuses + Timeouts + Lost + Unfinished + Mismatched - Stray, except with Oneway, where a
// request that was written needs no outcome.
type Report struct {
	Options     ReportedOptions `json:"options"`
	Interrupted bool            `json:"interrupted"`     // ended before its duration or count
	Elapsed     float64         `json:"elapsed_seconds"` // from the first request to the end of sending, or the last ok reply

	Sent       uint64            `json:"sent"`
	OK         uint64            `json:"ok"`         // status SUCCESS, id and payload right
	Statuses   map[string]uint64 `json:"statuses"`   // by name; SUCCESS is not among them
	Timeouts   uint64            `json:"timeouts"`   // no reply within Timeout + Grace
	Lost       uint64            `json:"lost"`       // the connection closed with them in flight
	Unfinished uint64            `json:"unfinished"` // in flight when an interrupted run ran out of patience
	Overrun    uint64            `json:"overrun"`    // open loop: due, and never sent for want of room or connection

	Mismatched uint64 `json:"mismatched"` // frames with a wrong id, payload, version or kind
	Stray      uint64 `json:"stray"`      // of those, the ones that ended no request
	Duplicated uint64 `json:"duplicated"` // second replies
	Late       uint64 `json:"late"`       // replies to requests that had timed out
	Malformed  uint64 `json:"malformed"`  // connections on which something came that is not Bolt

	Dials      uint64 `json:"dials"`       // attempts
	DialErrors uint64 `json:"dial_errors"` // of those, failed
	Reconnects uint64 `json:"reconnects"`  // connections that replaced a broken one

	Throughput float64 `json:"throughput_per_second"` // ok replies; with Oneway, requests sent
	BytesIn    uint64  `json:"bytes_in"`
	BytesOut   uint64  `json:"bytes_out"`
	BytesPerS  float64 `json:"bytes_per_second"` // both directions

	Latency *Latency `json:"latency,omitempty"` // nil without ok replies
	Self    float64  `json:"self_cpu_us_per_request"`
	Process *Process `json:"process,omitempty"` // with PID

	StepMillis int64   `json:"timeline_step_ms"`
	Timeline   []Point `json:"timeline"`
}

// ReportedOptions are the options that make two reports comparable.
type ReportedOptions struct {
	Addr        string  `json:"addr"`
	Connections int     `json:"connections"`
	InFlight    int     `json:"in_flight"`
	Size        int     `json:"size_bytes"`
	Duration    float64 `json:"duration_seconds"`
	Count       uint64  `json:"count"`
	Warmup      float64 `json:"warmup_seconds"`
	Rate        float64 `json:"rate_per_second"` // 0: closed loop
	Version     string  `json:"version"`
	Service     string  `json:"service"`
	Timeout     float64 `json:"timeout_seconds"`
	Oneway      bool    `json:"oneway"`
	PID         int     `json:"pid,omitempty"`
}

// Latency is in microseconds, of ok replies: in a closed loop from the write of the request, in an open one
// from when it was due.
type Latency struct {
	Mean float64 `json:"mean_us"`
	P50  float64 `json:"p50_us"`
	P90  float64 `json:"p90_us"`
	P99  float64 `json:"p99_us"`
	P999 float64 `json:"p999_us"`
	Max  float64 `json:"max_us"`
}

// Process is what the watched process used while the measurement ran.
type Process struct {
	PID   int     `json:"pid"`
	CPU   float64 `json:"cpu_us_per_request"` // user and system; per ok reply, or per one-way request
	Cores float64 `json:"cores"`              // CPU time per time
	RSS   uint64  `json:"rss_bytes"`          // at the end
	Error string  `json:"error,omitempty"`    // why there is no such number
}

// Point is one step of the timeline: a request is in the step in which it was sent, and in that of its end.
type Point struct {
	Sent   uint64  `json:"sent"`
	OK     uint64  `json:"ok"`
	Errors uint64  `json:"errors"`
	Max    float64 `json:"max_us"` // longest latency of an ok reply
}

// Failed says whether anything happened that a forwarder must not let happen: a request without an ok reply,
// a wrong reply, or a request that could not be sent in time. What an interruption left unfinished is none.
func (r *Report) Failed() bool {
	return len(r.Statuses) > 0 || r.Timeouts+r.Lost+r.Overrun+r.Mismatched+r.Duplicated+r.Malformed > 0
}

func (r *run) report(m measurement) *Report {
	all := newTally(r.from)
	for _, t := range r.tallies {
		all.merge(t)
	}
	n := &all.total
	elapsed := time.Duration(max(0, max(m.end, all.lastOK)-r.from))
	p := &Report{
		Options: r.reported(), Interrupted: m.interrupted, Elapsed: elapsed.Seconds(),
		Sent: n.sent, OK: n.ok, Statuses: make(map[string]uint64), Timeouts: n.timeouts, Lost: n.lost,
		Unfinished: n.unfinished, Overrun: n.overrun, Mismatched: n.mismatched, Stray: n.stray,
		Duplicated: n.duplicated, Late: n.late, Malformed: n.malformed,
		Dials: r.dials.Load(), DialErrors: r.dialErrors.Load(), Reconnects: r.reconnects.Load(),
		BytesIn: n.bytesIn, BytesOut: n.bytesOut, StepMillis: all.width / int64(time.Millisecond),
	}
	for s, k := range n.status {
		if k > 0 {
			p.Statuses[wire.Status(s).String()] = k
		}
	}
	done := n.ok
	if r.opts.Oneway {
		done = n.sent - min(n.sent, n.lost)
	}
	p.Throughput = per(float64(done), elapsed.Seconds())
	p.BytesPerS = per(float64(n.bytesIn+n.bytesOut), elapsed.Seconds())
	p.Self = per(micros(m.self), float64(done))
	if n.ok > 0 {
		h := all.hist
		p.Latency = &Latency{
			micros(h.mean()), micros(h.quantile(0.5)), micros(h.quantile(0.9)),
			micros(h.quantile(0.99)), micros(h.quantile(0.999)), micros(h.max()),
		}
	}
	if r.opts.PID != 0 {
		p.Process = m.process(r.opts.PID, done, elapsed)
	}
	for _, s := range all.steps {
		p.Timeline = append(p.Timeline, Point{s.sent, s.ok, s.errors, micros(time.Duration(s.maxLatency))})
	}
	return p
}

func (m *measurement) process(pid int, done uint64, elapsed time.Duration) *Process {
	if m.pidErr != nil {
		return &Process{PID: pid, Error: m.pidErr.Error()}
	}
	used := m.after.since(m.before)
	return &Process{
		PID: pid, CPU: per(micros(used), float64(done)), Cores: per(used.Seconds(), elapsed.Seconds()), RSS: m.after.rss,
	}
}

func (r *run) reported() ReportedOptions {
	o := r.opts
	return ReportedOptions{
		Addr: o.Addr, Connections: o.Connections, InFlight: o.InFlight, Size: o.Size, Duration: o.Duration.Seconds(),
		Count: o.Count, Warmup: o.Warmup.Seconds(), Rate: o.Rate, Version: o.Version.String(), Service: o.Service,
		Timeout: o.Timeout.Seconds(), Oneway: o.Oneway, PID: o.PID,
	}
}

func micros(d time.Duration) float64 { return float64(d) / 1e3 }

// per is a/b, 0 where there is nothing to divide by.
func per(a, b float64) float64 {
	if b <= 0 {
		return 0
	}
	return a / b
}

// Print writes the report for people; what is zero and should be is left out. The timeline is in the JSON form.
func (r *Report) Print(w io.Writer) error {
	var b strings.Builder
	o := &r.Options
	load := fmt.Sprintf("closed loop, %d in flight each", o.InFlight)
	if o.Rate > 0 {
		load = fmt.Sprintf("open loop, %.0f requests/s", o.Rate)
	}
	if o.Oneway {
		load += ", one-way"
	}
	fmt.Fprintf(&b, "%s: %d connections, %s, %d bytes, %s\n", o.Addr, o.Connections, load, o.Size, o.Version)
	fmt.Fprintf(&b, "%d requests in %.3f s: %.0f/s, %.1f MB/s\n", r.Sent, r.Elapsed, r.Throughput, r.BytesPerS/1e6)
	fmt.Fprintf(&b, "  %-24s %d\n", "ok", r.OK)
	names := make([]string, 0, len(r.Statuses))
	for name := range r.Statuses {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(&b, "  %-24s %d\n", "status "+name, r.Statuses[name])
	}
	for _, c := range []struct {
		name string
		n    uint64
	}{
		{"timed out", r.Timeouts},
		{"lost", r.Lost},
		{"unfinished", r.Unfinished},
		{"overrun", r.Overrun},
		{"mismatched", r.Mismatched},
		{"duplicated", r.Duplicated},
		{"late", r.Late},
		{"malformed", r.Malformed},
		{"dial errors", r.DialErrors},
		{"reconnects", r.Reconnects},
	} {
		if c.n > 0 {
			fmt.Fprintf(&b, "  %-24s %d\n", c.name, c.n)
		}
	}
	if l := r.Latency; l != nil {
		fmt.Fprintf(&b, "latency: p50 %s, p90 %s, p99 %s, p99.9 %s, max %s\n",
			short(l.P50), short(l.P90), short(l.P99), short(l.P999), short(l.Max))
	}
	if p := r.Process; p != nil && p.Error != "" {
		fmt.Fprintf(&b, "process %d: %s\n", p.PID, p.Error)
	} else if p != nil {
		fmt.Fprintf(&b, "process %d: %.2f µs of CPU a request, %.2f cores, RSS %.1f MiB\n",
			p.PID, p.CPU, p.Cores, float64(p.RSS)/(1<<20))
	}
	fmt.Fprintf(&b, "this process: %.2f µs of CPU a request\n", r.Self)
	if r.Interrupted {
		b.WriteString("interrupted\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// short is a number of microseconds in the unit that suits it.
func short(us float64) string {
	switch d := time.Duration(us * 1e3); {
	case d >= time.Second:
		return d.Round(time.Millisecond).String()
	case d >= time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	default:
		return d.Round(100 * time.Nanosecond).String()
	}
}
