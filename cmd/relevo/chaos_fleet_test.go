//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fleet is servers before which a chain of proxies stands, each a process of its own.
type fleet struct {
	board   *board
	shape   fleetShape
	servers []*fleetProcess
}

// fleetShape says how much the servers of a fleet can do.
type fleetShape struct {
	servers int
	workers int           // of each server
	delay   time.Duration // that a worker has a request
	queue   int           // requests that wait for a worker of a server
}

// capacity is how many requests a second all servers together can execute.
func (s fleetShape) capacity() float64 {
	return float64(s.servers*s.workers) / s.delay.Seconds()
}

// fleetProcess is a server, which can be killed and started again at the same address.
type fleetProcess struct {
	order   serverOrder
	process *program
}

// newFleet starts the servers, and waits until all listen.
func newFleet(t *testing.T, shape fleetShape, lanes, links, numbers int) *fleet {
	t.Helper()
	f := &fleet{shape: shape, board: newBoard(t, boardSize{shape.servers, lanes, links, numbers})}
	for i := range shape.servers {
		f.servers = append(f.servers, &fleetProcess{order: serverOrder{
			number: i, address: steadyAddress(t), workers: shape.workers, queue: shape.queue, file: f.board.file, size: f.board.size,
		}})
		f.board.tell(i, fine, shape.delay)
		f.servers[i].start(t)
	}
	f.listen(t)
	return f
}

// start starts the server, and does not wait until it listens.
func (p *fleetProcess) start(t *testing.T) {
	t.Helper()
	p.process = dispatch(t, []string{asServer + "=" + p.order.String(), "GOMAXPROCS=1"})
}

// listens says whether the server listens.
func (p *fleetProcess) listens() bool {
	return strings.Contains(p.process.out.String(), "listening at ")
}

// listen waits until all servers listen.
func (f *fleet) listen(t *testing.T) {
	t.Helper()
	for _, p := range f.servers {
		p.process.out.find(t, `listening at (\S+)\n`)
	}
}

// kill ends the server as a crash does.
func (p *fleetProcess) kill(t *testing.T) {
	t.Helper()
	p.process.signal(t, syscall.SIGKILL)
	<-p.process.gone
}

// endpoints is the servers in the words of the configuration.
func (f *fleet) endpoints() string {
	var list []string
	for _, p := range f.servers {
		list = append(list, fmt.Sprintf("{address: %q}", p.order.address))
	}
	return strings.Join(list, ", ")
}

// tries is how many requests came to a server.
func (b *board) tries(server int) uint64 {
	return uint64(b.get(server, wordStarted)) + uint64(b.get(server, wordRefused)) + uint64(b.get(server, wordOverflow))
}

// states is what the proxy says of each endpoint at its admin door, by address.
func (d desk) states(t testing.TB, cluster string) map[string]string {
	t.Helper()
	var list struct {
		Endpoints []struct{ Address, State string }
	}
	a := d.must(t, http.MethodGet, "/v1/clusters/"+cluster+"/endpoints", "")
	if err := json.Unmarshal(a.body, &list); err != nil {
		t.Fatalf("reading the endpoints: %v\n%s", err, a.body)
	}
	states := map[string]string{}
	for _, e := range list.Endpoints {
		states[e.Address] = e.State
	}
	return states
}

// usable says which servers the proxy does not use.
func (f *fleet) usable(states map[string]string) error {
	var errs []error
	for i, p := range f.servers {
		if s := states[p.order.address]; s != "usable" {
			errs = append(errs, fmt.Errorf("server %d, which works, is %q", i, s))
		}
	}
	return errors.Join(errs...)
}

// recovers waits until the proxy uses all servers, and returns how long that took.
func (f *fleet) recovers(t *testing.T, d desk, cluster string) time.Duration {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		err := f.usable(d.states(t, cluster))
		if err == nil {
			return time.Since(begin)
		}
		if time.Since(begin) > patience {
			t.Fatalf("%v after all is well again:\n%v", patience, err)
		}
	}
}
