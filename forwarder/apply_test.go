package forwarder_test

import (
	"fmt"
	"testing"
)

// TestApplyUnderLoad: rules, weights, endpoints, clusters and listeners come and go, and no request notices.
func TestApplyUnderLoad(t *testing.T) {
	servers := []*server{serveEach(t, echoEach), serveEach(t, echoEach), serveEach(t, echoEach)}
	p := startProxy(t, spec(servers[0].address), 512<<20)
	load := startLoad(t, p.address)
	c := dial(t, p.address)
	for i := range uint32(60) {
		s := spec(servers[0].address, servers[1].address)
		s.Listeners[0].MaxStreams -= int(i)
		switch i % 4 {
		case 0:
			s.Clusters[0].Endpoints[0].Weight = int(i) + 1
		case 1:
			s = spec(servers[2].address, servers[0].address)
			s.Clusters[0].MaxRequests += int(i)
		case 2:
			s = spec(servers[1].address)
			s.Clusters[0].Name, s.Routes[0].Rules[0].Clusters[0].Cluster = "other", "other"
		case 3:
			l := s.Listeners[0]
			l.Name, l.Address = fmt.Sprint("more-", i), "127.0.0.1:0"
			s.Listeners = append(s.Listeners, l)
		}
		if err := p.Apply(s, kept); err != nil {
			t.Fatal(err)
		}
		wantEcho(t, c.call(request(i, "on one connection")), "on one connection")
		if i%8 == 7 {
			load.goOn()
		}
	}
	load.stop()
	p.wantCount(0, "relevo_listener_local_replies_total")
	if err := p.Apply(spec(servers[0].address), kept); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return p.value("relevo_cluster_connections", "cluster=other") == 0 }, say("the connections of a cluster that is gone to close"))
}
