//go:build linux

package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
)

// told is what clients were told: how many requests they sent, and how many of those ended with which status.
type told struct {
	sent   uint64
	status map[string]uint64
}

// add adds a load's report. Whatever came of a request, it must have been one reply, and that request's own.
func (o *told) add(t *testing.T, r *bench.Report) {
	t.Helper()
	if n := r.Timeouts + r.Lost + r.Unfinished; n > 0 {
		t.Errorf("%d requests got no reply: %d within their timeout, %d when the connection closed, %d when the load ended; want one each",
			n, r.Timeouts, r.Lost, r.Unfinished)
	}
	if n := r.Mismatched + r.Duplicated + r.Late + r.Malformed; n > 0 {
		t.Errorf("a client got what it should not: %d wrong replies, %d second ones, %d late ones, %d that are no frame; want none",
			r.Mismatched, r.Duplicated, r.Late, r.Malformed)
	}
	if r.Reconnects > 0 {
		t.Errorf("clients had to connect again %d times: what happens to an endpoint costs no client its connection", r.Reconnects)
	}
	if o.status == nil {
		o.status = map[string]uint64{}
	}
	o.sent += r.Sent
	o.status["SUCCESS"] += r.OK
	for s, n := range r.Statuses {
		o.status[s] += n
	}
	if n := r.OK + total(r.Statuses); n != r.Sent {
		t.Errorf("%d requests were sent and %d outcomes came of them: %d SUCCESS and %v", r.Sent, n, r.OK, r.Statuses)
	}
}

func total(m map[string]uint64) (n uint64) {
	for _, k := range m {
		n += k
	}
	return n
}

// reading is what the proxy says of itself at one moment.
type reading []series

type series struct {
	name   string
	labels map[string]string
	value  float64
}

var label = regexp.MustCompile(`(\w+)="([^"]*)"`)

// parseReading reads the text format of Prometheus. No label value here has a quotation mark in it.
func parseReading(text string) (m reading, err error) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		at := strings.LastIndexByte(line, ' ')
		value, err := strconv.ParseFloat(line[at+1:], 64)
		if at < 0 || err != nil {
			return nil, fmt.Errorf("the line %q of the metrics has no value", line)
		}
		name, inner, _ := strings.Cut(line[:at], "{")
		s := series{name, map[string]string{}, value}
		for _, pair := range label.FindAllStringSubmatch(inner, -1) {
			s.labels[pair[1]] = pair[2]
		}
		m = append(m, s)
	}
	return m, nil
}

// sum adds up the series of this name that carry these labels, each given as KEY=VALUE.
func (m reading) sum(name string, labels ...string) uint64 {
	return total(m.by(name, "", labels...))
}

// by is the series of this name that carry these labels, by the value of another one. What is zero is left out.
func (m reading) by(name, key string, labels ...string) map[string]uint64 {
	out := map[string]uint64{}
	for _, s := range m {
		if s.name == name && s.value != 0 && !slices.ContainsFunc(labels, func(l string) bool {
			k, v, _ := strings.Cut(l, "=")
			return s.labels[k] != v
		}) {
			out[s.labels[key]] += uint64(s.value)
		}
	}
	return out
}

// local are the replies that the proxy gave itself, by reason.
func (m reading) local() map[string]uint64 {
	return m.by("relevo_listener_local_replies_total", "reason")
}

// clientDrops and serverDrops are what was dropped, by reason.
func (m reading) clientDrops() map[string]uint64 {
	return m.by("relevo_listener_dropped_total", "reason")
}

func (m reading) serverDrops() map[string]uint64 {
	return m.by("relevo_cluster_dropped_total", "reason")
}

// closes are the ends of an endpoint's connections, by reason.
func (m reading) closes(e *endpoint) map[string]uint64 {
	return m.by("relevo_endpoint_closes_total", "reason", "endpoint="+e.address)
}

// replies is how many of an endpoint's replies were passed on.
func (m reading) replies(e *endpoint) uint64 {
	return m.sum("relevo_endpoint_replies_total", "endpoint="+e.address)
}

// passedOver says whether the endpoint gets no requests because it failed.
func (m reading) passedOver(e *endpoint) bool {
	return m.sum("relevo_endpoint_passed_over", "endpoint="+e.address) > 0
}

// idle says what is still under way, if anything is.
func (m reading) idle() error {
	var errs []error
	for name, labels := range map[string][]string{
		"relevo_listener_connections":  nil,
		"relevo_listener_in_flight":    nil,
		"relevo_cluster_in_flight":     nil,
		"relevo_cluster_pending":       nil,
		"relevo_cluster_pending_bytes": nil,
		"relevo_endpoint_in_flight":    nil,
		"relevo_endpoint_connections":  {"state=dialling"},
		"relevo_buffered_bytes":        nil,
		"relevo_worker_queue":          nil,
	} {
		if n := m.sum(name, labels...); n != 0 {
			errs = append(errs, fmt.Errorf("%s%v is %d when nothing is under way, want 0", name, labels, n))
		}
	}
	for _, state := range []string{"busy", "parked"} {
		if n := m.sum("relevo_workers", "state="+state); n != 0 {
			errs = append(errs, fmt.Errorf("%d workers are %s when nothing is under way, want 0", n, state))
		}
	}
	return errors.Join(errs...)
}

