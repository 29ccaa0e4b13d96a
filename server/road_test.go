package server_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/relevo-proxy/relevo/admin"
	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
	"github.com/relevo-proxy/relevo/cmd/relevo/echo"
	"github.com/relevo-proxy/relevo/server/config"
)

// roadText is a configuration with two endpoints, one of them a unix socket, and a door in the folder %[1]s.
const roadText = `
listeners: [{name: in, address: "127.0.0.1:0", protocol: bolt}]
routes:
  - name: rpc
    rules:
      - {name: echo, match: {service: "com.example.Echo:1.0"}, cluster: echo, timeout: 20s, retry: {attempts: 1}}
      - {name: none, reply: {status: NO_PROCESSOR}}
clusters:
  - {name: echo, protocol: bolt, endpoints: [{address: "%[2]s"}, {address: "%[3]s"}]}
admin: {address: "unix:%[1]s/a.sock"}
state_dir: %[1]s
`

// newRoad is a door to a road with two echo servers, which answer after a delay.
func newRoad(t *testing.T, delay time.Duration) (d *liveDoor, endpoints [2]string) {
	t.Helper()
	folder := t.TempDir()
	for i := range endpoints {
		endpoints[i] = startEcho(t, echo.Options{Delay: delay})
	}
	return openDoor(t, folder, fmt.Sprintf(roadText, folder, endpoints[0], endpoints[1])), endpoints
}

// load sends so many requests through the road and fails the test if one is lost.
func (d *liveDoor) load(t *testing.T, count uint64) {
	t.Helper()
	r, err := bench.Run(t.Context(), bench.Options{
		Addr: d.server.Addresses()["in"].String(), Service: "com.example.Echo:1.0", Connections: 4, InFlight: 16, Size: 100, Count: count, Timeout: 20 * time.Second,
	})
	if err != nil || r.Failed() || r.OK != count {
		t.Errorf("of %d requests %d came back right, %v: %+v", count, r.OK, err, r)
	}
}

// loaded keeps a load going until stop.
func (d *liveDoor) loaded(t *testing.T) (stop func()) {
	var group sync.WaitGroup
	over := make(chan struct{})
	group.Go(func() { // ends with stop, or with a failure
		for !t.Failed() {
			select {
			case <-over:
				return
			default:
				d.load(t, 500)
			}
		}
	})
	stop = sync.OnceFunc(func() { close(over); group.Wait() })
	t.Cleanup(stop)
	return stop
}

// read asks for what is at a path and reads it.
func read[T any](t *testing.T, d *liveDoor, path string) (v T) {
	t.Helper()
	got := d.ask(t, "GET", path, "")
	if err := json.Unmarshal([]byte(got.body), &v); err != nil || got.code != 200 {
		t.Fatalf("GET %s gives %d %s, %v", path, got.code, got.body, err)
	}
	return v
}

// soon waits until a condition holds.
func soon(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(10 * time.Second); !holds(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("waited 10 s for %s", what)
		}
	}
}

