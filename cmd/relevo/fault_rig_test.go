//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
)

// rig is a proxy before some endpoints, each a process of its own.
type rig struct {
	proxy     *program
	endpoints []*endpoint
	address   string // of the listener
	metrics   string // URL
	told      told   // to all clients so far
	page      limits
}

// endpoint is a server that can be killed and started again at the same address.
type endpoint struct {
	address string
	bad     string   // what is wrong with it, "" for an echo server
	args    []string // of the echo server
	process *program
}

// echoes is n echo servers.
func echoes(n int, args ...string) (list []*endpoint) {
	for range n {
		list = append(list, &endpoint{args: args})
	}
	return list
}

// setup is what the tests vary in the configuration.
type setup struct {
	forwarding string
	timeout    string // of the route; 20s
	cluster    string // further fields
	endpoints  []*endpoint
}

// newRig starts all processes.
func newRig(t *testing.T, s setup) *rig {
	t.Helper()
	page, err := limitsPage()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{endpoints: s.endpoints, page: page}
	var list []string
	for _, e := range s.endpoints {
		e.address = steadyAddress(t)
		e.start(t)
		list = append(list, fmt.Sprintf("{address: %q}", e.address))
	}
	file := fileWith(t, fmt.Sprintf(`
listeners: [{name: client, address: "127.0.0.1:0", protocol: bolt, forwarding: %s}]
routes: [{name: rpc, rules: [{name: all, cluster: order, timeout: %s}]}]
clusters: [{name: order, protocol: bolt, %sendpoints: [%s]}]
metrics: {address: "127.0.0.1:0"}
stop_timeout: 1m
`, s.forwarding, cmp.Or(s.timeout, "20s"), s.cluster, strings.Join(list, ", ")))
	// It collects often, so that what the heap holds is what is used.
	r.proxy = launch(t, []string{asProgram + "=1", "GOGC=20"}, "run", "-c", file)
	r.address = r.proxy.err.find(t, `"listener":"client","address":"([^"]+)"`)
	r.metrics = "http://" + r.proxy.err.find(t, `"door":"metrics","address":"([^"]+)"`) + "/metrics"
	r.proxy.err.find(t, `"msg":"serving"`)
	return r
}

// launch starts this binary as a process that ends with the test, and with this process, however that ends. What it has
// written is told where the test fails.
func launch(t *testing.T, env []string, args ...string) *program {
	t.Helper()
	var p *program
	t.Cleanup(func() { // behind the process's own
		if p != nil && t.Failed() {
			t.Logf("%v\nstdout:\n%s\nstderr:\n%s", args, p.out, p.err)
		}
	})
	p = dispatch(t, env, args...)
	return p
}

// dispatch is launch for one of many.
func dispatch(t *testing.T, env []string, args ...string) *program {
	t.Helper()
	p := &program{cmd: exec.Command(os.Args[0], args...), out: newTranscript(), err: newTranscript(), gone: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.err
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the process, which the clean-up sees to and waits for
		_ = p.cmd.Wait()
		close(p.gone)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.gone
	})
	return p
}

// steadyAddress is one whose port lies below those that the kernel gives to clients: nobody gets it while its server
// is dead, not even the proxy that tries to connect to it.
func steadyAddress(t testing.TB) string {
	t.Helper()
	first := 32768
	if text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		_, _ = fmt.Sscan(string(text), &first) // else it is the kernel's default
	}
	for range 100 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", max(first/2, 1024)+rand.IntN(max(first/2, 1024))))
		if err == nil {
			l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal("no port is free")
	return ""
}

// start starts the server and waits until it listens.
func (e *endpoint) start(t *testing.T) {
	t.Helper()
	if e.bad != "" {
		e.process = launch(t, []string{badServer + "=" + e.bad, badAddress + "=" + e.address}, "-test.run=^TestBadServer$")
	} else {
		e.process = launch(t, []string{asProgram + "=1"}, append([]string{"echo", "bolt", "--listen", e.address}, e.args...)...)
	}
	e.process.out.find(t, `listening at (\S+)\n`)
}

// kill ends the server as a crash does.
func (e *endpoint) kill(t *testing.T) {
	t.Helper()
	e.process.signal(t, syscall.SIGKILL)
	<-e.process.gone
}

