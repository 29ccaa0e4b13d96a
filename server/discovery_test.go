package server_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/relevo-proxy/relevo/admin"
	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
	"github.com/relevo-proxy/relevo/cmd/relevo/call"
	"github.com/relevo-proxy/relevo/cmd/relevo/echo"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/server"
	"github.com/relevo-proxy/relevo/server/config"
)

// foundText is a configuration whose endpoints are in a file in the folder %[1]s.
const foundText = `
listeners: [{name: in, address: "127.0.0.1:0", protocol: bolt}]
routes: [{name: rpc, rules: [{name: all, cluster: echo, timeout: 30s}]}]
clusters: [{name: echo, protocol: bolt, discovery: {file: "%[1]s/endpoints.yaml"}}]
admin: {address: "unix:%[1]s/a.sock"}
metrics: {address: "127.0.0.1:0"}
state_dir: %[1]s
`

// finding is a server that finds the endpoints of its one cluster, and what it logs.
type finding struct {
	*liveDoor
	lines *observer.ObservedLogs
}

// find runs a server with this configuration, for which the file of endpoints is written first, unless it is empty.
func find(t *testing.T, text string, endpoints ...string) finding {
	t.Helper()
	folder := t.TempDir()
	if len(endpoints) > 0 {
		writeEndpoints(t, folder, endpoints...)
	}
	core, lines := observer.New(zapcore.InfoLevel)
	return finding{openDoorWith(t, folder, fmt.Sprintf(text, folder), zap.New(core)), lines}
}

// writeEndpoints replaces the file of endpoints.
func writeEndpoints(t *testing.T, folder string, endpoints ...string) {
	t.Helper()
	var text strings.Builder
	for _, e := range endpoints {
		fmt.Fprintf(&text, "- {address: %q}\n", e)
	}
	replaceFile(t, filepath.Join(folder, "endpoints.yaml"), text.String())
}

func replaceFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// cluster is the cluster as the door shows it.
func (d finding) cluster(t *testing.T) admin.Cluster {
	t.Helper()
	return read[admin.Cluster](t, d.liveDoor, "/v1/clusters/echo")
}

// serving are the endpoints that get requests.
func (d finding) serving(t *testing.T) (out []string) {
	t.Helper()
	for _, e := range d.cluster(t).Endpoints {
		if !e.Leaving && e.State == "usable" {
			out = append(out, e.Address)
		}
	}
	return out
}

// serves waits until these are the endpoints, in the order of their addresses.
func (d finding) serves(t *testing.T, want ...string) {
	t.Helper()
	slices.Sort(want)
	soon(t, fmt.Sprintf("the endpoints %v", want), func() bool { return slices.Equal(d.serving(t), want) })
}

// becomes waits until the source is in this state.
func (d finding) becomes(t *testing.T, state string) admin.Discovery {
	t.Helper()
	var last *admin.Discovery
	soon(t, "discovery that is "+state, func() bool {
		last = d.cluster(t).Discovery
		return last != nil && last.State == state
	})
	return *last
}

// said is how often a message was logged.
func (d finding) said(message string) int { return d.lines.FilterMessage(message).Len() }

func (d finding) metric(t *testing.T, line string) bool {
	t.Helper()
	_, page := get(t, d.server.MetricsAddress(), "/metrics")
	return strings.Contains(page, "\n"+line+"\n")
}

func (d finding) call(t *testing.T) (wire.Status, error) {
	t.Helper()
	r, err := call.Do(t.Context(), call.Options{Addr: d.server.Addresses()["in"].String(), Service: "com.example.Echo:1.0", Timeout: 5 * time.Second})
	if err != nil {
		return 0, err
	}
	return r.Status, nil
}

// Endpoints come and go in a file under load, and no request notices.
func TestEndpointsComeAndGoUnderLoad(t *testing.T) {
	var all []string
	for range 4 {
		all = append(all, startEcho(t, echo.Options{}))
	}
	d := find(t, foundText, all[0])
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	type result struct {
		report *bench.Report
		err    error
	}
	done := make(chan result, 1)
	go func() { // ends with ctx
		r, err := bench.Run(ctx, bench.Options{
			Addr: d.server.Addresses()["in"].String(), Service: "com.example.Echo:1.0", Connections: 4, InFlight: 8, Size: 100,
			Duration: time.Minute, Timeout: 20 * time.Second,
		})
		done <- result{r, err}
	}()
	for _, set := range [][]string{all[1:], all[:2], {all[3]}, all, {all[2]}} {
		writeEndpoints(t, d.folder, set...)
		d.serves(t, slices.Clone(set)...)
		requests := func() (n uint64) {
			for _, e := range d.cluster(t).Endpoints {
				if !e.Leaving {
					n += e.Requests
				}
			}
			return n
		}
		before := requests()
		soon(t, "requests to the endpoints that are new", func() bool { return requests() > before+100 })
	}
	cancel()
	r := <-done
	if r.err != nil || r.report.Failed() || r.report.OK == 0 {
		t.Errorf("under load the report is %+v, %v", r.report, r.err)
	}
	soon(t, "endpoints that have left to be drained", func() bool {
		return !slices.ContainsFunc(d.cluster(t).Endpoints, func(e admin.Endpoint) bool { return e.Leaving && e.State != "drained" })
	})
	if !d.metric(t, `relevo_discovery_endpoints{cluster="echo",source="file"} 1`) {
		t.Error("the metrics do not say that there is one endpoint")
	}
}