// Each resource says what the road has done, as a list and by its name.
func TestRoadResources(t *testing.T) {
	d, endpoints := newRoad(t, 0)
	d.load(t, 1000)
	l := read[admin.Listener](t, d, "/v1/listeners/in")
	if l.Requests != 1000 || l.Routes != "rpc" || !l.Accepting || l.MaxConnections != 10000 || l.BytesRead < 100_000 || l.BytesWritten < 100_000 {
		t.Errorf("the listener is %+v, want 1000 requests on the table rpc", l)
	}
	rule := read[struct {
		Rules []struct {
			Clusters []admin.RuleCluster
			Reply    string
			Timeout  float64
			Requests uint64
		}
	}](t, d, "/v1/routes/rpc").Rules
	if len(rule) != 2 || rule[0].Requests != 1000 || rule[0].Timeout != 20 || rule[0].Clusters[0] != (admin.RuleCluster{Cluster: "echo", Weight: 1, RuleCounts: admin.RuleCounts{Requests: 1000}}) ||
		rule[1].Reply != "NO_PROCESSOR" || rule[1].Requests != 0 {
		t.Errorf("the rules are %+v, want 1000 requests of the first", rule)
	}
	c := read[admin.Cluster](t, d, "/v1/clusters/echo")
	if c.Balancer != "least-request" || c.Limits.Connections != (admin.Use{Used: 2, Max: 1024}) || c.Limits.Requests != (admin.Use{Used: 0, Max: 100000}) || len(c.Endpoints) != 2 {
		t.Errorf("the cluster is %+v, want two connections of 1024", c)
	}
	sum := uint64(0)
	for i, at := range endpoints {
		e := read[admin.Endpoint](t, d, "/v1/clusters/echo/endpoints/"+at)
		if e.Address != at || e.Cluster != "echo" || e.State != "usable" || e.Weight != 100 || e.Connections.Ready != 1 || e.LastFailure != nil {
			t.Errorf("endpoint %d is %+v, want it usable with a connection", i, e)
		}
		sum += e.Requests
	}
	if sum != 1000 {
		t.Errorf("the endpoints have got %d requests, want 1000", sum)
	}
	for path, list := range map[string]string{
		"/v1/listeners": "listeners", "/v1/routes": "routes", "/v1/clusters": "clusters", "/v1/clusters/echo/endpoints": "endpoints",
		"/v1/connections": "connections", "/v1/streams": "streams",
	} {
		if all := read[map[string]any](t, d, path); all[list] == nil {
			t.Errorf("%s is %v, want a list named %s", path, all, list)
		}
	}
	for _, path := range []string{
		"/v1/listeners/out", "/v1/routes/none", "/v1/clusters/none", "/v1/clusters/none/endpoints", "/v1/clusters/echo/endpoints/127.0.0.1:1",
		"/v1/connections/4711", "/v1/listeners/in/more",
	} {
		if got := d.ask(t, "GET", path, ""); got.code != 404 || !strings.Contains(got.header.Get("Content-Type"), "problem") {
			t.Errorf("%s gives %d %s, want 404", path, got.code, got.body)
		}
	}
}

// An endpoint that joins says which share of its weight it gets; the others have all of theirs, and say nothing of it.
func TestRoadTellsOfSlowStarts(t *testing.T) {
	d, endpoints := newRoad(t, 0)
	for _, put := range [][2]string{{"slow_start", `"1h"`}, {"endpoints/127.0.0.1:8", `{"address": "127.0.0.1:8"}`}} {
		if got := d.ask(t, "PUT", "/v1/config/clusters/echo/"+put[0], put[1], "If-None-Match: *"); got.code/100 != 2 {
			t.Fatalf("PUT of %s gives %d %s", put[0], got.code, got.body)
		}
	}
	if e := read[admin.Endpoint](t, d, "/v1/clusters/echo/endpoints/127.0.0.1:8"); e.Share < 0.1 || e.Share > 0.2 || e.State != "usable" {
		t.Errorf("the endpoint that joins is %+v, want about a tenth of its weight", e)
	}
	got := d.ask(t, "GET", "/v1/clusters/echo/endpoints/"+endpoints[0], "")
	if strings.Contains(got.body, "share") || strings.Contains(d.ask(t, "GET", "/v1/clusters/echo", "").body, "panic") {
		t.Errorf("the endpoint that was there is %s, want no share; nor is there a panic", got.body)
	}
}

// An endpoint that cannot be connected says why, since when, and when it is asked again.
func TestRoadTellsOfAFailure(t *testing.T) {
	folder := t.TempDir()
	d := openDoor(t, folder, fmt.Sprintf(roadText, folder, "127.0.0.1:1", "127.0.0.1:2"))
	began := time.Now()
	r, err := bench.Run(t.Context(), bench.Options{
		Addr: d.server.Addresses()["in"].String(), Service: "com.example.Echo:1.0", Connections: 1, InFlight: 1, Size: 1, Count: 20,
	})
	if err != nil || r.OK != 0 {
		t.Fatalf("without a server %d came back right, %v", r.OK, err)
	}
	soon(t, "an endpoint that is passed over", func() bool {
		e := read[admin.Endpoint](t, d, "/v1/clusters/echo/endpoints/127.0.0.1:1")
		if e.State != "passed-over" {
			return false // being probed
		}
		f := e.LastFailure
		if e.Failures < 1 || f == nil || f.Reason != "connect-failure" || !strings.Contains(f.Detail, "refused") || f.Time.Before(began.Add(-time.Second)) ||
			e.PassedOverSince == nil || e.PassedOverSince.Before(began.Add(-time.Second)) || e.NextProbe == nil || e.NextProbe.Before(*e.PassedOverSince) {
			t.Errorf("the endpoint is %+v with the last failure %+v, want it passed over because the connection is refused", e, f)
		}
		return true
	})
}

