package server

import (
	"bytes"
	"context"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"go.uber.org/zap"
)

// maxStacks bounds the dump of all stacks, in bytes.
const maxStacks = 16 << 20

// Signals returns a context that ends with the first SIGTERM or SIGINT; the second one ends the process at
// once, with status 1. SIGQUIT writes the stacks of all goroutines to the log and changes nothing, SIGHUP says
// that there is nothing to reload. Until stop is called, which waits for the goroutine behind it, none of these
// has its default effect.
func Signals(log *zap.Logger) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 4) // never closed
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP)
	quit, done := make(chan struct{}), make(chan struct{})
	go func() { // ends with stop
		defer close(done)
		for {
			select {
			case <-quit:
				return
			case s := <-signals:
				switch {
				case s == syscall.SIGHUP:
					log.Warn("SIGHUP: nothing to do; a changed configuration takes effect at a restart")
				case s == syscall.SIGQUIT:
					for stack := range bytes.SplitSeq(stacks(), []byte("\n\n")) { // a line each
						log.Warn("stack", zap.ByteString("goroutine", stack))
					}
				case ctx.Err() == nil:
					log.Info("signal: stopping", zap.Stringer("signal", s))
					cancel()
				default:
					log.Warn("second signal: ending at once", zap.Stringer("signal", s))
					_ = log.Sync() // the last thing there is to try
					os.Exit(1)
				}
			}
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(quit)
		<-done
		cancel()
	}
}

// stacks are the stacks of all goroutines, as far as they fit.
func stacks() []byte {
	for size := 64 << 10; ; size *= 4 {
		buf := make([]byte, min(size, maxStacks))
		if n := runtime.Stack(buf, true); n < len(buf) || size >= maxStacks {
			return buf[:n]
		}
	}
}
