package server

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/relevo-proxy/relevo/admin"
	"github.com/relevo-proxy/relevo/server/config"
	"github.com/relevo-proxy/relevo/server/revision"
)

// levelRig is the level of a log that is kept.
type levelRig struct {
	*logLevel
	t     *testing.T
	lines *observer.ObservedLogs
}

func newLevelRig(t *testing.T, configured config.LogLevel) levelRig {
	t.Helper()
	level := zap.NewAtomicLevelAt(levels[configured])
	core, lines := observer.New(&level)
	return levelRig{newLogLevel(zap.New(core), &level, admin.NewEvents(1, time.Now()), configured), t, lines}
}

// start runs it until the end of the test.
func (r levelRig) start() {
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan struct{})
	go func() { // ends with ctx
		defer close(done)
		r.run(ctx)
	}()
	r.t.Cleanup(func() {
		cancel()
		<-done
	})
}

func (r levelRig) want(level, configured config.LogLevel) {
	r.t.Helper()
	synctest.Wait()
	now := r.status()
	if now.Level != level || now.Configured != configured || r.atomic.Level() != levels[level] {
		r.t.Errorf("the level is %+v, and logged is from %v on; want %s, and %s configured", now, r.atomic.Level(), level, configured)
	}
	if asked := now.Author != nil; asked != !now.Until.IsZero() {
		r.t.Errorf("the level is %+v, want both who asked for it and until when, or neither", now)
	}
}

func (r levelRig) asks(level config.LogLevel, length time.Duration) {
	r.t.Helper()
	if _, err := r.ask(admin.LogRequest{Level: level, For: length, Author: revision.Author{Who: "alice", Door: revision.DoorUnix}}); err != nil {
		r.t.Fatal(err)
	}
}

func TestLogLevelIsForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newLevelRig(t, config.LevelWarn)
		r.start()
		r.want("warn", "warn")
		r.asks("debug", time.Minute)
		r.want("debug", "warn")
		time.Sleep(50 * time.Second)
		r.asks("error", time.Minute) // in place of the other one
		time.Sleep(59 * time.Second)
		r.want("error", "warn")
		r.configure("info") // takes effect at the end
		r.want("error", "info")
		time.Sleep(2 * time.Second)
		r.want("info", "info")
		r.asks("debug", 24*time.Hour)
		time.Sleep(23 * time.Hour)
		r.want("debug", "info")
		r.asks("", 0)
		r.want("info", "info")
		r.configure("error")
		r.want("error", "error")

		var said []string
		for _, line := range r.lines.All() {
			said = append(said, line.Message)
			if by := line.ContextMap()["by"]; line.Level != zapcore.WarnLevel || by != nil && by != "alice (unix)" {
				t.Errorf("logged is %s %s by %v", line.Level, line.Message, by)
			}
		}
		if len(said) != 5 { // three requests, the end of one, and a reset; the configuration's change speaks for itself
			t.Errorf("logged is %q, want 5 lines", said)
		}
	})
}

func TestLogLevelGoesOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := newLevelRig(t, config.LevelInfo)
		if text := old.export(); text != nil {
			t.Errorf("what goes over is %s, want nothing", text)
		}
		old.asks("debug", time.Minute)
		time.Sleep(20 * time.Second)
		heir := newLevelRig(t, config.LevelError)
		heir.inherit(old.export())
		heir.start()
		heir.want("debug", "error")
		if by := heir.status().Author; by.Who != "alice" {
			t.Errorf("behind the hand-over it was %+v who asked", by)
		}
		time.Sleep(41 * time.Second)
		heir.want("error", "error")

		other := newLevelRig(t, config.LevelInfo)
		for _, bad := range []string{"{", `{"level": "loud", "until": "2100-01-01T00:00:00Z"}`} {
			other.inherit([]byte(bad))
			other.want("info", "info")
		}
		none := newLogLevel(zap.NewNop(), nil, other.events, config.LevelInfo)
		none.inherit(old.export())
		if _, err := none.ask(admin.LogRequest{Level: "debug"}); err == nil || none.status().Author != nil {
			t.Errorf("a log whose level cannot be changed has %+v, %v", none.status(), err)
		}
	})
}
