package health

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/relevo-proxy/relevo/forwarder/cluster"
)

// crowdEnv makes the test a child that answers at every address of 127.0.0.0/8, until its standard input ends.
const crowdEnv = "RELEVO_TEST_HEALTH_CROWD"

// TestServeCrowd is that child.
func TestServeCrowd(t *testing.T) {
	if os.Getenv(crowdEnv) == "" {
		t.Skip("only as the child of TestManyEndpoints")
	}
	only := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error { // on every address of this host's loopback, and no other
		var err error
		return errorOr(c.Control(func(fd uintptr) { err = unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "lo") }), &err)
	}}
	l, err := only.Listen(t.Context(), "tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	for range 4 {
		go func() { // ends when the socket is closed
			defer func() { ended <- struct{}{} }()
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_ = c.SetDeadline(time.Now().Add(time.Second))
				answers(c)
				_ = c.Close()
			}
		}()
	}
	fmt.Fprintf(os.Stderr, "listening at %d\n", l.Addr().(*net.TCPAddr).Port)
	_, _ = bufio.NewReader(os.Stdin).ReadByte()
	_ = l.Close()
	for range 4 {
		<-ended
	}
}

func errorOr(err error, or *error) error {
	if err != nil {
		return err
	}
	return *or
}

// serveCrowd runs the child and returns the port at which it answers.
func serveCrowd(t *testing.T) int {
	t.Helper()
	child := exec.Command(os.Args[0], "-test.run=^TestServeCrowd$")
	child.Env = append(os.Environ(), crowdEnv+"=1")
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		if err := child.Wait(); err != nil {
			t.Errorf("the child that answers: %v", err)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the child that answers says nothing: %v", err)
	}
	port, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(line, "listening at ")))
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// cpu is what this process has used so far.
func cpu(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestManyEndpoints: 23,000 endpoints are checked, each in each round, by one goroutine, and within a bound of descriptors.
func TestManyEndpoints(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes five seconds")
	}
	const count, most, rounds = 23000, 256, 1
	port := serveCrowd(t)
	var first, passed, failed atomic.Int64
	why := make(chan Result, 1)
	all := make(chan struct{}) // closed when each has been checked
	checked := make([]atomic.Int64, count)
	targets := make([]*Target, count)
	for i := range targets {
		address := fmt.Sprintf("127.%d.%d.%d:%d", i>>16+1, i>>8&255, i&255, port)
		targets[i] = &Target{
			Endpoint: cluster.NewEndpoint(address, 1), Network: "tcp", Address: address, Ask: pong,
			Interval: 5 * time.Second, Timeout: 5 * time.Second,
			Told: func(r Result) {
				if r.Reason != Passed {
					failed.Add(1)
					select {
					case why <- r:
					default:
					}
					return
				}
				passed.Add(1)
				if checked[i].Add(1) == 1 && first.Add(1) == count {
					close(all)
				}
			},
		}
	}
	c := New(most, now)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	before := runtime.NumGoroutine()
	done := make(chan error, 1)
	begun, used := time.Now(), cpu(t)
	go func() { done <- c.Run(ctx) }() // ends with ctx
	c.Set(targets)
	goroutines, descriptors, late := 0, 0, time.Duration(0)
	look := func() {
		goroutines = max(goroutines, runtime.NumGoroutine()-before)
		late = max(late, c.Stats().Late)
		if open, err := os.ReadDir("/proc/self/fd"); err == nil {
			descriptors = max(descriptors, len(open))
		}
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	wait := func(what string, over func() bool) {
		for deadline := time.Now().Add(2 * time.Minute); !over(); <-tick.C {
			look()
			if time.Now().After(deadline) {
				t.Fatalf("waited 2 minutes for %s: %d endpoints are checked, %d checks passed and %d failed", what, first.Load(), passed.Load(), failed.Load())
			}
		}
	}
	wait("the first round", func() bool {
		select {
		case <-all:
			return true
		default:
			return failed.Load() > 0
		}
	})
	round := time.Since(begun)
	wait("further rounds", func() bool { return passed.Load() >= count*rounds || failed.Load() > 0 })
	took, used := time.Since(begun), cpu(t)-used
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if failed.Load() > 0 {
		t.Fatalf("got %d checks that were not passed, want none; one of them: %+v", failed.Load(), <-why)
	}
	n := passed.Load()
	t.Logf("%d endpoints, all checked after %v; %d checks in %v; %v of CPU: %v a check, %.1f %% of one; goroutines: %d more; descriptors: at most %d; "+
		"the longest wait for a turn that was seen: %v", count, round.Round(time.Millisecond), n, took.Round(time.Millisecond), used.Round(time.Millisecond),
		(used / time.Duration(n)).Round(time.Microsecond), 100*used.Seconds()/took.Seconds(), goroutines, descriptors, late)
	if goroutines > 3 {
		t.Errorf("got %d goroutines more than before, want one that checks", goroutines)
	}
	if descriptors > most+50 {
		t.Errorf("got %d descriptors, want no more than %d for checks and a few", descriptors, most)
	}
}
