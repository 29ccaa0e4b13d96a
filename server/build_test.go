package server_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/route"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/server"
	"github.com/relevo-proxy/relevo/server/config"
)

func spec(t *testing.T, yaml string) *forwarder.Spec {
	t.Helper()
	s, err := server.Spec(parse(t, "%s", yaml))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const rules = `
listeners: [{name: in, address: "127.0.0.1:0", protocol: bolt}]
clusters:
- {name: a, protocol: bolt, endpoints: [{address: "127.0.0.1:1"}]}
- {name: b, protocol: bolt, endpoints: [{address: "127.0.0.1:2"}], max_age: 1h, max_uploads: 3}
`

func TestSpecOfRules(t *testing.T) {
	s := spec(t, rules+`
routes:
- name: rpc
  rules:
  - match: {service: {prefix: com.}, method: get, header: {z: "", a: {regex: "x|y"}}}
    clusters: [{cluster: a, weight: 90}, {cluster: b, weight: 10}]
    headers: {set: {k2: v2, k1: v1}, add: {k3: ""}, remove: [k5, k4]}
    filters: [{headers: {reply: {remove: [x]}}}, {rate_limit: {rate: 1}}]
  - {cluster: b, timeout: 1s, retry: {attempts: 3, on: [reset-before-send]}}
  - reply: {status: SERVER_THREADPOOL_BUSY}
`)
	got := s.Routes[0].Rules
	var names []string
	for _, f := range got[0].Filters {
		names = append(names, f.Name())
	}
	if diff := cmp.Diff([]string{"headers", "rate_limit"}, names); diff != "" {
		t.Errorf("the filters of the first rule differ (-want +got):\n%s", diff)
	}
	got[0].Filters = nil
	edit := func(op wire.EditOp, key string, value string) wire.Edit {
		e := wire.Edit{Op: op, Key: []byte(key)}
		if op != wire.RemoveHeader {
			e.Value = []byte(value)
		}
		return e
	}
	both := forwarder.RetryConnectFailure | forwarder.RetryResetBeforeSend
	want := []forwarder.RuleSpec{
		{
			Name: "rule-1", Timeout: 3 * time.Second, Attempts: 2, RetryOn: both,
			Match: route.Match{
				Service: route.Text{Kind: route.Prefix, Value: "com."}, Method: route.Exactly("get"),
				Headers: []route.Header{{Key: "a", Text: route.Text{Kind: route.Regex, Value: "x|y"}}, {Key: "z", Text: route.Exactly("")}},
			},
			Clusters: []forwarder.Share{{Cluster: "a", Weight: 90}, {Cluster: "b", Weight: 10}},
			Headers: []wire.Edit{
				edit(wire.SetHeader, "k1", "v1"), edit(wire.SetHeader, "k2", "v2"), edit(wire.AddHeader, "k3", ""),
				edit(wire.RemoveHeader, "k5", ""), edit(wire.RemoveHeader, "k4", ""),
			},
		},
		{
			Name: "rule-2", Timeout: time.Second, Attempts: 3, RetryOn: forwarder.RetryResetBeforeSend,
			Clusters: []forwarder.Share{{Cluster: "b", Weight: 1}},
		},
		{Name: "rule-3", Timeout: 3 * time.Second, Attempts: 2, RetryOn: both, Reply: wire.Busy},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the rules differ (-want +got):\n%s", diff)
	}
	if a, b := s.Clusters[0], s.Clusters[1]; a.MaxAge != 0 || a.MaxUploads != 16 || b.MaxAge != time.Hour || b.MaxUploads != 3 {
		t.Errorf("the clusters have the ages %v and %v and %d and %d uploads, want 0s, 1h, 16 and 3", a.MaxAge, b.MaxAge, a.MaxUploads, b.MaxUploads)
	}
}

// Every status that a configuration may name is answered by that name.
func TestSpecOfStatuses(t *testing.T) {
	for status := range wire.NumStatus {
		if status == wire.Other {
			continue
		}
		s := spec(t, rules+"routes: [{name: rpc, rules: [{reply: {status: "+status.String()+"}}]}]\n")
		if r := s.Routes[0].Rules[0]; r.Reply != status || len(r.Clusters) > 0 {
			t.Errorf("a reply with %v becomes one with %v, and clusters %v", status, r.Reply, r.Clusters)
		}
	}
}

const listeners = `
routes: [{name: rpc, rules: [{cluster: a}]}]
clusters: [{name: a, protocol: bolt, endpoints: [{address: "127.0.0.1:1"}]}]
listeners:
- {name: plain, address: "127.0.0.1:0", protocol: bolt}
- name: all
  address: "127.0.0.1:0"
  protocol: auto
  detect_timeout: 1s
  forwarding: worker
  stream_above: 64KiB
  connection_filters: [{source: {allow: [10.0.0.0/8, 127.0.0.1], deny: [10.1.0.0/16]}}]
  filters: [{fault: {delay: {time: 1s}}}, {fault: {abort: {status: ERROR}}}, {headers: {request: {set: {a: b}}}}, {rate_limit: {rate: 5}}]
- {name: never, address: "127.0.0.1:0", protocol: bolt, forwarding: inline, stream_above: none}
`

func TestSpecOfListeners(t *testing.T) {
	s := spec(t, listeners)
	for i, want := range []struct {
		forwarding  forwarder.Forwarding
		detect      time.Duration
		streamAbove int
		filters     string
	}{
		{forwarder.ForwardAuto, 0, 1 << 20, ""},
		{forwarder.ForwardWorker, time.Second, 64 << 10, "source fault fault headers rate_limit"},
		{forwarder.ForwardInline, 0, 0, ""},
	} {
		l := &s.Listeners[i]
		var names []string
		for _, f := range l.Connection {
			names = append(names, f.Name())
		}
		for _, f := range l.Filters {
			names = append(names, f.Name())
			if !filter.Acts(f, filter.AtListener) {
				t.Errorf("listener %s: the filter %s does nothing there", l.Name, f.Name())
			}
		}
		if l.Forwarding != want.forwarding || l.DetectTimeout != want.detect || l.StreamAbove != want.streamAbove || strings.Join(names, " ") != want.filters {
			t.Errorf("listener %s: forwarding %v, %v to detect, stream above %d, filters %v; want %+v",
				l.Name, l.Forwarding, l.DetectTimeout, l.StreamAbove, names, want)
		}
		if len(l.Codecs) != 1 || l.Codecs[0].Name() != "bolt" {
			t.Errorf("listener %s has %d codecs, want bolt alone", l.Name, len(l.Codecs))
		}
	}
	if !filter.NewChain(s.Listeners[1].Filters[:1], nil).Blocks() {
		t.Error("a delay does not block")
	}
	if filter.NewChain(s.Listeners[1].Filters[1:], nil).Blocks() {
		t.Error("an abort, header changes and a rate limit block")
	}
	for _, tt := range []struct {
		client string
		passes bool
	}{{"10.0.0.1:1", true}, {"127.0.0.1:1", true}, {"127.0.0.2:1", false}, {"10.1.2.3:1", false}} {
		c := s.Listeners[1].Connection[0].New(&filter.Connection{Client: netip.MustParseAddrPort(tt.client)})
		next := c.(filter.OnNew).OnNew()
		if passes := next == filter.Pass; passes != tt.passes {
			t.Errorf("a connection from %s passes: %v, want %v", tt.client, passes, tt.passes)
		}
	}
}

func TestSpecOfWorkers(t *testing.T) {
	auto := min(256*runtime.GOMAXPROCS(0), 65536)
	for _, tt := range []struct {
		yaml string
		want forwarder.WorkersSpec
	}{
		{"{}", forwarder.WorkersSpec{Max: auto, Queue: 1024}},
		{"{max: 3, queue: 7}", forwarder.WorkersSpec{Max: 3, Queue: 7}},
		{"{max: 3, queue: 7, overflow: busy}", forwarder.WorkersSpec{Max: 3}},
	} {
		if got := spec(t, listeners+"workers: "+tt.yaml+"\n").Workers; got != tt.want {
			t.Errorf("workers: %s become %+v, want %+v", tt.yaml, got, tt.want)
		}
	}
}

// What the configuration lets through and the road refuses would be found out at the start only.
func TestSpecOfExamples(t *testing.T) {
	for _, name := range []string{"balancing", "full", "minimal", "overload", "sidecar/both", "sidecar/client", "sidecar/server"} {
		c, err := config.Load("../examples/" + name + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := server.Spec(c); err != nil {
			t.Errorf("examples/%s.yaml: %v", name, err)
		}
	}
}

// A tree that nobody validated is refused, not taken for another one.
func TestSpecOfInvalidTree(t *testing.T) {
	c := config.Trial()
	c.Listeners[0].Filters = make([]config.Filter, 1)
	c.Listeners[0].ConnectionFilters = make([]config.ConnectionFilter, 1)
	c.Routes[0].Rules[0].Reply = &config.DirectReply{Status: "FINE"}
	c.Clusters[0].Protocol = "tr"
	_, err := server.Spec(c)
	want := strings.Join([]string{
		"listener trial: connection filter 0: no filter is named",
		"filter 0: no filter is named",
		`route table trial: rule-1: there is no status "FINE"`,
		`cluster trial: there is no protocol "tr"`,
	}, "\n")
	if diff := cmp.Diff(want, fmt.Sprint(err)); diff != "" {
		t.Errorf("the error differs (-want +got):\n%s", diff)
	}
}
