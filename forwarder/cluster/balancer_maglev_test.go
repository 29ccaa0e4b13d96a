package cluster

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// maglevOf is a maglev over endpoints as they are.
func maglevOf(endpoints []*Endpoint, random func() uint64) *Maglev {
	addresses, weights := make([]string, len(endpoints)), make([]int, len(endpoints))
	for i, e := range endpoints {
		addresses[i], weights[i] = e.Address(), e.Weight()
	}
	return NewMaglev(endpoints, NewMaglevTable(addresses, weights), random)
}

// keyed asks for the endpoint of a key.
func keyed(key string) Ask { return Ask{Avoid: -1, Hash: Hash([]byte(key))} }

// TestMaglevIsTheSameInEveryProcess: these choices were made once, by a process that is gone. A release that makes others moves
// the keys of all who upgrade one proxy before the other.
func TestMaglevIsTheSameInEveryProcess(t *testing.T) {
	if got := Hash(nil); got != 0xef46db3751d8e999 { // from the definition of XXH64
		t.Errorf("the hash of nothing: got %#x, want 0xef46db3751d8e999", got)
	}
	var endpoints []*Endpoint
	for i := range 7 {
		endpoints = append(endpoints, NewEndpoint(fmt.Sprintf("10.0.0.%d:12200", i+1), 50+50*(i%3)))
	}
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(endpoints), func(i, j int) { endpoints[i], endpoints[j] = endpoints[j], endpoints[i] })
	b := maglevOf(endpoints, rand.Uint64)
	for key, want := range map[string]string{
		"":           "10.0.0.6:12200",
		"user-1":     "10.0.0.4:12200",
		"user-2":     "10.0.0.5:12200",
		"user-3":     "10.0.0.2:12200",
		"user-4":     "10.0.0.1:12200",
		"10.1.2.3":   "10.0.0.6:12200",
		"\x00\xff":   "10.0.0.6:12200",
		"Łódź":       "10.0.0.1:12200",
		"0123456789": "10.0.0.4:12200",
	} {
		if got := endpoints[b.Pick(keyed(key))].Address(); got != want {
			t.Errorf("key %q: got %s, want %s", key, got, want)
		}
	}
}

// TestMaglevKnowsNoOrder: endpoints in another order make the same choices.
func TestMaglevKnowsNoOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		endpoints := endpointsOf(anyWeights.Draw(t, "weights")...)
		other := slices.Clone(endpoints)
		shuffle(t, other)
		a, b := maglevOf(endpoints, rand.Uint64), maglevOf(other, rand.Uint64)
		for s, i := range a.table.slots {
			if j := b.table.slots[s]; endpoints[i] != other[j] {
				t.Fatalf("slot %d: got endpoint %s, and %s of the same in another order", s, endpoints[i].Address(), other[j].Address())
			}
		}
		if down := rapid.IntRange(-1, len(endpoints)-1).Draw(t, "down"); down >= 0 {
			endpoints[down].Failed(0)
		}
		for _, key := range rapid.SliceOfN(rapid.String(), 1, 20).Draw(t, "keys") {
			i, j := a.Pick(keyed(key)), b.Pick(keyed(key))
			if (i < 0) != (j < 0) || i >= 0 && endpoints[i] != other[j] {
				t.Fatalf("key %q: got endpoint %d, and %d of the same in another order, want the same one", key, i, j)
			}
		}
	})
}

func shuffle(t *rapid.T, endpoints []*Endpoint) {
	r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "order"), 0))
	r.Shuffle(len(endpoints), func(i, j int) { endpoints[i], endpoints[j] = endpoints[j], endpoints[i] })
}

