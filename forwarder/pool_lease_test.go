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
