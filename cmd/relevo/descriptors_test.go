//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/admin"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// visitor is one client connection on which a test calls.
type visitor struct {
	net.Conn
	id uint32
}

func newVisitor(t *testing.T, address string) *visitor {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &visitor{Conn: c}
}

// call calls a service and returns the reply's status.
func (c *visitor) call(t *testing.T, service string) wire.Status {
	t.Helper()
	c.id++
	request, err := (&bolt.Request{
		Codec: bolt.CodecHessian2, ID: c.id, Timeout: 5000, Class: bolt.ClassRequest, Headers: []bolt.Pair{{Key: "service", Value: service}},
		Content: []byte(service),
	}).Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write(request); err != nil {
		t.Fatal(err)
	}
	var m wire.Message
	reply := make([]byte, 0, 4096)
	for {
		n, err := c.Read(reply[len(reply):cap(reply)])
		if err != nil {
			t.Fatalf("calling %s: %v", service, err)
		}
		reply = reply[:len(reply)+n]
		if n, err := (bolt.Codec{}).Decode(&m, reply, wire.Limits{}); err != nil || n == len(reply) && m.ID != c.id {
			t.Fatalf("calling %s: got the id %d and %v, want the reply to %d", service, m.ID, err, c.id)
		} else if n == len(reply) {
			return m.Status
		}
	}
}

// TestDescriptorsRunOut: clients that take all descriptors there are do not get the last ones. Who is there is served, also by a
// server that is connected only then, and the admin door answers on new connections; when the clients have gone, all is as before.
func TestDescriptorsRunOut(t *testing.T) {
	const most, crowd = 200, 190 // so that those who wait fit into a short queue of the kernel's
	const reserve = 64
	server, later := steadyAddress(t), steadyAddress(t)
	for _, at := range []string{server, later} {
		e := &endpoint{address: at}
		e.start(t)
	}
	listener := steadyAddress(t)
	address, line := adminOf(t)
	limited := filepath.Join(t.TempDir(), "limited")
	if err := os.WriteFile(limited, fmt.Appendf(nil, "#!/bin/sh\nulimit -n %d\nexec %q \"$@\"\n", most, os.Args[0]), 0o700); err != nil {
		t.Fatal(err)
	}
	p := newChain(t, limited, patientUpgrades, fmt.Sprintf(`
listeners: [{name: in, address: %q, protocol: bolt}]
routes: [{name: rpc, rules: [{match: {service: later}, cluster: later}, {cluster: echo}]}]
clusters:
- {name: echo, protocol: bolt, endpoints: [{address: %q}]}
- {name: later, protocol: bolt, endpoints: [{address: %q}]}
%s`, listener, server, later, line))
	first := newVisitor(t, listener)
	serves := func(c *visitor, service string) {
		t.Helper()
		if status := c.call(t, service); status != wire.Success {
			t.Errorf("the service %s answers %v, want SUCCESS", service, status)
		}
	}
	serves(first, "one")
	pid := p.now.process.Pid
	status := func() (s struct {
		Ready   bool
		Reasons []string
		admin.Status
	},
	) {
		t.Helper()
		a := newDesk(address).must(t, http.MethodGet, "/v1/status", "")
		if err := json.Unmarshal(a.body, &s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	stops := func() bool {
		return slices.ContainsFunc(status().Overload.Actions, func(a admin.OverloadAction) bool {
			return a.Action == "stop-accepting" && a.Resource == "descriptors"
		})
	}
	clients := make([]net.Conn, crowd)
	for i := range clients {
		clients[i] = newVisitor(t, listener)
	}
	p.err.find(t, `"overload: it begins","action":"stop-accepting","resource":"descriptors"`)
	for i := range 20 {
		if !stops() {
			t.Fatalf("at look %d accepting goes on, while %d clients want to come", i, crowd)
		}
		serves(first, "one")
		open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			t.Fatal(err)
		}
		if n := len(open); n > most-reserve+8 || n < most-reserve-8 { // the door's connections come and go
			t.Errorf("%d descriptors are open, want about %d of %d: the rest is kept", n, most-reserve, most)
		}
	}
	serves(first, "later") // on a server connection that is made now
	s := status()
	if d := s.Overload.Descriptors; d.Limit != most || d.Reserve != reserve || s.Ready || len(s.Reasons) != 1 || s.Listeners[0].Accepting {
		t.Errorf("the status is %+v, want it not ready because of %d descriptors, of which %d are kept", s, most, reserve)
	}
	for _, c := range clients {
		c.Close()
	}
	late := newVisitor(t, listener) // is accepted when there is room
	serves(late, "late")
	p.err.find(t, `"overload: it is over","action":"stop-accepting","resource":"descriptors"`)
	if s := status(); !s.Ready || len(s.Overload.Actions) != 0 {
		t.Errorf("the status is %+v behind it, want it ready", s)
	}
	serves(first, "one")
	log := p.err.String()
	if begins := strings.Count(log, `"overload: it begins"`); begins != 1 {
		t.Errorf("the log has %d lines about the beginning, want one", begins)
	}
	if strings.Contains(log, "accepting a connection") || strings.Contains(log, "cannot be connected") {
		t.Error("descriptors ran out all the same")
	}
	p.upgrade(t) // for which there are enough
	serves(first, "one")
	p.stop(t)
}