// A source that fails keeps the last good set, and it shows: at the door, in the metrics, and once in the log.
func TestSourceThatFailsShows(t *testing.T) {
	d := find(t, foundText, "127.0.0.1:1", "127.0.0.1:2")
	ok := d.becomes(t, "ok")
	if ok.Source != "file" || ok.Of != d.folder+"/endpoints.yaml" || ok.Endpoints != 2 || ok.Updated == nil || ok.FailingSince != nil || ok.Error != "" {
		t.Errorf("discovery is %+v", ok)
	}
	replaceFile(t, d.folder+"/endpoints.yaml", "- {address: '127.0.0.1:1', wieght: 5}\n- {address: nowhere}\n")
	bad := d.becomes(t, "failing")
	if want := d.folder + "/endpoints.yaml: [0].wieght: there is no such field (did you mean weight?), and 1 more"; bad.Error != want ||
		bad.Endpoints != 2 || bad.FailingSince == nil || !bad.Updated.Equal(*ok.Updated) {
		t.Errorf("discovery is %+v, want the error %q", bad, want)
	}
	d.serves(t, "127.0.0.1:1", "127.0.0.1:2")
	for _, line := range []string{
		`relevo_discovery_failing{cluster="echo",source="file"} 1`,
		`relevo_discovery_endpoints{cluster="echo",source="file"} 2`,
		`relevo_discovery_updates_total{cluster="echo",outcome="changed",source="file"} 1`,
	} {
		if !d.metric(t, line) {
			t.Errorf("the metrics lack %s", line)
		}
	}
	if n := d.said("discovery fails: the last good set stays"); n != 1 {
		t.Errorf("that it fails is logged %d times, want once", n)
	}
	patch := d.ask(t, "PATCH", "/v1/clusters/echo/endpoints/127.0.0.1:1", `{"drain": true}`)
	if patch.code != 409 || !strings.Contains(patch.body, "discovery finds them, by file "+d.folder) {
		t.Errorf("PATCH of an endpoint that was found gives %d %s", patch.code, patch.body)
	}
	replaceFile(t, d.folder+"/endpoints.yaml", "- {address: '127.0.0.1:2', weight: 7, drain: true}\n")
	d.becomes(t, "ok")
	soon(t, "the weight and drain of the file", func() bool {
		list := d.cluster(t).Endpoints
		return len(list) == 1 && list[0].Weight == 7 && list[0].State == "drained"
	})
	if n := d.said("discovery works again"); n != 1 {
		t.Errorf("that it works again is logged %d times, want once", n)
	}
}

// Without a set a process serves all the same, says so, and goes on when there is one.
func TestStartsWithoutASet(t *testing.T) {
	began := time.Now()
	d := find(t, foundText)
	if waited := time.Since(began); waited < 2*time.Second {
		t.Errorf("it waited %v for a first set, want about 3 s", waited)
	}
	if status, err := d.call(t); status != wire.ErrorComm || err != nil {
		t.Errorf("without an endpoint a request is answered %v, %v", status, err)
	}
	if d.said("no endpoint of a cluster has been found in time: its requests are answered ERROR_COMM until there is one") != 1 {
		t.Error("that there is no endpoint is not logged once")
	}
	if now := d.becomes(t, "failing"); now.Updated != nil || now.Endpoints != 0 {
		t.Errorf("discovery is %+v", now)
	}
	endpoint := startEcho(t, echo.Options{})
	writeEndpoints(t, d.folder, endpoint)
	d.serves(t, endpoint)
	if status, err := d.call(t); status != wire.Success || err != nil {
		t.Errorf("with one a request is answered %v, %v", status, err)
	}
}

