package server_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/relevo-proxy/relevo/admin"
	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
	"github.com/relevo-proxy/relevo/cmd/relevo/echo"
	"github.com/relevo-proxy/relevo/forwarder/cluster"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

func TestSpecOfOutlierDetection(t *testing.T) {
	const text = `
listeners: [{name: in, address: "127.0.0.1:0", protocol: bolt}]
routes: [{name: rpc, rules: [{cluster: a, match: {service: a}}, {cluster: b, match: {service: b}}, {cluster: c}]}]
clusters:
- {name: a, protocol: bolt, endpoints: [{address: "127.0.0.1:1"}]}
- {name: b, protocol: bolt, endpoints: [{address: "127.0.0.1:2"}], outlier_detection: {}}
- {name: c, protocol: bolt, endpoints: [{address: "127.0.0.1:2"}], outlier_detection: {consecutive_failures: none, interval: 1s, ejection_time: 2s,
    max_ejection_time: 3s, max_ejection_percent: 12.5%, success_rate: {min_requests: 7, min_endpoints: 8, deviations: 2.25}}}
`
	var got []*cluster.OutlierRules
	for _, c := range spec(t, text).Clusters {
		got = append(got, c.Outliers)
	}
	const s = int64(time.Second)
	want := []*cluster.OutlierRules{
		nil,
		{Failures: 5, Interval: 10 * s, Time: 30 * s, MaxTime: 300 * s, MaxShare: 1000},
		{Interval: s, Time: 2 * s, MaxTime: 3 * s, MaxShare: 1250, SuccessRate: &cluster.SuccessRate{MinRequests: 7, MinEndpoints: 8, Deviations: 2.25}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the rules differ (-want +got):\n%s", diff)
	}
}

// An endpoint that is ejected says until when, why, and how often it was; its cluster how many are.
func TestRoadTellsOfAnEjection(t *testing.T) {
	folder := t.TempDir()
	bad, good := startEcho(t, echo.Options{Status: wire.Error}), startEcho(t, echo.Options{})
	text := strings.Replace(fmt.Sprintf(roadText, folder, bad, good), "protocol: bolt, endpoints", "protocol: bolt, outlier_detection: {ejection_time: 1h, max_ejection_time: 1h}, endpoints", 1)
	d := openDoor(t, folder, text)
	began := time.Now()
	if _, err := bench.Run(t.Context(), bench.Options{
		Addr: d.server.Addresses()["in"].String(), Service: "com.example.Echo:1.0", Connections: 1, InFlight: 1, Size: 1, Count: 100,
	}); err != nil {
		t.Fatal(err)
	}
	e := read[admin.Endpoint](t, d, "/v1/clusters/echo/endpoints/"+bad)
	if e.State != "ejected" || e.EjectedUntil == nil || e.EjectedUntil.Sub(began) < time.Hour-time.Second || e.Ejections != 1 || e.EjectedWhy != cluster.ByFailures {
		t.Errorf("the endpoint is %+v, want it ejected for an hour or more", e)
	}
	if e := read[admin.Endpoint](t, d, "/v1/clusters/echo/endpoints/"+good); e.State != "usable" || e.EjectedUntil != nil || e.Ejections != 0 || e.EjectedWhy != "" {
		t.Errorf("the other endpoint is %+v, want nothing of ejections", e)
	}
	if c := read[admin.Cluster](t, d, "/v1/clusters/echo"); c.Ejected != 1 {
		t.Errorf("the cluster is %+v, want one ejected", c)
	}
}
