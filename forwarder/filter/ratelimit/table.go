package ratelimit

import (
	"hash/maphash"
	"math/bits"
	"sync"

	"github.com/relevo-proxy/relevo/forwarder/filter"
)

// byHeader has a bucket for each value of a header that was seen lately.
type byHeader struct {
	key    []byte
	absent bucket // of the requests that have no such header, a null one, or a malformed header block
	table  *table
}

func (b *byHeader) take(x *filter.Exchange, l limit, now instant) bool {
	value := x.Header(b.key)
	if value == nil {
		return b.absent.take(l, now)
	}
	return b.table.take(value, l, now)
}

// ways is the number of buckets in a set.
const ways = 16

// table is a fixed number of buckets for whatever values clients send.
//
// A value is known by its hash of 64 bits, so a long one takes no more memory than a short one. The hash has a seed of
// its own for each table: nobody outside can find values that meet. It names a set, and in the set the value has a bucket or
// takes the place of the one that will be full soonest. Mostly that one is full again, and forgetting a full bucket changes
// nothing. Else its value is given the tokens that the bucket lacks. To have that happen to a bucket that lacks n tokens,
// somebody must take more than n from each other bucket of its set, which he can only do by doing it to the whole table:
// with all values together, at the rate times the number of buckets.
//
// Static after newTable, but for what is in the sets.
type table struct {
	seed maphash.Seed
	ways int // in use in each set
	sets []set
}

// set is the buckets among which a value has its own.
type set struct {
	mu sync.Mutex

	// Guarded by mu.
	hash [ways]uint64
	full [ways]instant // zero also where no value has been yet: the first to be taken
}

// newTable makes a table of as many buckets as fit into most: whole sets of them, or one smaller set.
func newTable(most int) *table {
	return &table{seed: maphash.MakeSeed(), ways: min(ways, most), sets: make([]set, max(1, most/ways))}
}

func (t *table) take(value []byte, l limit, now instant) bool {
	hash := maphash.Bytes(t.seed, value)
	i, _ := bits.Mul64(hash, uint64(len(t.sets)))
	return t.sets[i].take(t.ways, hash, l, now)
}

func (s *set) take(n int, hash uint64, l limit, now instant) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.find(n, hash)
	full, ok := l.take(s.full[at], now)
	s.full[at] = full
	return ok
}

// find returns where the value's bucket is, which may be a new one.
func (s *set) find(n int, hash uint64) int {
	soonest := 0
	for i := range n {
		if s.hash[i] == hash {
			return i
		}
		if s.full[i] < s.full[soonest] {
			soonest = i
		}
	}
	s.hash[soonest], s.full[soonest] = hash, 0
	return soonest
}
