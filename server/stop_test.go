package server

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// A read loop that waits for ever, here for the log, keeps no process from its end: that comes in time, and says what was stuck.
func TestStopEndsWhateverIsStuck(t *testing.T) {
	core, logged := observer.New(zapcore.InfoLevel)
	inside, locked := make(chan struct{}), make(chan struct{})
	once := sync.OnceFunc(func() { close(inside); <-locked })
	s := newTestServer(t, zap.New(core, zap.Hooks(func(e zapcore.Entry) error {
		if strings.HasPrefix(e.Message, "closing a client connection") {
			once()
		}
		return nil
	})))
	s.config().StopTimeout, s.overrun = 0, 100*time.Millisecond
	s.Start()
	c, err := net.Dial("tcp", s.Addresses()["in"].String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("GET / HTTP/1.1\r\n\r\n")); err != nil { // no frame, of which the log tells
		t.Fatal(err)
	}
	<-inside
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }() // ends in time, which is what is tried
	select {
	case err = <-ended:
	case <-time.After(30 * time.Second):
		t.Error("30 s behind a stop_timeout of 0 s the server has not ended")
	}
	const want = "the read loop of client 127.0.0.1"
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("it ended with %v, want an error that names %q", err, want)
	}
	if n := logged.FilterMessage("the stop does not end: giving up").Len(); n != 1 {
		t.Errorf("that it gives up is logged %d times, want once", n)
	}
	if logged.FilterMessage("stack").Len() == 0 {
		t.Error("it ended without the stacks")
	}
	close(locked)
	s.road.Close() // waits for what was stuck
}

// A process that stops asks systemd for time up to its own bound, and for none behind it.
func TestStopAsksForTimeWithinItsBound(t *testing.T) {
	next := listenNotify(t)
	s := newTestServer(t, zap.NewNop())
	defer s.closeUnused()
	u := newUnit(zap.NewNop())
	u.refresh(s, true)
	u.until = time.Now().Add(time.Hour)
	u.refresh(s, true)
	u.refresh(s, false)
	u.until = time.Now().Add(2 * time.Second)
	u.refresh(s, true)
	u.until = time.Now().Add(-time.Second)
	u.refresh(s, true)
	if err := u.notify.Forget("the end"); err != nil {
		t.Fatal(err)
	}
	if got, want := next(), "EXTEND_TIMEOUT_USEC=15000000"; got != want {
		t.Errorf("an hour before its bound it says %q, want %q", got, want)
	}
	if got := next(); !strings.HasPrefix(got, "EXTEND_TIMEOUT_USEC=1") || len(got) != len("EXTEND_TIMEOUT_USEC=1999999") {
		t.Errorf("2 s before its bound it says %q, want 1 s and more, and less than 2 s", got)
	}
	if got, want := next(), "FDSTOREREMOVE=1\nFDNAME=the end"; got != want {
		t.Errorf("behind its bound it says %q, want nothing", got)
	}
}
