package forwarder_test

import (
	"fmt"
	"sync"
	"testing"
)

// TestUploadsTakeTurns: many uploads for one connection all get it; each that comes free is taken, whenever that is.
func TestUploadsTakeTurns(t *testing.T) {
	server, _ := counting(t)
	s := uploadSpec(server.address)
	s.Listeners[0].StreamAbove = 65 << 10
	s.Clusters[0].MaxUploads = 1
	p := startProxy(t, s, 128<<20)
	content := string(noise(1, 70<<10))
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			c := dial(t, p.address)
			for id := range uint32(60) {
				wantEcho(t, c.call(request(id, content+fmt.Sprint(id))), content+fmt.Sprint(id))
			}
			c.hangUp()
		})
	}
	group.Wait()
	p.wantCount(0, "relevo_cluster_pending")
	if n := server.accepted.Load(); n != 1 {
		t.Errorf("got %d connections at the server, want the one that all took in turns", n)
	}
}
