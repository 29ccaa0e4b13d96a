package server_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap/zaptest"

	"github.com/relevo-proxy/relevo/admin"
	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
	"github.com/relevo-proxy/relevo/cmd/relevo/call"
	"github.com/relevo-proxy/relevo/cmd/relevo/echo"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/server"
	"github.com/relevo-proxy/relevo/server/config"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) { http.DefaultClient.CloseIdleConnections(); os.Exit(code) }))
}

// parse makes a configuration from YAML in which %s is the endpoint's address.
func parse(t *testing.T, yaml string, args ...any) *config.Config {
	t.Helper()
	c, err := config.Parse(fmt.Appendf(nil, yaml, args...))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const oneHop = `
listeners: [{name: in, address: "127.0.0.1:0", protocol: bolt}]
routes: [{name: rpc, rules: [{match: {service: "com.example.Echo:1.0"}, cluster: echo}]}]
clusters: [{name: echo, protocol: bolt, endpoints: [{address: "%s"}]}]
metrics: {address: "127.0.0.1:0"}
admin: {tcp: {address: "127.0.0.1:0"}}
`

// run starts a server; stop ends it and returns what Run returned.
func run(t *testing.T, c *config.Config) (s *server.Server, stop func() error) {
	t.Helper()
	return runOptions(t, server.Options{Config: c, Log: zaptest.NewLogger(t), Build: admin.BuildInfo{Version: "test"}})
}

func runOptions(t testing.TB, o server.Options) (s *server.Server, stop func() error) {
	t.Helper()
	s, err := server.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s.Start()
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-done
	}
	t.Cleanup(func() { _ = stop() })
	return s, stop
}

func startEcho(t *testing.T, o echo.Options) string {
	t.Helper()
	o.Listen = "127.0.0.1:0"
	e, err := echo.Listen(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return e.Addr().String()
}

// get returns the status and body of a page at a door.
func get(t *testing.T, door net.Addr, page string) (int, string) {
	t.Helper()
	r, err := http.Get("http://" + door.String() + page)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(body)
}

func TestForwardsCountsAndStops(t *testing.T) {
	s, stop := run(t, parse(t, oneHop, startEcho(t, echo.Options{})))
	report, err := bench.Run(t.Context(), bench.Options{
		Addr: s.Addresses()["in"].String(), Service: "com.example.Echo:1.0", Connections: 2, InFlight: 8, Size: 100, Count: 1000,
	})
	if err != nil {
		t.Fatal(err)
	}
	if report.Failed() || report.OK != 1000 {
		t.Fatalf("of 1000 requests %d came back right: %+v", report.OK, report)
	}
	_, metrics := get(t, s.MetricsAddress(), "/metrics")
	for _, want := range []string{
		`relevo_listener_requests_total{kind="request",listener="in"} 1000`,
		`relevo_listener_replies_total{listener="in",status="SUCCESS"} 1000`,
		`relevo_route_requests_total{cluster="echo",route="rpc/rule-1"} 1000`,
		`relevo_endpoint_connections{cluster="echo",endpoint="` + endpoint(s) + `",state="ready"} 1`,
		`relevo_build_info{`, `go_goroutines`, `process_open_fds`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("/metrics lacks %q", want)
		}
	}
	if code, _ := get(t, s.MetricsAddress(), "/readyz"); code != http.StatusOK {
		t.Errorf("/readyz answers %d while serving, want 200", code)
	}
	if code, body := get(t, s.AdminTCPAddress(), "/v1/status"); code != http.StatusOK || !strings.Contains(body, `"name": "echo"`) {
		t.Errorf("/v1/status answers %d: %s", code, body)
	}
	if err := stop(); err != nil {
		t.Errorf("stopping an idle server: %v", err)
	}
	if _, err := net.Dial("tcp", s.Addresses()["in"].String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("connecting a stopped server: %v, want a refusal", err)
	}
}

func endpoint(s *server.Server) string { return s.Status().Clusters[0].Endpoints[0].Address }

