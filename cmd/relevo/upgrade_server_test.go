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

// keeper is a Bolt server in this process that keeps books. It answers as the stamp of each request says.
type keeper struct {
	// Static after newKeeper.
	listener          net.Listener
	requests, oneways *ledger // shared by those that serve the same callers
	crooked           crooked
	held              *holding       // what nothing is read before; nil for nothing
	wg                sync.WaitGroup // accept loop, connections, replies that wait

	// Atomic.
	accepted, gone atomic.Int64 // connections
	bad            atomic.Int64 // frames that are no request, or not as they were sent

	// Guarded by mu.
	mu    sync.Mutex
	conns map[*kept]struct{}
	shut  bool
}

// crooked has a server do something else than to answer, so that tests can see who notices. It reports whether it did: then the
// request is in nobody's books but its own.
type crooked func(c *kept, m *wire.Message, reply []byte) bool

// newKeeper starts a server, which ends with the test.
func newKeeper(t testing.TB, address string, requests, oneways *ledger, c crooked) *keeper {
	t.Helper()
	return (&keeper{requests: requests, oneways: oneways, crooked: c}).open(t, address)
}

func (k *keeper) open(t testing.TB, address string) *keeper {
	t.Helper()
	var config net.ListenConfig
	if k.held != nil {
		config.Control = narrow
	}
	var err error
	if k.listener, err = config.Listen(t.Context(), "tcp", address); err != nil {
		t.Fatal(err)
	}
	k.conns = map[*kept]struct{}{}
	k.wg.Go(k.accept) // ends when the listener is closed
	t.Cleanup(k.close)
	return k
}

func (k *keeper) address() string { return k.listener.Addr().String() }

func (k *keeper) accept() {
	for {
		nc, err := k.listener.Accept()
		if err != nil {
			return
		}
		k.accepted.Add(1)
		c := &kept{keeper: k, nc: nc}
		k.mu.Lock()
		shut := k.shut
		k.conns[c] = struct{}{}
		k.mu.Unlock()
		if shut {
			nc.Close()
			return
		}
		k.wg.Go(c.serve) // ends with the connection
	}
}

// close ends the server and waits for the replies that are not due yet.
func (k *keeper) close() {
	k.listener.Close()
	k.mu.Lock()
	k.shut = true
	for c := range k.conns {
		c.nc.Close()
	}
	k.mu.Unlock()
	k.wg.Wait()
}

// kept is one connection of a keeper.
type kept struct {
	keeper *keeper
	nc     net.Conn

	// Owned by serve.
	in   inbox
	held bool // what a crooked server notes

	mu  sync.Mutex
	out []byte // Guarded by mu. Replies that are written when there is no more to read.
}

func (c *kept) serve() {
	defer func() {
		c.nc.Close()
		c.keeper.gone.Add(1)
		c.keeper.mu.Lock()
		delete(c.keeper.conns, c)
		c.keeper.mu.Unlock()
	}()
	c.in = inbox{from: c.keeper.held.reader(c.nc), empty: func() error { return c.write(nil) }}
	for {
		m, err := c.in.next()
		if err != nil {
			if _, ok := err.(*wire.DecodeError); ok { //nolint:errorlint // next returns it as it is
				c.keeper.bad.Add(1)
			}
			return
		}
		c.take(m)
	}
}

// take enters a request in the books, and sees to its reply.
func (c *kept) take(m *wire.Message) {
	k := c.keeper
	if m.Kind == wire.Heartbeat {
		c.queue(bolt.Codec{}.AppendReply(nil, m.Tag, m.ID, wire.Success))
		return
	}
	s, ok := readStamp(m.Content())
	switch {
	case !ok:
		k.bad.Add(1)
		return
	case m.Kind == wire.Oneway:
		k.oneways.see(s.caller, s.number)
		return
	case m.Kind != wire.Request:
		k.bad.Add(1)
		return
	}
	r := bolt.Response{
		Version: bolt.VersionOf(m), Codec: bolt.CodecOf(m), ID: m.ID, Class: bolt.ClassResponse,
		Content: s.content(nil, s.replySize(len(m.Content()))),
	}
	reply, err := r.Append(nil)
	if err != nil {
		k.bad.Add(1)
		return
	}
	if k.crooked != nil && k.crooked(c, m, reply) {
		return
	}
	k.requests.see(s.caller, s.number)
	switch {
	case s.wait > 0:
		k.wg.Add(1)
		time.AfterFunc(s.wait, func() { // ends with a write, which a closed connection ends
			defer k.wg.Done()
			_ = c.write(reply) // else the reply is lost, which its client notices
		})
	default:
		c.queue(reply)
	}
}

// queue leaves a reply to the next write.
func (c *kept) queue(reply []byte) {
	c.mu.Lock()
	c.out = append(c.out, reply...)
	c.mu.Unlock()
}

// write writes what is queued, and more.
func (c *kept) write(more []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out = append(c.out, more...)
	if len(c.out) == 0 {
		return nil
	}
	_, err := c.nc.Write(c.out)
	if cap(c.out) > 64<<10 {
		c.out = nil
	}
	c.out = c.out[:0]
	return err
}
