package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/server/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testBuild = BuildInfo{Version: "1.2.3", Commit: "abcdef", GoVersion: "go1.26.0"}

type fakeState struct {
	mu sync.Mutex

	// Guarded by mu.
	reasons []string
	status  Status

	// Static after New.
	counted chan struct{} // nil, or closed by the test
}

func (s *fakeState) Ready() (bool, []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.reasons) == 0, s.reasons
}

func (s *fakeState) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

func (s *fakeState) Counted() <-chan struct{} { return s.counted }

func (s *fakeState) setReasons(reasons ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reasons = reasons
}

func testRegistry() *stats.Registry {
	reg := stats.NewRegistry()
	reg.Counter("relevo_requests_total", "Requests taken in.", stats.Label{Name: "route", Value: "rpc\xff"}).Add(7)
	reg.Gauge("relevo_requests_in_flight", "Requests without a reply yet.").Set(3)
	reg.Histogram("relevo_request_duration_seconds", "Time from a request to its reply.").Observe(time.Millisecond)
	return reg
}

// serve runs a server until the test ends, and checks that it ends well.
func serve(t *testing.T, l net.Listener, h http.Handler, lim limits) *Server {
	t.Helper()
	s := newServer(l, h, zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel)), lim)
	runUntilEnd(t, s)
	return s
}

func runUntilEnd(t *testing.T, s *Server) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }() // ends with ctx
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run returned %v, want nil", err)
		}
	})
}

func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := Listen(address, SocketFile{})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// client makes each request on a connection of its own to l, whatever the URL says.
func client(t *testing.T, l net.Listener) *http.Client {
	tr := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, l.Addr().Network(), l.Addr().String())
		},
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 10 * time.Second}
}

type answer struct {
	code   int
	header http.Header
	body   string
}

func ask(t *testing.T, c *http.Client, method, url string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(body)}
}

