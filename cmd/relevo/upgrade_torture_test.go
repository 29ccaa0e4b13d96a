//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// Upgrades under everything at once that a proxy is for, with real processes and clients that never connect again: no
// connection may end, and each request comes to one right reply, and to its server once.

// upgradesWanted is the variable that says how many upgrades there are to be under load, if not 10. `make torture` sets it.
const upgradesWanted = "RELEVO_TEST_UPGRADES"

func upgrades(t *testing.T) int {
	t.Helper()
	text := os.Getenv(upgradesWanted)
	if text == "" {
		return 10
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 3 {
		t.Fatalf("%s is %q, want a number above 2", upgradesWanted, text)
	}
	return n
}

// connections is how many everything makes, those of visitors aside.
const connections = 1000

// everything is a thousand connections of every kind.
func everything() []kind {
	const kib = 1 << 10
	list := []kind{
		{name: "idle worker", count: 40, listener: "worker", every: 2 * time.Second},
		{name: "idle unix", count: 40, listener: "unix", every: 2 * time.Second},
		{name: "heartbeats", count: 50, listener: "client", every: 500 * time.Millisecond, beat: true},
		{name: "closed", count: 1, listener: "client", inFlight: 8, size: 1000},
		{name: "closed worker", count: 1, listener: "worker", inFlight: 4, size: 1000},
		{name: "closed unix", count: 1, listener: "unix", inFlight: 4, size: 1000},
		{name: "open", count: 50, listener: "client", every: 100 * time.Millisecond, inFlight: 4096},
		{name: "late", count: 40, listener: "client", every: 200 * time.Millisecond, inFlight: 4, wait: time.Second},
		{name: "very late", count: 40, listener: "client", every: 500 * time.Millisecond, inFlight: 4, wait: 5 * time.Second},
		{name: "very late worker", count: 20, listener: "worker", every: 500 * time.Millisecond, inFlight: 2, wait: 5 * time.Second},
		{name: "one-way", count: 20, listener: "client", every: 50 * time.Millisecond, oneway: true},
		{name: "one-way worker", count: 5, listener: "worker", every: 50 * time.Millisecond, oneway: true},
		{name: "slow reader", count: 4, listener: "client", service: "large", every: 10 * time.Millisecond, inFlight: 40, reply: 200 * kib, window: 64 * kib, rest: 6 * time.Millisecond},
		{name: "cut", count: 20, listener: "client", every: time.Second, size: 600, pieces: 10, gap: 100 * time.Millisecond},
		{name: "upload", count: 4, listener: "client", service: "upload", every: time.Second, size: 2048 * kib, pieces: 16, gap: 30 * time.Millisecond},
		{name: "download", count: 2, listener: "client", service: "large", every: time.Second, reply: 2048 * kib},
		{name: "delayed", count: 20, listener: "client", service: "delayed", every: 200 * time.Millisecond, inFlight: 2},
		{name: "retried", count: 20, listener: "client", service: "retried", every: 50 * time.Millisecond, inFlight: 2},
		{name: "retried late", count: 10, listener: "client", service: "retried", every: 100 * time.Millisecond, inFlight: 2, wait: 5 * time.Second},
	}
	idle := kind{name: "idle", service: "echo", count: connections, listener: "client", every: 4 * time.Second}
	for i := range list {
		idle.count -= list[i].count
		if list[i].service == "" {
			list[i].service = "echo"
		}
	}
	return append(list, idle)
}

// uploaders is how many connections to its server the kind of client above may take: those of uploads are leased.
const uploaders = 4

// scene is a chain of proxies between servers and clients.
type scene struct {
	chain             *chain
	crew              *crew
	requests, oneways *ledger
	servers           map[string]*keeper // by cluster
	most              map[string]int64   // connections that each may get
	reluctant         *reluctant         // the servers of cluster retried; its third endpoint is nobody's
	visitor           kind
}

// newScene makes one in which all connections are there and have been used, and none is in use.
func newScene(t *testing.T) *scene {
	t.Helper()
	s := &scene{
		requests: newLedger(), oneways: newLedger(), servers: map[string]*keeper{},
		most: map[string]int64{"echo": 1, "large": 1, "upload": uploaders},
	}
	for cluster := range s.most {
		s.servers[cluster] = newKeeper(t, "127.0.0.1:0", s.requests, s.oneways, nil)
	}
	s.reluctant = newReluctant(t, s.requests, s.oneways)
	addresses := map[string]string{
		"client": steadyAddress(t), "worker": steadyAddress(t), "unix": filepath.Join(t.TempDir(), "s"),
	}
	at := func(cluster string) string { return s.servers[cluster].address() }
	s.chain = newChain(t, os.Args[0], patientUpgrades, fmt.Sprintf(`
listeners:
- {name: client, address: %q, protocol: bolt, read_timeout: 1m, write_timeout: 1m}
- {name: worker, address: %q, protocol: bolt, forwarding: worker}
- {name: unix, address: "unix:%s", protocol: bolt}
routes:
- name: rpc
  rules:
  - {match: {service: large}, cluster: large, timeout: 1m}
  - {match: {service: upload}, cluster: upload, timeout: 1m}
  - match: {service: retried}
    cluster: retried
    timeout: 1m
    idempotent: true
    retry: {attempts: 10, on: [connect-failure, reset-before-send, reset, busy], back_off: {base: 400ms, max: 400ms}}
  - {match: {service: delayed}, cluster: echo, timeout: 1m, filters: [{fault: {delay: {time: 300ms}}}]}
  - {match: {service: echo}, cluster: echo, timeout: 1m}
clusters:
- {name: echo, protocol: bolt, endpoints: [{address: %q}]}
- {name: large, protocol: bolt, endpoints: [{address: %q}]}
- {name: upload, protocol: bolt, endpoints: [{address: %q}]}
- {name: retried, protocol: bolt, retry_budget: {percent: 100%%}, endpoints: [{address: %q}, {address: %q}, {address: %q}]}
stop_timeout: 1m
`, addresses["client"], addresses["worker"], addresses["unix"], at("echo"), at("large"), at("upload"),
		s.reluctant.servers[0].address(), s.reluctant.servers[1].address(), steadyAddress(t)))
	s.crew = newCrew(t, addresses)
	s.visitor = kind{name: "visitor", listener: "client", service: "echo", every: 100 * time.Millisecond}
	s.crew.greet(everything())
	s.crew.arrived(s.oneways)
	if err := s.check(); err != nil {
		t.Fatalf("of one request each:\n%v", err)
	}
	return s
}

// queued is how many bytes wait for those that read slowly, at least. All else that is half read or half sent is a fraction of that.
const queued = 4 << 20

// work has all clients send, visitors too, and waits until there is what takes its time to come about: replies that are not read, and
// requests that wait to be sent again.
func (s *scene) work(t *testing.T) {
	t.Helper()
	s.crew.work()
	for range 4 {
		s.crew.visit(s.visitor)
	}
	deadline := time.Now().Add(patience)
	for {
		m := s.chain.read(t)
		bytes, waiting := m.sum("relevo_buffered_bytes"), m.sum("relevo_cluster_retries_waiting")
		if bytes >= queued && waiting > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes are queued and %d requests wait to be sent again, want at least %d and 1", bytes, waiting, queued)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// check goes through the books of clients and servers.
func (s *scene) check() error {
	errs := []error{s.crew.check(s.requests, s.oneways)}
	for _, c := range s.crew.all() {
		if c.kind.service == "retried" {
			errs = append(errs, s.reluctant.refusals.check(c.number, c.requests))
		}
	}
	return errors.Join(errs...)
}

// finish has all clients end, and goes through everybody's books.
func (s *scene) finish(t *testing.T) {
	t.Helper()
	s.crew.end()
	s.crew.arrived(s.oneways)
	if err := s.check(); err != nil {
		t.Error(err)
	}
	for cluster, k := range s.servers {
		accepted, gone, bad := k.accepted.Load(), k.gone.Load(), k.bad.Load()
		if accepted > s.most[cluster] || gone > 0 || bad > 0 {
			t.Errorf("the server of cluster %s got %d connections, of which %d ended, and %d frames that were not as sent; want at most %d, 0 and 0",
				cluster, accepted, gone, bad, s.most[cluster])
		}
	}
	a := s.crew.account()
	t.Log(a)
	if len(a.failures) > 0 {
		return // then the proxy's books say the same once more
	}
	visits := uint64(0)
	for _, c := range s.crew.all() {
		if c.kind.name == s.visitor.name {
			visits++
		}
	}
	s.chain.until(t, func(m reading) error {
		return errors.Join(
			m.is(a.requests, "relevo_listener_requests_total", "kind=request"),
			m.is(a.oneways, "relevo_listener_requests_total", "kind=oneway"),
			m.is(a.beats, "relevo_listener_requests_total", "kind=heartbeat"),
			m.is(a.requests, "relevo_listener_replies_total", "status="+wire.Success.String()),
			m.is(a.requests, "relevo_listener_replies_total"),
			m.is(uint64(a.connections), "relevo_listener_connections_total"),
			m.is(uint64(a.connections)-visits, "relevo_listener_connections", "state=reading"),
			m.is(0, "relevo_listener_connections", "state=gated"),
			m.is(visits, "relevo_listener_closes_total"),
			m.is(0, "relevo_listener_local_replies_total"),
			m.is(0, "relevo_listener_dropped_total"),
			m.is(0, "relevo_cluster_dropped_total"),
			m.is(uint64(s.reluctant.partings.Load()), "relevo_endpoint_closes_total"),
			m.is(0, "relevo_cluster_retry_refusals_total"),
			m.is(0, "relevo_cluster_retries_in_flight"),
			m.is(0, "relevo_cluster_retries_waiting"),
			m.is(0, "relevo_cluster_retry_bytes"),
			m.is(0, "relevo_listener_in_flight"),
			m.is(0, "relevo_endpoint_in_flight"),
			m.is(0, "relevo_recovered_panics_total"),
			m.is(a.requests+a.oneways, "relevo_route_requests_total"),
		)
	})
}

// is says so unless the series add up to want.
func (m reading) is(want uint64, name string, labels ...string) error {
	if got := m.sum(name, labels...); got != want {
		return fmt.Errorf("%s%v is %d, want %d", name, labels, got, want)
	}
	return nil
}

// weight is what one generation takes of the machine while nothing is under way: the least of several looks, since looking takes
// something, too.
type weight struct{ descriptors, goroutines, memory uint64 }

// What a later generation may have more of. It has no more connections, and less where one to a server has ended.
const (
	moreDescriptors = 2
	moreGoroutines  = 4
	moreMemory      = 25 // percent, of two that have forwarded nothing yet: all that they have has come along
)

func (s *scene) weight(t *testing.T) (w weight) {
	t.Helper()
	for i := range 5 {
		m := s.chain.read(t)
		now := weight{
			m.sum("process_open_fds"), m.sum("go_goroutines") - min(m.sum("go_goroutines"), m.sum("relevo_workers")),
			m.sum("process_resident_memory_bytes"),
		}
		if i == 0 {
			w = now
		}
		w = weight{min(w.descriptors, now.descriptors), min(w.goroutines, now.goroutines), min(w.memory, now.memory)}
		time.Sleep(50 * time.Millisecond)
	}
	return w
}

// within says what there is too much of, memory aside: that depends on what was forwarded lately.
func (w weight) within(base weight) error {
	if w.descriptors > base.descriptors+moreDescriptors || w.goroutines > base.goroutines+moreGoroutines {
		return fmt.Errorf("there are %d descriptors and %d goroutines beside workers, and there were %d and %d; want at most %d and %d more",
			w.descriptors, w.goroutines, base.descriptors, base.goroutines, moreDescriptors, moreGoroutines)
	}
	return nil
}

// retries is how many further tries there were, and how many of them by processes that do not know why: those of requests that
// waited for it over an upgrade.
func retries(m reading) (all, handed uint64) {
	all = m.sum("relevo_route_retries_total", "cluster=retried")
	return all, all - m.sum("relevo_cluster_retries_total", "cluster=retried")
}

// The same without an upgrade: what fails here is not the upgrade's doing.
func TestTortureWithoutUpgrades(t *testing.T) {
	if canUpgrade && os.Getenv(upgradesWanted) == "" {
		t.Skip("the upgrades are tried, and the time is better spent on them: `make torture` does both")
	}
	s := newScene(t)
	base := s.weight(t)
	s.work(t)
	before := s.chain.read(t)
	time.Sleep(time.Second)
	if err := s.chain.read(t).monotonic(before); err != nil {
		t.Error(err)
	}
	s.crew.end()
	if err := s.weight(t).within(base); err != nil {
		t.Error(err)
	}
	s.finish(t)
	s.crew.close()
	s.chain.stop(t)
}

// The upgrades are done under load, but for one before it and one behind it: what these two come to must weigh the same.
func TestTortureOfUpgrades(t *testing.T) {
	if !canUpgrade {
		t.Skip("this program cannot be upgraded yet")
	}
	n := upgrades(t)
	s := newScene(t)
	s.upgrade(t)
	base := s.weight(t)
	s.work(t)
	before := s.chain.read(t)
	var all upgraded // what was carried, all upgrades together, and the longest pause
	for i := range n {
		all.add(s.upgrade(t))
		if i%max(n/10, 1) != 0 {
			continue
		}
		// With a thousand upgrades to go, nobody waits for the last of them to learn that the first went wrong.
		m := s.chain.read(t)
		if err := m.monotonic(before); err != nil {
			t.Errorf("behind upgrade %d under load counters are less than before:\n%v", i+1, err)
		}
		was, _ := retries(before)
		if is, _ := retries(m); is <= was {
			t.Errorf("behind upgrade %d under load there were %d retries, and %d before; want more", i+1, is, was)
		}
		before = m
		if a := s.crew.account(); len(a.failures) > 0 || t.Failed() {
			t.Errorf("behind upgrade %d under load", i+1)
			break
		}
	}
	s.crew.end()
	again, handed := retries(before)
	copies, ended := s.reluctant.carried.Load(), s.reluctant.partings.Load()
	if !t.Failed() { // else it did not go on
		if err := all.some(); err != nil {
			t.Error(err)
		}
		if all.Carried.Bytes < uint64(n)*queued {
			t.Errorf("%d upgrades carried %d bytes, want at least %d each: what slow readers have not read", n, all.Carried.Bytes, queued)
		}
		if handed == 0 || copies == 0 || ended == 0 {
			t.Errorf("over an upgrade %d requests waited to be sent again and %d for their refusal, and %d connections ended; want some of each", handed, copies, ended)
		}
	}
	if err := s.weight(t).within(base); err != nil {
		t.Errorf("behind the load: %v", err)
	}
	s.upgrade(t)
	last := s.weight(t)
	if err := last.within(base); err != nil {
		t.Errorf("the last generation beside the second: %v", err)
	}
	if last.memory > base.memory+base.memory*moreMemory/100 {
		t.Errorf("the last generation has %d bytes of memory, the second had %d; want at most %d %% more", last.memory, base.memory, moreMemory)
	}
	s.finish(t)
	s.crew.close()
	t.Logf("%d upgrades under load carried %+v", n, all.Carried)
	t.Logf("%d retries; over an upgrade %d requests waited for theirs and %d for their refusal; %d connections of servers ended", again, handed, copies, ended)
	t.Logf("the second generation was %+v, and the last is %+v", base, last)
	t.Logf("the longest pause was %.3f s, and the slowest old process lived on for %v", all.Pause, s.chain.stop(t))
}

// upgrade is one upgrade, which takes all connections along.
func (s *scene) upgrade(t *testing.T) upgraded {
	t.Helper()
	s.reluctant.upgrading.Lock()
	defer s.reluctant.upgrading.Unlock()
	s.reluctant.begun.Add(1)
	r := s.chain.upgrade(t)
	s.reluctant.done.Add(1)
	if r.Carried.Downstreams < connections {
		t.Errorf("upgrade %d carried %d client connections, want all %d", r.ID, r.Carried.Downstreams, connections)
	}
	return r
}
