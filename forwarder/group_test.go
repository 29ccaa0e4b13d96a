package forwarder

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestGroup: it is waited for within a bound, as often as one likes, and by many.
func TestGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g group
		if err := g.Wait(t.Context()); err != nil || g.Len() != 0 {
			t.Errorf("got %v and %d goroutines of an empty group, want nil and none", err, g.Len())
		}
		for range 2 { // it fills again
			end := make(chan struct{})
			for range 3 {
				g.Go(func() { <-end })
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if err := g.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) || g.Len() != 3 {
				t.Errorf("got %v and %d goroutines, want the bound of the wait to end it, and 3", err, g.Len())
			}
			cancel()
			waited := make(chan error, 2)
			for range cap(waited) {
				go func() { waited <- g.Wait(context.Background()) }() // ends with the group
			}
			end <- struct{}{}
			end <- struct{}{}
			synctest.Wait()
			if len(waited) != 0 || g.Len() != 1 {
				t.Errorf("got %d waits back and %d goroutines, want none while one is left", len(waited), g.Len())
			}
			end <- struct{}{}
			synctest.Wait()
			if len(waited) != 2 || g.Len() != 0 || <-waited != nil || <-waited != nil {
				t.Errorf("got %d waits back and %d goroutines, want both back, without an error", len(waited), g.Len())
			}
		}
	})
}
