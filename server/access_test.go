package server_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/relevo-proxy/relevo/admin"
	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
	"github.com/relevo-proxy/relevo/cmd/relevo/call"
	"github.com/relevo-proxy/relevo/cmd/relevo/echo"
	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
	"github.com/relevo-proxy/relevo/server"
	"github.com/relevo-proxy/relevo/server/accesslog"
	"github.com/relevo-proxy/relevo/server/config"
)

// records are the lines of a JSON access log.
func records(t *testing.T, path string) []map[string]any {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []map[string]any
	for line := range strings.Lines(string(data)) {
		var r map[string]any
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		out = append(out, r)
	}
	return out
}

// do makes a call and expects an answer with that status, or none of a one-way call.
func do(t *testing.T, s *server.Server, o call.Options, want wire.Status) {
	t.Helper()
	o.Addr, o.Timeout = s.Addresses()["in"].String(), 5*time.Second
	r, err := call.Do(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if !o.Oneway && r.Status != want {
		t.Fatalf("a call of %s has status %v, want %v", o.Service, r.Status, want)
	}
}

const echoService = "com.example.Echo:1.0"

func TestAccessLogTellsOfExchanges(t *testing.T) {
	for _, forwarding := range []string{"inline", "worker"} {
		t.Run(forwarding, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "access.log")
			yaml := strings.Replace(oneHop, "protocol: bolt}]", "protocol: bolt, forwarding: "+forwarding+"}]", 1)
			c := parse(t, yaml+"access_log: {path: "+path+"}\n", startEcho(t, echo.Options{}))
			s, stop := run(t, c)
			headers := []bolt.Pair{
				{Key: "sofa_head_method_name", Value: "create"},
				{Key: "rpc_trace_context.sofaTraceId", Value: "0a0fe8cc17"},
				{Key: "rpc_trace_context.sofaRpcId", Value: "0.1"},
			}
			began := time.Now()
			do(t, s, call.Options{Service: echoService, Headers: headers, Content: []byte("hello")}, wire.Success)
			do(t, s, call.Options{Service: "com.example.Nobody:1.0"}, wire.NoProcessor)
			do(t, s, call.Options{Service: echoService, Oneway: true}, 0)
			at := endpoint(s)
			eventually(t, "three calls are three records", func() bool {
				return s.Stats().Counter("relevo_access_log_records_total", "Records written to the access log.").Value() == 3
			})
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			got := records(t, path)
			for _, r := range got {
				when, err := time.Parse(time.RFC3339Nano, fmt.Sprint(r["time"]))
				if err != nil || when.Before(began.Add(-time.Second)) || when.After(time.Now()) {
					t.Errorf("the time of a record is %v, want one after %v", r["time"], began)
				}
				wait, _ := r["wait"].(float64)
				served, _ := r["server"].(float64)
				total, _ := r["total"].(float64)
				if r["status"] == "SUCCESS" && served <= 0 || wait < 0 || wait+served > total*1.001+1e-6 {
					t.Errorf("wait %v, server %v, total %v: the parts are not in the whole", r["wait"], r["server"], r["total"])
				}
				if client := fmt.Sprint(r["client"]); !strings.HasPrefix(client, "127.0.0.1:") {
					t.Errorf("the client is %q, want an address of 127.0.0.1", client)
				}
				for _, key := range []string{"request_bytes", "reply_bytes"} {
					if n, _ := r[key].(float64); n < 20 && (key == "request_bytes" || r["kind"] != "oneway") {
						t.Errorf("%s is %v, want a frame's", key, r[key])
					}
				}
				for _, key := range []string{"time", "client", "wait", "server", "total", "request_bytes", "reply_bytes", "upstream_id"} {
					delete(r, key) // looked at above, or any
				}
			}
			slices.SortFunc(got, func(a, b map[string]any) int { // exchanges on different connections end in any order
				return strings.Compare(fmt.Sprint(a["kind"], a["route"]), fmt.Sprint(b["kind"], b["route"]))
			})
			want := []map[string]any{
				{
					"listener": "in", "protocol": "bolt", "kind": "oneway", "service": echoService, "id": 1.0,
					"route": "rpc/rule-1", "cluster": "echo", "endpoint": at, "attempts": 1.0,
				},
				{
					"listener": "in", "protocol": "bolt", "kind": "request", "service": "com.example.Nobody:1.0", "id": 1.0,
					"attempts": 0.0, "status": "NO_PROCESSOR", "reason": "no-route",
				},
				{
					"listener": "in", "protocol": "bolt", "kind": "request", "service": echoService, "method": "create",
					"trace": "0a0fe8cc17", "rpc": "0.1", "id": 1.0, "route": "rpc/rule-1", "cluster": "echo", "endpoint": at,
					"attempts": 1.0, "status": "SUCCESS",
				},
			}
			slices.SortFunc(want, func(a, b map[string]any) int {
				return strings.Compare(fmt.Sprint(a["kind"], a["route"]), fmt.Sprint(b["kind"], b["route"]))
			})
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("the records differ (-want +got):\n%s", diff)
			}
		})
	}
}

