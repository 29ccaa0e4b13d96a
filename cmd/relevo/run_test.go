package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
	"github.com/relevo-proxy/relevo/cmd/relevo/call"
	"github.com/relevo-proxy/relevo/cmd/relevo/echo"
)

// upstream is an echo server in this process.
func upstream(t *testing.T, o echo.Options) *echo.Server {
	t.Helper()
	o.Listen = "127.0.0.1:0"
	s, err := echo.Listen(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Run(ctx) }) // ends with the test
	t.Cleanup(func() { cancel(); wg.Wait() })
	return s
}

// forward runs a forwarder to the address, and returns it with the address of its listener.
func forward(t *testing.T, to string) (*program, string) {
	t.Helper()
	p := spawn(t, "run", "-c", fileWith(t, fmt.Sprintf(`
listeners: [{name: client, address: "127.0.0.1:0", protocol: bolt}]
routes: [{name: rpc, rules: [{cluster: order, timeout: 10m}]}]
clusters: [{name: order, protocol: bolt, endpoints: [{address: "%s"}]}]
stop_timeout: 10m
`, to)))
	address := p.err.find(t, `"listener":"client","address":"([^"]+)"`)
	p.err.find(t, `"msg":"serving"`)
	return p, address
}

// requested waits until n requests have arrived at the server.
func requested(t *testing.T, s *echo.Server, n uint64) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for s.Stats().Requests < n {
		if time.Now().After(deadline) {
			t.Fatalf("%d requests have arrived, want %d", s.Stats().Requests, n)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := l.Addr().String()
	for what, text := range map[string]string{
		"listener client": strings.Replace(goodConfig, "127.0.0.1:0", taken, 1),
		"metrics":         goodConfig + fmt.Sprintf("metrics: {address: %q}\n", taken),
		"admin":           goodConfig + fmt.Sprintf("admin: {tcp: {address: %q}}\n", taken),
	} {
		p := spawn(t, "run", "-c", fileWith(t, text)) // a process can prepare upgrades once
		status, out, errOut := p.status(t), p.out.String(), p.err.String()
		if status != exitFailed || out != "" {
			t.Errorf("%s: exit status %d and %q on stdout, want %d and nothing", what, status, out, exitFailed)
		}
		_, errOut, _ = strings.Cut(errOut, "\n") // the first line says which configuration it is
		if strings.Count(errOut, "\n") != 1 || !strings.Contains(errOut, what) || !strings.Contains(errOut, taken) {
			t.Errorf("%s: the rest of stderr is %q, want one line with %q and the address", what, errOut, what)
		}
	}
	status, _, errOut := relevo(t, "", "echo", "bolt", "--listen", taken)
	if status != exitFailed || strings.Count(errOut, "\n") != 1 || !strings.Contains(errOut, taken) {
		t.Errorf("echo: exit status %d, stderr %q; want %d and one line with the address", status, errOut, exitFailed)
	}
}

func TestTrialWithAllPortsTaken(t *testing.T) {
	wanted := []string{"127.0.0.1:12220", "127.0.0.1:12221", "127.0.0.1:12280", "127.0.0.1:12290"}
	for _, a := range wanted {
		if l, err := net.Listen("tcp", a); err == nil { // else another process has it, which is as good
			defer l.Close()
		}
	}
	p := spawn(t, "run", "--trial")
	address := p.out.find(t, `bolt +(127\.0\.0\.1:\d+) `)
	metrics := p.out.find(t, `(http://127\.0\.0\.1:\d+/metrics)`)
	admin := p.out.find(t, `admin +(http://127\.0\.0\.1:\d+/)`)
	p.out.find(t, `grep \^relevo_listener`)
	for _, a := range wanted {
		if !strings.Contains(p.out.String(), a+" is taken, so 127.0.0.1:") {
			t.Errorf("the trial does not say that %s is taken:\n%s", a, p.out)
		}
	}
	if typed := quoted(os.Args[0]) + " call bolt --addr " + address; !strings.Contains(p.out.String(), typed) {
		t.Errorf("the trial does not tell to type %q:\n%s", typed, p.out)
	}

	status, out, errOut := relevo(t, "", "call", "bolt", "--addr", address, "--service", "a.B:1.0", "--header", "k=v=w", "--content", "hello")
	if status != exitDone || !strings.Contains(out, "SUCCESS (0)") || !strings.Contains(out, "|hello|") {
		t.Errorf("call: exit status %d, stdout %q, stderr %q; want the echo", status, out, errOut)
	}
	status, out, errOut = relevo(t, "", "call", "bolt", "--addr", address, "--content-hex", "ca fe", "--version", "v2-crc", "-o", "json")
	var reply struct {
		Status, Version, Body string
	}
	if err := json.Unmarshal([]byte(out), &reply); err != nil || status != exitDone ||
		reply.Status != "SUCCESS" || reply.Version != "v2-crc" || reply.Body != "cafe" {
		t.Errorf("call -o json: exit status %d, stdout %q, stderr %q, %v; want the echo", status, out, errOut, err)
	}
	for _, flag := range []string{"--heartbeat", "--oneway"} {
		if status, out, errOut = relevo(t, "", "call", "bolt", "--addr", address, flag); status != exitDone {
			t.Errorf("call %s: exit status %d, stdout %q, stderr %q", flag, status, out, errOut)
		}
	}

	// As the comparison with other proxies calls it.
	status, out, errOut = relevo(t, "", "bench", "bolt", "-o", "json", "--addr", address, "--service", "com.relevo.Echo:1.0",
		"--warmup", "10ms", "--count", "500", "--connections", "4", "--in-flight", "8", "--size", "100",
		"--pid", fmt.Sprint(p.cmd.Process.Pid))
	var report bench.Report
	if err := json.Unmarshal([]byte(out), &report); err != nil || status != exitDone || report.OK != 500 || report.Process == nil {
		t.Errorf("bench -o json: exit status %d, stdout %q, stderr %q, %v; want 500 ok requests", status, out, errOut, err)
	}
	status, out, errOut = relevo(t, "", "bench", "bolt", "--addr", address, "--count", "20", "--rate", "1000", "--version", "v2")
	if status != exitDone || !strings.Contains(out, "20 requests") {
		t.Errorf("bench: exit status %d, stdout %q, stderr %q; want 20 requests", status, out, errOut)
	}

	for _, url := range []string{metrics, admin} {
		if text := fetch(t, url); !strings.Contains(text, "relevo_listener_requests_total{") && !strings.Contains(text, "/v1/status") {
			t.Errorf("%s answers %q", url, text)
		}
	}
	p.signal(t, syscall.SIGTERM)
	if status := p.status(t); status != exitDone || strings.Contains(p.err.String(), "relevo: ") {
		t.Errorf("after SIGTERM the exit status is %d, want %d and no error", status, exitDone)
	}
}

func fetch(t *testing.T, url string) string {
	t.Helper()
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", url, answer.Status, err)
	}
	return string(text)
}

