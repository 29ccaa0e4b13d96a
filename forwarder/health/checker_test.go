package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/relevo-proxy/relevo/forwarder/cluster"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait for a result. Nothing is expected to take that long.
const patience = 10 * time.Second

// pong asks "ping" and wants "pong\n", behind any number of other lines that begin with a dash.
var pong = &Ask{
	Question: []byte("ping\n"),
	Answered: func(got []byte) (bool, error) {
		for line := range bytes.Lines(got) {
			switch {
			case !bytes.HasSuffix(line, []byte("\n")):
				return false, nil
			case bytes.Equal(line, []byte("pong\n")):
				return true, nil
			case line[0] != '-':
				return false, fmt.Errorf("%q is no pong", line)
			}
		}
		return false, nil
	},
}

// rig runs a Checker until the test ends.
type rig struct {
	*Checker
	t    *testing.T
	stop func()
}

func now() int64 { return time.Now().UnixNano() }

func newRig(t *testing.T, most int) *rig {
	t.Helper()
	r := &rig{Checker: New(most, now), t: t}
	r.run()
	t.Cleanup(func() { r.stop() })
	return r
}

// run runs the Checker until stop.
func (r *rig) run() {
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }() // ends with ctx
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("got %v from Run, want it to end without an error", err)
		}
	})
}

// target is one whose results go into a channel.
func target(network, address string, ask *Ask, timeout time.Duration) (*Target, chan Result) {
	results := make(chan Result, 1000)
	return &Target{
		Endpoint: cluster.NewEndpoint(address, 1), Network: network, Address: address, Ask: ask,
		Interval: 20 * time.Millisecond, Timeout: timeout, Told: func(r Result) { results <- r },
	}, results
}

// next is the next result.
func next(t *testing.T, results chan Result) Result {
	t.Helper()
	select {
	case r := <-results:
		return r
	case <-time.After(patience):
		t.Fatal("got no result")
		return Result{}
	}
}

// ending is how a server's connection from a checker has ended: nil is by FIN.
type ending = error

// serve answers at a socket, each connection with fn, and returns where, and how the connections have ended.
func serve(t *testing.T, network, address string, fn func(net.Conn)) (at string, endings chan ending) {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	endings = make(chan ending, 10000)
	var all sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	all.Go(func() { // ends when the socket is closed
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			all.Go(func() { // ends with its connection
				defer c.Close()
				fn(c)
				_, err := io.Copy(io.Discard, c)
				endings <- err
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	return l.Addr().String(), endings
}

// hears waits for the question.
func hears(c net.Conn) bool {
	b := make([]byte, len(pong.Question))
	_, err := io.ReadFull(c, b)
	return err == nil && bytes.Equal(b, pong.Question)
}

func answers(c net.Conn) {
	if hears(c) {
		_, _ = c.Write([]byte("pong\n"))
	}
}

// reset closes a connection by RST.
func reset(c net.Conn) {
	_ = c.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
}

// deadAddress is one that nobody listens at.
func deadAddress(t *testing.T, address string) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0) // bound, so that nobody else gets the port
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: netip.MustParseAddr(address).As4()}); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s:%d", address, at.(*unix.SockaddrInet4).Port)
}