// TestMaglevShares: each endpoint has the slots of its weight, to one of them or one in a hundred.
func TestMaglevShares(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		weights := rapid.SliceOfN(rapid.IntRange(1, 1000), 2, 50).Draw(t, "weights")
		table := NewMaglevTable(addressesOf(len(weights)), weights)
		total := 0
		for _, w := range weights {
			total += w
		}
		for i, share := range table.shares(len(weights)) {
			want := float64(weights[i]) / float64(total)
			if off := math.Abs(share-want) * float64(len(table.slots)); off > 1+float64(len(weights))*want+want*float64(len(table.slots))/100 {
				t.Fatalf("endpoint %d of weight %d in %v: got %.5f of the keys, want %.5f", i, weights[i], weights, share, want)
			}
		}
	})
}

func TestMaglevTables(t *testing.T) {
	for _, n := range []int{0, 1, 2, 3, fewEndpoints, fewEndpoints + 1} {
		table := NewMaglevTable(addressesOf(n), slices.Repeat([]int{7}, n))
		want := 0
		switch {
		case n > fewEndpoints:
			want = manySlots
		case n > 1:
			want = fewSlots
		}
		if len(table.slots) != want {
			t.Errorf("%d endpoints: got %d slots, want %d", n, len(table.slots), want)
			continue
		}
		if n > 1 && composite(want) {
			t.Errorf("%d slots: not a prime, so that some claim the same slots over and over", want)
		}
		for i, share := range table.shares(n) {
			if slots := math.Round(share * float64(want)); n > 1 && (slots < float64(want/n) || slots > float64(want/n+1)) {
				t.Errorf("endpoint %d of %d: got %.0f slots, want %d or one more", i, n, slots, want/n)
			}
		}
	}
}

// TestMaglevMovesItsShare: when an endpoint leaves, or comes, what moves is at most what theory says (docs/adr/002-maglev.md):
// 1 + ln n times the share of that endpoint, and with many slots an endpoint no more than half as much again as the share.
func TestMaglevMovesItsShare(t *testing.T) {
	moves := func(t interface{ Fatalf(string, ...any) }, weights []int, gone int) {
		n := len(weights)
		addresses := addressesOf(n)
		before := NewMaglevTable(addresses, weights)
		after := NewMaglevTable(slices.Delete(slices.Clone(addresses), gone, gone+1), slices.Delete(slices.Clone(weights), gone, gone+1))
		share, moved := 0, 0
		for s, was := range before.slots {
			is := int(after.slots[s])
			if is >= gone {
				is++
			}
			if int(was) == gone {
				share++
			}
			if int(was) != is {
				moved++
			}
		}
		most := 1 + math.Log(float64(n))
		if len(before.slots) >= 1300*n {
			most = min(most, 1.5)
		}
		if got := float64(moved) / float64(share); got > most {
			t.Fatalf("endpoint %d of %d left: %.2f times its share of the keys moved, want %.2f at most", gone, n, got, most)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		weights := rapid.SliceOfN(rapid.IntRange(50, 150), 3, 100).Draw(t, "weights")
		moves(t, weights, rapid.IntRange(0, len(weights)-1).Draw(t, "gone"))
	})
	for _, n := range []int{200, 500, 1000, fewEndpoints, fewEndpoints + 2, 23000} {
		moves(t, slices.Repeat([]int{100}, n), n/3)
	}
}

// TestMaglevFollowsWeights: as much moves as a weight says, and one key in fifty.
func TestMaglevFollowsWeights(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 100).Draw(t, "endpoints")
		weights := slices.Repeat([]int{100}, n)
		before := NewMaglevTable(addressesOf(n), weights)
		changed, to := rapid.IntRange(0, n-1).Draw(t, "changed"), rapid.IntRange(1, 300).Draw(t, "to")
		weights[changed] = to
		after := NewMaglevTable(addressesOf(n), weights)
		moved := 0
		for s, was := range before.slots {
			if after.slots[s] != was {
				moved++
			}
		}
		got := float64(moved) / float64(len(before.slots))
		want := math.Abs(float64(to)/float64(100*(n-1)+to) - 1/float64(n))
		if got > want+0.02 {
			t.Fatalf("endpoint %d of %d has weight %d instead of 100: %.4f of the keys moved, want %.4f and 0.02 at most", changed, n, to, got, want)
		}
	})
}

