//go:build linux

package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// crew is all clients of a test.
type crew struct {
	// Static after newCrew.
	addresses map[string]string // of listeners, by name; a path is a unix socket's
	stop      chan struct{}     // closed by end: no more requests
	senders   sync.WaitGroup
	readers   sync.WaitGroup

	// Guarded by mu.
	mu      sync.Mutex
	callers []*caller
	stopped bool
}

// newCrew makes a crew without clients, all of which end with the test.
func newCrew(t testing.TB, addresses map[string]string) *crew {
	w := &crew{addresses: addresses, stop: make(chan struct{})}
	t.Cleanup(func() {
		w.end()
		w.close()
	})
	return w
}

// hire adds clients of one kind and has them send.
func (w *crew) hire(k kind) {
	for range k.count {
		if c := w.dial(k); c != nil {
			w.senders.Go(c.work) // ends with stop, or when the connection fails
		}
	}
}

// greet adds clients of these kinds, each of which sends one request, and waits for the replies.
func (w *crew) greet(kinds []kind) {
	var greeting sync.WaitGroup
	for _, k := range kinds {
		for range k.count {
			if c := w.dial(k); c != nil {
				greeting.Go(c.send)
			}
		}
	}
	greeting.Wait()
	deadline := time.Now().Add(patience)
	for _, c := range w.all() {
		c.await(deadline)
	}
}

// work has all send that there are.
func (w *crew) work() {
	for _, c := range w.all() {
		w.senders.Go(c.work) // ends with stop, or when the connection fails
	}
}

// visit adds one that connects, calls and closes, again and again: a new connection each time.
func (w *crew) visit(k kind) {
	w.senders.Go(func() { // ends with stop
		for rest(w.stop, k.every) {
			c := w.dial(k)
			if c == nil {
				continue
			}
			c.send()
			c.await(time.Now().Add(patience))
			c.close()
		}
	})
}

// end has all stop sending, and waits until everything has been answered.
func (w *crew) end() {
	w.mu.Lock()
	first := !w.stopped
	w.stopped = true
	w.mu.Unlock()
	if first {
		close(w.stop)
	}
	w.senders.Wait()
	deadline := time.Now().Add(patience)
	for _, c := range w.all() {
		c.await(deadline)
	}
}

// close closes all connections.
func (w *crew) close() {
	for _, c := range w.all() {
		c.close()
	}
	w.readers.Wait()
}

func (w *crew) all() []*caller {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.callers)
}

// account is what clients have sent, and what became of it.
type account struct {
	connections       int
	requests, oneways uint64
	beats, answered   uint64
	failures          map[string]int           // connections, by the first reason
	examples          []string                 // the first failure of each kind and reason
	longest           map[string]time.Duration // that a reply took beyond what was asked for, by kind of client
}

// account adds up the books of all clients.
func (w *crew) account() account {
	a := account{failures: map[string]int{}, longest: map[string]time.Duration{}}
	told := map[string]bool{}
	for _, c := range w.all() {
		c.mu.Lock()
		a.connections++
		a.requests += uint64(c.requests)
		a.oneways += uint64(c.oneways)
		a.beats += uint64(c.beats)
		a.answered += uint64(c.answered)
		a.longest[c.kind.name] = max(a.longest[c.kind.name], c.longest)
		if c.why != nil {
			a.failures[c.why.reason]++
			if key := c.kind.name + " " + c.why.reason; !told[key] {
				told[key] = true
				a.examples = append(a.examples, fmt.Sprintf("%s (connection %d): %v", c.kind.name, c.number, c.why))
			}
		}
		c.mu.Unlock()
	}
	return a
}

// check says what is wrong with the books: of every connection, and of what the servers saw of it. It is to be called when
// all has been answered.
func (w *crew) check(requests, oneways *ledger) error {
	var errs []error
	a := w.account()
	if len(a.failures) > 0 {
		errs = append(errs, fmt.Errorf("of %d connections failed, by reason, %v; want none\n  %s",
			a.connections, a.failures, strings.Join(a.examples, "\n  ")))
	}
	if sent := a.requests + a.beats; sent != a.answered {
		errs = append(errs, fmt.Errorf("%d requests and heartbeats were sent, and %d answered", sent, a.answered))
	}
	const most = 5
	wrong := 0
	for _, c := range w.all() {
		c.mu.Lock()
		sent, ones, failed := c.requests, c.oneways, c.why != nil
		c.mu.Unlock()
		if failed {
			continue // which has been said, and what the servers saw of it is anybody's guess
		}
		err := errors.Join(requests.check(c.number, sent), oneways.check(c.number, ones))
		if err == nil {
			continue
		}
		if wrong++; wrong <= most {
			errs = append(errs, fmt.Errorf("%s (connection %d): %w", c.kind.name, c.number, err))
		}
	}
	if wrong > most {
		errs = append(errs, fmt.Errorf("and %d more connections whose requests the servers did not see once each", wrong-most))
	}
	return errors.Join(errs...)
}

// arrived waits until the servers have seen all one-way requests, or it has taken too long: nobody else says when they have.
func (w *crew) arrived(oneways *ledger) {
	deadline := time.Now().Add(patience / 6)
	for time.Now().Before(deadline) {
		if !slices.ContainsFunc(w.all(), func(c *caller) bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.why == nil && oneways.check(c.number, c.oneways) != nil
		}) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// String is the account in a few lines, the slowest kinds of clients first.
func (a account) String() string {
	kinds := slices.SortedFunc(maps.Keys(a.longest), func(x, y string) int {
		return cmp.Or(cmp.Compare(a.longest[y], a.longest[x]), cmp.Compare(x, y))
	})
	for i, k := range kinds {
		kinds[i] = fmt.Sprintf("%s %v", k, a.longest[k].Round(time.Millisecond))
	}
	return fmt.Sprintf("%d connections, %d requests, %d one-way, %d heartbeats; failed: %v; longest: %s",
		a.connections, a.requests, a.oneways, a.beats, a.failures, strings.Join(kinds, ", "))
}
