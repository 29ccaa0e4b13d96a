package forwarder

import "testing"

// TestDialledLeaseIsCountedOnce: who looks for a connection in the moment in which another one has been made for an upload finds how
// many there are, and not one more, for which it would wait until an upload ends.
func TestDialledLeaseIsCountedOnce(t *testing.T) {
	address, accepted := acceptor(t)
	_, c := roadTo(t, 10, address)
	c.spec.MaxUploads = 2
	p := c.endpoints[0].uploads
	if u, what := p.idle(nil); u != nil || what != leaseDial {
		t.Fatalf("got %v of an empty pool, want to dial", what)
	}
	u, err := p.connect()
	if err != nil {
		t.Fatal(err)
	}
	defer (<-accepted).Close()
	u.lease.Store(leased)
	p.add(u) // as the dial of a lease does, before the upload that waits for it runs
	if _, what := p.idle(nil); what != leaseDial {
		t.Fatalf("got %v with one connection of two, want to dial", what)
	}
	p.failed(errInterrupted)
}

// TestDrainedLeaseIsOffered: an upload that is over may leave so much behind that its connection takes no other one. Once that has
// gone out, the next in the line is told.
func TestDrainedLeaseIsOffered(t *testing.T) {
	address, accepted := acceptor(t)
	_, c := roadTo(t, 10, address)
	p := c.endpoints[0].uploads
	p.idle(nil)
	u, err := p.connect()
	if err != nil {
		t.Fatal(err)
	}
	defer (<-accepted).Close()
	p.add(u)
	turn := make(chan struct{}, 1)
	p.mu.Lock()
	p.leases.waiting = append(p.leases.waiting, turn)
	p.mu.Unlock()
	u.connConfig().Drained()
	select {
	case <-turn:
	default:
		t.Error("the first in the line was not told that the connection has come free")
	}
	p.leave(turn)
}
