package upgrade

import (
	"os"
	"syscall"
	"time"

	"github.com/relevo-proxy/relevo/upgrade/handoff"
)

// Tap is told of every message of a hand-over, on the goroutine that is about to send it, or has just received it and done
// nothing about it yet. Whatever it does to this process or to the other one happens exactly there.
type Tap func(sent bool, kind handoff.Kind)

// tap has all links tell tap, if there is one.
func (s *system) tap(tap Tap) {
	if tap == nil {
		return
	}
	pair, inherit := s.pair, s.inherit
	s.pair = func() (*link, error) { return tapped(tap)(pair()) }
	s.inherit = func() (*link, error) { return tapped(tap)(inherit()) }
}

func tapped(tap Tap) func(*link, error) (*link, error) {
	return func(l *link, err error) (*link, error) {
		if err != nil {
			return nil, err
		}
		send, receive := l.send, l.receive
		l.send = func(deadline time.Time, m handoff.Message, files ...syscall.RawConn) error {
			tap(true, handoff.KindOf(m))
			return send(deadline, m, files...)
		}
		l.receive = func() (handoff.Message, []*os.File, error) {
			m, files, err := receive()
			if m != nil {
				tap(false, handoff.KindOf(m))
			}
			return m, files, err
		}
		return l, nil
	}
}
