//go:build !linux

package bench

import "context"

func newSleeper(ctx context.Context) (sleeper, error) { return coarseSleeper{ctx}, nil }
