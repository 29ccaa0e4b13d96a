package config

import (
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the expected messages under testdata")

// expect compares got with the file, or writes it.
func expect(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(read(t, path), got); diff != "" {
		t.Errorf("the messages are not those of %s (-want +got):\n%s", path, diff)
	}
}

func files(t *testing.T, folder string) []string {
	t.Helper()
	var paths []string
	for _, ext := range []string{"yaml", "json"} {
		found, err := filepath.Glob("testdata/" + folder + "/*." + ext)
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, found...)
	}
	if len(paths) == 0 {
		t.Fatalf("there is no file in testdata/%s", folder)
	}
	return paths
}

func expectation(path string) string { return strings.TrimSuffix(path, filepath.Ext(path)) + ".txt" }

// Every good file loads, with the warnings of its .txt, and comes back from its own YAML as the same tree.
func TestGoodFiles(t *testing.T) {
	for _, path := range files(t, "good") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			c, err := Load(path)
			if err != nil {
				t.Fatalf("a good file does not load:\n%v", err)
			}
			roundTrip(t, c)
			var text strings.Builder
			for _, w := range c.Warnings() {
				text.WriteString(w.String() + "\n")
			}
			expect(t, expectation(path), text.String())
		})
	}
}

// Every bad file is refused with the faults of its .txt: all of them, in the tree's order.
func TestBadFiles(t *testing.T) {
	for _, path := range files(t, "bad") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			_, err := Load(path)
			faults, ok := errors.AsType[*Errors](err)
			if !ok {
				t.Fatalf("the error is %v, want an *Errors", err)
			}
			if faults.Source != path {
				t.Errorf("the source is %q, want %q", faults.Source, path)
			}
			faults.Source = ""
			expect(t, expectation(path), faults.Error()+"\n")
		})
	}
}

type fatal interface {
	Helper()
	Fatalf(format string, args ...any)
}

func roundTrip(t fatal, c *Config) {
	t.Helper()
	if err := c.Validate(); err != nil {
		t.Fatalf("a tree that was parsed is not valid:\n%v", err)
	}
	text, err := c.YAML()
	if err != nil {
		t.Fatalf("a tree that was parsed has no YAML: %v", err)
	}
	again, err := Parse(text)
	if err != nil {
		t.Fatalf("the tree's own YAML does not parse: %v\n%s", err, text)
	}
	if diff := cmp.Diff(c, again); diff != "" {
		t.Fatalf("the tree's own YAML gives another tree (-tree +again):\n%s\n%s", diff, text)
	}
	text, err = json.Marshal(c)
	if err != nil {
		t.Fatalf("a tree that was parsed has no JSON: %v", err)
	}
	again, err = Parse(text)
	if err != nil {
		t.Fatalf("the tree's own JSON does not parse: %v\n%s", err, text)
	}
	if diff := cmp.Diff(c, again); diff != "" {
		t.Fatalf("the tree's own JSON gives another tree (-tree +again):\n%s\n%s", diff, text)
	}
}

func TestMinimalHasTheDefaults(t *testing.T) {
	c, err := Load("../../examples/minimal.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Listeners: []Listener{{
			Name: "client", Address: "127.0.0.1:12220", Protocol: Bolt, Routes: "rpc",
			DetectTimeout: Duration(3 * time.Second), Forwarding: ForwardAuto, StreamAbove: 1 << 20,
			MaxConnections: 10000, MaxStreams: 4096, MaxFrame: 16 << 20, MaxHeader: 32767, AcceptRate: 5000,
			IdleTimeout: Duration(15 * time.Minute), ReadTimeout: Duration(10 * time.Second), WriteTimeout: Duration(10 * time.Second),
			QueueLow: 512 << 10, QueueHigh: 1 << 20, MaxQueued: 16 << 20,
		}},
		Routes: []RouteTable{{Name: "rpc", Rules: []Rule{{
			Name: "rule-1", Cluster: "order", Timeout: Duration(3 * time.Second),
			Retry: Retry{
				Attempts: 2, On: []RetryOn{ConnectFailure, ResetBeforeSend}, PerTryTimeout: None,
				BackOff: BackOff{Duration(25 * time.Millisecond), Duration(250 * time.Millisecond)},
			},
			MaxRequests: NoCount, Priority: NormalPriority,
		}}}},
		Clusters: []Cluster{{
			Name: "order", Protocol: Bolt, Balancer: LeastRequest, SlowStart: None, PanicThreshold: 50_00, ConnectionsPerEndpoint: 1, MaxConnections: 1024,
			MaxPending: 1024, MaxPendingBytes: 64 << 20, MaxRequests: 100000, RetryBudget: RetryBudget{20_00, 3}, MaxRetryBytes: 64 << 20, ConnectTimeout: Duration(time.Second),
			HeartbeatInterval: Duration(30 * time.Second), HeartbeatMisses: 3, ReadTimeout: Duration(10 * time.Second), WriteTimeout: Duration(10 * time.Second),
			MaxQueued: 32 << 20, MaxAge: None, MaxUploads: 16, Endpoints: []Endpoint{{Address: "127.0.0.1:12200", Weight: 100}},
		}},
		StopTimeout: Duration(30 * time.Second), MaxTimeout: Duration(10 * time.Minute),
		Workers:  Workers{Queue: 1024, Overflow: OverflowQueue},
		Overload: Overload{StopReading: 7500, StopAccepting: 8000, RefuseLow: 8500, RefuseNormal: 9000},
		Upgrade:  Upgrade{Duration(30 * time.Second), Duration(2 * time.Second), Duration(time.Minute)},
		Log:      Log{Level: LevelInfo, Format: FormatJSON},
	}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Errorf("examples/minimal.yaml gives another tree (-want +got):\n%s", diff)
	}
}

