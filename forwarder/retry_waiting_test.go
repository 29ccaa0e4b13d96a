package forwarder

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/relevo-proxy/relevo/forwarder/cluster"
)

// TestLater: what waits comes out when its time has come, what is due first in front, each once; and nothing goes in any more when
// it is closed.
func TestLater(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		to := &target{cluster: &upCluster{retryWaits: cluster.NewLimit(cluster.Unlimited)}}
		var l later
		var want []int64 // the times of those that wait; each is the id of its exchange, too
		now := int64(0)
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				at := now + int64(rapid.IntRange(0, 50).Draw(t, "pause"))
				if !l.add(&exchange{target: to, id: uint32(at)}, at) {
					t.Fatal("nothing is taken, and it is not closed")
				}
				want = append(want, at)
			},
			"time": func(t *rapid.T) {
				now += int64(rapid.IntRange(0, 30).Draw(t, "time"))
				slices.Sort(want)
				for {
					due, next := l.due(now, nil)
					for _, x := range due {
						if len(want) == 0 || int64(x.id) != want[0] || want[0] > now || x.phase != phaseWaitNotify {
							t.Fatalf("at %d got what is due at %d, want the first of %v", now, x.id, want)
						}
						want = want[1:]
					}
					if len(due) > 0 {
						continue
					}
					if len(want) > 0 && (want[0] <= now || next != want[0]) || len(want) == 0 && next != never {
						t.Fatalf("at %d got nothing more, and to come again at %d; %v wait", now, next, want)
					}
					return
				}
			},
			"": func(t *rapid.T) {
				seen := 0
				l.each(func(*exchange) { seen++ })
				if seen != len(want) {
					t.Fatalf("got %d that wait, want %d", seen, len(want))
				}
			},
		})
		if got := l.close(); len(got) != len(want) {
			t.Fatalf("got %d left when it is closed, want %d", len(got), len(want))
		}
		if l.add(&exchange{target: to}, 0) {
			t.Fatal("something is taken that is closed")
		}
	})
}

// TestBackOff: anything up to a bound that doubles, and all of it is used.
func TestBackOff(t *testing.T) {
	o := backOff{base: 10, max: 35}
	for tries, bound := range map[uint8]int64{1: 10, 2: 20, 3: 35, 9: 35} {
		seen := make(map[int64]bool)
		for range 10_000 {
			n := o.after(tries)
			if n < 0 || n > bound {
				t.Fatalf("behind %d tries got a pause of %d, want 0 to %d", tries, n, bound)
			}
			seen[n] = true
		}
		if len(seen) != int(bound)+1 {
			t.Errorf("behind %d tries got %d different pauses, want all of 0 to %d", tries, len(seen), bound)
		}
	}
	if n := (backOff{}).after(1); n != 0 {
		t.Errorf("got a pause of %d where there is to be none", n)
	}
}
