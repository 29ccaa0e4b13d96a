package forwarder_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
	"github.com/relevo-proxy/relevo/cmd/relevo/echo"
	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/route"
	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// mode is who runs the exchanges of the roads that spec describes.
var mode forwarder.Forwarding

// bothModes runs every test twice: with the exchanges on the read loops, then with a worker each.
type bothModes struct{ m *testing.M }

func (b bothModes) Run() int {
	flag.Parse()
	if os.Getenv(descriptorsEnv) != "" || flag.Lookup("test.bench").Value.String() != "" {
		return b.m.Run() // one test's child; or benchmarks, because only the first run can be profiled
	}
	for _, mode = range []forwarder.Forwarding{forwarder.ForwardAuto, forwarder.ForwardWorker} {
		if code := b.m.Run(); code != 0 {
			fmt.Fprintf(os.Stderr, "failed with forwarding %d (%d is auto, %d is worker)\n", mode, forwarder.ForwardAuto, forwarder.ForwardWorker)
			return code
		}
	}
	return 0
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(bothModes{m}) }

// service is what the tests call.
const service = "com.example.Echo:1.0"

// spec is a road with one listener, one rule and one cluster of these endpoints.
func spec(endpoints ...string) *forwarder.Spec {
	s := &forwarder.Spec{
		MaxTimeout: 10 * time.Minute,
		Workers:    forwarder.WorkersSpec{Max: 1024, Queue: 8192},
		Listeners: []forwarder.ListenerSpec{{
			Name: "in", Network: "tcp", Address: "127.0.0.1:0", Codecs: []wire.Codec{bolt.Codec{}}, Routes: "rpc",
			Forwarding: mode, StreamAbove: 1 << 20,
			Limits:         wire.Limits{MaxFrame: 16 << 20, MaxHeader: 32767},
			MaxConnections: 10000, MaxStreams: 4096, IdleTimeout: time.Minute, WriteTimeout: 10 * time.Second,
			QueueHigh: 1 << 20, QueueLow: 512 << 10, MaxQueued: 16 << 20,
		}},
		Routes: []forwarder.RouteSpec{{Name: "rpc", Rules: []forwarder.RuleSpec{{
			Name: "echo", Match: route.Match{Service: route.Exactly(service)}, Clusters: []forwarder.Share{{Cluster: "echo", Weight: 1}}, Timeout: 3 * time.Second,
			Attempts: 2, RetryOn: forwarder.RetryConnectFailure | forwarder.RetryResetBeforeSend,
		}}}},
		Clusters: []forwarder.ClusterSpec{{
			Name: "echo", Codec: bolt.Codec{}, Limits: wire.Limits{MaxFrame: 16 << 20, MaxHeader: 32767},
			Balancer: forwarder.BalancerLeastRequest, ConnectionsPerEndpoint: 1, MaxConnections: 64,
			MaxPending: 1024, MaxPendingBytes: 64 << 20, MaxRequests: 100000, MaxQueued: 32 << 20,
			ConnectTimeout: time.Second, WriteTimeout: 10 * time.Second, HeartbeatInterval: 30 * time.Second,
			HeartbeatMisses: 3, MaxUploads: 16,
		}},
	}
	s.LeftoverListener, s.LeftoverCluster, s.LeaveTimeout = s.Listeners[0], s.Clusters[0], patience
	s.LeftoverListener.DetectTimeout = patience
	for _, a := range endpoints {
		s.Clusters[0].Endpoints = append(s.Clusters[0].Endpoints, forwarder.EndpointSpec{Network: "tcp", Address: a, Weight: 100})
	}
	return s
}

// start runs a road until the test ends.
func start(t *testing.T, s *forwarder.Spec) (f *forwarder.Forwarder, address string, reg *stats.Registry) {
	t.Helper()
	p := startProxy(t, s, 512<<20)
	return p.Forwarder, p.address, p.reg
}

// startEcho runs an echo server until the test ends.
func startEcho(t *testing.T, o echo.Options) (*echo.Server, string) {
	t.Helper()
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	s, err := echo.Listen(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("the echo server ended with %v, want it to end when it is told to", err)
		}
	})
	return s, s.Addr().String()
}

func TestForwardsAndVerifies(t *testing.T) {
	const count = 6000
	for _, v := range []bolt.Version{bolt.V1, bolt.V2, bolt.V2CRC} {
		t.Run(v.String(), func(t *testing.T) {
			_, server := startEcho(t, echo.Options{})
			_, address, _ := start(t, spec(server))
			r, err := bench.Run(t.Context(), bench.Options{
				Addr: address, Connections: 4, InFlight: 16, Size: 1024, Count: count, Service: service, Version: v,
				Timeout: 5 * time.Second,
			})
			if err != nil {
				t.Fatal(err)
			}
			if r.Failed() || r.OK != count {
				t.Errorf("got %d of %d requests back right, want all: %+v", r.OK, count, r)
			}
		})
	}
}
