package forwarder

import (
	"strconv"
	"testing"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder/stats"
)

// TestWarningsOfManyEndpoints: when all of very many are down, each of them is told of once in a while, not each time.
func TestWarningsOfManyEndpoints(t *testing.T) {
	f, err := New(&Spec{}, 1<<20, stats.NewRegistry(), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	told := 0
	for range 3 {
		for i := range 23_000 {
			for _, reason := range []string{ReasonConnectFailure, ReasonProbeTimeout} {
				if _, ok := f.warn(strconv.Itoa(i), reason); ok {
					told++
				}
			}
		}
	}
	if told != 46_000 {
		t.Errorf("got %d warnings, want one for each of 23,000 endpoints and each of 2 reasons", told)
	}
}