// What is said of an endpoint by PATCH is a revision like any other, and the road goes by it.
func TestPatchEndpoint(t *testing.T) {
	d, endpoints := newRoad(t, 0)
	path, node := "/v1/clusters/echo/endpoints/"+endpoints[0], "/v1/config/clusters/echo/endpoints/"+endpoints[0]
	patch := func(body string, headers ...string) reply {
		t.Helper()
		return d.ask(t, "PATCH", path, body, append(headers, "Content-Type: application/merge-patch+json")...)
	}
	if got := patch(`{"weight": 7}`, "X-Comment: less of it"); got.code != 200 || !strings.Contains(got.body, `"revision": 2`) {
		t.Fatalf("PATCH gives %d %s, want revision 2", got.code, got.body)
	} else if want := d.ask(t, "GET", node, "").header.Get("ETag"); got.header.Get("ETag") != want {
		t.Errorf("the ETag is %s, want that of the configuration, %s", got.header.Get("ETag"), want)
	}
	info, _, c := d.server.Current()
	if info.Why != "less of it" || info.Author.Door != "unix" || info.Author.UID == nil || c.Clusters[0].Endpoints[0].Weight != 7 {
		t.Errorf("the revision is %+v, want the comment, who it was and the weight", info)
	}
	if e := read[admin.Endpoint](t, d, path); e.Weight != 7 || e.State != "usable" {
		t.Errorf("the endpoint is %+v, want the weight 7", e)
	}
	for _, tc := range []struct {
		body, etag string
		code       int
		has        string
	}{
		{`{"weight": 0}`, "", 422, "/clusters/0/endpoints/0/weight"},
		{`{"weight": "many"}`, "", 422, "/clusters/0/endpoints/0/weight"},
		{`{"drain": 1}`, "", 422, "/clusters/0/endpoints/0/drain"},
		{`{"colour": "red", "a/b": 1, "weight": 9}`, "", 422, `"/a~1b"`},
		{`{"address": "127.0.0.1:9"}`, "", 422, `"/address"`},
		{`[]`, "", 422, "object"},
		{`null`, "", 422, "object"},
		{`{"weight": 9`, "", 422, "object"},
		{``, "", 422, "object"},
		{`{"weight": 9, "x": "` + strings.Repeat("y", 5000) + `"}`, "", 413, ""},
		{`{"weight": 9}`, `"0"`, 412, `"weight":7`},
	} {
		var headers []string
		if tc.etag != "" {
			headers = append(headers, "If-Match: "+tc.etag)
		}
		if got := patch(tc.body, headers...); got.code != tc.code || !strings.Contains(got.body, tc.has) {
			t.Errorf("PATCH of %.60s gives %d %s, want %d with %s", tc.body, got.code, got.body, tc.code, tc.has)
		}
	}
	for path, code := range map[string]int{
		"/v1/clusters/echo/endpoints/127.0.0.1:1":   404,
		"/v1/clusters/none/endpoints/127.0.0.1:1":   404,
		"/v1/clusters/echo%2Fx/endpoints/127.0.0.1": 404,
	} {
		if got := d.ask(t, "PATCH", path, `{"weight": 9}`); got.code != code {
			t.Errorf("PATCH %s gives %d %s, want %d", path, got.code, got.body, code)
		}
	}
	if got := d.ask(t, "PATCH", path+"?dry_run=true", `{"drain": true}`, d.match(t, node)); got.code != 200 || !strings.Contains(got.body, `"endpoints_draining": 1`) {
		t.Errorf("a dry run gives %d %s, want that an endpoint would drain", got.code, got.body)
	}
	release := d.server.HoldForTest(t.Context())
	if got := patch(`{"weight": 9}`); got.code != 503 || got.header.Get("Retry-After") == "" {
		t.Errorf("while an upgrade is under way PATCH gives %d %s, want 503", got.code, got.body)
	}
	release()
	if info, _, _ := d.server.Current(); info.Number != 2 {
		t.Fatalf("revision %d is in force behind what was refused, want 2", info.Number)
	}
	if got := patch(`{"weight": null, "drain": true}`); got.code != 200 {
		t.Fatalf("PATCH gives %d %s", got.code, got.body)
	}
	if got := d.ask(t, "GET", node, "").body; strings.Contains(got, "weight") || !strings.Contains(got, `"drain": true`) {
		t.Errorf("the endpoint is %s, want it to drain, with the weight by default", got)
	}
	if e := read[admin.Endpoint](t, d, path); e.State != "drained" || e.Weight != 100 {
		t.Errorf("the endpoint is %+v, want it drained", e)
	}
}

