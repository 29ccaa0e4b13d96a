//go:build linux

package main

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// A client that counts nothing proves nothing: whatever a server or a proxy can do wrong is in its books, under its name.
func TestCallerFindsWhatIsWrong(t *testing.T) {
	status := func(s wire.Status) crooked {
		return func(c *kept, m *wire.Message, _ []byte) bool {
			c.queue(bolt.Codec{}.AppendReply(nil, m.Tag, m.ID, s))
			return true
		}
	}
	changed := func(change func(reply []byte) []byte) crooked {
		return func(c *kept, _ *wire.Message, reply []byte) bool {
			c.queue(change(reply))
			return true
		}
	}
	for _, c := range []struct {
		name    string
		crooked crooked
		want    string
	}{
		{"an error", status(wire.ErrorComm), failStatus},
		{"no content", status(wire.Success), failMismatched},
		{"twice", changed(func(b []byte) []byte { return append(b, b...) }), failDuplicated},
		{"one byte is wrong", changed(func(b []byte) []byte { b[len(b)-30]++; return b }), failMismatched},
		{"another protocol", changed(func([]byte) []byte { return []byte("HTTP/1.1 200 OK\r\n") }), failMalformed},
		{"an id never used", func(c *kept, m *wire.Message, reply []byte) bool {
			bolt.Codec{}.PatchReply(reply, m.ID+neverGiven)
			c.queue(reply)
			return true
		}, failMismatched},
		{"the reply of another", func(c *kept, m *wire.Message, _ []byte) bool {
			s, _ := readStamp(m.Content())
			s.number++
			r := bolt.Response{Version: bolt.VersionOf(m), ID: m.ID, Class: bolt.ClassResponse, Content: s.content(nil, 100)}
			reply, err := r.Append(nil)
			c.queue(reply)
			return err == nil
		}, failMismatched},
		{"closed", func(c *kept, _ *wire.Message, _ []byte) bool { c.nc.Close(); return true }, failClosed},
		{"reset", func(c *kept, _ *wire.Message, _ []byte) bool {
			_ = c.nc.(*net.TCPConn).SetLinger(0)
			c.nc.Close()
			return true
		}, failClosed},
		{"silence", func(*kept, *wire.Message, []byte) bool { return true }, failLost},
	} {
		t.Run(c.name, func(t *testing.T) {
			requests, oneways := newLedger(), newLedger()
			k := newKeeper(t, "127.0.0.1:0", requests, oneways, c.crooked)
			w := newCrew(t, map[string]string{"client": k.address()})
			one := w.dial(kind{name: "one", listener: "client"})
			one.send()
			if c.want != failLost {
				select {
				case <-one.failed:
				case <-time.After(patience):
				}
			}
			one.await(time.Now().Add(100 * time.Millisecond))
			err := w.check(requests, oneways)
			if a := w.account(); a.failures[c.want] != 1 || len(a.failures) != 1 || err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("the failures are %v and the books say %v, want 1 %q", a.failures, err, c.want)
			}
		})
	}
}

func TestCallerThatIsRefused(t *testing.T) {
	w := newCrew(t, map[string]string{"client": steadyAddress(t)})
	w.hire(kind{name: "refused", count: 3, listener: "client"})
	if a := w.account(); a.failures[failRefused] != 3 {
		t.Errorf("3 connections to nobody came to %v, want them refused", a.failures)
	}
}

// What arrives twice, or never, is known to the servers alone when it is one-way.
func TestLedgerFindsWhatIsWrong(t *testing.T) {
	for _, c := range []struct {
		seen []uint32
		sent uint32
		want string
	}{
		{nil, 0, ""},
		{[]uint32{2, 0, 1}, 3, ""},
		{[]uint32{0, 2}, 3, "number 1 is missing"},
		{nil, 1, "number 0 is missing"},
		{[]uint32{0, 1, 1}, 2, "number 1 the first"},
		{[]uint32{0, 1, 2}, 2, "3 requests, and 2 were sent"},
		{[]uint32{0, 200}, 201, "number 1 is missing"},
	} {
		l := newLedger()
		for _, n := range c.seen {
			l.see(7, n)
		}
		l.see(8, 0) // of another, which does not matter
		if got := fmt.Sprint(l.check(7, c.sent)); c.want == "" && got != "<nil>" || !strings.Contains(got, c.want) {
			t.Errorf("%d were sent and %v seen, and the ledger says %s; want %q", c.sent, c.seen, got, c.want)
		}
	}
}

// A whole crew against a server without anything between them has nothing to complain of, whatever it does.
func TestCrewAgainstItsServer(t *testing.T) {
	requests, oneways := newLedger(), newLedger()
	k := newKeeper(t, "127.0.0.1:0", requests, oneways, nil)
	w := newCrew(t, map[string]string{"client": k.address(), "worker": k.address(), "unix": k.address()})
	connections := 0
	for _, kind := range everything() {
		kind.count = min(kind.count, 2)
		connections += kind.count
		w.hire(kind)
	}
	w.visit(kind{name: "visitor", listener: "client", every: 20 * time.Millisecond})
	time.Sleep(500 * time.Millisecond)
	w.end()
	w.arrived(oneways)
	a := w.account()
	if err := w.check(requests, oneways); err != nil || k.bad.Load() > 0 {
		t.Errorf("%d frames were not as sent, and the books say\n%v", k.bad.Load(), err)
	}
	if a.requests == 0 || a.oneways == 0 || a.beats == 0 || a.connections <= connections {
		t.Errorf("of %d kinds of clients came %v; want requests of each kind, and visitors", len(everything()), a)
	}
}