// A change of the configuration and one of the endpoints do not undo each other, and only the first is a revision.
func TestChangesDoNotUndoEachOther(t *testing.T) {
	d := find(t, foundText, "127.0.0.1:1")
	limit := func() int { return d.cluster(t).Limits.Requests.Max }
	for n := range 3 {
		if got := d.ask(t, "PATCH", "/v1/config/clusters/echo", fmt.Sprintf(`{"max_requests": %d}`, 100+n), "If-Match: *"); got.code != 200 {
			t.Fatalf("PATCH gives %d %s", got.code, got.body)
		}
		set := []string{"127.0.0.1:1", fmt.Sprintf("127.0.0.1:%d", 10+n)}
		writeEndpoints(t, d.folder, set...)
		d.serves(t, set...)
		if limit() != 100+n {
			t.Errorf("behind other endpoints max_requests is %d, want %d", limit(), 100+n)
		}
	}
	if got := d.ask(t, "PATCH", "/v1/config/clusters/echo", `{"max_requests": 7}`, "If-Match: *"); got.code != 200 {
		t.Fatalf("PATCH gives %d %s", got.code, got.body)
	}
	if got := d.serving(t); !slices.Equal(got, []string{"127.0.0.1:1", "127.0.0.1:12"}) || limit() != 7 {
		t.Errorf("behind a change of the configuration the endpoints are %v and max_requests is %d", got, limit())
	}
	if info, document, _ := d.server.Current(); info.Number != 5 || strings.Contains(string(document.JSON()), "127.0.0.1:12") {
		t.Errorf("revision %d is in force, want 5, without the endpoints: %s", info.Number, document.JSON())
	}
}

// The source of a cluster changes with its configuration; what it has stays until the new one has told a set.
func TestSourceChanges(t *testing.T) {
	d := find(t, foundText, "127.0.0.1:1")
	put := func(body string) {
		t.Helper()
		if got := d.ask(t, "PATCH", "/v1/config/clusters/echo", body, "If-Match: *"); got.code != 200 {
			t.Fatalf("PATCH %s gives %d %s", body, got.code, got.body)
		}
	}
	put(fmt.Sprintf(`{"discovery": {"file": "%s/other.yaml"}}`, d.folder)) // which is not there
	if now := d.becomes(t, "failing"); now.Endpoints != 1 || now.Of != d.folder+"/other.yaml" {
		t.Errorf("with a source that fails discovery is %+v, want the set of the one before", now)
	}
	d.serves(t, "127.0.0.1:1")
	replaceFile(t, d.folder+"/other.yaml", "- address: 127.0.0.1:2")
	d.serves(t, "127.0.0.1:2")
	writeEndpoints(t, d.folder, "127.0.0.1:3") // nobody follows it
	put(`{"discovery": null, "endpoints": [{"address": "127.0.0.1:4"}]}`)
	d.serves(t, "127.0.0.1:4")
	if d.cluster(t).Discovery != nil || d.metric(t, `relevo_discovery_endpoints{cluster="echo",source="file"} 1`) {
		t.Error("discovery is still shown of a cluster that has none")
	}
	put(fmt.Sprintf(`{"endpoints": null, "discovery": {"file": "%s/none.yaml"}}`, d.folder))
	if now := d.becomes(t, "failing"); now.Endpoints != 1 || now.Updated != nil {
		t.Errorf("with a first source that fails discovery is %+v, want the endpoint that was configured", now)
	}
	d.serves(t, "127.0.0.1:4")
	put(fmt.Sprintf(`{"discovery": {"file": "%s/endpoints.yaml"}}`, d.folder))
	if got := d.serving(t); !slices.Equal(got, []string{"127.0.0.1:3"}) { // at once: a change waits for the first set
		t.Errorf("behind the change the endpoints are %v", got)
	}
}

// While an upgrade has the turn nothing enters, and afterwards all of it does.
func TestEndpointsWaitForAnUpgrade(t *testing.T) {
	d := find(t, foundText, "127.0.0.1:1")
	release := d.server.HoldForTest(t.Context())
	resume := d.server.PauseForTest(t.Context())
	writeEndpoints(t, d.folder, "127.0.0.1:2")
	soon(t, "the set to be found", func() bool {
		return d.metric(t, `relevo_discovery_updates_total{cluster="echo",outcome="changed",source="file"} 2`)
	})
	if got := d.serving(t); !slices.Equal(got, []string{"127.0.0.1:1"}) {
		t.Errorf("while the road rests the endpoints are %v", got)
	}
	resume()
	release()
	d.serves(t, "127.0.0.1:2")
}