// A name with a slash is a segment of the path like another.
func TestPatchEndpointOnAUnixSocket(t *testing.T) {
	folder := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(folder, "e.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	address := "unix:" + l.Addr().String()
	d := openDoor(t, folder, fmt.Sprintf(roadText, folder, address, "127.0.0.1:1"))
	path := "/v1/clusters/echo/endpoints/" + url.PathEscape(address)
	if got := d.ask(t, "PATCH", path, `{"weight": 3}`); got.code != 200 {
		t.Errorf("PATCH %s gives %d %s", path, got.code, got.body)
	}
	if e := read[admin.Endpoint](t, d, path); e.Address != address || e.Weight != 3 {
		t.Errorf("the endpoint is %+v, want %s with the weight 3", e, address)
	}
}

// An endpoint that is drained and serves again under load: nobody notices, and with none left everybody is told why.
func TestDrainUnderLoad(t *testing.T) {
	d, endpoints := newRoad(t, time.Millisecond)
	path := func(i int) string { return "/v1/clusters/echo/endpoints/" + endpoints[i] }
	stop := d.loaded(t)
	for i := range 10 {
		at := path(i % 2)
		if got := d.ask(t, "PATCH", at, `{"drain": true}`); got.code != 200 {
			t.Fatalf("PATCH gives %d %s", got.code, got.body)
		}
		soon(t, "the endpoint to have drained", func() bool {
			return t.Failed() || read[admin.Endpoint](t, d, at).State == "drained"
		})
		if got := d.ask(t, "PATCH", at, `{"drain": null}`); got.code != 200 {
			t.Fatalf("PATCH gives %d %s", got.code, got.body)
		}
	}
	stop()
	if metrics := d.ask(t, "GET", "/metrics", "").body; strings.Contains(metrics, "relevo_listener_local_replies_total{") {
		t.Errorf("some were answered here:\n%s", grep(metrics, "local_replies"))
	}
	for i := range endpoints {
		d.ask(t, "PATCH", path(i), `{"drain": true}`)
	}
	_, _, c := d.server.Current()
	if !slices.ContainsFunc(c.Warnings(), func(f config.Fault) bool { return strings.Contains(f.Message, "all of them drain") }) {
		t.Errorf("the warnings are %v, want that all endpoints drain", c.Warnings())
	}
	r, err := bench.Run(t.Context(), bench.Options{
		Addr: d.server.Addresses()["in"].String(), Service: "com.example.Echo:1.0", Connections: 1, InFlight: 1, Size: 1, Count: 5,
	})
	if err != nil || r.OK != 0 {
		t.Errorf("with no endpoint left %d of 5 came back right, %v", r.OK, err)
	}
	metrics := d.ask(t, "GET", "/metrics", "").body
	for _, want := range []string{
		`relevo_listener_local_replies_total{listener="in",reason="no-endpoint"} 5`,
		fmt.Sprintf(`relevo_endpoint_drained{cluster="echo",endpoint="%s"} 1`, endpoints[0]),
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("the metrics are\n%s\nwant %s", grep(metrics, "no-endpoint", "drained"), want)
		}
	}
	if got := d.ask(t, "GET", "/v1/status", "").body; strings.Count(got, `"reason": "drained"`) != 2 {
		t.Errorf("the status is %s, want both endpoints drained", got)
	}
}

