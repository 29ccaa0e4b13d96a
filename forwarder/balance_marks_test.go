package forwarder

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/relevo-proxy/relevo/forwarder/cluster"
	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// marked is a road without listeners whose endpoints a test marks, on a fake clock.
type marked struct {
	*Forwarder
	t    *testing.T
	reg  *stats.Registry
	logs *observer.ObservedLogs
}

// markedSpec is a cluster of n endpoints.
func markedSpec(n int, slowStart time.Duration, threshold int) *Spec {
	c := ClusterSpec{Name: "order", Codec: bolt.Codec{}, Balancer: BalancerRandom, MaxConnections: 10, SlowStart: slowStart, PanicThreshold: threshold}
	for i := range n {
		c.Endpoints = append(c.Endpoints, EndpointSpec{Network: "tcp", Address: fmt.Sprintf("127.0.0.1:%d", i+1), Weight: 100})
	}
	return &Spec{Clusters: []ClusterSpec{c}, MaxTimeout: time.Minute, Workers: WorkersSpec{Max: 1}}
}

// withMarked runs a test on a road that is not started yet.
func withMarked(t *testing.T, s *Spec, test func(t *testing.T, m *marked)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := newMarked(t, s)
		test(t, m)
		m.Close()
	})
}

func newMarked(t *testing.T, s *Spec) *marked {
	t.Helper()
	core, logs := observer.New(zapcore.InfoLevel)
	m := &marked{t: t, reg: stats.NewRegistry(), logs: logs}
	var err error
	if m.Forwarder, err = New(s, 1<<20, m.reg, zap.New(core)); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *marked) cluster() *upCluster { return m.snap.Load().clusters[0] }

// mark sets what is thought of an endpoint, and lets the sweeper see it.
func (m *marked) mark(i int, unhealthy, ejected bool) {
	p := m.cluster().endpoints[i].policy
	h := p.Health()
	h.Unhealthy, h.Ejected = unhealthy, ejected
	p.Restore(h)
	m.sweep.change()
	synctest.Wait()
}

// wantShare fails unless an endpoint has this share of its weight, give or take a thousandth, where it is asked for.
func (m *marked) wantShare(i int, want float64) {
	m.t.Helper()
	if got := m.Status().Clusters[0].Endpoints[i].Share; got < want-0.001 || got > want+0.001 {
		m.t.Errorf("endpoint %d: got a share of %.3f, want %.3f", i, got, want)
	}
}

// wantGauge fails unless a metric of the cluster has this value.
func (m *marked) wantGauge(name string, want float64) {
	m.t.Helper()
	for _, s := range m.reg.Snapshot() {
		if s.Name == name {
			if s.Value != want {
				m.t.Errorf("got %s = %v, want %v", name, s.Value, want)
			}
			return
		}
	}
	m.t.Errorf("got no %s", name)
}

// TestSlowStartBegins for an endpoint that is usable again, whatever was held against it, and ends by itself. Those that were there
// from the start begin with all of their weight.
func TestSlowStartBegins(t *testing.T) {
	for name, c := range map[string]struct {
		falls, rises func(e *cluster.Endpoint, now int64)
	}{
		"unhealthy": {
			func(e *cluster.Endpoint, _ int64) { e.Restore(cluster.Health{Unhealthy: true}) },
			func(e *cluster.Endpoint, _ int64) { e.Restore(cluster.Health{}) },
		},
		"ejected": {
			func(e *cluster.Endpoint, _ int64) { e.Restore(cluster.Health{Ejected: true}) },
			func(e *cluster.Endpoint, _ int64) { e.Restore(cluster.Health{}) },
		},
		"failed":  {func(e *cluster.Endpoint, now int64) { e.Failed(now) }, func(e *cluster.Endpoint, _ int64) { e.Connected() }},
		"drained": {func(e *cluster.Endpoint, _ int64) { e.Drain(true) }, func(e *cluster.Endpoint, _ int64) { e.Drain(false) }},
	} {
		t.Run(name, func(t *testing.T) {
			withMarked(t, markedSpec(3, 10*time.Second, 0), func(t *testing.T, m *marked) {
				m.Start()
				synctest.Wait()
				for i := range 3 {
					m.wantShare(i, 1)
				}
				e := m.cluster().endpoints[0].policy
				c.falls(e, m.now())
				m.sweep.change()
				synctest.Wait()
				m.wantShare(0, 1)
				c.rises(e, m.now())
				m.sweep.change()
				synctest.Wait()
				m.wantShare(0, 0.1)
				m.wantShare(1, 1)
				m.wantGauge("relevo_cluster_slow_start", 1)
				time.Sleep(5 * time.Second)
				m.wantShare(0, 0.55)
				time.Sleep(5 * time.Second)
				m.wantShare(0, 1)
				m.wantGauge("relevo_cluster_slow_start", 0)
				time.Sleep(time.Duration(coolGrain))
				synctest.Wait()
				if h := e.Health(); h != (cluster.Health{}) {
					t.Errorf("behind the slow start %+v is known, want nothing: each request would look at it", h)
				}
			})
		})
	}
}

