package main

import (
	"slices"
	"testing"
	"time"
)

func TestCyclesAreReadOfWhatTheCollectorSays(t *testing.T) {
	const said = `relevo: something else
gc 1 @0.012s 2%: 0.018+1.3+0.003 ms clock, 0.036+0.5/1.1/0.25+0.006 ms cpu, 4->4->2 MB, 4 MB goal, 0 MB stacks, 0 MB globals, 2 P
gc 2 @120.0s 0%: 1+2+3 ms clock, 1+0/0/0+1 ms cpu, 4->4->2 MB, 4 MB goal, 0 MB stacks, 0 MB globals, 2 P (forced)
`
	got, err := cycles(said)
	want := []cycle{{21 * time.Microsecond, 1892 * time.Microsecond}, {4 * time.Millisecond, 2 * time.Millisecond}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v (%v), want %v", got, err, want)
	}
	for _, wrong := range []string{"gc 1 @0.012s 2%: nothing", "gc 1 @0s 0%: 1+x+1 ms clock, 1+1 ms cpu,", "gc 1 @0s 0%: 1+1+1 ms clock, 1+y ms cpu,"} {
		if got, err := cycles(wrong); err == nil {
			t.Errorf("%q was read as %v, want an error", wrong, got)
		}
	}
}

func TestSettledIsForGood(t *testing.T) {
	var looks []look
	for i, rss := range []float64{100, 50, 51, 200, 52, 50, 49} { // low for a moment, then high again
		looks = append(looks, look{after: time.Duration(i) * time.Second, rss: rss})
	}
	if got := settled(looks); got != 5*time.Second {
		t.Errorf("settled after %v, want 5s: the first moment from which on it was within a twentieth of the last", got)
	}
	if got := settled(looks[6:]); got != 6*time.Second {
		t.Errorf("settled after %v, want at once", got)
	}
	if got := settled(nil); got != 0 {
		t.Errorf("settled after %v without a look, want 0", got)
	}
}
