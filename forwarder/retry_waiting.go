package forwarder

import (
	"slices"
	"sync"

	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// later is the exchanges that wait to be tried again: one of the containers. The sweeper takes out what is due; there is no timer
// for each. A copy of its request belongs to each, and max_retry_bytes bounds those, so that the list needs no bound of its own.
type later struct {
	mu sync.Mutex

	// Guarded by mu.
	heap   []delayed // the one that is due first in front, and each before those at twice its place and one more, counted from 1
	closed bool      // nothing is tried again any more
}

// delayed is an exchange and when it is to be tried again.
type delayed struct {
	at int64
	x  exchange
}

// add puts the exchange in, until a time. It reports false, and takes nothing, when the road ends.
func (l *later) add(x *exchange, at int64) bool {
	d := delayed{at, *x}
	d.x.phase = phaseWaitNotify
	waits := x.target.cluster.retryWaits
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	waits.Adopt(1)
	l.heap = append(l.heap, d)
	for i := len(l.heap) - 1; i > 0; {
		parent := (i - 1) / 2
		if l.heap[parent].at <= l.heap[i].at {
			break
		}
		l.heap[parent], l.heap[i] = l.heap[i], l.heap[parent]
		i = parent
	}
	return true
}

// due takes those out whose time has come, at most a batch of them, and says when the next one's comes.
func (l *later) due(now int64, out []exchange) (_ []exchange, next int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.heap) > 0 && len(out) < maxBatch && l.heap[0].at <= now {
		out = append(out, l.pop())
	}
	if len(l.heap) == 0 {
		l.heap = nil
		return out, never
	}
	return out, l.heap[0].at
}

// pop takes the first one out. Called with mu held.
func (l *later) pop() exchange {
	x, last := l.heap[0].x, len(l.heap)-1
	l.heap[0] = l.heap[last]
	l.heap[last] = delayed{}
	l.heap = l.heap[:last]
	for i := 0; ; {
		first := i
		for child := 2*i + 1; child <= 2*i+2 && child < last; child++ {
			if l.heap[child].at < l.heap[first].at {
				first = child
			}
		}
		if first == i {
			return x
		}
		l.heap[first], l.heap[i] = l.heap[i], l.heap[first]
		i = first
	}
}

// close takes all out, and lets none in any more.
func (l *later) close() []delayed {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := l.heap
	l.heap, l.closed = nil, true
	return all
}

// each calls fn for those that wait, as eachWaiting does.
func (l *later) each(fn func(*exchange)) {
	for from, done := 0, false; !done; from += lookAtOnce {
		l.mu.Lock()
		to := min(from+lookAtOnce, len(l.heap))
		for i := from; i < to; i++ {
			fn(&l.heap[i].x)
		}
		done = to == len(l.heap) || to <= from
		l.mu.Unlock()
	}
}

// endRetries answers the exchanges that wait to be tried again, because the road ends.
func (f *Forwarder) endRetries() {
	for batch := range slices.Chunk(f.later.close(), maxBatch) {
		b := f.batch()
		for i := range batch {
			x := batch[i].x
			x.target.cluster.retryWaits.Release(1)
			b.conclude(x, 0, wire.ConnectionClosed, ReasonDraining)
		}
		b.done()
	}
}

// retries tries exchanges again whose back-off is over, and returns when that of the next one is.
func (s *sweeper) retries(now int64) int64 {
	for {
		due, next := s.f.later.due(now, s.again[:0])
		s.again = due
		if len(due) == 0 {
			return next
		}
		b := s.f.batch()
		for i := range due {
			b.again(due[i])
		}
		b.done()
		clear(due)
	}
}
