//go:build !linux

package health

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

var errNotHere = errors.New("health checks want Linux")

// poller is nothing here.
type poller struct{}

func newPoller() (*poller, error) { return nil, errNotHere }

func (*poller) add(int, socketKey) error { return errNotHere }

func (*poller) wait(time.Duration) (ready []socketKey, all bool, err error) {
	return nil, false, errNotHere
}

func (*poller) wake() {}

func (*poller) close() {}

func connect(unix.Sockaddr) (fd int, done, own bool, err error) { return -1, false, true, errNotHere }
