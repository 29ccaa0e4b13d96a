package forwarder_test

import (
	"fmt"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/stats"
)

// TestManyEndpointsGoOver: nothing is forwarded meanwhile, so what is known of endpoints is adopted in a time that does not grow with
// their square, and what is registered of them is not registered again.
func TestManyEndpointsGoOver(t *testing.T) {
	const few, many = 2000, 16000
	roads := make(map[int]*forwarder.Forwarder)
	states := make(map[int]*forwarder.Handover)
	for _, n := range []int{few, many} {
		s := spec("127.0.0.1:1")
		s.Clusters[0].Endpoints = nil
		states[n] = &forwarder.Handover{}
		for i := range n {
			e := forwarder.EndpointSpec{Network: "tcp", Address: fmt.Sprintf("127.1.%d.%d:1", i/250, i%250), Weight: 1}
			s.Clusters[0].Endpoints = append(s.Clusters[0].Endpoints, e)
			states[n].Endpoints = append(states[n].Endpoints, forwarder.EndpointState{Cluster: s.Clusters[0].Name, Address: e.Address})
		}
		var err error
		if roads[n], err = forwarder.New(s, 512<<20, stats.NewRegistry(), zap.NewNop()); err != nil {
			t.Fatal(err)
		}
		defer roads[n].Close()
	}
	adopt := func(n int) time.Duration {
		began := time.Now()
		if err := roads[n].Adopt(states[n]); err != nil {
			t.Fatal(err)
		}
		return time.Since(began)
	}
	if allocs := testing.AllocsPerRun(1, func() { adopt(few) }); allocs > 5*few && !raceEnabled {
		t.Errorf("it allocates %v times for %d endpoints", allocs, few)
	}
	ratio := 0.0
	for range 5 { // something else may run meanwhile
		if ratio = float64(adopt(many)) / float64(adopt(few)); ratio < 3*many/few {
			return
		}
	}
	t.Errorf("for %d endpoints it takes %.0f times as long as for %d", many, ratio, few)
}