// blackHole is an address at which the kernel answers nothing any more: somebody listens, never accepts, and the queue is full.
func blackHole(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", at.(*unix.SockaddrInet4).Port)
	for range 100 {
		c, err := net.DialTimeout("tcp", address, 200*time.Millisecond)
		if err != nil {
			if refusal, ok := errors.AsType[net.Error](err); !ok || !refusal.Timeout() {
				t.Fatalf("filling a queue: %v", err)
			}
			return address
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	t.Fatal("the queue of a socket that accepts nothing is never full")
	return ""
}

// TestResults: what each kind of server comes to.
func TestResults(t *testing.T) {
	const short, long = 100 * time.Millisecond, patience
	tcp := func(fn func(net.Conn)) func(*testing.T) (string, string) {
		return func(t *testing.T) (string, string) {
			at, _ := serve(t, "tcp", "127.0.0.1:0", fn)
			return "tcp", at
		}
	}
	for name, c := range map[string]struct {
		server  func(*testing.T) (network, address string)
		ask     *Ask
		timeout time.Duration
		reason  string
		detail  string // part of it
	}{
		"answers": {tcp(answers), pong, long, Passed, ""},
		"answers byte by byte": {tcp(func(c net.Conn) {
			if hears(c) {
				for _, b := range []byte("- what else there is\n-\npong\n") {
					_, _ = c.Write([]byte{b})
				}
			}
		}), pong, long, Passed, ""},
		"speaks first": {tcp(func(c net.Conn) { _, _ = c.Write([]byte("- welcome\n")); answers(c) }), pong, long, Passed, ""},
		"over IPv6": {func(t *testing.T) (string, string) {
			at, _ := serve(t, "tcp", "[::1]:0", answers)
			return "tcp", at
		}, pong, long, Passed, ""},
		"at a unix socket": {func(t *testing.T) (string, string) {
			at, _ := serve(t, "unix", filepath.Join(t.TempDir(), "s"), answers)
			return "unix", at
		}, pong, long, Passed, ""},
		"accepts":               {tcp(func(net.Conn) {}), nil, long, Passed, ""},
		"accepts and is silent": {tcp(func(net.Conn) {}), pong, short, ReasonNoAnswer, "no answer in 100ms"},
		"stops in the middle": {tcp(func(c net.Conn) {
			if hears(c) {
				_, _ = c.Write([]byte("pon"))
			}
		}), pong, short, ReasonNoAnswer, "only 3 bytes"},
		"hangs up": {tcp(func(c net.Conn) { _ = hears(c); _ = c.Close() }), pong, long, ReasonClosed, "behind 0 bytes"},
		"hangs up in the middle": {tcp(func(c net.Conn) {
			if hears(c) {
				_, _ = c.Write([]byte("-\npo"))
				_ = c.Close()
			}
		}), pong, long, ReasonClosed, "closed the connection"},
		"resets":          {tcp(func(c net.Conn) { _ = hears(c); reset(c) }), pong, long, ReasonClosed, "connection reset by peer"},
		"answers rubbish": {tcp(func(c net.Conn) { _ = hears(c); _, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n")) }), pong, long, ReasonBadAnswer, "is no pong"},
		"talks for ever": {tcp(func(c net.Conn) {
			for line := bytes.Repeat([]byte("-\n"), 4096); ; {
				if _, err := c.Write(line); err != nil {
					return
				}
			}
		}), pong, long, ReasonBadAnswer, "no answer in"},
		"refuses":            {func(t *testing.T) (string, string) { return "tcp", deadAddress(t, "127.0.0.1") }, pong, long, ReasonCannotConnect, "connection refused"},
		"is no socket":       {func(t *testing.T) (string, string) { return "unix", filepath.Join(t.TempDir(), "s") }, nil, long, ReasonCannotConnect, "no such file"},
		"is a black hole":    {func(t *testing.T) (string, string) { return "tcp", blackHole(t) }, nil, short, ReasonConnectTimeout, "no connection in 100ms"},
		"has a wrong family": {func(*testing.T) (string, string) { return "tcp", "127.0.0.1" }, nil, long, ReasonCannotConnect, "missing port"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			network, address := c.server(t)
			to, results := target(network, address, c.ask, c.timeout)
			r := newRig(t, 10)
			r.Set([]*Target{to})
			for range 3 {
				if got := next(t, results); got.Reason != c.reason || !strings.Contains(got.Detail, c.detail) {
					t.Errorf("got %+v, want %s because of %q", got, c.reason, c.detail)
				}
			}
			r.stop()
			if len(r.free) != len(r.sockets) {
				t.Errorf("got %d of %d places of sockets back", len(r.free), len(r.sockets))
			}
		})
	}
}

// TestEndsByFIN: a server sees a check end as any connection does, whether it was asked something or not.
func TestEndsByFIN(t *testing.T) {
	for _, ask := range []*Ask{nil, pong} {
		answer := func(net.Conn) {}
		if ask != nil {
			answer = answers
		}
		address, endings := serve(t, "tcp", "127.0.0.1:0", answer)
		to, results := target("tcp", address, ask, patience)
		r := newRig(t, 10)
		r.Set([]*Target{to})
		for range 5 {
			if got := next(t, results); got.Reason != Passed {
				t.Fatalf("got %+v, want it to be passed", got)
			}
			select {
			case err := <-endings:
				if err != nil {
					t.Errorf("got %v at the server's end, want the end of the stream", err)
				}
			case <-time.After(patience):
				t.Fatal("the server's connection does not end")
			}
		}
	}
}

// TestOneStopsNobody: endpoints that say nothing take no turn from others, as long as there are not too many.
func TestOneStopsNobody(t *testing.T) {
	silent, _ := serve(t, "tcp", "127.0.0.1:0", func(net.Conn) {})
	good, _ := serve(t, "tcp", "127.0.0.1:0", answers)
	r := newRig(t, 10)
	var targets []*Target
	for range 9 {
		to, _ := target("tcp", silent, pong, time.Hour)
		targets = append(targets, to)
	}
	to, results := target("tcp", good, pong, patience)
	r.Set(append(targets, to))
	for range 20 {
		if got := next(t, results); got.Reason != Passed {
			t.Fatalf("got %+v, want it to be passed", got)
		}
	}
	if got := r.Stats(); got.UnderWay < 9 || got.UnderWay > 10 {
		t.Errorf("got %+v, want the nine that are silent under way", got)
	}
}

// TestLatenessShows: with all places taken, who is due waits, and that is seen; a place that becomes free is theirs.
func TestLatenessShows(t *testing.T) {
	silent, _ := serve(t, "tcp", "127.0.0.1:0", func(net.Conn) {})
	good, _ := serve(t, "tcp", "127.0.0.1:0", answers)
	r := newRig(t, 1)
	first, _ := target("tcp", silent, pong, time.Hour)
	second, results := target("tcp", good, pong, patience)
	r.Set([]*Target{first})
	eventually(t, "the first check to be under way", func() bool { return r.Stats().UnderWay == 1 })
	r.Set([]*Target{first, second})
	eventually(t, "the second to wait, and that it is late", func() bool { s := r.Stats(); return s.Waiting == 1 && s.Late > 10*time.Millisecond })
	r.Set([]*Target{second})
	if got := next(t, results); got.Reason != Passed {
		t.Errorf("got %+v, want it to be passed", got)
	}
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !holds(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

// TestRests: when Run ends, checks under way end without a result and without a descriptor, and behind the next Run they are made anew.
func TestRests(t *testing.T) {
	var silent atomic.Bool
	silent.Store(true)
	address, endings := serve(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
		if !silent.Load() {
			answers(c)
		}
	})
	r := newRig(t, 10)
	to, results := target("tcp", address, pong, time.Hour)
	r.Set([]*Target{to})
	eventually(t, "the check to be under way", func() bool { return r.Stats().UnderWay == 1 })
	r.stop()
	select {
	case err := <-endings:
		if err != nil {
			t.Errorf("got %v at the server's end, want the end of the stream", err)
		}
	case <-time.After(patience):
		t.Fatal("the connection of a check that was broken off does not end")
	}
	if len(results) != 0 {
		t.Errorf("got %+v of a check that was broken off, want no result", <-results)
	}
	silent.Store(false)
	r.run()
	if got := next(t, results); got.Reason != Passed {
		t.Errorf("got %+v, want it to be passed", got)
	}
}

// TestWhoHasLeft is told nothing more, and its check under way ends.
func TestWhoHasLeft(t *testing.T) {
	address, endings := serve(t, "tcp", "127.0.0.1:0", func(net.Conn) {})
	r := newRig(t, 10)
	to, results := target("tcp", address, pong, time.Hour)
	r.Set([]*Target{to})
	eventually(t, "the check to be under way", func() bool { return r.Stats().UnderWay == 1 })
	r.Set(nil)
	select {
	case err := <-endings:
		if err != nil {
			t.Errorf("got %v at the server's end, want the end of the stream", err)
		}
	case <-time.After(patience):
		t.Fatal("the connection of a check that is void does not end")
	}
	r.stop()
	if len(results) != 0 {
		t.Errorf("got %+v, want no result", <-results)
	}
}

// TestAnotherQuestion: a check under way is not taken for the answer to what is asked from now on.
func TestAnotherQuestion(t *testing.T) {
	address, _ := serve(t, "tcp", "127.0.0.1:0", func(net.Conn) {})
	r := newRig(t, 10)
	to, results := target("tcp", address, pong, time.Hour)
	r.Set([]*Target{to})
	eventually(t, "the check to be under way", func() bool { return r.Stats().UnderWay == 1 })
	plain := *to
	plain.Ask = nil
	r.Set([]*Target{&plain})
	if got := next(t, results); got.Reason != Passed {
		t.Errorf("got %+v, want it to be passed: it accepts", got)
	}
}

// TestNames: the addresses of a name are tried in their order, one question serves many endpoints, and one that cannot be resolved any
// more keeps its last addresses.
func TestNames(t *testing.T) {
	address, _ := serve(t, "tcp", "127.0.0.1:0", answers)
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{Checker: New(10, now), t: t}
	var asked atomic.Int64
	var broken atomic.Bool
	r.names.lookUp = func(_ context.Context, host string) ([]netip.Addr, error) {
		switch {
		case host == "nowhere" || broken.Load():
			return nil, errors.New("no such host")
		case host == "good":
			asked.Add(1)
		}
		return []netip.Addr{netip.MustParseAddr("127.0.0.9"), netip.MustParseAddr("127.0.0.1")}, nil // nobody is at the first
	}
	r.run()
	defer r.stop()
	var targets []*Target
	var all []chan Result
	for range 10 {
		to, results := target("tcp", "good:"+port, pong, patience)
		targets, all = append(targets, to), append(all, results)
	}
	nowhere, lost := target("tcp", "nowhere:1", nil, patience)
	dead, refused := target("tcp", "dead:1", nil, patience)
	r.Set(append(targets, nowhere, dead))
	for _, results := range all {
		for range 3 {
			if got := next(t, results); got.Reason != Passed {
				t.Errorf("got %+v, want it to be passed", got)
			}
		}
	}
	if got := asked.Load(); got != 1 {
		t.Errorf("got %d questions for one name, want 1", got)
	}
	if got := next(t, lost); got.Reason != ReasonUnresolved || !strings.Contains(got.Detail, "no such host") {
		t.Errorf("got %+v, want %s", got, ReasonUnresolved)
	}
	if got := next(t, refused); got.Reason != ReasonCannotConnect || !strings.Contains(got.Detail, "refused") {
		t.Errorf("got %+v, want %s", got, ReasonCannotConnect)
	}
	broken.Store(true)
	r.stop()
	for _, k := range r.names.known {
		k.tried = 1 // long ago
	}
	for _, results := range all {
		for len(results) > 0 {
			<-results
		}
	}
	r.run()
	if got := next(t, all[0]); got.Reason != Passed {
		t.Errorf("got %+v when the name cannot be resolved any more, want its last address to be used", got)
	}
	r.stop()
}

// TestTimeOfAnAddress: of several addresses each has its share of the time to be connected; one that is has all that is left to answer.
func TestTimeOfAnAddress(t *testing.T) {
	const timeout, share = 8 * time.Second, time.Second
	address, _ := serve(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
		if hears(c) {
			timer := time.NewTimer(share * 6 / 5)
			defer timer.Stop()
			<-timer.C
			_, _ = c.Write([]byte("pong\n"))
		}
	})
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{Checker: New(10, now), t: t}
	r.names.lookUp = func(context.Context, string) ([]netip.Addr, error) {
		var all []netip.Addr
		for range timeout / share {
			all = append(all, netip.MustParseAddr("127.0.0.1"))
		}
		return all, nil
	}
	r.run()
	defer r.stop()
	to, results := target("tcp", "slow:"+port, pong, timeout)
	r.Set([]*Target{to})
	if got := next(t, results); got.Reason != Passed {
		t.Errorf("got %+v, want it to be passed: its address was connected at once", got)
	}
}

// TestLateNews: what the poller still says of a socket that is closed concerns nobody, also where its place has another one.
func TestLateNews(t *testing.T) {
	c, e := New(1, now), &entry{check: check{fd: 3, key: socketKey{0, 2}}}
	c.sockets = []*entry{e, nil}
	for key, want := range map[socketKey]*entry{{0, 2}: e, {0, 1}: nil, {1, 2}: nil} {
		if got := c.at(key); got != want {
			t.Errorf("got %v for %v, want %v", got, key, want)
		}
	}
}

// TestNewsAtTheDeadline: what has come is told also when the time to wait is over by the time that somebody looks, as behind a stop of
// the process.
func TestNewsAtTheDeadline(t *testing.T) {
	p, err := newPoller()
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = errors.Join(unix.Close(fds[0]), unix.Close(fds[1])) }()
	key := socketKey{0, 1}
	if err := p.add(fds[0], key); err != nil {
		t.Fatal(err)
	}
	ready, all, err := p.wait(1) // over at once
	if err != nil || !all || len(ready) != 1 || ready[0] != key {
		t.Errorf("got %v, all: %v, %v; want news of %v", ready, all, err, key)
	}
}

// TestSlowNames: a name that takes long is not waited for, not by others, and not at the end.
func TestSlowNames(t *testing.T) {
	address, _ := serve(t, "tcp", "127.0.0.1:0", answers)
	r := &rig{Checker: New(10, now), t: t}
	var inside atomic.Int64
	r.names.lookUp = func(ctx context.Context, _ string) ([]netip.Addr, error) {
		inside.Add(1)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	r.run()
	defer r.stop()
	slow, unresolved := target("tcp", "slow:1", nil, 50*time.Millisecond)
	good, results := target("tcp", address, pong, patience)
	r.Set([]*Target{slow, good})
	for range 3 {
		if got := next(t, unresolved); got.Reason != ReasonUnresolved || !strings.Contains(got.Detail, "no address in 50ms") {
			t.Errorf("got %+v, want %s", got, ReasonUnresolved)
		}
		if got := next(t, results); got.Reason != Passed {
			t.Errorf("got %+v, want it to be passed", got)
		}
	}
	if got := inside.Load(); got != 1 {
		t.Errorf("got %d questions for one name at once, want 1", got)
	}
}

// TestNameServerIsSilent: that nobody says what a name's addresses are is no news of the endpoint, as long as some are known.
func TestNameServerIsSilent(t *testing.T) {
	address, _ := serve(t, "tcp", "127.0.0.1:0", answers)
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{Checker: New(10, now), t: t}
	silent := make(chan struct{})
	r.names.lookUp = func(ctx context.Context, _ string) ([]netip.Addr, error) {
		select {
		case <-silent:
			<-ctx.Done()
			return nil, ctx.Err()
		default:
			return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
		}
	}
	r.run()
	to, results := target("tcp", "good:"+port, pong, time.Second)
	r.Set([]*Target{to})
	if got := next(t, results); got.Reason != Passed {
		t.Fatalf("got %+v, want it to be passed", got)
	}
	r.stop()
	close(silent)
	r.names.known["good"].tried = 1 // long ago
	for len(results) > 0 {
		<-results
	}
	r.run()
	defer r.stop()
	for range 2 {
		if got := next(t, results); got.Reason != Passed {
			t.Errorf("got %+v while the name's servers are silent, want its last address to be used", got)
		}
	}
}

// TestRealName: what the system's resolver says.
func TestRealName(t *testing.T) {
	address, _ := serve(t, "tcp", "127.0.0.1:0", answers)
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, 10)
	to, results := target("tcp", "localhost:"+port, pong, patience)
	r.Set([]*Target{to})
	if got := next(t, results); got.Reason != Passed {
		t.Errorf("got %+v, want localhost to be passed, whichever of its addresses is first", got)
	}
}

// TestOutOfDescriptors: that this process has none left is no fault of the endpoint.
func TestOutOfDescriptors(t *testing.T) {
	address, _ := serve(t, "tcp", "127.0.0.1:0", func(net.Conn) {})
	r := newRig(t, 10)
	to, results := target("tcp", address, nil, patience)
	eventually(t, "Run to have begun", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return r.poller != nil })
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	none := syscall.Rlimit{Cur: 3, Max: limit.Max}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	r.Set([]*Target{to})
	got := next(t, results)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if _, ok := got.Verdict(); ok || got.Reason != ReasonPostponed {
		t.Errorf("got %+v, want no verdict", got)
	}
	if got := next(t, results); got.Reason != Passed {
		t.Errorf("got %+v with descriptors again, want it to be passed", got)
	}
}
