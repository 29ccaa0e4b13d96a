package stats

import (
	"sync"
	"time"
)

// Throttle lets one event a key through in each interval and counts the others: for warnings that would
// otherwise be written once a request. It is safe for concurrent use.
//
// The number of keys is bounded. Beyond it, a new key takes the place of the one that was let through longest
// ago, whose count is lost; so choose the bound above the number of keys that are alive in an interval.
type Throttle[K comparable] struct {
	// Static after New.
	interval int64 // nanoseconds
	maxKeys  int

	mu sync.Mutex

	// Guarded by mu.
	index          map[K]int32 // key to its place in slots
	slots          []slot[K]   // grows up to maxKeys, then each is used again
	oldest, newest int32       // ends of the list through slots, ordered by the time of the last event let through
}

type slot[K comparable] struct {
	key          K
	last         int64 // when an event was last let through, in nanoseconds
	suppressed   uint64
	older, newer int32 // neighbours in the list, none is -1
}

// none is the neighbour of the slots at the ends of the list.
const none = -1

// NewThrottle returns a throttle that lets one event a key through in each interval, for up to maxKeys keys,
// of which at least one is kept.
func NewThrottle[K comparable](interval time.Duration, maxKeys int) *Throttle[K] {
	return &Throttle[K]{
		interval: int64(interval), maxKeys: max(maxKeys, 1),
		index: make(map[K]int32), oldest: none, newest: none,
	}
}

// Allow reports whether an event of this key at now may pass, and if so, how many were held back since the
// last one that did. now is in nanoseconds on any clock that does not go backwards.
func (t *Throttle[K]) Allow(key K, now int64) (suppressed uint64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, known := t.index[key]
	if !known {
		i = t.place()
		t.index[key] = i
		t.slots[i] = slot[K]{key: key, last: now}
		t.push(i)
		return 0, true
	}
	s := &t.slots[i]
	if now-s.last < t.interval {
		s.suppressed++
		return 0, false
	}
	suppressed, s.suppressed, s.last = s.suppressed, 0, now
	t.unlink(i)
	t.push(i)
	return suppressed, true
}

// place returns a slot that is in no list and has no key in the index.
func (t *Throttle[K]) place() int32 {
	if len(t.slots) < t.maxKeys {
		t.slots = append(t.slots, slot[K]{})
		return int32(len(t.slots) - 1)
	}
	i := t.oldest
	delete(t.index, t.slots[i].key)
	t.unlink(i)
	return i
}

func (t *Throttle[K]) push(i int32) {
	s := &t.slots[i]
	s.older, s.newer = t.newest, none
	if t.newest == none {
		t.oldest = i
	} else {
		t.slots[t.newest].newer = i
	}
	t.newest = i
}

func (t *Throttle[K]) unlink(i int32) {
	s := &t.slots[i]
	if s.older == none {
		t.oldest = s.newer
	} else {
		t.slots[s.older].newer = s.newer
	}
	if s.newer == none {
		t.newest = s.older
	} else {
		t.slots[s.newer].older = s.older
	}
}
