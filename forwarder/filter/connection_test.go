package filter

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
)

// TestHold: each hold wakes the connection once, however often and by however many it is resumed, and no other.
func TestHold(t *testing.T) {
	var woken atomic.Int32
	c := NewConnection("in", netip.AddrPort{}, func() { woken.Add(1) })
	first, second := c.Hold(), c.Hold()
	var group sync.WaitGroup
	for range 8 {
		group.Go(first.Resume) // ends at once
	}
	group.Wait()
	if got := woken.Load(); got != 1 {
		t.Errorf("got the connection woken %d times by 8 resumes of one hold, want once", got)
	}
	if !first.Resumed() || second.Resumed() {
		t.Errorf("got resumed = %v and %v, want the first hold resumed and the second not", first.Resumed(), second.Resumed())
	}
	second.Resume()
	if got := woken.Load(); got != 2 {
		t.Errorf("got the connection woken %d times by two holds, want twice", got)
	}
}

func TestNext(t *testing.T) {
	h := NewConnection("in", netip.AddrPort{}, nil).Hold()
	for name, c := range map[string]struct {
		next   Next
		hold   *Hold
		reason string
	}{
		"Pass":  {Pass, nil, ""},
		"Wait":  {Wait(h), h, ""},
		"Close": {Close("test"), nil, "test"},
	} {
		if c.next.Hold() != c.hold || c.next.Reason() != c.reason {
			t.Errorf("got the hold %v and the reason %q of %s, want %v and %q", c.next.Hold(), c.next.Reason(), name, c.hold, c.reason)
		}
	}
	for name, f := range map[string]func(){
		"Close without a reason": func() { Close("") },
		"Wait without a hold":    func() { Wait(nil) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("got a Next from %s, want a panic: it would let pass what is meant to be ended", name)
				}
			}()
			f()
		}()
	}
}
