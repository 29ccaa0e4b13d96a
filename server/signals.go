package server

import (
	"bytes"
	"context"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// maxStacks bounds the dump of all stacks, in bytes.
const maxStacks = 16 << 20

// Signals returns a context that ends with the first SIGTERM or SIGINT; the second one ends the process at
// once, with status 1. SIGHUP calls upgrade, but stops like SIGTERM where it comes because the terminal on standard input
// is gone. SIGUSR1 has the access log opened anew. SIGQUIT writes the stacks of all goroutines and the last exchanges that
// failed to the log and changes nothing. None waits for a log that nobody reads. SIGPIPE is ignored. Until stop is called, which waits for the
// goroutine behind it, none of these has its default effect.
//
// server says whom SIGUSR1 and SIGQUIT are about; it is called when one of them comes, on a goroutine of its own, and
// returns nil as long as there is no server.
func Signals(log *zap.Logger, server func() *Server, upgrade func()) (ctx context.Context, stop func()) {
	terminal := isTerminal(os.Stdin)
	// Whoever reads what is written to standard error may end before this process, as the rest of a pipe does at Ctrl-C. By default the
	// next line of the log would end this one, too.
	signal.Ignore(syscall.SIGPIPE)
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 4) // never closed
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGUSR1)
	quit, done := make(chan struct{}), make(chan struct{})
	go func() { // ends with stop, or with the process
		defer close(done)
		for {
			select {
			case <-quit:
				return
			case s := <-signals:
				switch {
				case s == syscall.SIGHUP && (!terminal || isTerminal(os.Stdin)):
					within(lastWords, func() { log.Info("SIGHUP: asked for an upgrade") })
					upgrade()
				case s == syscall.SIGHUP && ctx.Err() != nil: // the kernel and the shell both say that the terminal is gone
				case s == syscall.SIGUSR1:
					within(lastWords, func() { reopen(log, server()) })
				case s == syscall.SIGQUIT:
					within(lastWords, func() { dump(log, server()) })
				case ctx.Err() == nil:
					within(lastWords, func() { log.Info("signal: stopping", zap.Stringer("signal", s)) })
					cancel()
				default:
					within(lastWords, func() {
						log.Warn("second signal: ending at once", zap.Stringer("signal", s))
						_ = log.Sync() // the last thing there is to try
					})
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

// isTerminal says whether f is the terminal of this process's session, which is there: only such a one can hang up on it.
func isTerminal(f *os.File) bool {
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	controlErr := raw.Control(func(fd uintptr) { _, err = unix.IoctlGetInt(int(fd), unix.TIOCGSID) })
	return controlErr == nil && err == nil
}

// reopen is what SIGUSR1 does. What comes of it the access log says.
func reopen(log *zap.Logger, s *Server) {
	switch {
	case s == nil:
		log.Warn("SIGUSR1: nothing to do; still starting")
	case !s.ReopenAccessLog():
		log.Warn("SIGUSR1: nothing to do; there is no access log")
	}
}

// dump is what SIGQUIT does.
func dump(log *zap.Logger, s *Server) {
	logStacks(log)
	if s != nil {
		s.logFailures(log)
	}
}

// logStacks writes the stacks of all goroutines to the log, a line each.
func logStacks(log *zap.Logger) {
	for stack := range bytes.SplitSeq(stacks(), []byte("\n\n")) {
		log.Warn("stack", zap.ByteString("goroutine", stack))
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
