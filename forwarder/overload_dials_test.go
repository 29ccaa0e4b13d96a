package forwarder

import (
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder/stats"
)

// TestDialsAreCountedAnew when as many were made as there was room for, and most have failed: that is no want of descriptors.
func TestDialsAreCountedAnew(t *testing.T) {
	s := &Spec{Overload: OverloadSpec{
		Usage: func(int, bool) Usage { return Usage{Descriptors: 100, DescriptorLimit: 1000} }, Reserve: 100,
		StopReading: 0.75, StopAccepting: 0.80, RefuseLow: 0.85, RefuseNormal: 0.90,
	}}
	f, err := New(s, 1<<20, stats.NewRegistry(), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.Start()
	const room = 1000 - 100 - 100/dialReserve
	made, end := 0, time.Now().Add(10*time.Second)
	for ; made < 3*room && time.Now().Before(end); time.Sleep(time.Microsecond) {
		if f.overload.mayDial() {
			made++
		}
	}
	if made < 3*room {
		t.Fatalf("got %d dials that may be made of which each has failed, and no look how many more may be", made)
	}
	if got := f.Overload().Actions; len(got) > 0 {
		t.Errorf("got %v, want nothing done", got)
	}
}