func grep(text string, has ...string) string {
	var out []string
	for line := range strings.Lines(text) {
		if slices.ContainsFunc(has, func(h string) bool { return strings.Contains(line, h) }) {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}

// connections is a page.
type connections struct {
	Connections []admin.Connection
	Next        uint64
}

// The pages of connections are whole and in order, whatever their size; what is asked wrongly is refused.
func TestConnectionPages(t *testing.T) {
	d, endpoints := newRoad(t, 0)
	const clients = 7
	var ports []string
	for range clients {
		c, err := net.Dial("tcp", d.server.Addresses()["in"].String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ports = append(ports, c.LocalAddr().String())
	}
	soon(t, "all clients", func() bool { return read[admin.Listener](t, d, "/v1/listeners/in").Connections == clients })
	for limit := 1; limit <= clients+1; limit++ {
		var got []string
		for after := uint64(0); ; {
			p := read[connections](t, d, fmt.Sprintf("/v1/connections?side=client&limit=%d&after=%d", limit, after))
			if len(p.Connections) > limit {
				t.Fatalf("a page of %d has %d connections", limit, len(p.Connections))
			}
			for _, c := range p.Connections {
				got = append(got, c.Remote)
			}
			if after = p.Next; after == 0 {
				break
			}
		}
		if diff := cmp.Diff(ports, got); diff != "" {
			t.Errorf("in pages of %d the clients are (- want, + got):\n%s", limit, diff)
		}
	}
	d.load(t, 100)
	for query, want := range map[string]int{
		"side=client&client=" + ports[0]:            1,
		"client=127.0.0.1&listener=in":              clients,
		"client=127.0.0.0/8":                        clients,
		"client=10.0.0.0/8":                         0,
		"side=server":                               2,
		"cluster=echo&endpoint=" + endpoints[1]:     1,
		"endpoint=" + endpoints[0] + "&side=server": 1,
		"side=server&listener=in":                   0,
		"cluster=none":                              0,
		"side=client&after=9223372036854775807":     0,
	} {
		soon(t, query, func() bool { // those of the load are gone soon
			return len(read[connections](t, d, "/v1/connections?"+query).Connections) == want
		})
	}
	for _, query := range []string{
		"side=both", "limit=0", "limit=1001", "limit=x", "after=-1", "client=nobody", "client=127.0.0.1:port", "listner=in", "%zz", "after=1;limit=2",
	} {
		for _, list := range []string{"connections", "streams"} {
			if got := d.ask(t, "GET", "/v1/"+list+"?"+query, ""); got.code != 400 {
				t.Errorf("/v1/%s?%s gives %d %s, want 400", list, query, got.code, got.body)
			}
		}
	}
	for _, id := range []string{"x", "-1", "1.5"} {
		if got := d.ask(t, "GET", "/v1/connections/"+id, ""); got.code != 400 {
			t.Errorf("the connection %s gives %d, want 400", id, got.code)
		}
	}
}

// A connection that is closed by hand goes, and who asked for it stands in the log; gently, nothing is lost.
func TestCloseConnections(t *testing.T) {
	folder := t.TempDir()
	core, logs := observer.New(zap.InfoLevel)
	text := fmt.Sprintf(roadText, folder, startEcho(t, echo.Options{Delay: time.Millisecond}), startEcho(t, echo.Options{Delay: time.Millisecond}))
	d := openDoorWith(t, folder, text, zap.New(core))

	idle, err := net.Dial("tcp", d.server.Addresses()["in"].String())
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	var client admin.Connection
	soon(t, "the client", func() bool {
		p := read[connections](t, d, "/v1/connections?client="+idle.LocalAddr().String())
		if len(p.Connections) == 1 {
			client = p.Connections[0]
		}
		return client.ID > 0
	})
	stop := d.loaded(t)
	soon(t, "requests in flight", func() bool { return read[admin.Cluster](t, d, "/v1/clusters/echo").Limits.Requests.Used > 0 })

	resume := d.server.PauseForTest(t.Context())
	if got := d.ask(t, "DELETE", fmt.Sprint("/v1/connections/", client.ID), ""); got.code != 503 || got.header.Get("Retry-After") == "" {
		t.Errorf("in a pause DELETE gives %d %s, want 503", got.code, got.body)
	}
	if c := read[admin.Connection](t, d, fmt.Sprint("/v1/connections/", client.ID)); c.State != "paused" {
		t.Errorf("in a pause the connection is %+v, want it paused", c)
	}
	resume()
	if got := d.ask(t, "DELETE", fmt.Sprint("/v1/connections/", client.ID), ""); got.code != 204 {
		t.Errorf("DELETE gives %d %s, want 204", got.code, got.body)
	}
	if _, err := idle.Read(make([]byte, 1)); err == nil {
		t.Error("the client reads something, want the end of its connection")
	}
	const gently = 10
	for n := 0; n < gently && !t.Failed(); {
		for _, c := range read[connections](t, d, "/v1/connections?side=server").Connections {
			if c.Draining != "" {
				continue
			}
			if got := d.ask(t, "DELETE", fmt.Sprint("/v1/connections/", c.ID), ""); got.code == 202 {
				n++
			} else if got.code != 404 {
				t.Fatalf("DELETE gives %d %s, want 202", got.code, got.body)
			}
		}
	}
	stop()
	metrics := d.ask(t, "GET", "/metrics", "").body
	if !strings.Contains(metrics, `relevo_listener_closes_total{listener="in",reason="admin-closed"} 1`) || strings.Contains(metrics, "local_replies_total{") {
		t.Errorf("the metrics are\n%s\nwant one client connection closed by hand, and nothing answered here", grep(metrics, "admin-closed", "local_replies"))
	}
	for _, c := range read[connections](t, d, "/v1/connections?side=server").Connections {
		if got := d.ask(t, "DELETE", fmt.Sprintf("/v1/connections/%d?now=true", c.ID), ""); got.code != 204 && got.code != 404 {
			t.Errorf("DELETE at once gives %d %s, want 204", got.code, got.body)
		}
	}
	if got := d.ask(t, "DELETE", fmt.Sprint("/v1/connections/", client.ID), ""); got.code != 404 {
		t.Errorf("DELETE of what is closed gives %d %s, want 404", got.code, got.body)
	}
	lines := logs.FilterMessage("connection closed by hand").All()
	if len(lines) < 1+gently || !strings.Contains(fmt.Sprint(lines[0].ContextMap()["by"]), "unix") || lines[0].ContextMap()["remote"] != idle.LocalAddr().String() {
		t.Errorf("the log has %d lines of closed connections, the first %v; want who closed which", len(lines), lines)
	}
}

// The oldest requests in flight are told, bounded, and found by what they ask for.
func TestStreamsOverTheDoor(t *testing.T) {
	d, endpoints := newRoad(t, 400*time.Millisecond)
	stop := d.loaded(t)
	defer stop()
	var s admin.Streams
	var client, upstream connections // of the oldest
	soon(t, "64 requests in flight, all of them sent, and their connections", func() bool {
		s = read[admin.Streams](t, d, "/v1/streams?limit=10&service="+url.QueryEscape("com.example.Echo:1.0"))
		if s.Total != 64 || slices.ContainsFunc(s.Streams, func(x admin.Stream) bool { return x.Phase != "in-flight" }) {
			return false
		}
		x := &s.Streams[0]
		client = read[connections](t, d, fmt.Sprintf("/v1/connections?limit=1&after=%d", x.ClientConnection-1))
		upstream = read[connections](t, d, fmt.Sprintf("/v1/connections?limit=1&after=%d", x.ServerConnection-1))
		return len(client.Connections)+len(upstream.Connections) == 2 && client.Connections[0].ID == x.ClientConnection && upstream.Connections[0].ID == x.ServerConnection
	})
	if x := &s.Streams[0]; client.Connections[0].Remote != x.Client || upstream.Connections[0].Endpoint != x.Endpoint {
		t.Errorf("it is on %+v and %+v, want its client and its endpoint", client, upstream)
	}
	for i, x := range s.Streams {
		if x.Phase != "in-flight" || x.Age < 0 || x.Left <= 0 || x.Left > 20 || x.Listener != "in" || x.Route != "rpc/echo" || x.Cluster != "echo" ||
			!slices.Contains(endpoints[:], x.Endpoint) || x.Service != "com.example.Echo:1.0" || x.ServerID == 0 || x.Attempts != 1 ||
			i > 0 && x.Age > s.Streams[i-1].Age {
			t.Errorf("request %d is %+v, want one of the load, the oldest first", i, x)
		}
	}
	if len(s.Streams) != 10 {
		t.Errorf("%d requests are told, want 10", len(s.Streams))
	}
	for _, query := range []string{"service=other", "listener=other", "cluster=other", "endpoint=other"} {
		if s := read[admin.Streams](t, d, "/v1/streams?"+query); s.Total != 0 || len(s.Streams) != 0 {
			t.Errorf("of %s there are %d, want none", query, s.Total)
		}
	}
}

// Over TCP the road is only looked at.
func TestOverTCPTheRoadIsOnlyLookedAt(t *testing.T) {
	s, _ := run(t, parse(t, oneHop, "127.0.0.1:1"))
	d := &liveDoor{server: s, client: clientAt(t, s.AdminTCPAddress())}
	for method, path := range map[string]string{"PATCH": "/v1/clusters/echo/endpoints/127.0.0.1:1", "DELETE": "/v1/connections/1"} {
		if got := d.ask(t, method, path, `{"weight": 5}`); got.code != 403 {
			t.Errorf("%s gives %d %s, want 403", method, got.code, got.body)
		}
	}
	if c := read[admin.Cluster](t, d, "/v1/clusters/echo"); c.Name != "echo" {
		t.Errorf("the cluster is %+v", c)
	}
}

// What a rule may have in flight, its priority, and overload are seen, and changed while it runs.
func TestLimitsAndOverloadOverTheDoor(t *testing.T) {
	d, _ := newRoad(t, 300*time.Millisecond)
	type table struct {
		Rules []struct {
			Priority string
			Limits   *admin.RuleLimits
		}
	}
	if rule := read[table](t, d, "/v1/routes/rpc").Rules[0]; rule.Priority != "" || rule.Limits != nil {
		t.Errorf("a rule of which nothing is said is %+v, want nothing", rule)
	}
	patch := func(path, value string) {
		t.Helper()
		got := d.ask(t, "PATCH", "/v1/config"+path, value, d.match(t, "/v1/config"+path), "Content-Type: application/merge-patch+json")
		if got.code >= 300 {
			t.Fatalf("PATCH %s %s gives %d %s", path, value, got.code, got.body)
		}
	}
	patch("/routes/rpc/rules/echo", `{"max_requests": 2, "priority": "low"}`)
	patch("", `{"overload": {"memory_limit": "1GiB"}}`)
	if got := read[admin.Status](t, d, "/v1/status").Overload; got.Memory.Limit != 1<<30 || got.Memory.Used < 1<<20 || got.Memory.Used > 1<<30 ||
		got.Descriptors.Used < 5 || got.Descriptors.Limit < got.Descriptors.Used+got.Descriptors.Reserve || len(got.Actions) != 0 {
		t.Errorf("overload is %+v, want some memory of 1 GiB used, and nothing done", got)
	}
	var group sync.WaitGroup
	group.Go(func() {
		_, err := bench.Run(t.Context(), bench.Options{
			Addr: d.server.Addresses()["in"].String(), Service: "com.example.Echo:1.0", Connections: 1, InFlight: 3, Size: 100, Count: 12, Timeout: 20 * time.Second,
		})
		if err != nil {
			t.Error(err)
		}
	})
	soon(t, "the rule's limit to be reached", func() bool {
		rule := read[table](t, d, "/v1/routes/rpc").Rules[0]
		return rule.Priority == "low" && rule.Limits != nil && rule.Limits.Requests == (admin.Use{Used: 2, Max: 2, Open: true})
	})
	group.Wait()
	patch("", `{"overload": {"memory_limit": "64MiB", "stop_reading": "1%", "stop_accepting": "1%", "refuse_low": "1%", "refuse_normal": "1%"}}`)
	soon(t, "overload", func() bool { return len(read[admin.Status](t, d, "/v1/status").Overload.Actions) == 4 })
	if ready, why := d.server.Ready(); ready || len(why) != 1 {
		t.Errorf("it is ready: %v %q, want one reason why it is not", ready, why)
	}
	patch("", `{"overload": {"memory_limit": "none"}}`)
	soon(t, "the end of overload", func() bool {
		s := read[admin.Status](t, d, "/v1/status").Overload
		return len(s.Actions) == 0 && s.Memory.Limit == 0
	})
	if ready, why := d.server.Ready(); !ready {
		t.Errorf("it is not ready: %q", why)
	}
}