// What filters have counted does not begin anew with each set.
func TestLimitsOutliveSets(t *testing.T) {
	endpoint := startEcho(t, echo.Options{})
	d := find(t, strings.Replace(foundText, "cluster: echo,", "cluster: echo, filters: [{rate_limit: {rate: 1, burst: 3}}],", 1), endpoint)
	passed := func(n int) (ok int) {
		for range n {
			if status, err := d.call(t); err == nil && status == wire.Success {
				ok++
			}
		}
		return ok
	}
	began := time.Now()
	got := passed(4)
	writeEndpoints(t, d.folder, endpoint, "127.0.0.1:1")
	d.serves(t, endpoint, "127.0.0.1:1")
	writeEndpoints(t, d.folder, endpoint)
	d.serves(t, endpoint)
	got += passed(4)
	if most := 3 + int(time.Since(began).Seconds()) + 1; got > most || got < 3 {
		t.Errorf("%d requests have passed, want 3 to %d", got, most)
	}
}

// nameServer answers SRV questions with these ports on the target here.test., which is 127.0.0.1.
type nameServer struct{ ports atomic.Pointer[[]string] }

// ServeDNS implements dns.Handler.
func (s *nameServer) ServeDNS(w mdns.ResponseWriter, q *mdns.Msg) {
	m := new(mdns.Msg)
	m.SetReply(q)
	add := func(list *[]mdns.RR, text string) {
		rr, err := mdns.NewRR(text)
		if err != nil {
			panic(err)
		}
		*list = append(*list, rr)
	}
	ports := *s.ports.Load()
	switch {
	case len(ports) == 0:
		m.Rcode = mdns.RcodeNameError
	case q.Question[0].Qtype == mdns.TypeSRV:
		for _, port := range ports {
			add(&m.Answer, q.Question[0].Name+" 1 IN SRV 0 50 "+port+" here.test.")
		}
	case q.Question[0].Qtype == mdns.TypeA:
		add(&m.Answer, q.Question[0].Name+" 1 IN A 127.0.0.1")
	}
	_ = w.WriteMsg(m) // who asked will ask again
}

// Endpoints are found in the DNS, and those that there were last are kept when the name is gone.
func TestFindsInTheDNS(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	names := &nameServer{}
	dns := &mdns.Server{PacketConn: conn, Handler: names}
	started, ended := make(chan struct{}), make(chan error, 1)
	dns.NotifyStartedFunc = func() { close(started) }
	go func() { ended <- dns.ActivateAndServe() }() // ends with Shutdown
	<-started
	defer func() {
		_ = dns.Shutdown()
		<-ended
	}()
	one, two := startEcho(t, echo.Options{}), startEcho(t, echo.Options{})
	port := func(address string) string { _, p, _ := net.SplitHostPort(address); return p }
	names.ports.Store(&[]string{port(one)})
	d := find(t, strings.Replace(foundText, `{file: "%[1]s/endpoints.yaml"}`,
		fmt.Sprintf(`{dns: _rpc._tcp.orders.test, servers: ["%s"], min_ttl: 1s}`, conn.LocalAddr()), 1))
	d.serves(t, one)
	if status, err := d.call(t); status != wire.Success || err != nil {
		t.Errorf("a request is answered %v, %v", status, err)
	}
	names.ports.Store(&[]string{port(two), port(one)})
	d.serves(t, one, two)
	if e := d.cluster(t).Endpoints[0]; e.Weight != 50 {
		t.Errorf("the weight is %d, want that of the record", e.Weight)
	}
	names.ports.Store(&[]string{})
	want := fmt.Sprintf("_rpc._tcp.orders.test. SRV: there is no such name, says %s", conn.LocalAddr())
	if now := d.becomes(t, "failing"); now.Error != want || now.Endpoints != 2 {
		t.Errorf("discovery is %+v, want %s", now, want)
	}
	d.serves(t, one, two)
}

// Files that are not there are a warning, and names are not asked for.
func TestMissingFiles(t *testing.T) {
	folder := t.TempDir()
	c, err := config.Parse(fmt.Appendf(nil, `
listeners: [{name: in, address: "127.0.0.1:0", protocol: bolt}]
routes: [{name: rpc, rules: [{clusters: [{cluster: a, weight: 1}, {cluster: b, weight: 1}, {cluster: c, weight: 1}]}]}]
clusters:
- {name: a, protocol: bolt, discovery: {file: "%[1]s/a"}}
- {name: b, protocol: bolt, discovery: {file: "%[1]s/b"}}
- {name: c, protocol: bolt, discovery: {dns: "c.test:1", servers: ["127.0.0.1:1"]}}
`, folder))
	if err != nil {
		t.Fatal(err)
	}
	replaceFile(t, folder+"/b", "- address: 127.0.0.1:1")
	warnings := server.MissingFiles(c)
	if len(warnings) != 1 || warnings[0].Path != "clusters[0] (a).discovery.file" || !strings.Contains(warnings[0].Message, "no such file") {
		t.Errorf("the warnings are %v, want one for the file that is not there", warnings)
	}
}
