//go:build linux

package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// faultKind is what can happen to a server.
type faultKind int

const (
	faultKill    faultKind = iota // it is killed, and started again
	faultStop                     // it is stopped, and goes on
	faultSlow                     // its work takes several times as long
	faultBusy                     // it answers that it is busy
	faultGarbage                  // it answers with another protocol

	faultKinds = iota
)

func (k faultKind) String() string {
	return [faultKinds]string{"kill", "stop", "slow", "busy", "garbage"}[k]
}

// monkey is what makes faults, at random. At any moment at most maxBad servers are bad, so that those that are well can
// carry the load: half of what all can.
type monkey struct {
	// Static after newMonkey.
	fleet   *fleet
	chain   *chain
	desk    desk
	cluster string
	random  *rand.Rand

	bad  []*fault
	next time.Time   // when the next fault begins
	bag  []faultKind // what is drawn from: each kind once, then all again
	book [faultKinds]faultBook
}

const (
	maxBad   = 6                      // of 20
	leastBad = 300 * time.Millisecond // that a fault lasts
	mostBad  = 4 * time.Second
	mostWait = 600 * time.Millisecond // from one fault to the next
)

// fault is one server's trouble.
type fault struct {
	kind   faultKind
	server int
	until  time.Time
	sent   uint64 // requests that the proxy had sent to it when it began
	ends   bool   // it has been mended, and is bad until it listens
}

// faultBook is what came of the faults of a kind.
type faultBook struct {
	faults int
	time   time.Duration
	met    uint64         // requests that the proxy sent to a server while it was bad
	seen   map[string]int // what the proxy thought of the server when the fault ended
}

func newMonkey(f *fleet, c *chain, d desk, cluster string, seed uint64) *monkey {
	k := &monkey{fleet: f, chain: c, desk: d, cluster: cluster, random: rand.New(rand.NewPCG(seed, 0))}
	for i := range k.book {
		k.book[i].seen = map[string]int{}
	}
	return k
}

// step does what is due: it is to be called again and again.
func (k *monkey) step(t *testing.T) {
	t.Helper()
	now := time.Now()
	k.bad = slices.DeleteFunc(k.bad, func(b *fault) bool {
		if !b.ends && now.After(b.until) {
			k.mend(t, b)
		}
		return b.ends && k.fleet.servers[b.server].listens()
	})
	if now.After(k.next) && len(k.bad) < maxBad {
		k.next = now.Add(time.Duration(k.random.Int64N(int64(mostWait))))
		k.harm(t)
	}
}

// harm begins a fault of a server that is well.
func (k *monkey) harm(t *testing.T) {
	t.Helper()
	var well []int
	for i := range k.fleet.servers {
		if !slices.ContainsFunc(k.bad, func(b *fault) bool { return b.server == i }) {
			well = append(well, i)
		}
	}
	b := &fault{
		kind: k.draw(), server: well[k.random.IntN(len(well))],
		until: time.Now().Add(leastBad + time.Duration(k.random.Int64N(int64(mostBad-leastBad)))),
	}
	b.sent = k.sent(t, b.server)
	k.bad = append(k.bad, b)
	p, usual := k.fleet.servers[b.server], k.fleet.shape.delay
	switch b.kind {
	case faultKill:
		p.kill(t)
	case faultStop:
		p.process.signal(t, syscall.SIGSTOP)
	case faultSlow:
		k.fleet.board.tell(b.server, fine, usual*time.Duration(2+k.random.IntN(30)))
	case faultBusy:
		k.fleet.board.tell(b.server, busy, usual)
	case faultGarbage:
		k.fleet.board.tell(b.server, garbage, usual)
	}
	k.book[b.kind].faults++
	k.book[b.kind].time += time.Until(b.until)
}

// draw is what happens next: of each kind as much.
func (k *monkey) draw() faultKind {
	if len(k.bag) == 0 {
		for _, kind := range k.random.Perm(faultKinds) {
			k.bag = append(k.bag, faultKind(kind))
		}
	}
	kind := k.bag[0]
	k.bag = k.bag[1:]
	return kind
}

// mend ends a fault.
func (k *monkey) mend(t *testing.T, b *fault) {
	t.Helper()
	p := k.fleet.servers[b.server]
	book := &k.book[b.kind]
	book.met += k.sent(t, b.server) - b.sent
	book.seen[k.desk.states(t, k.cluster)[p.order.address]]++
	k.fleet.board.tell(b.server, fine, k.fleet.shape.delay)
	switch b.kind {
	case faultKill:
		p.start(t)
	case faultStop:
		p.process.signal(t, syscall.SIGCONT)
	default: // the board has been told
	}
	b.ends = true
}

// end ends all faults and waits until all servers listen.
func (k *monkey) end(t *testing.T) {
	t.Helper()
	for _, b := range k.bad {
		if !b.ends {
			k.mend(t, b)
		}
	}
	k.bad = nil
	k.fleet.listen(t)
}

// sent is how many requests the proxy has sent to a server.
func (k *monkey) sent(t *testing.T, server int) uint64 {
	t.Helper()
	return k.chain.read(t).sum("relevo_endpoint_requests_total", "kind=request", "endpoint="+k.fleet.servers[server].order.address)
}

// all says which kinds of faults there have been none of: what was never met has not been tried.
func (k *monkey) all() error {
	for i, b := range k.book {
		if b.faults == 0 {
			return fmt.Errorf("no server has met the fault %q", faultKind(i))
		}
	}
	return nil
}

// String is the book, a line for each kind.
func (k *monkey) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-8s %6s %9s %9s  %s", "fault", "times", "seconds", "requests", "how the proxy saw the server at its end")
	for i, book := range k.book {
		fmt.Fprintf(&b, "\n%-8v %6d %9.1f %9d ", faultKind(i), book.faults, book.time.Seconds(), book.met)
		for _, s := range slices.Sorted(maps.Keys(book.seen)) {
			fmt.Fprintf(&b, " %s %d", s, book.seen[s])
		}
	}
	return b.String()
}
