package forwarder_test

import "testing"

// TestClientsAreCountedOverAHandOver: those that came over are the new road's, and leave it.
func TestClientsAreCountedOverAHandOver(t *testing.T) {
	s := spec(serveEach(t, echoEach).address)
	p := startProxy(t, s, 512<<20)
	clients := make([]*peer, 3)
	for i := range clients {
		clients[i] = dial(t, p.address)
		clients[i].call(request(1, "x"))
	}
	p.handOver(s)
	if n := p.Connections(); n != len(clients) {
		t.Errorf("got %d client connections behind the hand-over, want %d", n, len(clients))
	}
	for _, c := range clients {
		c.hangUp()
	}
	eventually(t, func() bool { return p.Connections() == 0 }, say("the connections to be counted as gone"))
}
