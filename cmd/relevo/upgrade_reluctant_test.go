//go:build linux

package main

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// reluctant is two servers that refuse each request once, whichever gets it first, and serve it when it comes again. So each has
// two tries at least, and no client need ever notice: that it is refused once and served once is what the books must say.
type reluctant struct {
	// Static after newReluctant.
	servers  [2]*keeper
	refusals *ledger

	// Atomic.
	refused  atomic.Int64 // requests
	partings atomic.Int64 // those of them that were refused by the end of their connection

	// Which requests are refused behind an upgrade before which they came: copies of them must have gone along.
	upgrading   sync.RWMutex // held by an upgrade, whose end is waited for with a refusal that takes its time
	begun, done atomic.Int64 // upgrades
	carried     atomic.Int64 // such requests
}

// partEvery is how many requests are refused before one is by the end of its connection.
const partEvery = 50

func newReluctant(t testing.TB, requests, oneways *ledger) *reluctant {
	t.Helper()
	r := &reluctant{refusals: newLedger()}
	for i := range r.servers {
		r.servers[i] = newKeeper(t, "127.0.0.1:0", requests, oneways, r.take)
	}
	return r
}

// take refuses a request, or serves it at once: what waits may be lost with the connection, and would be served twice.
func (r *reluctant) take(c *kept, m *wire.Message, reply []byte) bool {
	s, _ := readStamp(m.Content())
	switch {
	case c.held: // the connection has been given up, and what comes is not looked at any more
	case r.refusals.has(s.caller, s.number):
		c.keeper.requests.see(s.caller, s.number)
		c.queue(reply)
	default:
		r.refusals.see(s.caller, s.number)
		if r.refused.Add(1)%partEvery == 0 {
			r.part(c)
			return true
		}
		busy, begun := bolt.Codec{}.AppendReply(nil, m.Tag, m.ID, wire.Busy), r.begun.Load()
		if s.wait == 0 {
			c.queue(busy)
			return true
		}
		c.keeper.wg.Go(func() { // ends behind the wait and an upgrade with a write, which a closed connection ends
			time.Sleep(s.wait)
			r.upgrading.RLock()
			if r.done.Load() > begun {
				r.carried.Add(1)
			}
			r.upgrading.RUnlock()
			_ = c.write(busy) // else the connection was given up, which is a refusal, too
		})
	}
	return true
}

// part gives a connection up, behind the replies that are under way on it: a reset might take them along.
func (r *reluctant) part(c *kept) {
	c.held = true
	r.partings.Add(1)
	_ = c.write(nil)
	_ = c.nc.(*net.TCPConn).CloseWrite() // else it has ended already
}
