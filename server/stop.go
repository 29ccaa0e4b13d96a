package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder"
)

// stopOverrun is how long behind stop_timeout a stop may end: an upgrade that is undone, the access log and the doors have bounds of
// seconds. Together with the default of stop_timeout and lookTime it is less than the unit's TimeoutStopSec.
const stopOverrun = 10 * time.Second

// stopLimit bounds a stop, the look at what keeps it from its end included.
func (s *Server) stopLimit() time.Duration { return s.config().StopTimeout.D() + s.overrun + lookTime }

// ErrStuck says that a stop has not ended. What is stuck may be the log, which takes no word then.
var ErrStuck = errors.New("stuck")

// giveUp is the end of a stop that does not end: it says what is stuck.
func (s *Server) giveUp() error {
	stuck := s.look()
	within(2*lastWords, func() { // the stacks may be many
		s.log.Error("the stop does not end: giving up", zap.Strings("stuck", stuck))
		logStacks(s.log)
	})
	return fmt.Errorf("stop_timeout (%v) has passed, and %v more: %w: %s", s.config().StopTimeout, s.overrun, ErrStuck, strings.Join(stuck, ", "))
}

// lastWords bounds the wait for a log that nobody may read.
const lastWords = time.Second

// within waits for say, which writes to the log, but for no longer than limit.
func within(limit time.Duration, say func()) {
	said := make(chan struct{})
	go func() { // ends when the log has taken it, else with the process
		defer close(said)
		say()
	}()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-said:
	case <-t.C:
	}
}

// lookTime bounds look: the time between its two looks, and that for a lock.
const lookTime = 2 * lastCheck

// look says what on the road does not move.
func (s *Server) look() []string {
	found := make(chan []string, 1) // never closed
	go func() {                     // ends when the road's locks are free, else with the process
		w := forwarder.NewWatch(s.road)
		w.Stuck()
		time.Sleep(lastCheck)
		found <- w.Stuck()
	}()
	t := time.NewTimer(lookTime)
	defer t.Stop()
	select {
	case stuck := <-found:
		if len(stuck) > 0 {
			return stuck
		}
		return []string{"nothing on the road: the stacks say more"}
	case <-t.C:
		return []string{lockHeld}
	}
}

// drain ends the road within stop_timeout.
func (s *Server) drain() error {
	limit := s.config().StopTimeout.D()
	s.log.Info("stopping: no new connections, requests in flight finish", zap.Duration("stop_timeout", limit))
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	err := s.road.Drain(ctx)
	s.road.Close()
	if err != nil {
		return fmt.Errorf("stop_timeout (%v) has passed: %w", limit, err)
	}
	return nil
}