// What a file leaves out of a filter or the access log depends on what it says beside it.
func TestDefaultsThatDepend(t *testing.T) {
	const file = `
listeners:
- {name: in, address: ":0", protocol: bolt, filters: [{rate_limit: {rate: 7}}, {rate_limit: {rate: 7, burst: 9, by: route}}]}
routes: [{name: rpc, rules: [{reply: {status: ERROR}, filters: [{rate_limit: {rate: 8}}, {fault: {delay: {time: 1s}, abort: {status: ERROR}}}]}]}]
clusters: [{name: order, protocol: bolt, endpoints: [{address: "127.0.0.1:12200"}]}]
access_log: {`
	c, err := Parse([]byte(file + "}"))
	if err != nil {
		t.Fatal(err)
	}
	want := []Filter{
		{RateLimit: &RateLimitFilter{Rate: 7, Burst: 7, By: LimitByListener, MaxBuckets: 10000}},
		{RateLimit: &RateLimitFilter{Rate: 7, Burst: 9, By: LimitByRoute, MaxBuckets: 10000}},
		{RateLimit: &RateLimitFilter{Rate: 8, Burst: 8, By: LimitByRoute, MaxBuckets: 10000}},
		{Fault: &FaultFilter{Delay: &Delay{Duration(time.Second), 10000}, Abort: &Abort{"ERROR", 10000}}},
	}
	if diff := cmp.Diff(want, slices.Concat(c.Listeners[0].Filters, c.Routes[0].Rules[0].Filters)); diff != "" {
		t.Errorf("the filters differ (-want +got):\n%s", diff)
	}
	log := &AccessLog{Path: PathStderr, Format: FormatJSON, Fields: LogFields(), Sample: 10000, Only: OnlyAll, Buffer: 8192}
	if diff := cmp.Diff(log, c.AccessLog); diff != "" {
		t.Errorf("the access log differs (-want +got):\n%s", diff)
	}
	if c, err = Parse([]byte(file + "format: text}")); err != nil {
		t.Fatal(err)
	}
	log.Format, log.Fields, log.Template = FormatText, nil, c.AccessLog.Template
	if diff := cmp.Diff(log, c.AccessLog); diff != "" || log.Template == "" {
		t.Errorf("the access log in text has the template %q and differs (-want +got):\n%s", log.Template, diff)
	}
	c.AccessLog.Format = FormatJSON
	if err := c.Validate(); err == nil || err.Error() != "access_log.fields: is missing or empty: format: json needs it\n"+
		"access_log.template: has a meaning only with format: text" {
		t.Errorf("a log in JSON with a template and without fields: %v", err)
	}
}

func TestTrial(t *testing.T) {
	c := Trial()
	roundTrip(t, c)
	got := []Address{c.Listeners[0].Address, c.Clusters[0].Endpoints[0].Address, c.Admin.TCP.Address, c.Metrics.Address}
	want := []Address{"127.0.0.1:12220", "127.0.0.1:12221", "127.0.0.1:12280", "127.0.0.1:12290"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the trial's addresses differ (-want +got):\n%s", diff)
	}
	if c.Log != (Log{LevelInfo, FormatText}) {
		t.Errorf("the trial logs %+v, want text at info", c.Log)
	}
}

// A default list belongs to one rule only.
func TestDefaultsAreNotShared(t *testing.T) {
	a, b := Trial(), Trial()
	a.Routes[0].Rules[0].Retry.On[0] = "changed"
	if got := b.Routes[0].Rules[0].Retry.On[0]; got != ConnectFailure {
		t.Errorf("changing one tree changed another: got %s, want %s", got, ConnectFailure)
	}
}