// agree says where the counters do not agree with each other: a request that came must have ended once, each
// reply that Relevo gave itself must have the status that docs/limits.md gives for its reason, and each
// connection that was made must be there or have been closed for a reason.
func (m reading) agree(page limits) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	requests := m.sum("relevo_listener_requests_total", "kind=request")
	statuses := m.by("relevo_listener_replies_total", "status")
	local := m.local()
	gone := m.clientDrops()["downstream-gone"]
	if n := total(statuses) + gone; n != requests {
		bad("%d requests came, and %d ended: %v were replied, %d had no client any more", requests, n, statuses, gone)
	}
	byReason := map[string]uint64{}
	for reason, n := range local {
		if page.status[reason] == "" {
			bad("docs/limits.md has no status for the local reply %q", reason)
		}
		byReason[page.status[reason]] += n
	}
	for status, n := range statuses {
		if status != "SUCCESS" && n != byReason[status] {
			bad("%d replies said %s, and the reasons for it add up to %d: %v", n, status, byReason[status], local)
		}
	}
	if route := m.by("relevo_route_local_replies_total", "reason"); !maps.Equal(route, local) {
		bad("the route counts %v local replies, the listener %v; want the same", route, local)
	}
	if n := m.sum("relevo_endpoint_replies_total"); n != statuses["SUCCESS"] {
		bad("the endpoints gave %d replies, and %d were passed on with SUCCESS", n, statuses["SUCCESS"])
	}
	for reason := range m.by("relevo_endpoint_closes_total", "reason") {
		if !page.closes[reason] {
			bad("docs/limits.md does not say when a connection is closed for %q", reason)
		}
	}
	for _, drops := range []map[string]uint64{m.clientDrops(), m.serverDrops()} {
		for reason := range drops {
			if !page.drops[reason] {
				bad("docs/limits.md does not say what is dropped for %q", reason)
			}
		}
	}
	closed := m.by("relevo_endpoint_closes_total", "endpoint")
	ready := m.by("relevo_endpoint_connections", "endpoint", "state=ready")
	for address, made := range m.by("relevo_endpoint_connections_total", "endpoint") {
		if made != closed[address]+ready[address] {
			bad("%d connections were made to %s, %d are there and %d were closed", made, address, ready[address], closed[address])
		}
	}
	if n := m.sum("relevo_cluster_connections"); n != total(ready) {
		bad("%d of the cluster's connections are taken, and %d are there", n, total(ready))
	}
	if came, went := m.sum("relevo_listener_connections_total"), m.sum("relevo_listener_closes_total"); came != went {
		bad("%d clients connected and %d were closed; they have all gone", came, went)
	}
	for _, name := range []string{"relevo_recovered_panics_total", "relevo_worker_rejections_total", "relevo_cluster_rejections_total", "relevo_listener_rejections_total"} {
		if n := m.sum(name); n != 0 {
			bad("%s is %d, want 0", name, n)
		}
	}
	return errors.Join(errs...)
}

// heard says where the proxy counted something else than what clients were told.
func (m reading) heard(o told) error {
	var errs []error
	if n := m.sum("relevo_listener_requests_total", "kind=request"); n != o.sent {
		errs = append(errs, fmt.Errorf("%d requests were sent, the proxy counts %d", o.sent, n))
	}
	want := maps.Clone(o.status)
	maps.DeleteFunc(want, func(_ string, n uint64) bool { return n == 0 })
	if got := m.by("relevo_listener_replies_total", "status"); !maps.Equal(got, want) {
		errs = append(errs, fmt.Errorf("clients were told %v, the proxy counts %v", want, got))
	}
	return errors.Join(errs...)
}

// only fails the test unless the reasons that were counted are these: those in must have come, those in may can
// have.
func only(t *testing.T, what string, got map[string]uint64, must []string, may ...string) {
	t.Helper()
	for _, reason := range must {
		if got[reason] == 0 {
			t.Errorf("%s: %v, want some for %q", what, got, reason)
		}
	}
	for reason, n := range got {
		if !slices.Contains(must, reason) && !slices.Contains(may, reason) {
			t.Errorf("%s: %d for %q, want none for anything but %q and perhaps %q", what, n, reason, must, may)
		}
	}
}

// limits is what docs/limits.md promises about reasons.
type limits struct {
	status        map[string]string // of a local reply, by reason; "" where a filter or a rule decides
	closes, drops map[string]bool
}

var limitsRow = regexp.MustCompile("(?m)^\\| ((?:`[a-z-]+`(?:, )?)+) \\| ([A-Z_]*)")

// limitsPage reads docs/limits.md.
var limitsPage = sync.OnceValues(func() (limits, error) {
	text, err := os.ReadFile("../../docs/limits.md")
	l := limits{map[string]string{}, map[string]bool{}, map[string]bool{}}
	for section := range strings.SplitSeq(string(text), "\n## ") {
		for _, row := range limitsRow.FindAllStringSubmatch(section, -1) {
			for quoted := range strings.SplitSeq(row[1], ", ") {
				switch reason := strings.Trim(quoted, "`"); {
				case strings.HasPrefix(section, "Why Relevo answers"):
					l.status[reason] = row[2]
				case strings.HasPrefix(section, "Why a connection"):
					l.closes[reason] = true
				case strings.HasPrefix(section, "What is dropped"):
					l.drops[reason] = true
				}
			}
		}
	}
	if err == nil && (len(l.status) == 0 || len(l.closes) == 0 || len(l.drops) == 0) {
		err = errors.New("docs/limits.md has no tables of reasons where they are looked for")
	}
	return l, err
})
