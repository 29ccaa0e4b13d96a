package forwarder

import (
	"testing"
	"time"
)

// TestKeepAliveOfEachItsOwn: a peer that is gone is found within about two minutes, and not all are asked at once.
func TestKeepAliveOfEachItsOwn(t *testing.T) {
	idles, intervals := make(map[time.Duration]bool), make(map[time.Duration]bool)
	for range 1000 {
		k := keepAlive()
		if worst := k.Idle + time.Duration(k.Count)*k.Interval; !k.Enable || k.Idle < 45*time.Second || worst > 150*time.Second {
			t.Fatalf("a peer that is gone is asked behind %v and given up behind %v at the latest", k.Idle, worst)
		}
		idles[k.Idle.Truncate(time.Second)] = true // the kernel counts seconds
		intervals[k.Interval.Truncate(time.Second)] = true
	}
	if len(idles) < 20 || len(intervals) < 5 {
		t.Errorf("1000 connections are asked at %d different times and %d intervals, want 20 and 5", len(idles), len(intervals))
	}
}