// TestNoSlowStart: without one an endpoint that is usable again has all of its weight.
func TestNoSlowStart(t *testing.T) {
	withMarked(t, markedSpec(2, 0, 0), func(t *testing.T, m *marked) {
		m.Start()
		m.mark(0, true, false)
		m.mark(0, false, false)
		m.wantShare(0, 1)
		m.wantGauge("relevo_cluster_slow_start", 0)
	})
}

// TestSlowStartOfOneThatJoins begins before the first request can find it. The others have theirs as before, and one that leaves
// and comes again is new.
func TestSlowStartOfOneThatJoins(t *testing.T) {
	keep := func() error { return nil }
	withMarked(t, markedSpec(2, 10*time.Second, 0), func(t *testing.T, m *marked) {
		if err := m.Apply(markedSpec(3, 10*time.Second, 0), keep); err != nil { // the sweeper does not run yet
			t.Fatal(err)
		}
		m.wantShare(0, 1)
		m.wantShare(1, 1)
		m.wantShare(2, 0.1)
		m.Start()
		time.Sleep(5 * time.Second)
		m.wantShare(2, 0.55)
		if err := m.Apply(markedSpec(1, 10*time.Second, 0), keep); err != nil {
			t.Fatal(err)
		}
		if err := m.Apply(markedSpec(3, 10*time.Second, 0), keep); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		m.wantShare(0, 1)
		m.wantShare(1, 0.1)
		m.wantShare(2, 0.1)
	})
}

// TestSlowStartOfTheFirst: endpoints that are found for a cluster without any begin with all of their weight.
func TestSlowStartOfTheFirst(t *testing.T) {
	withMarked(t, markedSpec(0, 10*time.Second, 0), func(t *testing.T, m *marked) {
		m.Start()
		if err := m.Apply(markedSpec(2, 10*time.Second, 0), func() error { return nil }); err != nil {
			t.Fatal(err)
		}
		m.wantShare(0, 1)
		m.wantShare(1, 1)
	})
}

// TestSlowStartGoesOver an upgrade, with the time that has passed of it. An endpoint that the new configuration adds begins one.
func TestSlowStartGoesOver(t *testing.T) {
	withMarked(t, markedSpec(3, 10*time.Second, 0), func(t *testing.T, m *marked) {
		m.Start()
		m.mark(1, true, false)
		m.mark(1, false, false)
		time.Sleep(5 * time.Second)
		if err := m.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		heir := newMarked(t, markedSpec(4, 10*time.Second, 0))
		defer heir.Close()
		heir.started = m.started // of the clock that both share
		if err := heir.Adopt(m.Export()); err != nil {
			t.Fatal(err)
		}
		heir.Start()
		synctest.Wait()
		heir.wantShare(0, 1)
		heir.wantShare(1, 0.55)
		heir.wantShare(3, 0.1)
		time.Sleep(5 * time.Second)
		heir.wantShare(1, 1)
		heir.wantShare(3, 0.55)
	})
}

