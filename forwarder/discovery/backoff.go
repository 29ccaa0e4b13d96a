package discovery

import "time"

// BackOff says how long a source waits before it looks again.
type BackOff struct {
	First, Most time.Duration
	failures    int
}

// Next is the time to wait behind one more failure in a row: First, and twice as long each time, up to Most. random is from 0
// to 1, and takes off up to a quarter.
func (b *BackOff) Next(random float64) time.Duration {
	wait := b.First
	for range b.failures {
		if wait *= 2; wait >= b.Most {
			break
		}
	}
	b.failures++
	return Jitter(min(wait, b.Most), random)
}

// Reset begins anew: it has worked.
func (b *BackOff) Reset() { b.failures = 0 }

// Jitter takes up to a quarter off a time, so that those who began together do not stay together. random is from 0 to 1.
func Jitter(d time.Duration, random float64) time.Duration {
	return d - time.Duration(float64(d)/4*random)
}
