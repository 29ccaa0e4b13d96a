package forwarder

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/relevo-proxy/relevo/forwarder/cluster"
	"github.com/relevo-proxy/relevo/forwarder/health"
)

// TestContraryIsKnownByTheRow: what is handed over of an endpoint's checks tells how far it is on its way to a change.
func TestContraryIsKnownByTheRow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e, k := cluster.NewEndpoint("a", 1), &checked{}
		th := cluster.Thresholds{Unhealthy: rapid.IntRange(1, 4).Draw(t, "unhealthy"), Healthy: rapid.IntRange(1, 4).Draw(t, "healthy")}
		for i := range rapid.IntRange(0, 30).Draw(t, "checks") {
			next := &checked{at: int64(i + 1), reason: health.Passed, inARow: 1}
			if rapid.Bool().Draw(t, "fails") {
				next.reason = health.ReasonNoAnswer
			}
			if k.at != 0 && k.passed() == next.passed() {
				next.inARow += k.inARow
			}
			k = next
			e.Checked(k.passed(), th)
			if h := e.Health(); k.contrary(h.Unhealthy) != h.Contrary {
				t.Fatalf("got %d of %+v, want %d as %+v has it", k.contrary(h.Unhealthy), k, h.Contrary, h)
			}
		}
	})
}
