package forwarder

import (
	"context"
	"sync"
)

// group counts goroutines that somebody waits for. Unlike a sync.WaitGroup it can be waited for within a bound, and may
// come to rest and fill again while somebody waits: that is what a hand-over that is taken back does.
type group struct {
	mu sync.Mutex
	// Guarded by mu.
	n    int
	rest chan struct{} // closed when n comes to 0; nil while nobody waits
}

// Go runs fn on a goroutine of the group.
func (g *group) Go(fn func()) {
	g.mu.Lock()
	g.n++
	g.mu.Unlock()
	go func() { // ends with fn
		defer g.done()
		fn()
	}()
}

func (g *group) done() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.n--; g.n == 0 && g.rest != nil {
		close(g.rest)
		g.rest = nil
	}
}

// Wait waits until none is left, or returns ctx's error.
func (g *group) Wait(ctx context.Context) error {
	g.mu.Lock()
	if g.n == 0 {
		g.mu.Unlock()
		return nil
	}
	if g.rest == nil {
		g.rest = make(chan struct{})
	}
	rest := g.rest
	g.mu.Unlock()
	select {
	case <-rest:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Len is how many there are.
func (g *group) Len() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.n
}