// read reads the proxy's metrics.
func (r *rig) read(t *testing.T) reading {
	t.Helper()
	m, err := parseReading(fetch(t, r.metrics))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// until reads the proxy's metrics until they are as wanted, and returns them.
func (r *rig) until(t *testing.T, wanted func(reading) error) reading {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		m := r.read(t)
		err := wanted(m)
		if err == nil {
			return m
		}
		select {
		case <-r.proxy.gone:
			t.Fatalf("the proxy has ended: %v", r.proxy.cmd.ProcessState)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v still:\n%v", patience, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// answering waits until the endpoint is not passed over, and has given some more replies that were passed on.
func (r *rig) answering(t *testing.T, e *endpoint) {
	t.Helper()
	const more = 20
	before := r.read(t).replies(e)
	r.until(t, func(m reading) error {
		if n := m.replies(e); m.passedOver(e) || n < before+more {
			return fmt.Errorf("endpoint %s is to get requests: passed over %v, %d replies since, want false and %d",
				e.address, m.passedOver(e), n-before, more)
		}
		return nil
	})
}

// passedOver waits until the endpoint is passed over.
func (r *rig) passedOver(t *testing.T, e *endpoint) {
	t.Helper()
	r.until(t, func(m reading) error {
		if !m.passedOver(e) {
			return fmt.Errorf("endpoint %s has failed and is not passed over", e.address)
		}
		return nil
	})
}

// traffic is clients that send, and verify each reply.
type traffic struct {
	told   *told // what clients were told is added to it
	cancel context.CancelFunc
	done   chan struct{} // closed when it has ended
	report *bench.Report // to be read after done
	err    error         // to be read after done
}

// The load: its clients wait longer than any route here, so that each request's end is the proxy's doing.
const (
	clients       = 4
	window        = 16 // requests in flight on each connection
	clientTimeout = 2 * time.Minute
)

// load begins to send. Without a count it goes on until end.
func (r *rig) load(t *testing.T, o bench.Options) *traffic {
	t.Helper()
	o.Addr, o.Connections = r.address, clients
	o.InFlight = cmp.Or(o.InFlight, window)
	return r.told.load(t, o)
}

// load begins to send. Without a count and a duration it goes on until end.
func (o *told) load(t *testing.T, options bench.Options) *traffic {
	t.Helper()
	options.Size, options.Timeout = 1000, clientTimeout
	if options.Count == 0 {
		options.Duration = cmp.Or(options.Duration, time.Hour)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &traffic{told: o, cancel: cancel, done: make(chan struct{})}
	go func() { // ends with the count, or after cancel; the clean-up waits for it
		defer close(l.done)
		l.report, l.err = bench.Run(ctx, options)
	}()
	t.Cleanup(func() { cancel(); <-l.done })
	return l
}

// end stops the load and adds to what clients were told.
func (l *traffic) end(t *testing.T) *bench.Report {
	t.Helper()
	l.cancel()
	return l.wait(t)
}

// wait waits until the load has sent its count, and adds to what clients were told.
func (l *traffic) wait(t *testing.T) *bench.Report {
	t.Helper()
	select {
	case <-l.done:
	case <-time.After(patience):
		t.Fatal("the load does not end: requests are without an outcome")
	}
	if l.err != nil {
		t.Fatal(l.err)
	}
	l.told.add(t, l.report)
	return l.report
}

// succeeds sends a number of requests, which must all succeed.
func (r *rig) succeeds(t *testing.T, count uint64) {
	t.Helper()
	if p := r.load(t, bench.Options{Count: count}).wait(t); p.OK != count {
		t.Errorf("of %d requests %d succeeded, and there were %v; want all to succeed", count, p.OK, p.Statuses)
	}
}

// settled waits until nothing is under way, and the counters agree with each other and with what clients were told.
func (r *rig) settled(t *testing.T) reading {
	t.Helper()
	return r.until(t, r.books)
}

// books says what is under way, and where the counters do not agree.
func (r *rig) books(m reading) error {
	return errors.Join(m.idle(), m.agree(r.page), m.heard(r.told))
}

// footprint is what the proxy holds while nothing is under way.
type footprint struct {
	descriptors int
	goroutines  uint64 // without idle workers, of which relevo_workers tells
	heap        uint64 // bytes in use
}

// heapSlack is what the heap may differ by from one round to another: garbage, and buffers kept for the next burst.
const heapSlack = 2 << 20

func (r *rig) footprint(t *testing.T, m reading) footprint {
	t.Helper()
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", r.proxy.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return footprint{
		len(files), m.sum("go_goroutines") - min(m.sum("go_goroutines"), m.sum("relevo_workers", "state=idle")),
		m.sum("go_memstats_heap_inuse_bytes"),
	}
}

// most is the most of some footprints: being looked at takes a connection and goroutines, and so does a probe.
func (r *rig) most(t *testing.T) (most footprint) {
	t.Helper()
	for range 5 {
		f := r.footprint(t, r.settled(t))
		most.descriptors = max(most.descriptors, f.descriptors)
		most.goroutines = max(most.goroutines, f.goroutines)
		most.heap = max(most.heap, f.heap)
	}
	return most
}

// within says what f holds more of than base.
func (f footprint) within(base footprint) error {
	var errs []error
	if f.descriptors > base.descriptors {
		errs = append(errs, fmt.Errorf("the proxy has %d descriptors, and had %d", f.descriptors, base.descriptors))
	}
	if f.goroutines > base.goroutines {
		errs = append(errs, fmt.Errorf("the proxy has %d goroutines beside idle workers, and had %d", f.goroutines, base.goroutines))
	}
	if f.heap > base.heap+heapSlack {
		errs = append(errs, fmt.Errorf("the proxy's heap is %d bytes, and was %d", f.heap, base.heap))
	}
	return errors.Join(errs...)
}

// rounds runs a fault n times, or short times with -short, and sees to it that from the second time on the proxy holds
// nothing more than it did then.
func (r *rig) rounds(t *testing.T, n, short int, round func()) reading {
	t.Helper()
	if testing.Short() {
		n = short
	}
	var base footprint
	var last reading
	for i := range n {
		round()
		last = r.until(t, func(m reading) error {
			if i < 2 {
				return r.books(m)
			}
			return errors.Join(r.books(m), r.footprint(t, m).within(base))
		})
		if t.Failed() {
			t.Fatalf("in round %d; clients were told %v", i+1, r.told.status)
		}
		if i == 1 {
			base = r.most(t)
		}
	}
	return last
}

// stop ends the proxy as an operator does. Built with the race detector, it says in its exit status if that found
// something.
func (r *rig) stop(t *testing.T) {
	t.Helper()
	r.proxy.signal(t, syscall.SIGTERM)
	if status := r.proxy.status(t); status != exitDone {
		t.Errorf("after SIGTERM the proxy's exit status is %d, want %d", status, exitDone)
	}
}
