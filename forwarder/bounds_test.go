package forwarder_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// TestMaxConnections is exact: the next one is closed and counted, and a place that is free again is given again.
func TestMaxConnections(t *testing.T) {
	s := spec(serveEach(t, echoEach).address)
	s.Listeners[0].MaxConnections = 5
	p := startProxy(t, s, 512<<20)
	var open []*peer
	for i := range 5 {
		open = append(open, dial(t, p.address))
		wantEcho(t, open[i].call(request(1, "let in")), "let in")
	}
	for i := range 3 {
		dial(t, p.address).wantEnd()
		p.wantCount(float64(i+1), "relevo_listener_rejections_total", "reason="+forwarder.ReasonMaxConnections)
	}
	p.wantCount(5, "relevo_listener_connections")
	p.wantLogged("connection refused: the listener has its most")
	for round := range 5 {
		open[round].hangUp()
		p.wantCount(4, "relevo_listener_connections")
		open[round] = dial(t, p.address)
		wantEcho(t, open[round].call(request(1, "let in")), "let in")
	}
	p.wantCount(3, "relevo_listener_rejections_total")
	p.wantCount(10, "relevo_listener_connections_total")
}

// TestAcceptRate delays connections and refuses none.
func TestAcceptRate(t *testing.T) {
	s := spec(serveEach(t, echoEach).address)
	s.Listeners[0].AcceptRate = 50
	p := startProxy(t, s, 512<<20)
	began := time.Now()
	var open []*peer
	for range 20 {
		open = append(open, dial(t, p.address))
	}
	for _, c := range open {
		wantEcho(t, c.call(request(1, "in the end")), "in the end")
	}
	// Five may come at once and one each 20 ms: it cannot be faster, however fast the machine.
	if got := time.Since(began); got < 14*20*time.Millisecond {
		t.Errorf("got 20 connections accepted within %v at 50 a second, want them delayed", got)
	}
	p.wantCount(0, "relevo_listener_rejections_total")
}

// descriptorsEnv makes TestDescriptorsRunOut the child of itself; its value is the address of the server.
const descriptorsEnv = "RELEVO_TEST_DESCRIPTORS"

// TestDescriptorsRunOut in a process of its own, where few may be had: accepting backs off, is counted, and goes on
// when some are free again.
func TestDescriptorsRunOut(t *testing.T) {
	if server := os.Getenv(descriptorsEnv); server != "" {
		descriptorsChild(t, server)
		return
	}
	server := serveEach(t, echoEach)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestDescriptorsRunOut$", "-test.v")
	cmd.Env = append(os.Environ(), descriptorsEnv+"="+server.address)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	hear := func(what string) (value string) {
		for lines.Scan() {
			if n, err := fmt.Sscanf(lines.Text(), what+" %s", &value); n == 1 && err == nil {
				return value
			}
			t.Log("child: ", lines.Text())
		}
		t.Fatalf("the child ended before it said %q", what)
		return ""
	}
	address := hear("listening")
	first := dial(t, address)
	wantEcho(t, first.call(request(1, "before")), "before")
	var crowd []net.Conn
	for range 200 {
		crowd = append(crowd, dial(t, address))
	}
	hear("exhausted")
	wantEcho(t, first.call(request(2, "while there are none")), "while there are none")
	for _, c := range crowd {
		c.Close()
	}
	wantEcho(t, dial(t, address).call(request(3, "when there are some")), "when there are some")
	in.Close()
	rest, _ := io.ReadAll(out)
	if err := cmd.Wait(); err != nil {
		t.Errorf("got %v from the child, want it to pass: %s", err, rest)
	}
}

func descriptorsChild(t *testing.T, server string) {
	p := startProxy(t, spec(server), 512<<20)
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("this system does not list descriptors: ", err)
	}
	few := syscall.Rlimit{Cur: uint64(len(open) + 40), Max: uint64(len(open) + 40)}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(os.Stdout, "listening", p.address)
	p.wantSome("relevo_listener_accept_errors_total")
	p.wantLogged("accepting a connection; trying on")
	fmt.Fprintln(os.Stdout, "exhausted", "now")
	_, _ = io.Copy(io.Discard, os.Stdin)
	if n := p.value("relevo_listener_accept_errors_total"); n > 1000 {
		t.Errorf("got %v failed accepts, want a few: it must back off, not spin", n)
	}
	p.wantCount(3, "relevo_listener_replies_total", "status="+wire.Success.String())
}
