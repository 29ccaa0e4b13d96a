package accesslog

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"
)

const (
	// grace bounds what is written after the end of Run's context.
	grace = 2 * time.Second
	// linger is how long the writer leaves records alone after it has written some, so that a busy road does not wake it
	// once a record.
	linger = 2 * time.Millisecond
)

// Run writes until ctx ends, then what is buffered by then, and closes the log. It is called once. The error says that
// the log could not be closed, or that it did not take what was left within two seconds; it is given up then, and a
// goroutine stays behind in a system call that nobody can end.
func (l *Log) Run(ctx context.Context) error {
	done := make(chan error, 1)          // never closed; holds the one answer
	go func() { done <- l.write(ctx) }() // ends with ctx, within grace, unless the kernel keeps it in a write
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	// Its own bound comes first, where it is not stuck.
	timer := time.NewTimer(grace + grace/8)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		return fmt.Errorf("access log %s: it takes nothing; %d records and more are lost", l.path, l.buffer.waiting())
	}
}

// write is what Run does, and all that touches the sink.
func (l *Log) write(ctx context.Context) error {
	timer := time.NewTimer(linger)
	defer timer.Stop()
	wrote := false
	for ctx.Err() == nil {
		select {
		case <-l.rotate:
			l.openAnew()
		default:
		}
		switch {
		case l.writeChunk() > 0:
			wrote = true
		case wrote:
			wrote = false
			timer.Reset(linger)
			l.sleep(ctx, max(1, l.buffer.places/2), timer.C)
		default:
			l.sleep(ctx, 1, nil)
		}
	}
	return l.finish()
}

// sleep waits until n records wait, or the timer, ctx or somebody who wants the file opened anew ends it.
func (l *Log) sleep(ctx context.Context, n int, timer <-chan time.Time) {
	if l.buffer.arm(n) {
		return
	}
	select {
	case <-l.buffer.wake:
	case <-timer:
	case <-ctx.Done():
	case <-l.rotate:
		l.openAnew()
	}
}

// finish writes what waits now, within grace, and closes the sink.
func (l *Log) finish() error {
	end := time.Now().Add(grace)
	left := l.buffer.waiting()
	for left > 0 && time.Now().Before(end) {
		n := l.writeChunk()
		if n == 0 {
			break
		}
		left -= n
	}
	err := l.sink.close()
	switch {
	case left > 0:
		return fmt.Errorf("access log %s: %d records could not be written in time", l.path, left)
	case err != nil:
		return fmt.Errorf("closing the access log: %w", err)
	}
	return nil
}

// writeChunk writes the oldest records, and returns how many those were, 0 if none waits.
func (l *Log) writeChunk() int {
	c := l.buffer.take()
	if c == nil {
		return 0
	}
	n := len(c.records)
	records, bytes, err := l.sink.deliver(c.records)
	l.buffer.give(c)
	l.records.Add(uint64(records))
	l.bytes.Add(uint64(bytes))
	if err != nil {
		l.broken.Add(uint64(n - records))
		l.warn(dropBroken, "access log: records could not be written and are lost", zap.Int("records", n-records), zap.Error(err))
	}
	if full := l.full.Value(); full > l.told && l.warn(dropFull, "access log: it is slower than the exchanges come; records are lost",
		zap.Uint64("records", full-l.told), zap.Int("buffer", l.buffer.places)) {
		l.told = full
	}
	return n
}

// warn logs a trouble, unless it has done so lately, and says whether it did.
func (l *Log) warn(why, message string, fields ...zap.Field) bool {
	held, ok := l.throttle.Allow(why, int64(time.Since(l.opened)))
	if ok {
		l.log.Warn(message, append(fields, zap.String("reason", why), zap.String("path", l.path), zap.Uint64("suppressed", held))...)
	}
	return ok
}

func (l *Log) openAnew() {
	switch reopened, err := l.sink.reopen(); {
	case err != nil:
		l.log.Error("access log: it could not be opened anew, the old file is kept", zap.Error(err))
	case reopened:
		l.log.Info("access log: opened anew", zap.String("path", l.path))
	default:
		l.log.Info("access log: it is no file, nothing is opened anew", zap.String("path", l.path))
	}
}
