package forwarder_test

import (
	"net"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/stats"
)

// wantNewFails fails unless New refuses a spec and says all of this.
func wantNewFails(t *testing.T, s *forwarder.Spec, about ...string) {
	t.Helper()
	f, err := forwarder.New(s, 1<<30, stats.NewRegistry(), zap.NewNop())
	if err == nil {
		f.Close()
		t.Fatal("got a road, want an error")
	}
	for _, a := range about {
		if !strings.Contains(err.Error(), a) {
			t.Errorf("got the error %q, want it to tell of %q", err, a)
		}
	}
}

// TestNewReportsAll: all that is wrong at once, and nothing is left bound.
func TestNewReportsAll(t *testing.T) {
	s := spec("127.0.0.1:1")
	s.Routes = append(s.Routes, forwarder.RouteSpec{Name: "other", Rules: []forwarder.RuleSpec{{Name: "r", Clusters: []forwarder.Share{{Cluster: "nowhere", Weight: 1}}}}})
	s.Listeners[0].Routes = "missing"
	wantNewFails(t, s, `"nowhere"`, `"missing"`)
}

// TestNewLeavesNothingBound: of two listeners the second cannot be had, so the first is given back.
func TestNewLeavesNothingBound(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	s := spec("127.0.0.1:1")
	first := deadAddress(t)
	s.Listeners = append(s.Listeners, s.Listeners[0])
	s.Listeners[0].Address = first
	s.Listeners[1].Name, s.Listeners[1].Address = "second", taken.Addr().String()
	wantNewFails(t, s, "second", "address already in use")
	l, err := net.Listen("tcp", first)
	if err != nil {
		t.Fatalf("got %v, want the first listener's address free again", err)
	}
	l.Close()
}