func TestStopLetsRequestsInFlightFinish(t *testing.T) {
	const calls = 20
	s := upstream(t, echo.Options{Delay: 700 * time.Millisecond})
	p, address := forward(t, s.Addr().String())
	var wg sync.WaitGroup
	for i := range calls {
		wg.Go(func() {
			content := fmt.Appendf(nil, "request %d", i)
			r, err := call.Do(t.Context(), call.Options{Addr: address, Content: content, Timeout: patience})
			if err != nil || r.Failed() || !bytes.Equal(r.Body, content) {
				t.Errorf("request %d was in flight when the forwarder was stopped, and got %+v, %v", i, r, err)
			}
		})
	}
	requested(t, s, calls)
	p.signal(t, syscall.SIGTERM)
	wg.Wait()
	if status := p.status(t); status != exitDone {
		t.Errorf("exit status %d, want %d", status, exitDone)
	}
}

// Whoever reads the log may end first, as the rest of a pipe does at Ctrl-C. That costs the log, and no request.
func TestReaderOfTheLogEnds(t *testing.T) {
	s := upstream(t, echo.Options{Delay: 700 * time.Millisecond})
	from, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "run", "-c", fileWith(t, strings.Replace(goodConfig, "127.0.0.1:12200", s.Addr().String(), 1)))
	cmd.Env, cmd.Stderr = append(os.Environ(), asProgram+"=1"), to
	err = cmd.Start()
	to.Close()
	if err != nil {
		t.Fatal(err)
	}
	log, read := newTranscript(), make(chan struct{})
	go func() { // ends when from is closed
		defer close(read)
		_, _ = io.Copy(log, from)
	}()
	address := log.find(t, `"listener":"client","address":"([^"]+)"`)
	log.find(t, `"msg":"serving"`)
	from.Close()
	<-read
	var wg sync.WaitGroup
	wg.Go(func() { // ends with the reply
		if r, err := call.Do(t.Context(), call.Options{Addr: address, Timeout: patience}); err != nil || r.Failed() {
			t.Errorf("the request in flight got %+v, %v; want SUCCESS", r, err)
		}
	})
	requested(t, s, 1)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if err := cmd.Wait(); err != nil {
		t.Errorf("the process ended with %v, want exit status 0", err)
	}
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	s := upstream(t, echo.Options{NoReplyRate: 1})
	p, address := forward(t, s.Addr().String())
	var wg sync.WaitGroup
	wg.Go(func() {
		if r, err := call.Do(t.Context(), call.Options{Addr: address, Timeout: 5 * time.Minute}); err == nil {
			t.Errorf("a request that nobody answers got %+v", r)
		}
	})
	requested(t, s, 1)
	p.signal(t, syscall.SIGTERM)
	p.err.find(t, "stopping: no new connections") // the request would hold it up for ten minutes
	p.signal(t, syscall.SIGTERM)
	if status := p.status(t); status != exitFailed {
		t.Errorf("exit status %d, want %d", status, exitFailed)
	}
	wg.Wait()
}

