package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/admin"
	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
	"github.com/relevo-proxy/relevo/server"
	"github.com/relevo-proxy/relevo/server/config"
	"github.com/relevo-proxy/relevo/upgrade"
)

// role makes the test binary a forwarder that is started as "run -c FILE", and checked as "check -c FILE".
const role = "RELEVO_DEMO_TEST_ROLE"

const (
	roleForward  = "forward"
	roleMislead  = "mislead"  // forwards to where nobody listens
	roleStubborn = "stubborn" // fails when it is stopped
	roleRefuse   = "refuse"   // refuses its configuration when it is checked for an upgrade
	roleBarren   = "barren"   // cannot take over
)

func TestMain(m *testing.M) {
	if r := os.Getenv(role); r != "" {
		if err := forward(r, os.Args[len(os.Args)-1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func forward(r, file string) error {
	c, err := config.Load(file)
	if err != nil {
		return err
	}
	if r == roleMislead {
		for i := range c.Clusters {
			c.Clusters[i].Endpoints[0].Address = "127.0.0.1:1"
		}
	}
	if os.Args[1] == "check" {
		if r == roleRefuse {
			return errors.New("not this file")
		}
		return nil
	}
	o := server.Options{Config: c, Log: zap.NewNop(), Build: admin.BuildInfo{}}
	g, err := server.NewGeneration(o, file)
	if err != nil {
		return err
	}
	defer g.Close()
	if r == roleBarren && g.Heir() {
		return errors.New("not me")
	}
	ctx, _ := server.Signals(zap.NewNop(), func() *server.Server { return nil }, g.Request)
	s, err := g.Serve(ctx)
	if errors.Is(err, upgrade.ErrAborted) {
		return nil
	}
	if err != nil {
		return err
	}
	err = s.Run(ctx)
	if r == roleStubborn {
		return errors.New("not like this")
	}
	return err
}

// show runs the demo and says what it printed. Temporary files go to a folder that must be empty afterwards,
// and no process that was named may be left.
func show(t *testing.T, ctx context.Context, r string, out *output) error {
	t.Helper()
	t.Setenv(role, r)
	t.Setenv("GORACE", "atexit_sleep_ms=0") // else each process stays for another second
	folder := t.TempDir()
	t.Setenv("TMPDIR", folder)
	err := Run(ctx, Options{Out: out, Load: 50 * time.Millisecond, Rate: 1000})
	left, readErr := os.ReadDir(folder)
	if readErr != nil || len(left) > 0 {
		t.Errorf("the demo left %v, %v; want nothing", left, readErr)
	}
	pids := regexp.MustCompile(`process (\d+)`).FindAllStringSubmatch(out.String(), -1)
	for _, m := range pids {
		pid, _ := strconv.Atoi(m[1])
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("process %d: %v, want it gone", pid, err)
		}
	}
	return err
}

func TestDemo(t *testing.T) {
	out := &output{}
	if err := show(t, t.Context(), roleForward, out); err != nil {
		t.Fatalf("the demo failed: %v\n%s", err, out)
	}
	for pattern, want := range map[string]int{
		`(?m)^1\. One process`:              1,
		`(?m)^2\. Two processes`:            1,
		`(?m)^3\. One process .* replaced`:  1,
		`p50 +p90 +p99`:                     3,
		`(?m)^   8 x 16, 1 KiB, v1 +\d+`:    2,
		`(?m)^   client +28 .* SUCCESS `:    2,
		`(?m)^   client +64 .* SUCCESS `:    1,
		`(?m)^   server +\d+ .* SUCCESS `:   3,
		`all came back once, unchanged`:     1,
		`-> client .* -> server .* -> echo`: 3,
		`(?m)^   upgrade [123]: process \d+ to process \d+, pause .* ms, carried: 67 connections, \d+ requests? under way$`:     3,
		`(?m)^   Kept: all 64 connections of clients, and 1 connection to the server; none was made anew\. Nothing was lost\.$`: 1,
	} {
		if got := len(regexp.MustCompile(pattern).FindAllString(out.String(), -1)); got != want {
			t.Errorf("%q is there %d times, want %d:\n%s", pattern, got, want, out)
		}
	}
}

func TestDemoFailsWhenRequestsFail(t *testing.T) {
	out := &output{}
	err := show(t, t.Context(), roleMislead, out)
	if err == nil || !strings.Contains(err.Error(), "answered with another status") {
		t.Errorf("with hops that lead nowhere the error is %v, want it to say so", err)
	}
	if !strings.Contains(out.String(), "connect-failure") && !strings.Contains(out.String(), "no-endpoint") {
		t.Errorf("the counters do not say why:\n%s", out)
	}
}

func TestDemoFailsWhenAHopStopsBadly(t *testing.T) {
	err := show(t, t.Context(), roleStubborn, &output{})
	if err == nil || !strings.Contains(err.Error(), "did not stop well") || !strings.Contains(err.Error(), "not like this") {
		t.Errorf("the error is %v, want what the process said", err)
	}
}

func TestDemoFailsWhenAHopDoesNotStart(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	err := Run(t.Context(), Options{Out: &output{}, Executable: "/bin/false"})
	if err == nil || !strings.Contains(err.Error(), "has ended by itself") {
		t.Errorf("the error is %v, want that the process has ended", err)
	}
}

func TestDemoFailsWhenAnUpgradeDoes(t *testing.T) {
	for r, want := range map[string]string{
		roleRefuse: "upgrade 1: refused at the step preflight: ",
		roleBarren: "upgrade 1: rolled-back at the step warm: ",
	} {
		out := &output{}
		err := show(t, t.Context(), r, out)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(out.String(), "Nothing was lost") {
			t.Errorf("%s: the error is %v, want %q in it, and no praise:\n%s", r, err, want, out)
		}
	}
}

func TestDemoInterrupted(t *testing.T) {
	for _, after := range []string{"1. One", "process ", "3. One", "upgrade 1: "} {
		ctx, cancel := context.WithCancel(t.Context())
		out := &output{after: after, then: cancel}
		if err := show(t, ctx, roleForward, out); err == nil || err.Error() != "demo: interrupted" {
			t.Errorf("interrupted after %q, the error is %v, want just that", after, err)
		}
		cancel()
	}
}

// output collects what is printed, and calls then once that contains after.
type output struct {
	mu    sync.Mutex
	text  bytes.Buffer
	after string
	then  func()
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text.Write(b)
	if o.then != nil && strings.Contains(o.text.String(), o.after) {
		o.then()
		o.then = nil
	}
	return len(b), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

func TestWhole(t *testing.T) {
	good := bench.Report{Options: bench.ReportedOptions{Connections: 4}, Dials: 4, Sent: 100}
	if err := whole(&good, 7, 2, 2, 107); err != nil {
		t.Errorf("a load of which all came and nothing was closed: %v", err)
	}
	again := good
	again.Dials, again.Reconnects = 5, 1
	for _, c := range []struct {
		what               string
		r                  *bench.Report
		accepted, requests uint64
		want               string
	}{
		{"a client that connects again", &again, 2, 107, "clients connected 5 times, 1 of them again"},
		{"a new connection to the server", &good, 3, 107, "the server accepted 1 connections"},
		{"a request run twice", &good, 2, 108, "the server got 101 requests; 100 were sent"},
	} {
		if err := whole(c.r, 7, 2, c.accepted, c.requests); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: the error is %v, want %q", c.what, err, c.want)
		}
	}
}

func TestSettleMovesWhatIsTaken(t *testing.T) {
	sample, err := read(phases)
	if err != nil {
		t.Fatal(err)
	}
	if got := sample.server(); got != "127.0.0.1:12400" {
		t.Errorf("the server is at %s, want 127.0.0.1:12400", got)
	}
	const wanted = "127.0.0.1:12320"
	if l, err := net.Listen("tcp", wanted); err == nil { // else another process has it, which is as good
		defer l.Close()
	}
	s, err := settle(phases[1], sample, "127.0.0.1:4")
	if err != nil {
		t.Fatal(err)
	}
	peer := s.files[0].config.Clusters[0].Endpoints[0].Address
	if listener := s.files[1].config.Listeners[0].Address; listener == wanted || listener != peer {
		t.Errorf("the second hop listens at %s, the first sends to %s; want both at one other address than %s", listener, peer, wanted)
	}
	if end := s.files[1].config.Clusters[0].Endpoints[0].Address; end != "127.0.0.1:4" {
		t.Errorf("the second hop sends to %s, want 127.0.0.1:4", end)
	}
	if !strings.Contains(strings.Join(s.moved, "\n"), wanted+" is taken, so ") {
		t.Errorf("nothing is said about %s: %q", wanted, s.moved)
	}
}

func TestParseCounters(t *testing.T) {
	const text = `# HELP relevo_listener_requests_total Frames.
# TYPE relevo_listener_requests_total counter
relevo_listener_requests_total{kind="request",listener="client"} 1.156854e+06
relevo_listener_requests_total{kind="oneway",listener="client"} 2
relevo_listener_requests_total{kind="request",listener="other"} 9
relevo_listener_replies_total{listener="client",status="SUCCESS"} 1.156853e+06
relevo_listener_replies_total{listener="client",status="TIMEOUT"} 1
relevo_listener_local_replies_total{listener="client",reason="timeout"} 1
relevo_listener_connections_total{listener="client"} 28
relevo_listener_bytes_total{direction="read",listener="client"} 100
relevo_listener_bytes_total{direction="written",listener="client"} 90
relevo_listener_odd{listener="cli,ent"} 1
relevo_buffered_bytes 7
`
	want := counters{
		requests: 1156854, oneways: 2, connections: 28, bytesRead: 100, bytesWritten: 90,
		replies: map[string]uint64{"SUCCESS": 1156853, "TIMEOUT": 1}, local: map[string]uint64{"timeout": 1},
	}
	got := parse(text, "client")
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(counters{})); diff != "" {
		t.Errorf("want - got +:\n%s", diff)
	}
	if got := listed(got.replies); got != "1 TIMEOUT, 1156853 SUCCESS" {
		t.Errorf("listed says %q", got)
	}
}

func TestAgree(t *testing.T) {
	good := func() counters {
		return counters{requests: 5, connections: 2, replies: map[string]uint64{"SUCCESS": 5}}
	}
	hops := []hop{{listener: "client"}}
	want := counters{requests: 5, connections: 2}
	if err := agree(hops, []counters{good()}, want); err != nil {
		t.Errorf("counters that are right: %v", err)
	}
	for name, spoil := range map[string]func(*counters){
		"a request less":   func(c *counters) { c.requests-- },
		"a one-way":        func(c *counters) { c.oneways++ },
		"a reply twice":    func(c *counters) { c.replies["SUCCESS"]++ },
		"another status":   func(c *counters) { c.replies["TIMEOUT"]++ },
		"a local reply":    func(c *counters) { c.local = map[string]uint64{"timeout": 1} },
		"a connection too": func(c *counters) { c.connections++ },
	} {
		c := good()
		spoil(&c)
		if err := agree(hops, []counters{c}, want); err == nil || !strings.Contains(err.Error(), "listener client") {
			t.Errorf("%s: %v, want an error that names the listener", name, err)
		}
	}
}

func TestFailures(t *testing.T) {
	r := &bench.Report{Sent: 9, OK: 4, Statuses: map[string]uint64{"TIMEOUT": 2}, Lost: 3}
	if got, want := failures(r), "of 9 requests 2 answered with another status, 3 lost"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if bad(r) != 5 {
		t.Errorf("bad is %d, want 5", bad(r))
	}
}