// Every exchange becomes one record, the last ones of a stop included.
func TestAccessLogIsComplete(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	c := parse(t, oneHop+"access_log: {path: "+path+", buffer: 100000, fields: [service, status]}\n", startEcho(t, echo.Options{}))
	s, stop := run(t, c)
	const count = 5000
	report, err := bench.Run(t.Context(), bench.Options{
		Addr: s.Addresses()["in"].String(), Service: echoService, Connections: 2, InFlight: 16, Size: 100, Count: count,
	})
	if err != nil || report.OK != count {
		t.Fatalf("of %d requests %+v came back right, %v", count, report, err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Repeat(`{"service":"`+echoService+`","status":"SUCCESS"}`+"\n", count); string(data) != want {
		t.Errorf("the log of %d equal requests is %d lines of %d bytes, want %d bytes",
			count, strings.Count(string(data), "\n"), len(data), len(want))
	}
}

func TestAccessLogOfFailuresOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	c := parse(t, oneHop+"access_log: {path: "+path+", only: failed, format: text, template: '{service} {status} {reason}'}\n",
		startEcho(t, echo.Options{}))
	s, stop := run(t, c)
	do(t, s, call.Options{Service: echoService}, wire.Success)
	do(t, s, call.Options{Service: "com.example.Nobody:1.0"}, wire.NoProcessor)
	do(t, s, call.Options{Service: "a b\nc"}, wire.NoProcessor)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := "com.example.Nobody:1.0 NO_PROCESSOR no-route\n" + `"a b\nc" NO_PROCESSOR no-route` + "\n"
	if string(data) != want {
		t.Errorf("the log is %q, want %q", data, want)
	}
}

// A log that cannot be opened keeps the process from starting, and nothing is left bound.
func TestAccessLogThatCannotBeOpened(t *testing.T) {
	c := parse(t, oneHop, "127.0.0.1:1")
	path := filepath.Join(t.TempDir(), "missing", "access.log")
	c.AccessLog = &config.AccessLog{Path: path, Format: config.FormatJSON, Sample: 100_00, Only: config.OnlyAll, Buffer: 10}
	_, err := server.New(server.Options{Config: c, Log: zap.NewNop()})
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "\n") {
		t.Errorf("a folder that is missing: got %v, want one line that names it", err)
	}
	if _, ok := errors.AsType[*server.ConfigError](err); !ok {
		t.Errorf("a folder that is missing: got %v, want a ConfigError, as trying again does not make it", err)
	}
	c.AccessLog.Format, c.AccessLog.Template = config.FormatText, "{servic}"
	_, err = server.New(server.Options{Config: c, Log: zap.NewNop()})
	if _, ok := errors.AsType[*server.ConfigError](err); !ok {
		t.Errorf("a template with an unknown field: got %v, want a ConfigError", err)
	}
}

// observed starts a server that signals reach; what it logs is kept.
func observed(t *testing.T, c *config.Config) (s *server.Server, logged *observer.ObservedLogs) {
	t.Helper()
	core, logged := observer.New(zapcore.InfoLevel)
	log := zap.New(core)
	s, err := server.New(server.Options{Config: c, Log: log, Build: admin.BuildInfo{Version: "test"}})
	if err != nil {
		t.Fatal(err)
	}
	_, stopSignals := server.Signals(log, func() *server.Server { return s }, func() {})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s.Start()
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		stopSignals()
		cancel()
		<-done
	})
	return s, logged
}

func signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(os.Getpid(), s); err != nil {
		t.Fatal(err)
	}
}

// await waits until something of that message is logged.
func await(t *testing.T, logged *observer.ObservedLogs, message string) []observer.LoggedEntry {
	t.Helper()
	eventually(t, fmt.Sprintf("%q is logged", message), func() bool { return logged.FilterMessageSnippet(message).Len() > 0 })
	return logged.FilterMessageSnippet(message).All()
}

// eventually waits until something is so, for 10 s at most.
func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !so(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("it never comes to this: %s", what)
		}
	}
}

func TestSIGUSR1OpensTheAccessLogAnew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	s, logged := observed(t, parse(t, oneHop+"access_log: {path: "+path+", fields: [service]}\n", startEcho(t, echo.Options{})))
	do(t, s, call.Options{Service: echoService}, wire.Success)
	written := func() bool {
		info, err := os.Stat(path)
		return err == nil && info.Size() > 0
	}
	eventually(t, "the first record is written", written)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	signal(t, syscall.SIGUSR1)
	await(t, logged, "access log: opened anew")
	do(t, s, call.Options{Service: "com.example.Nobody:1.0"}, wire.NoProcessor)
	eventually(t, "the second record is written to the new file", written)
	for file, want := range map[string]string{path + ".1": echoService, path: "com.example.Nobody:1.0"} {
		if diff := cmp.Diff([]map[string]any{{"service": want}}, records(t, file)); diff != "" {
			t.Errorf("%s differs (-want +got):\n%s", file, diff)
		}
	}
}