func TestQuitSignalWritesStacksAndGoesOn(t *testing.T) {
	s := upstream(t, echo.Options{})
	p, address := forward(t, s.Addr().String())
	p.signal(t, syscall.SIGQUIT)
	p.err.find(t, `"goroutine":"goroutine `)
	r, err := call.Do(t.Context(), call.Options{Addr: address, Timeout: patience})
	if err != nil || r.Failed() {
		t.Errorf("after SIGQUIT a request got %+v, %v; want SUCCESS", r, err)
	}
	p.signal(t, syscall.SIGINT)
	if status := p.status(t); status != exitDone {
		t.Errorf("after SIGINT the exit status is %d, want %d", status, exitDone)
	}
}

func TestEchoSaysWhatItHasSeen(t *testing.T) {
	p := spawn(t, "echo", "bolt", "--listen", "127.0.0.1:0", "--status", "server_threadpool_busy")
	address := p.out.find(t, `listening at (\S+)\n`)
	status, out, errOut := relevo(t, "", "call", "bolt", "--addr", address)
	if status != exitFailed || !strings.Contains(out, "SERVER_THREADPOOL_BUSY (4)") || strings.Count(errOut, "\n") != 1 {
		t.Errorf("call: exit status %d, stdout %q, stderr %q; want %d and the status", status, out, errOut, exitFailed)
	}
	p.out.find(t, `echo: \d open, 1 connection, 1 request\n`)
	p.signal(t, syscall.SIGTERM)
	if status := p.status(t); status != exitDone || !strings.HasSuffix(p.out.String(), "echo: in all 1 connection, 1 request\n") {
		t.Errorf("exit status %d, stdout %q; want %d and a total", status, p.out, exitDone)
	}
}

func TestNoReplyInTimeIsAFailure(t *testing.T) {
	s := upstream(t, echo.Options{NoReplyRate: 1})
	status, out, errOut := relevo(t, "", "call", "bolt", "--addr", s.Addr().String(), "--timeout", "20ms")
	if status != exitFailed || out != "" || strings.Count(errOut, "\n") != 1 {
		t.Errorf("call: exit status %d, stdout %q, stderr %q; want %d and one line", status, out, errOut, exitFailed)
	}
	status, out, errOut = relevo(t, "", "bench", "bolt", "--addr", s.Addr().String(), "--timeout", "20ms", "--count", "3", "-o", "json")
	var report bench.Report
	if err := json.Unmarshal([]byte(out), &report); err != nil || report.Timeouts != 3 {
		t.Errorf("bench: stdout is %q, %v; want a report of 3 timeouts and nothing else", out, err)
	}
	if status != exitFailed || !strings.Contains(errOut, "3 timed out") {
		t.Errorf("bench: exit status %d, stderr %q; want %d and what failed", status, errOut, exitFailed)
	}
}