func TestValidateChangedTree(t *testing.T) {
	c := Trial()
	c.Listeners[0].WriteTimeout = None
	c.Listeners[0].MaxFrame = 1
	c.Routes[0].Rules[0].Cluster = "trail"
	c.Clusters[0].Endpoints = nil
	c.Metrics.Address = ""
	want := strings.Join([]string{
		"listeners[0] (trial).max_frame: 1 is out of range: 64KiB to 256MiB",
		"listeners[0] (trial).write_timeout: none is not allowed here: this bound cannot be switched off",
		`routes[0] (trial).rules[0].cluster: there is no cluster "trail" (did you mean trial?)`,
		"clusters[0] (trial): one of endpoints, discovery must be there",
		"metrics.address: is missing",
	}, "\n")
	err := c.Validate()
	if err == nil {
		t.Fatal("a broken tree is valid")
	}
	if diff := cmp.Diff(want, err.Error()); diff != "" {
		t.Errorf("the faults differ (-want +got):\n%s", diff)
	}
	faults, _ := errors.AsType[*Errors](err)
	if got, want := faults.Faults[2].Pointer, "/routes/0/rules/0/cluster"; got != want {
		t.Errorf("the JSON pointer is %s, want %s", got, want)
	}
}

func TestPointerEscapes(t *testing.T) {
	_, err := Parse([]byte(`{"a/b~c": 1, "listeners": [{"name": "x"}]}`))
	faults, _ := errors.AsType[*Errors](err)
	last := faults.Faults[len(faults.Faults)-1]
	if last.Pointer != "/a~1b~0c" || last.Path != `"a/b~c"` {
		t.Errorf("a strange key stands at %s, %s", last.Pointer, last.Path)
	}
}

func TestLoadMissingFile(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "none.yaml"))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("loading a file that is not there: %v, want %v", err, fs.ErrNotExist)
	}
	if _, err := Load(t.TempDir()); err == nil {
		t.Error("a folder was loaded as a file")
	}
}

// Files that are made to cost much are refused, and soon.
func TestHostileFiles(t *testing.T) {
	const mib = 1 << 20
	header := "listeners: [{name: a, address: ':0', protocol: bolt}]\n" +
		"clusters: [{name: c, protocol: bolt, endpoints: [{address: 'a:1'}]}]\n"
	tests := []struct{ name, text, want string }{
		{"too large", strings.Repeat(" ", maxFile+1), "larger than 16MiB"},
		{"many values", "[" + strings.Repeat("1,", mib) + "1]", "1048577 of the characters"},
		{"many empty values", strings.Repeat("a:\n", mib), "1048576 of the characters"},
		{"flow nesting", strings.Repeat("[", mib/2), "exceeded max depth"},
		{"block nesting", strings.Repeat("- ", mib/2), "exceeded max depth"},
		{"mapping nesting", strings.Repeat("{a: ", mib/4), "exceeded max depth"},
		{"JSON nesting", strings.Repeat("[", 9000) + strings.Repeat("]", 9000), "must hold a mapping"},
		{"long key", `{"` + strings.Repeat("k", mib) + `": 1}`, "there is no such field"},
		{"long value", header + "routes: " + strings.Repeat("v", mib), "must be a list, not text"},
		{"many faults", header + "routes:\n" + strings.Repeat("- {}\n", 50000), "more faults"},
		{"many wrong clusters", header + "routes: [{name: r, rules: [" + strings.Repeat("{cluster: x},", 20000) + "]}]", "more faults"},
		{"many headers", header + "routes: [{name: r, rules: [{cluster: c, match: {header: {" +
			strings.Repeat("x", 10) + ": a," + manyKeys(1000) + "}}}]}]", "names 1001 keys"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse([]byte(tt.text))
			if err == nil {
				t.Fatal("a hostile file was accepted")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("the error does not say %q:\n%.500s", tt.want, err)
			}
			if faults := strings.Split(err.Error(), "\n"); len(faults) > maxFaults+1 {
				t.Errorf("%d faults were reported, want at most %d", len(faults), maxFaults+1)
			}
			for line := range strings.Lines(err.Error()) {
				if len(line) > 500 {
					t.Errorf("a fault has %d bytes: %.100s", len(line), line)
				}
			}
		})
	}
}

func manyKeys(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString("k" + strings.Repeat("x", i%5) + string(rune('a'+i%26)) + strings.Repeat("y", i/26) + ": a,")
	}
	return b.String()
}

// Warnings about rules stay cheap where each rule must be held against all before it.
func TestManyRules(t *testing.T) {
	var b strings.Builder
	b.WriteString("listeners: [{name: a, address: ':0', protocol: bolt}]\n" +
		"clusters: [{name: c, protocol: bolt, endpoints: [{address: 'a:1'}]}]\nroutes:\n- name: r\n  rules:\n")
	for i := range 5000 {
		b.WriteString("  - {cluster: c, match: {header: {a: same, b: '" + ruleName(i) + "'}}}\n")
	}
	b.WriteString("  - {cluster: c, match: {header: {a: same, b: rule-7, c: x}}}\n")
	c, err := Parse([]byte(b.String()))
	if err != nil {
		t.Fatal(err)
	}
	w := c.Warnings()
	if len(w) != 1 || w[0].String() != "routes[0] (r).rules[5000]: never matches: rules[6] takes all of it before" {
		t.Errorf("the warnings are %v, want one about the last rule", w)
	}
}