// TestPanic: it begins when too few endpoints are usable and others can be had, is told once, shows, goes on over a change of the
// configuration and an upgrade, and ends.
func TestPanic(t *testing.T) {
	withMarked(t, markedSpec(4, 0, 50_00), func(t *testing.T, m *marked) {
		m.Start()
		want := func(m *marked, want bool) {
			t.Helper()
			gauge, c := 0.0, m.cluster()
			if want {
				gauge = 1
			}
			if got := m.Status().Clusters[0].Panic; got != want || c.panics.Load() != want {
				t.Errorf("got a panic %v, want %v", got, want)
			}
			m.wantGauge("relevo_cluster_panic", gauge)
		}
		told := func(m *marked) (lines []string) {
			for _, e := range m.logs.All() {
				if strings.Contains(e.Message, "unhealthy and ejected") {
					lines = append(lines, fmt.Sprint(e.Level, " ", e.ContextMap()["usable"], " of ", e.ContextMap()["endpoints"]))
				}
			}
			return lines
		}
		synctest.Wait()
		want(m, false)
		m.mark(0, true, false)
		m.mark(1, false, true)
		want(m, false) // half of them is not below half
		m.mark(2, true, true)
		want(m, true)
		m.mark(3, true, false)
		want(m, true)

		if err := m.Apply(markedSpec(4, 0, 50_00), func() error { return nil }); err != nil {
			t.Fatal(err)
		}
		want(m, true) // also before the sweeper has looked
		synctest.Wait()
		want(m, true)
		if err := m.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		h := m.Export()
		m.Resume()

		m.mark(3, false, false)
		want(m, true)
		m.mark(0, false, false)
		want(m, false)
		if got := strings.Join(told(m), ", "); got != "warn 1 of 4, info 2 of 4" {
			t.Errorf("told was %q, want the beginning and the end, once each", got)
		}

		heir := newMarked(t, markedSpec(4, 0, 50_00))
		defer heir.Close()
		h.Endpoints = nil // how marks go over is the business of who sets them
		for i := range 4 {
			heir.cluster().endpoints[i].policy.Restore(cluster.Health{Unhealthy: true})
		}
		if err := heir.Adopt(h); err != nil {
			t.Fatal(err)
		}
		want(heir, true) // before anything is read
		heir.Start()
		synctest.Wait()
		want(heir, true)
	})
}

// TestPanicHelps: nothing begins where all endpoints that can be reached are used already, or where the configuration says never.
func TestPanicHelps(t *testing.T) {
	withMarked(t, markedSpec(4, 0, 50_00), func(t *testing.T, m *marked) {
		m.Start()
		for i := range 3 {
			m.cluster().endpoints[i].policy.Drain(true)
		}
		m.sweep.change()
		synctest.Wait()
		if m.cluster().panics.Load() {
			t.Error("got a panic because of endpoints that are drained, want none")
		}
	})
	withMarked(t, markedSpec(2, 0, 0), func(t *testing.T, m *marked) {
		m.Start()
		m.mark(0, true, false)
		m.mark(1, true, false)
		if m.cluster().panics.Load() {
			t.Error("got a panic, and the configuration says never")
		}
	})
}

// TestTablesAreKept: a change that leaves the endpoints and weights as they are builds no table.
func TestTablesAreKept(t *testing.T) {
	of := func(weight int) *Spec {
		s := markedSpec(3, 0, 0)
		s.Clusters[0].Balancer = BalancerMaglev
		s.Clusters[0].Endpoints[2].Weight = weight
		s.Clusters[0].MaxRequests = 7 + weight
		return s
	}
	withMarked(t, of(100), func(t *testing.T, m *marked) {
		table := func() *cluster.MaglevTable { return m.cluster().hashing.table }
		first := table()
		next := of(100)
		next.Clusters[0].MaxRequests, next.Clusters[0].HashHeader, next.Clusters[0].Endpoints[1].Drain = 3, "user", true
		if err := m.Apply(next, func() error { return nil }); err != nil {
			t.Fatal(err)
		}
		if table() != first || len(m.cluster().hashing.keys) != 1 {
			t.Error("got another table for the same endpoints, or the key of before")
		}
		if err := m.Apply(of(50), func() error { return nil }); err != nil {
			t.Fatal(err)
		}
		if table() == first {
			t.Error("got the table of before for another weight")
		}
	})
}
