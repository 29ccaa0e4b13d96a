package ratelimit

import (
	"math"
	"sync/atomic"
	"time"
)

// instant is a time since the limiter's beginning, or a distance of two, in parts of a nanosecond: so divided, the time
// between two tokens is off by less than one in 30,000 at the highest rate.
type instant int64

// fine is the number of parts of a nanosecond. 2^63 of them are 18 years.
const fine = 16

// limit is how buckets fill. A bucket is one number, the instant at which it will be full, or was (the generic cell rate
// algorithm): an instant that has passed, the zero one included, is a full bucket.
type limit struct {
	token instant // that one token takes to flow
	room  instant // the farthest that an instant of fullness may lie ahead while there is still a token
}

func newLimit(rate float64, burst int) limit {
	token := instant(math.Round(fine * float64(time.Second) / rate))
	return limit{token: token, room: token * instant(burst-1)}
}

// take takes a token from the bucket that will be full at this instant. It returns when the bucket will be full now,
// and whether there was a token.
func (l limit) take(full, now instant) (instant, bool) {
	full = max(full, now)
	if full-now > l.room {
		return full, false
	}
	return full + l.token, true
}

// bucket is a bucket that goroutines share without a lock. A request that is refused only reads. It fills a cache line
// of its own, because buckets are allocated together and used on different processors.
type bucket struct {
	full atomic.Int64
	_    [56]byte
}

func (b *bucket) take(l limit, now instant) bool {
	for {
		old := b.full.Load()
		full, ok := l.take(instant(old), now)
		if !ok {
			return false
		}
		if b.full.CompareAndSwap(old, int64(full)) {
			return true
		}
	}
}
