package ratelimit

import (
	"maps"
	"sync"
	"sync/atomic"

	"github.com/relevo-proxy/relevo/forwarder/filter"
)

// byName has a bucket for each listener, or route. Their names come from the configuration, so they are few and stay.
type byName struct {
	// Static after newByName.
	name func(*filter.Exchange) string
	max  int

	mu      sync.Mutex                         // of who adds a name
	buckets atomic.Pointer[map[string]*bucket] // never changed: replaced by one with the name added

	rest bucket // of the names that came when there were max
}

func newByName(name func(*filter.Exchange) string, most int) *byName {
	b := &byName{name: name, max: most}
	b.buckets.Store(&map[string]*bucket{})
	return b
}

func (b *byName) take(x *filter.Exchange, l limit, now instant) bool {
	name := b.name(x)
	k := (*b.buckets.Load())[name]
	if k == nil {
		k = b.add(name)
	}
	return k.take(l, now)
}

// add gives the name a bucket, full, unless somebody else just has.
func (b *byName) add(name string) *bucket {
	b.mu.Lock()
	defer b.mu.Unlock()
	known := *b.buckets.Load()
	if k := known[name]; k != nil {
		return k
	}
	if len(known) >= b.max {
		return &b.rest
	}
	more := maps.Clone(known)
	k := &bucket{}
	more[name] = k
	b.buckets.Store(&more)
	return k
}
