package forwarder_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap/zaptest"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

func contains(stuck []string, text string) bool {
	return slices.ContainsFunc(stuck, func(s string) bool { return strings.Contains(s, text) })
}

// A read loop that does not come out of a batch is found at the second look, and forgotten when it does.
func TestReadLoopThatIsStuckIsFound(t *testing.T) {
	s := spec(serveEach(t, echoEach).address)
	s.Listeners[0].Forwarding = forwarder.ForwardInline
	f, err := forwarder.New(s, 64<<20, stats.NewRegistry(), zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	inside, locked := make(chan struct{}), make(chan struct{})
	once := sync.OnceFunc(func() { close(inside); <-locked })
	f.Trace(func(forwarder.Step) { once() })
	f.Start()
	t.Cleanup(f.Close)
	c := dial(t, f.Addresses()["in"].String())
	c.send(frameOf(t, 1, "hello"))
	<-inside
	w := forwarder.NewWatch(f)
	if got := w.Stuck(); len(got) != 0 {
		t.Errorf("at the first look %q are stuck; want none, as a batch may be under way", got)
	}
	eventually(t, func() bool { return contains(w.Stuck(), "the read loop of client 127.0.0.1") },
		say("a read loop that waits for ever inside a batch is not found"))
	close(locked)
	if m := c.receive(); m.Status != wire.Success {
		t.Errorf("behind it the reply is %v, want SUCCESS", m.Status)
	}
	eventually(t, func() bool { return !contains(w.Stuck(), "read loop") }, say("a read loop that goes on is still said to be stuck"))
}

// The sweeper takes every lock, so whoever holds one for ever is found by it.
func TestSweeperThatIsStuckIsFound(t *testing.T) {
	f, _, _ := start(t, spec(serveEach(t, echoEach).address))
	w := forwarder.NewWatch(f)
	release := f.HoldPool()
	eventually(t, func() bool { return contains(w.Stuck(), "the sweeper") }, say("a sweeper that waits for ever for a lock is not found"))
	release()
	eventually(t, func() bool { return len(w.Stuck()) == 0 }, say("a sweeper that goes on is still said to be stuck"))
}

func TestRestingRoadIsNotStuck(t *testing.T) {
	f, address, _ := start(t, spec(serveEach(t, echoEach).address))
	c := dial(t, address)
	c.call(request(1, "hello"))
	w := forwarder.NewWatch(f)
	for range 3 {
		_ = w.Stuck()
		if err := f.Pause(context.Background()); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if got := w.Stuck(); len(got) != 0 {
				t.Errorf("while the road rests, %q are stuck", got)
			}
		}
		f.Resume()
		if got := w.Stuck(); len(got) != 0 {
			t.Errorf("behind a pause, %q are stuck", got)
		}
	}
	c.call(request(2, "hello"))
}

// A road without anything to do is asked, answers, and is not stuck.
func TestIdleRoadIsNotStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := spec("127.0.0.1:1")
		s.Listeners, s.Routes = nil, nil
		f, err := forwarder.New(s, 64<<20, stats.NewRegistry(), zaptest.NewLogger(t))
		if err != nil {
			t.Fatal(err)
		}
		w := forwarder.NewWatch(f)
		if got := w.Stuck(); len(got) != 0 {
			t.Errorf("before the start %q are stuck", got)
		}
		f.Start()
		for range 1000 {
			if got := w.Stuck(); len(got) != 0 {
				t.Fatalf("an idle road says that %q are stuck", got)
			}
			time.Sleep(7 * time.Second)
		}
		f.Close()
		for range 2 {
			if got := w.Stuck(); len(got) != 0 {
				t.Errorf("behind its end %q are stuck", got)
			}
		}
	})
}

// A closed road whose read loops and workers have not ended is stuck: nothing is left for them to wait for.
func TestClosedRoadThatDoesNotEndIsStuck(t *testing.T) {
	s := spec(serveEach(t, echoEach).address)
	inside, locked := make(chan struct{}), make(chan struct{})
	once := sync.OnceFunc(func() { close(inside); <-locked })
	s.Routes[0].Rules[0].Filters = blockingIn("after", func(context.Context, *filter.Exchange) filter.Verdict {
		once() // it does not look at its context
		return filter.Continue
	})
	f, address, _ := start(t, s)
	free := sync.OnceFunc(func() { close(locked) })
	t.Cleanup(free) // before start's own, which waits for the road's end
	c := dial(t, address)
	c.send(frameOf(t, 1, "hello"))
	<-inside
	w := forwarder.NewWatch(f)
	for range 3 {
		if got := w.Stuck(); contains(got, "worker") {
			t.Errorf("while the road runs %q are stuck; want none, as a filter may take its time", got)
		}
	}
	closed := make(chan struct{})
	go func() { defer close(closed); f.Close() }() // ends behind locked
	eventually(t, func() bool { return contains(w.Stuck(), "workers, 1 of them") }, say("a worker that keeps a road from its end is not found"))
	eventually(t, func() bool { return !contains(w.Stuck(), "the sweeper") }, say("a sweeper that has ended is said to be stuck"))
	free()
	<-closed
	for range 2 {
		if got := w.Stuck(); len(got) != 0 {
			t.Errorf("behind the end %q are stuck", got)
		}
	}
}
