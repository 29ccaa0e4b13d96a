package stats

import (
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func TestFailed(t *testing.T) {
	for _, c := range []struct {
		kind, status, reason string
		want                 bool
	}{
		{"request", "SUCCESS", "", false},
		{"request", "ERROR", "", true},
		{"request", "SUCCESS", "fault", true}, // answered here
		{"request", "TIMEOUT", "timeout", true},
		{"request", "", "", true}, // it got no reply
		{"request", "", "downstream-gone", true},
		{"oneway", "", "", false},
		{"oneway", "", "oneway-refused", true},
		{"oneway", "ERROR", "", true},
	} {
		r := Record{Kind: c.kind, Status: c.status, Reason: c.reason}
		if got := r.Failed(); got != c.want {
			t.Errorf("kind %q, status %q, reason %q: failed is %v, want %v", c.kind, c.status, c.reason, got, c.want)
		}
	}
}

func TestClipCutsWhatClientsChoose(t *testing.T) {
	long := strings.Repeat("x", 64<<10)
	r := Record{Service: long, Method: long[:MaxText+1], Trace: long[:MaxText], RPC: "0.1", Route: long}
	r.Clip()
	for _, c := range []struct {
		name string
		got  string
		want int
	}{
		{"service", r.Service, MaxText},
		{"method", r.Method, MaxText},
		{"trace", r.Trace, MaxText},
		{"rpc", r.RPC, 3},
		{"route, which the configuration bounds", r.Route, len(long)},
	} {
		if len(c.got) != c.want {
			t.Errorf("%s has %d bytes, want %d", c.name, len(c.got), c.want)
		}
	}
	short := Record{Service: "com.example.Echo:1.0", Method: "echo", Trace: long[:MaxText]}
	if n := testing.AllocsPerRun(100, short.Clip); n > 0 {
		t.Errorf("clipping a record that is short enough allocates %v times, want 0", n)
	}
}

// A ring is the tail of all that was added, in order.
func TestRingIsTheTail(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		places := rapid.IntRange(1, 9).Draw(t, "places")
		ring := NewRing(places)
		var all []uint32
		for i := range rapid.IntRange(0, 40).Draw(t, "added") {
			ring.Add(Record{ID: uint32(i)})
			all = append(all, uint32(i))
			records, total := ring.Records()
			got := make([]uint32, len(records))
			for j, r := range records {
				got[j] = r.ID
			}
			if want := all[max(0, len(all)-places):]; !slices.Equal(got, want) || total != uint64(len(all)) {
				t.Fatalf("%d places after %d records: got %v and a total of %d, want %v", places, len(all), got, total, want)
			}
		}
	})
}

func TestRingClipsAndHasAPlace(t *testing.T) {
	ring := NewRing(0)
	if records, total := ring.Records(); len(records) != 0 || total != 0 {
		t.Errorf("a new ring has %d records of %d, want none", len(records), total)
	}
	ring.Add(Record{ID: 1})
	ring.Add(Record{ID: 2, Service: strings.Repeat("x", 1000)})
	records, total := ring.Records()
	if len(records) != 1 || records[0].ID != 2 || total != 2 {
		t.Fatalf("a ring of no places keeps %v of %d, want the last of 2", records, total)
	}
	if n := len(records[0].Service); n != MaxText {
		t.Errorf("a kept service has %d bytes, want %d", n, MaxText)
	}
	records[0].ID = 3
	if again, _ := ring.Records(); again[0].ID != 2 {
		t.Error("changing what Records returned changes the ring")
	}
}

func TestRingFromManyGoroutines(t *testing.T) {
	const goroutines, each = 4, 500
	ring := NewRing(16)
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range each {
				ring.Add(Record{ID: uint32(g), Attempts: i})
				if i%50 == 0 {
					ring.Records()
				}
			}
		})
	}
	wg.Wait()
	records, total := ring.Records()
	if len(records) != 16 || total != goroutines*each {
		t.Fatalf("%d records of %d, want 16 of %d", len(records), total, goroutines*each)
	}
	last := map[uint32]int{}
	for _, r := range records {
		if at, seen := last[r.ID]; seen && r.Attempts <= at {
			t.Errorf("goroutine %d: record %d comes behind record %d", r.ID, r.Attempts, at)
		}
		last[r.ID] = r.Attempts
	}
}
