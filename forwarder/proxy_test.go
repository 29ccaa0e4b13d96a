package forwarder_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// patience bounds every wait for a condition. Nothing is expected to take that long.
const patience = 10 * time.Second

// proxy is a running road and what can be seen of it.
type proxy struct {
	*forwarder.Forwarder
	t       *testing.T
	address string
	reg     *stats.Registry
	logs    *observer.ObservedLogs
}

// startProxy runs a road until the test ends. Then, before it is closed, no request may be under way any more, and
// behind Close nothing may be held: no connection, no buffer.
func startProxy(t *testing.T, s *forwarder.Spec, maxBuffered int64) *proxy {
	t.Helper()
	p := newProxy(t, s, maxBuffered)
	p.Start()
	return p
}

// newProxy is startProxy for a road that is not started yet.
func newProxy(t *testing.T, s *forwarder.Spec, maxBuffered int64) *proxy {
	t.Helper()
	core, logs := observer.New(zapcore.InfoLevel)
	p := &proxy{t: t, reg: stats.NewRegistry(), logs: logs}
	f, err := forwarder.New(s, maxBuffered, p.reg, zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	p.Forwarder, p.address = f, f.Addresses()["in"].String()
	t.Cleanup(p.end)
	return p
}

// end closes the road and looks for what it left behind.
func (p *proxy) end() {
	if !p.t.Failed() {
		p.atRest()
	}
	p.Close()
	p.Close() // twice is fine
	for _, gauge := range slices.Concat(underWay, []string{"relevo_cluster_connections", "relevo_listener_connections", "relevo_endpoint_connections"}) {
		if n := p.value(gauge); n != 0 {
			p.t.Errorf("got %s = %v after Close, want 0: a place was not given back", gauge, n)
		}
	}
	if n := p.Buffered(); n != 0 {
		p.t.Errorf("got %d bytes of buffers after Close, want 0: a buffer was lost", n)
	}
	if n := p.value("relevo_recovered_panics_total"); n != 0 && !strings.Contains(p.t.Name(), "Panic") {
		p.t.Errorf("got %v recovered panics, want none: %v", n, p.logged("recovered a panic"))
	}
	if p.t.Failed() {
		for _, e := range p.logs.All() {
			p.t.Logf("%s %s %v", e.Level, e.Message, e.ContextMap())
		}
	}
}

// underWay are the gauges that stand at 0 when nothing is under way.
var underWay = []string{
	"relevo_listener_in_flight", "relevo_cluster_in_flight", "relevo_cluster_pending", "relevo_cluster_pending_bytes",
	"relevo_endpoint_in_flight", "relevo_cluster_retries_in_flight", "relevo_cluster_retries_waiting", "relevo_cluster_retry_bytes",
}

// atRest waits until nothing is under way.
func (p *proxy) atRest() {
	p.t.Helper()
	for _, gauge := range underWay {
		eventually(p.t, func() bool { return p.value(gauge) == 0 }, func() string {
			return fmt.Sprintf("%s to be 0 once every request has ended, it is %v", gauge, p.value(gauge))
		})
	}
}

// value is the sum of a metric's series that have all these labels, each "name=value".
func (p *proxy) value(name string, labels ...string) float64 {
	sum := 0.0
	for _, s := range p.reg.Snapshot() {
		if s.Name == name && hasLabels(s, labels) {
			sum += s.Value
		}
	}
	return sum
}

func hasLabels(s stats.Sample, labels []string) bool {
	for _, l := range labels {
		name, value, _ := strings.Cut(l, "=")
		if !slices.Contains(s.Labels, stats.Label{Name: name, Value: value}) {
			return false
		}
	}
	return true
}

// wantCount waits until a metric stands at want.
func (p *proxy) wantCount(want float64, name string, labels ...string) {
	p.t.Helper()
	eventually(p.t, func() bool { return p.value(name, labels...) == want }, func() string {
		return fmt.Sprintf("%s%v to be %v, it is %v; all of it: %v", name, labels, want, p.value(name, labels...), p.series(name))
	})
}

// wantSome waits until a metric stands at 1 or above.
func (p *proxy) wantSome(name string, labels ...string) {
	p.t.Helper()
	eventually(p.t, func() bool { return p.value(name, labels...) >= 1 }, func() string {
		return fmt.Sprintf("%s%v to be at least 1; all of it: %v", name, labels, p.series(name))
	})
}

// series are the lines of a metric.
func (p *proxy) series(name string) []string {
	var out []string
	for _, s := range p.reg.Snapshot() {
		if s.Name == name {
			out = append(out, s.String())
		}
	}
	return out
}

// logged are the log entries with this text in their message, or with this reason.
func (p *proxy) logged(about string) []string {
	var out []string
	for _, e := range p.logs.All() {
		fields := e.ContextMap()
		if strings.Contains(e.Message, about) || fields["reason"] == about {
			out = append(out, fmt.Sprint(e.Message, " ", slices.Sorted(maps.Keys(fields)), fields["stack"]))
		}
	}
	return out
}

// wantLogged fails unless this reason was told to the operator.
func (p *proxy) wantLogged(reason string) {
	p.t.Helper()
	eventually(p.t, func() bool { return len(p.logged(reason)) > 0 }, func() string {
		return fmt.Sprintf("a log entry with the reason %q, so that the operator knows", reason)
	})
}

// wantLocal fails unless a reply has this status and this many local replies were counted, and one logged, for a
// reason.
func (p *proxy) wantLocal(m wire.Message, status wire.Status, reason string, count float64) {
	p.t.Helper()
	if m.Kind != wire.Reply || m.Status != status {
		p.t.Errorf("got a %v of status %v, want a reply of status %v for the reason %s", m.Kind, m.Status, status, reason)
	}
	if len(m.Class()) != 0 || len(m.HeaderBlock()) != 0 || len(m.Content()) != 0 {
		p.t.Errorf("got a local reply of %d bytes, want nothing behind its fixed header", len(m.Frame))
	}
	p.wantCount(count, "relevo_listener_local_replies_total", "reason="+reason)
	p.wantLogged(reason)
}

// reading waits until the proxy has read this many bytes of its clients.
func (p *proxy) reading(n int) {
	p.t.Helper()
	p.wantCount(float64(n), "relevo_listener_bytes_total", "direction=read")
}

// eventually waits until a condition holds.
func eventually(t *testing.T, cond func() bool, what func() string) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", patience, what())
		}
		<-tick.C
	}
}

// say makes a constant of a sentence for eventually.
func say(format string, args ...any) func() string {
	return func() string { return fmt.Sprintf(format, args...) }
}