func TestSIGUSR1WithoutAccessLog(t *testing.T) {
	_, logged := observed(t, parse(t, oneHop, "127.0.0.1:1"))
	signal(t, syscall.SIGUSR1)
	await(t, logged, "SIGUSR1: nothing to do; there is no access log")
}

func TestSIGUSR1BeforeThereIsAServer(t *testing.T) {
	core, logged := observer.New(zapcore.InfoLevel)
	_, stop := server.Signals(zap.New(core), func() *server.Server { return nil }, func() {})
	defer stop()
	signal(t, syscall.SIGUSR1)
	await(t, logged, "SIGUSR1: nothing to do; still starting")
	signal(t, syscall.SIGQUIT)
	await(t, logged, "stack")
}

func TestSIGQUITTellsOfFailures(t *testing.T) {
	s, logged := observed(t, parse(t, oneHop, startEcho(t, echo.Options{})))
	do(t, s, call.Options{Service: echoService}, wire.Success)
	const refused = 258
	for i := range refused {
		do(t, s, call.Options{Service: fmt.Sprintf("com.example.Nobody%d:1.0", i)}, wire.NoProcessor)
	}
	signal(t, syscall.SIGQUIT)
	eventually(t, "256 failures are logged", func() bool { return logged.FilterMessage("exchange").Len() >= 256 })
	var got []string
	for _, e := range logged.FilterMessage("exchange").All() {
		x, _ := e.ContextMap()["exchange"].(map[string]any)
		if x["status"] != "NO_PROCESSOR" || x["reason"] != "no-route" || x["listener"] != "in" || e.Level != zapcore.WarnLevel {
			t.Fatalf("an exchange that was answered here is %v", e)
		}
		got = append(got, fmt.Sprint(x["service"]))
	}
	for i, service := range got {
		if want := fmt.Sprintf("com.example.Nobody%d:1.0", i+refused-256); service != want {
			t.Fatalf("failure %d is of %s, want %s: oldest first", i, service, want)
		}
	}
	head := await(t, logged, "failed or locally answered exchanges")[0].ContextMap()
	if head["kept"] != int64(256) || head["total"] != uint64(refused) {
		t.Errorf("the head of the failures says %v, want 256 kept of %d", head, refused)
	}
	last := func(message string) int {
		return slices.IndexFunc(logged.All(), func(e observer.LoggedEntry) bool { return e.Message == message })
	}
	if last("stack") < 0 || last("stack") > last("exchange") {
		t.Error("the failures come before the stacks")
	}
}

// What the configuration knows of the access log's fields and templates, it knows from a copy.
func TestConfigurationKnowsTheAccessLog(t *testing.T) {
	field, _ := reflect.TypeFor[config.AccessLog]().FieldByName("Fields")
	if diff := cmp.Diff(accesslog.Fields(), strings.Fields(field.Tag.Get("oneof"))); diff != "" {
		t.Errorf("the fields differ (-log +configuration):\n%s", diff)
	}
	field, _ = reflect.TypeFor[config.AccessLog]().FieldByName("Template")
	if diff := cmp.Diff(accesslog.DefaultTemplate, field.Tag.Get("default")); diff != "" {
		t.Errorf("the default template differs (-log +configuration):\n%s", diff)
	}
	for _, template := range []string{
		"{time}", "{{{time}}} {{x}}", "{tim}", "{ time }", "{}", "{", "}", "{time", "a } {time}", "{time}}", "{time}}}", "{{time}}", "x",
		"{time}\t{id}", "{time}\n{id}", "{time}\x7f", "·{upstream_id}·",
	} {
		c := oneHop + "access_log: {format: text, template: " + string(mustJSON(t, template)) + "}\n"
		_, err := config.Parse(fmt.Appendf(nil, c, "127.0.0.1:1"))
		if ours := accesslog.CheckTemplate(template); (ours == nil) != (err == nil) {
			t.Errorf("template %q: the log says %v, the configuration %v", template, ours, err)
		}
	}
	if (&stats.Record{Kind: "request", Status: wire.Success.String()}).Failed() {
		t.Errorf("an exchange with the status %v has failed", wire.Success)
	}
}

func mustJSON(t *testing.T, s string) []byte {
	t.Helper()
	out, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A server's metrics tell of the access log if there is one.
func TestAccessLogMetrics(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	s, _ := run(t, parse(t, oneHop+"access_log: {path: "+path+"}\n", "127.0.0.1:1"))
	got := map[string]bool{}
	for _, sample := range s.Stats().Snapshot() {
		if strings.HasPrefix(sample.Name, "relevo_access_log_") {
			got[sample.Name] = true
		}
	}
	want := []string{"relevo_access_log_bytes_total", "relevo_access_log_dropped_total", "relevo_access_log_records_total"}
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(got))); diff != "" {
		t.Errorf("the metrics differ (-want +got):\n%s", diff)
	}
}