// TestMaglevPassesOver: of endpoints that do not serve the keys move, to the others by their weights, and no others do.
func TestMaglevPassesOver(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		endpoints := endpointsOf(rapid.SliceOfN(rapid.IntRange(1, 5), 3, 12).Draw(t, "weights")...)
		b := maglevOf(endpoints, rand.Uint64)
		down := rapid.IntRange(0, len(endpoints)-1).Draw(t, "down")
		const keys = 20000
		was := make([]int, keys)
		for k := range keys {
			was[k] = b.Pick(Ask{Avoid: -1, Hash: mix(uint64(k))})
		}
		endpoints[down].Failed(0)
		moved, counts, total := 0, make([]int, len(endpoints)), 0
		for k := range keys {
			got := b.Pick(Ask{Avoid: -1, Hash: mix(uint64(k))})
			switch {
			case was[k] != down && got != was[k]:
				t.Fatalf("key %d: got endpoint %d, want %d as before: it serves", k, got, was[k])
			case was[k] != down:
			case got == down:
				t.Fatalf("key %d: got endpoint %d, which has failed", k, got)
			default:
				moved++
				counts[got]++
			}
			if avoiding := b.Pick(Ask{Avoid: was[k], Hash: mix(uint64(k))}); was[k] == down && avoiding != got {
				t.Fatalf("key %d: got endpoint %d where %d is to be avoided, and %d where it has failed, want the same", k, avoiding, down, got)
			}
		}
		for i, e := range endpoints {
			if i != down {
				total += e.Weight()
			}
		}
		for i, e := range endpoints {
			p := float64(e.Weight()) / float64(total)
			// Six standard deviations, and what a slot more or less is.
			if off := math.Abs(float64(counts[i]) - p*float64(moved)); i != down && off > 6*math.Sqrt(float64(moved)*p*(1-p))+10 {
				t.Fatalf("endpoint %d of weight %d: got %d of %d keys of the one that is down, want %.0f", i, e.Weight(), counts[i], moved, p*float64(moved))
			}
		}
		endpoints[down].Connected()
		for k := range keys {
			if got := b.Pick(Ask{Avoid: -1, Hash: mix(uint64(k))}); got != was[k] {
				t.Fatalf("key %d: got endpoint %d when all serve again, want %d", k, got, was[k])
			}
		}
	})
}

// TestMaglevWithoutKey draws at random, by weight.
func TestMaglevWithoutKey(t *testing.T) {
	endpoints := endpointsOf(1, 3)
	b := maglevOf(endpoints, seeded(1))
	const picks = 10000
	got := 0
	for range picks {
		got += b.Pick(Ask{Avoid: -1})
	}
	if want := 0.75 * picks; math.Abs(float64(got)-want) > 6*math.Sqrt(picks*0.75*0.25) {
		t.Errorf("got %d of %d picks at the endpoint with weight 3 of 4, want about %.0f", got, picks, want)
	}
}

// TestMaglevWithMostDown: the same endpoint each time, and keys spread over those that are left.
func TestMaglevWithMostDown(t *testing.T) {
	endpoints := endpointsOf(slices.Repeat([]int{1}, 1000)...)
	for _, e := range endpoints[3:] {
		e.Failed(0)
	}
	b := maglevOf(endpoints, rand.Uint64)
	counts := make([]int, 3)
	for k := range 3000 {
		ask := Ask{Avoid: -1, Hash: mix(uint64(k))}
		i := b.Pick(ask)
		if j := b.Pick(ask); i != j || i < 0 || i > 2 {
			t.Fatalf("key %d: got endpoints %d and %d, want the same one of the first three", k, i, j)
		}
		counts[i]++
	}
	for i, n := range counts {
		if n < 800 || n > 1200 {
			t.Errorf("endpoint %d: got %d of 3000 keys, want about 1000", i, n)
		}
	}
}

// composite says whether n has a divisor.
func composite(n int) bool {
	for d := 2; d*d <= n; d++ {
		if n%d == 0 {
			return true
		}
	}
	return false
}
