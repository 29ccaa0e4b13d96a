package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/admin"
	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/server/config"
	"github.com/relevo-proxy/relevo/server/revision"
)

// logLevel is the level of the program's log: the configured one, or for a while the one that somebody has asked for.
type logLevel struct {
	// Static after newLogLevel.
	log    *zap.Logger
	events *admin.Events
	atomic *zap.AtomicLevel // nil: it cannot be changed
	poked  chan struct{}    // never closed; one slot

	mu sync.Mutex
	// Guarded by mu.
	configured config.LogLevel
	asked      *askedLevel // nil: nobody has asked for one
}

// askedLevel is a level that somebody has asked for. It is JSON in a hand-over.
type askedLevel struct {
	Level  config.LogLevel `json:"level"`
	Until  time.Time       `json:"until"`
	Author revision.Author `json:"author"`
}

func newLogLevel(log *zap.Logger, level *zap.AtomicLevel, events *admin.Events, configured config.LogLevel) *logLevel {
	return &logLevel{log: log, events: events, atomic: level, poked: make(chan struct{}, 1), configured: configured}
}

// inherit goes on with the level that somebody has asked the process before this one for. Nobody has the log yet.
func (l *logLevel) inherit(asked []byte) {
	if len(asked) == 0 || l.atomic == nil {
		return
	}
	a := new(askedLevel)
	err := json.Unmarshal(asked, a)
	if _, known := levels[a.Level]; err != nil || !known {
		l.log.Warn("the level of the log that was asked for is lost: this release writes others", zap.Error(err))
		return
	}
	l.mu.Lock()
	l.asked = a
	l.mu.Unlock()
	l.settle()
	l.log.Info("the log goes on with the level that was asked for", zap.Stringer("by", a.Author), zap.Time("until", a.Until))
}

// export is what inherit goes on with, nil for nothing.
func (l *logLevel) export() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.asked == nil {
		return nil
	}
	text, _ := json.Marshal(l.asked) // strings, numbers and a time
	return text
}

// configure makes another level the configured one. While another one holds that was asked for, that goes on.
func (l *logLevel) configure(level config.LogLevel) {
	l.change("", func() { l.configured = level })
}

// ask has the level of a request hold, or the configured one again.
func (l *logLevel) ask(r admin.LogRequest) (admin.LogLevel, error) {
	if l.atomic == nil {
		return admin.LogLevel{}, errors.New("the level of this process's log cannot be changed")
	}
	if r.Level == "" {
		l.change("the level of the log is the configured one again, as asked for", func() { l.asked = nil }, zap.Stringer("by", r.Author))
		return l.status(), nil
	}
	until := time.Now().Add(r.For)
	l.change("the level of the log is another one for a while", func() { l.asked = &askedLevel{r.Level, until, r.Author} },
		zap.Stringer("by", r.Author), zap.Time("until", until))
	return l.status(), nil
}

// run ends what was asked for when it is time, until ctx ends.
func (l *logLevel) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		wait := time.Hour // nothing is due: the next request pokes
		l.mu.Lock()
		if l.asked != nil {
			wait = time.Until(l.asked.Until)
		}
		l.mu.Unlock()
		if wait <= 0 {
			l.change("the level of the log is the configured one again: the time is over", func() {
				if l.asked != nil && !time.Now().Before(l.asked.Until) { // somebody may just have asked for more
					l.asked = nil
				}
			})
			continue
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-l.poked:
		case <-ctx.Done():
			return
		}
	}
}

// change makes a change, puts what follows from it into force, and says so as an event and, unless what is empty, in the log.
func (l *logLevel) change(what string, change func(), fields ...zap.Field) {
	l.mu.Lock()
	before := l.now()
	change()
	now := l.now()
	if l.atomic != nil {
		l.atomic.SetLevel(min(levels[before.Level], levels[now.Level])) // the line is for whoever reads either
	}
	if before != now {
		l.events.Publish(admin.Event{Type: admin.EventLog, Log: &now}) // in the order of the changes
	}
	l.mu.Unlock()
	if before == now {
		return
	}
	if what != "" {
		l.log.Warn(what, append(fields, zap.String("level", string(now.Level)), zap.String("configured", string(now.Configured)))...)
	}
	l.settle()
	select {
	case l.poked <- struct{}{}:
	default: // it looks anyway
	}
}

// settle puts the level into force that holds now.
func (l *logLevel) settle() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.atomic != nil {
		l.atomic.SetLevel(levels[l.now().Level])
	}
}

// status is what holds.
func (l *logLevel) status() admin.LogLevel {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now()
}

// now is status with mu held.
func (l *logLevel) now() admin.LogLevel {
	if l.asked == nil {
		return admin.LogLevel{Level: l.configured, Configured: l.configured}
	}
	return admin.LogLevel{
		Level: l.asked.Level, Configured: l.configured, Until: l.asked.Until.UTC().Truncate(time.Second), Author: &l.asked.Author,
	}
}

// Log implements admin.Control.
func (s *Server) Log() admin.LogLevel { return s.level.status() }

// SetLog implements admin.Control. While another process loads what it is to go on with, nothing changes.
func (s *Server) SetLog(ctx context.Context, r admin.LogRequest) (admin.LogLevel, error) {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	if err := s.live.take(ctx); err != nil {
		return admin.LogLevel{}, fmt.Errorf("%w: %w", admin.ErrBusy, err)
	}
	defer s.live.free()
	if s.live.held.Load() {
		return admin.LogLevel{}, fmt.Errorf("%w: %w", admin.ErrBusy, forwarder.ErrResting)
	}
	return s.level.ask(r)
}