// openGuard is the guard of a door on TCP that asks nobody who he is.
func openGuard(t *testing.T, address string) *Guard {
	t.Helper()
	g, err := NewGuard(&config.AdminTCP{Address: config.Address(address)}, stats.NewRegistry(), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// doors serves both doors on TCP and the admin door on a unix socket, and returns a client for each.
func doors(t *testing.T, state State) map[string]*http.Client {
	reg := testRegistry()
	all := make(map[string]*http.Client)
	for name, address := range map[string]string{
		"metrics": "127.0.0.1:0", "admin": "127.0.0.1:0", "admin-unix": "unix:" + t.TempDir() + "/a.sock",
	} {
		l := listen(t, address)
		h := Metrics(reg, state, testBuild)
		switch name {
		case "admin":
			h = Admin(reg, state, nil, testBuild, openGuard(t, address))
		case "admin-unix":
			h = Admin(reg, state, nil, testBuild, nil)
		}
		serve(t, l, h, defaultLimits)
		all[name] = client(t, l)
		if name != "metrics" {
			byContract(t, all[name])
		}
	}
	return all
}

// byContract has the answers to a client held against the OpenAPI document.
func byContract(t *testing.T, c *http.Client) *http.Client {
	c.Transport = contractOf(t).Transport(c.Transport, func(err error) { t.Error(err) })
	return c
}

const base = "http://localhost"

func TestRoutes(t *testing.T) {
	for name, c := range doors(t, &fakeState{}) {
		for _, tc := range []struct{ path, kind, has string }{
			{"/metrics", "text/plain", `relevo_requests_total{route="rpc\\xff"} 7`},
			{"/metrics", "text/plain", `relevo_build_info{commit="abcdef",go_version="go1.26.0",version="1.2.3"} 1`},
			{"/metrics", "text/plain", "\ngo_goroutines "},
			{"/metrics", "text/plain", "\nprocess_open_fds "},
			{"/healthz", "text/plain", "ok\n"},
			{"/readyz", "text/plain", "ready\n"},
			{"/v1/build", "application/json", `"go_version": "go1.26.0"`},
			{"/v1/status", "application/json", `"listeners": []`},
			{"/", "text/plain", "GET /readyz"},
		} {
			if name == "metrics" && (tc.path == "/" || strings.HasPrefix(tc.path, "/v1")) {
				if got := ask(t, c, "GET", base+tc.path); got.code != 404 {
					t.Errorf("%s: GET %s gives %d, want 404: it is for the admin door", name, tc.path, got.code)
				}
				continue
			}
			got := ask(t, c, "GET", base+tc.path)
			if got.code != 200 || !strings.HasPrefix(got.header.Get("Content-Type"), tc.kind) || !strings.Contains(got.body, tc.has) {
				t.Errorf("%s: GET %s gives %d, %s and\n%s\nwant 200, %s and a body with %q", name, tc.path,
					got.code, got.header.Get("Content-Type"), got.body, tc.kind, tc.has)
			}
			if cc := got.header.Get("Cache-Control"); cc != "no-store" {
				t.Errorf("%s: GET %s has Cache-Control %q, want no-store", name, tc.path, cc)
			}
			if got := ask(t, c, "HEAD", base+tc.path); got.code != 200 || got.body != "" {
				t.Errorf("%s: HEAD %s gives %d and %q, want 200 and nothing", name, tc.path, got.code, got.body)
			}
		}
	}
}

func TestEverythingElseIsAProblem(t *testing.T) {
	for name, c := range doors(t, &fakeState{}) {
		for _, tc := range []struct {
			method, path string
			code         int
		}{
			{"POST", "/metrics", 405},
			{"PUT", "/healthz", 405},
			{"DELETE", "/readyz", 405},
			{"PATCH", "/readyz?verbose", 405},
			{"OPTIONS", "/metrics", 405},
			{"TRACE", "/metrics", 405},
			{"BREW", "/metrics", 405},
			{"BREW", "/nothing", 404},
			{"GET", "/nothing", 404},
			{"GET", "/metrics/", 404},
			{"GET", "//metrics", 404},
			{"GET", "/%6detrics%2f", 404},
			{"POST", "/v1/nothing", 404},
			{"GET", "/v1", 404},
			{"GET", "/debug/pprof/", 404},
		} {
			writes := tc.method != "GET" && tc.method != "OPTIONS" || strings.HasPrefix(tc.path, "/debug/pprof")
			if name == "admin" && writes { // it does not even say what there is
				tc.code = 403
			}
			got := ask(t, c, tc.method, base+tc.path)
			var p problem
			if err := json.Unmarshal([]byte(got.body), &p); err != nil {
				t.Errorf("%s: %s %s: the body is no JSON: %v\n%s", name, tc.method, tc.path, err, got.body)
			}
			p.Detail = ""
			want := problem{Type: "about:blank", Title: http.StatusText(tc.code), Status: tc.code}
			if kind := got.header.Get("Content-Type"); got.code != tc.code || kind != "application/problem+json" || p != want {
				t.Errorf("%s: %s %s gives %d, %s, %+v; want %d, application/problem+json, %+v",
					name, tc.method, tc.path, got.code, kind, p, tc.code, want)
			}
			allow := ""
			if tc.code == 405 {
				allow = "GET, HEAD"
			}
			if a := got.header.Get("Allow"); a != allow {
				t.Errorf("%s: %s %s has Allow %q, want %q", name, tc.method, tc.path, a, allow)
			}
		}
		if name == "admin-unix" {
			if got := ask(t, c, "POST", base+"/v1/status"); got.code != 405 || got.header.Get("Allow") != "GET, HEAD" {
				t.Errorf("%s: POST /v1/status gives %d, Allow %q", name, got.code, got.header.Get("Allow"))
			}
		}
	}
}

// TestRequestsWithoutPath sends what a client library does not.
func TestRequestsWithoutPath(t *testing.T) {
	l := listen(t, "127.0.0.1:0")
	serve(t, l, Admin(testRegistry(), &fakeState{}, nil, testBuild, openGuard(t, "127.0.0.1:0")), defaultLimits)
	for line, want := range map[string]string{
		"OPTIONS * HTTP/1.1":            "HTTP/1.1 404 ",
		"CONNECT localhost:80 HTTP/1.1": "HTTP/1.1 403 ",
		"GET HTTP/1.1":                  "HTTP/1.1 400 ",
	} {
		got := raw(t, l, line+"\r\nHost: localhost\r\nConnection: close\r\n\r\n")
		if !strings.HasPrefix(got, want) {
			t.Errorf("%s gives\n%s\nwant %s", line, got, want)
		}
	}
}

// raw sends text on a connection of its own and returns all that comes back until the other side closes.
func raw(t *testing.T, l net.Listener, text string) string {
	t.Helper()
	c := dial(t, l)
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("read the answer to %.40q: %v", text, err)
	}
	return string(got)
}

func dial(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	c, err := net.Dial(l.Addr().Network(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestReadiness(t *testing.T) {
	state := &fakeState{}
	state.setReasons("no configuration loaded", "listener client does not accept")
	for name, c := range doors(t, state) {
		step := func(path string, code int, body string) {
			t.Helper()
			if got := ask(t, c, "GET", base+path); got.code != code || got.body != body {
				t.Errorf("%s: %s gives %d and %q, want %d and %q", name, path, got.code, got.body, code, body)
			}
		}
		state.setReasons("no configuration loaded", "listener client does not accept")
		step("/readyz", 503, "not ready\n")
		step("/readyz?verbose", 503, "not ready\nno configuration loaded\nlistener client does not accept\n")
		step("/healthz", 200, "ok\n")
		state.setReasons()
		step("/readyz", 200, "ready\n")
		step("/readyz?verbose", 200, "ready\n")
		state.setReasons("stopping")
		step("/readyz?verbose", 503, "not ready\nstopping\n")
		step("/healthz", 200, "ok\n")
	}
}

func TestStatus(t *testing.T) {
	state := &fakeState{reasons: []string{"stopping"}, status: Status{
		Started:   time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Listeners: []ListenerStatus{{Name: "client", Address: "127.0.0.1:12220", Protocol: "bolt", Accepting: true, Connections: 2}},
		Clusters: []ClusterStatus{
			{Name: "order", Protocol: "bolt", InFlight: 3, Waiting: 1, Endpoints: []EndpointStatus{
				{Address: "127.0.0.1:12200", Weight: 100, Usable: true, Connections: 1, InFlight: 3},
				{Address: "127.0.0.1:12201", Weight: 50, Reason: "connect-failure"},
			}},
			{Name: "empty", Protocol: "bolt"},
		},
	}}
	c := doors(t, state)["admin-unix"]
	want := `{
  "ready": false,
  "reasons": [
    "stopping"
  ],
  "started": "2026-01-02T03:04:05Z",
  "overload": {
    "memory": {
      "used": 0
    },
    "descriptors": {
      "used": 0
    },
    "actions": []
  },
  "listeners": [
    {
      "name": "client",
      "address": "127.0.0.1:12220",
      "protocol": "bolt",
      "accepting": true,
      "connections": 2
    }
  ],
  "clusters": [
    {
      "name": "order",
      "protocol": "bolt",
      "in_flight": 3,
      "waiting": 1,
      "endpoints": [
        {
          "address": "127.0.0.1:12200",
          "weight": 100,
          "usable": true,
          "failures": 0,
          "connections": 1,
          "in_flight": 3
        },
        {
          "address": "127.0.0.1:12201",
          "weight": 50,
          "usable": false,
          "failures": 0,
          "reason": "connect-failure",
          "connections": 0,
          "in_flight": 0
        }
      ]
    },
    {
      "name": "empty",
      "protocol": "bolt",
      "in_flight": 0,
      "waiting": 0,
      "endpoints": []
    }
  ]
}
`
	if diff := cmp.Diff(want, ask(t, c, "GET", base+"/v1/status").body); diff != "" {
		t.Errorf("the status differs (- want, + got):\n%s", diff)
	}
}

func TestIndex(t *testing.T) {
	c := doors(t, &fakeState{})["admin"]
	want := `Relevo 1.2.3

GET /metrics          all metrics, in the text format of Prometheus
GET /healthz          200 while the process answers
GET /readyz           200 when ready, else 503; ?verbose lists the reasons
GET /v1/build         the program: version, commit, Go version
GET /v1/status        listeners, clusters and endpoints as they are now
GET /v1/schema        the JSON Schema of the configuration
GET /v1/schema.json   the same, where the OpenAPI document looks for it
GET /v1/openapi.json  this API as an OpenAPI document
`
	if diff := cmp.Diff(want, ask(t, c, "GET", base+"/").body); diff != "" {
		t.Errorf("the list differs (- want, + got):\n%s", diff)
	}
}

func TestMetricsLint(t *testing.T) {
	problems, err := testutil.GatherAndLint(gatherer(testRegistry(), testBuild))
	if err != nil || len(problems) != 0 {
		t.Errorf("lint says %v, %v; want nothing", problems, err)
	}
}

func TestPromtoolCheckMetrics(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is not on PATH")
	}
	got := ask(t, doors(t, &fakeState{})["metrics"], "GET", base+"/metrics")
	cmd := exec.Command(promtool, "check", "metrics")
	cmd.Stdin = strings.NewReader(got.body)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) != 0 {
		t.Errorf("promtool check metrics: %v, want no word\n%s", err, out)
	}
}

// TestScrapesAreBounded keeps a function of the registry busy until every place is taken.
func TestScrapesAreBounded(t *testing.T) {
	reg := stats.NewRegistry()
	entered, leave := make(chan struct{}), make(chan struct{})
	reg.GaugeFunc("relevo_slow", "Slow.", func() float64 { entered <- struct{}{}; <-leave; return 0 })
	l := listen(t, "127.0.0.1:0")
	serve(t, l, Metrics(reg, &fakeState{}, testBuild), defaultLimits)
	c := client(t, l)
	var wg sync.WaitGroup
	for range maxScrapes {
		wg.Go(func() {
			resp, err := c.Get(base + "/metrics")
			if err != nil || resp.StatusCode != 200 {
				t.Errorf("a scrape gives %v, %v, want 200", resp, err)
				return
			}
			_ = resp.Body.Close()
		})
		<-entered
	}
	if got := ask(t, c, "GET", base+"/metrics"); got.code != 503 {
		t.Errorf("scrape %d gives %d, want 503", maxScrapes+1, got.code)
	}
	if got := ask(t, c, "GET", base+"/healthz"); got.code != 200 {
		t.Errorf("/healthz beside %d scrapes gives %d, want 200", maxScrapes, got.code)
	}
	close(leave)
	wg.Wait()
}

func TestHostCheck(t *testing.T) {
	local := &net.TCPAddr{IP: net.ParseIP("10.1.2.3"), Port: 9911}
	for _, tc := range []struct {
		host, address string
		want          bool
	}{
		{"localhost", "127.0.0.1:9911", true},
		{"LOCALHOST:9911", "127.0.0.1:9911", true},
		{"127.0.0.1:9911", "", true},
		{"127.8.8.8", "", true},
		{"[::1]:9911", "", true},
		{"[::1]", "", true},
		{"[::ffff:127.0.0.1]:1", "", true},
		{"10.1.2.3:9911", "0.0.0.0:9911", true},
		{"10.1.2.4:9911", "0.0.0.0:9911", false},
		{"0.0.0.0:9911", "0.0.0.0:9911", false},
		{"10.9.9.9:80", "10.9.9.9:9911", true},
		{"Gate.example:9911", "gate.example:9911", true},
		{"gate.example.evil.example", "gate.example:9911", false},
		{"localhost.evil.example", "gate.example:9911", false},
		{"evil.example:9911", "127.0.0.1:9911", false},
		{"", ":9911", false},
	} {
		h := Admin(stats.NewRegistry(), &fakeState{}, nil, testBuild, openGuard(t, tc.address))
		for _, path := range []string{"/v1/build", "/healthz", "/nothing"} {
			req := httptest.NewRequest("GET", path, nil)
			req = req.WithContext(context.WithValue(req.Context(), http.LocalAddrContextKey, net.Addr(local)))
			req.Host = tc.host
			w := httptest.NewRecorder()
			h.ServeHTTP(w, req)
			if got := w.Code != http.StatusMisdirectedRequest; got != tc.want {
				t.Errorf("Host %q on a door at %q: %s gives %d, want it answered: %v", tc.host, tc.address, path, w.Code, tc.want)
			}
			if kind := w.Header().Get("Content-Type"); !tc.want && kind != "application/problem+json" {
				t.Errorf("Host %q: the refusal is %s, want application/problem+json", tc.host, kind)
			}
		}
	}
}

func TestHostCheckOnRealListeners(t *testing.T) {
	const evil = "http://evil.example/healthz"
	for name, want := range map[string]int{"metrics": 200, "admin": 421, "admin-unix": 200} {
		t.Run(name, func(t *testing.T) {
			if got := ask(t, doors(t, &fakeState{})[name], "GET", evil); got.code != want {
				t.Errorf("GET %s gives %d, want %d", evil, got.code, want)
			}
		})
	}
}

// readAnswer reads one answer from a connection that stays open, and returns its status code.
func readAnswer(r *bufio.Reader) (int, error) {
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return 0, fmt.Errorf("read the body: %w", err)
	}
	return resp.StatusCode, nil
}
