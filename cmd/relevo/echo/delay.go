package echo

import (
	"errors"
	"sync"
	"time"
)

// maxDelayed bounds the bytes of replies that wait on one connection; beyond it nothing is read from it.
const maxDelayed = 16 << 20

// maxFree bounds the buffers kept for the next batches of one connection.
const maxFree = 16

// delayLine holds the replies of one connection until they are due: a batch of replies is one entry, so that
// a request that waits costs its reply's bytes and neither a goroutine nor a timer.
type delayLine struct {
	// Static after newDelayLine.
	c  *conn
	wg sync.WaitGroup // run

	wake *sync.Cond // room or a batch appeared, or the line is shut; on mu

	// Guarded by mu.
	mu     sync.Mutex
	queue  []delayed
	bytes  int
	free   [][]byte
	shutBy error // why no more batches come: nil while they do
	err    error // why a write failed

	timer *time.Timer   // owned by run
	quit  chan struct{} // closed by shut when what waits is of no use
}

type delayed struct {
	due     time.Time
	replies []byte
}

func newDelayLine(c *conn) *delayLine {
	l := &delayLine{c: c, timer: time.NewTimer(time.Hour), quit: make(chan struct{})}
	l.wake = sync.NewCond(&l.mu)
	return l
}

// put takes the batch, waiting for room, and returns an empty buffer for the next one. The error is the one
// that shut the line or ended writing.
func (l *delayLine) put(replies []byte) ([]byte, error) {
	due := time.Now().Add(l.c.s.opts.Delay)
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.bytes > maxDelayed && l.err == nil && l.shutBy == nil {
		l.wake.Wait()
	}
	if l.err != nil {
		return replies, l.err
	}
	if l.shutBy != nil {
		return replies, l.shutBy
	}
	l.queue = append(l.queue, delayed{due, replies})
	l.bytes += len(replies)
	l.wake.Broadcast()
	if n := len(l.free); n > 0 {
		b := l.free[n-1]
		l.free = l.free[:n-1]
		return b[:0], nil
	}
	return nil, nil
}

// shut says that no batch follows, and why; with errDone those that wait are still written when due. The
// first reason to drop them stands.
func (l *delayLine) shut(reason error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shutBy != nil && !errors.Is(l.shutBy, errDone) {
		return
	}
	l.shutBy = reason
	if !errors.Is(reason, errDone) {
		close(l.quit)
	}
	l.wake.Broadcast()
}

// broken is the error of the write that failed, if one did.
func (l *delayLine) broken() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// run writes each batch when it is due, until the line is shut or a write has failed.
func (l *delayLine) run() {
	defer l.timer.Stop()
	for {
		d, ok := l.next()
		if !ok {
			return
		}
		if wait := time.Until(d.due); wait > 0 {
			l.timer.Reset(wait)
			select {
			case <-l.timer.C:
			case <-l.quit:
				return
			}
		}
		err := l.c.write(d.replies)
		l.done(d, err)
		if err != nil {
			_ = l.c.nc.Close() // the read loop has nobody left to read for
			return
		}
	}
}

// next waits for a batch; it reports false when none will come.
func (l *delayLine) next() (delayed, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.queue) == 0 && l.shutBy == nil {
		l.wake.Wait()
	}
	if len(l.queue) == 0 || l.shutBy != nil && !errors.Is(l.shutBy, errDone) {
		return delayed{}, false
	}
	d := l.queue[0]
	l.queue[0] = delayed{}
	l.queue = l.queue[1:]
	return d, true
}

// done takes back the batch's buffer.
func (l *delayLine) done(d delayed, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bytes -= len(d.replies)
	l.err = err
	if b := trim(d.replies); b != nil && len(l.free) < maxFree {
		l.free = append(l.free, b)
	}
	l.wake.Broadcast()
}
