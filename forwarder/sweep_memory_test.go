package forwarder

import (
	"testing"
	"time"
)

// TestTurnFollowsProgress: the time that a reply has waited begins anew whenever those who have the memory made progress,
// and with another reply; what moves too slowly is no progress, and a look that comes late makes nobody impatient.
func TestTurnFollowsProgress(t *testing.T) {
	const step = pressureLook
	for _, c := range []struct {
		name      string
		moved     uint64 // between two looks
		every     int64  // time between them
		read      func(look int) uint64
		impatient bool
	}{
		{"nothing moves", 0, step, nil, true},
		{"a trickle", progress/uint64(replyPatience/step) - 1, step, nil, true},
		{"as fast as need be", progress/uint64(replyPatience/step) + 1, step, nil, false},
		{"all get theirs in turn", 0, step, func(look int) uint64 { return 1 + uint64(look)/90 }, false},
		{"none waits", 0, step, func(int) uint64 { return 0 }, false},
	} {
		var turn turn
		most, now := int64(0), int64(time.Hour)
		for look := range 1000 {
			read := uint64(7)
			if c.read != nil {
				read = c.read(look)
			}
			most = max(most, turn.wait(read, c.moved, now))
			now += c.every
		}
		if got := most >= replyPatience; got != c.impatient {
			t.Errorf("%s: got a wait of %v at most, want it to be above %v: %v", c.name, time.Duration(most), time.Duration(replyPatience), c.impatient)
		}
	}
	var turn turn
	turn.wait(7, 0, 0)
	if got := turn.wait(7, 0, int64(time.Minute)); got != lateLook {
		t.Errorf("got a wait of %v at a look that is a minute late, want it to count as %v", time.Duration(got), time.Duration(lateLook))
	}
}