func TestReadyWithEveryEndpointDown(t *testing.T) {
	s, _ := run(t, parse(t, oneHop, "127.0.0.1:1"))
	// Run sets the stage on its own goroutine; the doors answer from the same moment on.
	for {
		if code, _ := get(t, s.MetricsAddress(), "/readyz"); code == http.StatusOK {
			break
		}
		if t.Context().Err() != nil {
			t.Fatal("never ready")
		}
	}
	r, err := call.Do(t.Context(), call.Options{Addr: s.Addresses()["in"].String(), Service: "com.example.Echo:1.0", Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if r.Status != wire.ErrorComm {
		t.Errorf("a call with every endpoint down has status %v, want ERROR_COMM", r.Status)
	}
	if ready, why := s.Ready(); !ready {
		t.Errorf("a failed endpoint made the process unready: %v", why)
	}
}

func TestStopLetsRequestsFinish(t *testing.T) {
	s, stop := run(t, parse(t, oneHop, startEcho(t, echo.Options{Delay: 300 * time.Millisecond})))
	type outcome struct {
		r   *call.Result
		err error
	}
	answered := make(chan outcome, 1)
	go func() {
		r, err := call.Do(context.Background(), call.Options{
			Addr: s.Addresses()["in"].String(), Service: "com.example.Echo:1.0", Timeout: 10 * time.Second,
		})
		answered <- outcome{r, err}
	}()
	for s.Status().Clusters[0].InFlight == 0 {
		if t.Context().Err() != nil {
			t.Fatal("the request never got in flight")
		}
	}
	if err := stop(); err != nil {
		t.Errorf("stopping with a request in flight: %v", err)
	}
	if o := <-answered; o.err != nil || o.r.Status != wire.Success {
		t.Errorf("a request in flight at the stop ended with %+v, %v; want its reply", o.r, o.err)
	}
}

func TestStopTimeoutCuts(t *testing.T) {
	s, stop := run(t, parse(t, oneHop+"stop_timeout: 50ms\n", startEcho(t, echo.Options{NoReplyRate: 1})))
	c, err := net.Dial("tcp", s.Addresses()["in"].String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go func() {
		_, _ = call.Do(context.Background(), call.Options{
			Addr: s.Addresses()["in"].String(), Service: "com.example.Echo:1.0", Timeout: time.Second,
		})
	}()
	for s.Status().Clusters[0].InFlight == 0 {
		if t.Context().Err() != nil {
			t.Fatal("the request never got in flight")
		}
	}
	if err := stop(); err == nil {
		t.Error("stopping while a server never answers: no error, want one that says that stop_timeout has passed")
	}
}

func TestNothingIsHalfStarted(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, where := range []string{"listener", "metrics", "admin"} {
		t.Run(where, func(t *testing.T) {
			c := parse(t, oneHop, "127.0.0.1:1")
			address := config.Address(taken.Addr().String())
			switch where {
			case "listener":
				c.Listeners[0].Address = address
			case "metrics":
				c.Metrics.Address = address
			case "admin":
				c.Admin.TCP.Address = address
			}
			_, err := server.New(server.Options{Config: c, Log: zaptest.NewLogger(t)})
			if !errors.Is(err, syscall.EADDRINUSE) {
				t.Fatalf("a port in use: %v, want EADDRINUSE", err)
			}
			if !strings.Contains(err.Error(), string(address)) || strings.Contains(err.Error(), "\n") {
				t.Errorf("the error is not one line that names the address: %q", err)
			}
		})
	}
}

func TestBuffersMustHoldAFrame(t *testing.T) {
	c := parse(t, oneHop+"max_buffered: 4MiB\n", "127.0.0.1:1")
	_, err := server.New(server.Options{Config: c, Log: zaptest.NewLogger(t)})
	if _, ok := errors.AsType[*server.ConfigError](err); !ok {
		t.Fatalf("max_buffered smaller than max_frame: %v, want a ConfigError", err)
	}
	if !strings.Contains(err.Error(), "max_frame") {
		t.Errorf("the error does not name max_frame: %v", err)
	}
}
