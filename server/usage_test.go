package server

import (
	"os"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestNeededMemory: what is free and what is garbage is not needed; before the first collection nobody knows what is garbage.
func TestNeededMemory(t *testing.T) {
	for _, c := range []struct {
		total, released, free, objects, live uint64
		want                                 int64
	}{
		{100, 0, 0, 60, 60, 100},
		{100, 20, 10, 60, 60, 70},
		{100, 0, 0, 60, 20, 60},
		{100, 0, 0, 60, 0, 100},
		{100, 0, 0, 20, 60, 100}, // read while it changed
	} {
		if got := neededMemory(c.total, c.released, c.free, c.objects, c.live); got != c.want {
			t.Errorf("%+v: got %d", c, got)
		}
	}
}

var kept []byte

// TestMeterFollowsWhatIsLive: garbage is not counted, what is live is once it was collected, and while the meter is pressed it finds
// out by itself that it is gone.
func TestMeterFollowsWhatIsLive(t *testing.T) {
	m := newMeter(func() bool { return false })
	defer m.end()
	fill := func() {
		kept = make([]byte, 64<<20)
		for i := 0; i < len(kept); i += 4096 {
			kept[i] = 1
		}
	}
	runtime.GC()
	before := m.usage(0, false).Memory
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	fill()
	kept = nil
	if got := m.usage(0, false).Memory; got > before+16<<20 {
		t.Errorf("got %d bytes more with 64 MiB of garbage, want it not to count", got-before)
	}
	fill()
	runtime.GC()
	if got := m.usage(0, false).Memory; got < before+48<<20 {
		t.Errorf("got %d bytes more with 64 MiB that are live, want them to count", got-before)
	}
	runtime.KeepAlive(kept)
	kept = nil
	if got := m.usage(0, false).Memory; got < before+48<<20 {
		t.Errorf("got %d bytes more before anybody has collected, want what the last collection knew", got-before)
	}
	m.usage(0, true)
	m.end()
	if got := m.usage(0, false).Memory; got > before+16<<20 {
		t.Errorf("got %d bytes more when the meter was pressed, want it to have collected", got-before)
	}
}

// TestMeterRests: it collects nothing while a hand-over is under way, and soon behind a collection.
func TestMeterRests(t *testing.T) {
	busy := true
	m := newMeter(func() bool { return busy })
	m.usage(0, true)
	m.end()
	if !m.collected.IsZero() {
		t.Error("it has collected amid a hand-over")
	}
	busy = false
	m.usage(0, true)
	m.end()
	first := m.collected
	m.usage(0, true)
	m.end()
	if first.IsZero() || m.collected != first {
		t.Errorf("it has collected at %v, and again at %v; want once", first, m.collected)
	}
	m.collected = time.Now().Add(-time.Hour)
	m.usage(0, true)
	m.end()
	if time.Since(m.collected) > time.Minute {
		t.Error("it has not collected an hour behind the last time")
	}
}

func TestMeterCountsDescriptors(t *testing.T) {
	m := newMeter(func() bool { return false })
	before := m.usage(0, false)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || before.DescriptorLimit != int(limit.Cur) {
		t.Errorf("got a limit of %d, want %d, %v", before.DescriptorLimit, limit.Cur, err)
	}
	const n = 20
	for range n {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
	}
	if got := m.usage(n, false); got.Descriptors < before.Descriptors+n-5 || got.Descriptors > before.Descriptors+n+5 {
		t.Errorf("got %d descriptors, want %d more than %d, give or take a few of others", got.Descriptors, n, before.Descriptors)
	}
}
