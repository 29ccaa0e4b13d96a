package server_test

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/relevo-proxy/relevo/server"
	"github.com/relevo-proxy/relevo/server/config"
)

// manyRules has all that a request can meet on its way to an endpoint; parse takes it.
const manyRules = `
listeners:
  - name: in
    address: "127.0.0.1:12220"
    protocol: bolt
    routes: rpc
    connection_filters: [{source: {allow: [127.0.0.0/8], deny: [127.0.0.9]}}]
    filters:
      - headers: {request: {set: {zone: gray}, add: {tenant: nobody}, remove: [debug]}, reply: {remove: [server]}}
      - rate_limit: {rate: 5, burst: 7, by: route}
      - rate_limit: {rate: 1000, by: header, header: tenant}
  - {name: plain, address: "unix:/run/relevo/plain.sock", protocol: bolt, routes: rpc, forwarding: worker}
  - {name: strict, address: "127.0.0.1:12221", protocol: auto, routes: strict}
routes:
  - name: rpc
    rules:
      - {name: gray, match: {service: order, header: {zone: gray}}, cluster: a, timeout: 1h,
         filters: [{headers: {request: {set: {chosen: "yes"}}}},
                   {fault: {match: {header: {chosen: "yes"}}, delay: {time: 20ms, percent: 5%%}}},
                   {fault: {match: {header: {debug: {prefix: ""}}}, abort: {status: TIMEOUT, percent: 0.5%%}}}],
         headers: {set: {via: relevo}, add: {hop: "1"}, remove: [tenant]}}
      - {match: {service: {prefix: ord}}, clusters: [{cluster: a, weight: 3}, {cluster: b, weight: 1}], retry: {attempts: 1}}
      - {name: last, reply: {status: ERROR}}
  - name: strict
    rules: [{name: only, match: {method: {regex: "(get|list).*"}, service: order}, cluster: b}]
clusters:
  - {name: a, protocol: bolt, endpoints: [{address: "127.0.0.1:12200"}, {address: "127.0.0.1:12201", weight: 50}]}
  - {name: b, protocol: bolt, balancer: round-robin, endpoints: [{address: "unix:/run/b.sock"}]}
`

var (
	endpointsOfA = []config.Endpoint{{Address: "127.0.0.1:12200", Weight: 100}, {Address: "127.0.0.1:12201", Weight: 50}}
	endpointsOfB = []config.Endpoint{{Address: "unix:/run/b.sock", Weight: 100}}
)

func explain(t *testing.T, c *config.Config, listener string, headers ...string) *server.Explanation {
	t.Helper()
	r := server.Request{Listener: listener, Headers: map[string]string{}}
	for i := 0; i < len(headers); i += 2 {
		r.Headers[headers[i]] = headers[i+1]
	}
	given := maps.Clone(r.Headers)
	e, err := server.Explain(c, r)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(given, e.Headers); diff != "" {
		t.Errorf("the headers of the request have changed (-given +explained):\n%s", diff)
	}
	return e
}

// The rules see the headers that the listener's filters leave behind, and the rule's filters those of each other.
func TestExplainFollowsTheRequest(t *testing.T) {
	e := explain(t, parse(t, manyRules), "in", "service", "order", "zone", "1", "debug", "x")
	want := &server.Explanation{
		Headers: map[string]string{"service": "order", "zone": "1", "debug": "x"},
		Matched: true,
		Listeners: []server.ListenerExplained{{
			Name: "in", Address: "127.0.0.1:12220", Protocol: "bolt", Routes: "rpc",
			Connections: []server.FilterExplained{{Name: "source", At: "listener", Does: "allow 127.0.0.0/8; deny 127.0.0.9"}},
			Filters: []server.FilterExplained{
				{Name: "headers", At: "listener", Does: `set zone to "gray", add tenant "nobody" if absent, remove debug; on the reply remove server`},
				{Name: "rate_limit", At: "listener", Does: `let 1000 a second pass, 1000 at once, of all with header tenant "nobody"`},
			},
			PassedOver: []server.RulePassedOver{},
			Rules:      3,
			Rule: &server.RuleExplained{
				Name: "gray", Number: 1, Why: `service is exactly "order"; header zone is exactly "gray"`,
				Filters: []server.FilterExplained{
					{Name: "rate_limit", At: "listener", Does: "let 5 a second pass, 7 at once, of all with this rule"},
					{Name: "headers", At: "rule", Does: `set chosen to "yes"`},
					{Name: "fault", At: "rule", Does: "delay 5% of the requests by 20ms"},
					{
						Name: "fault", At: "rule", Does: "answer 0.5% of the requests with TIMEOUT",
						Skip: `header debug is absent, want prefix ""`,
					},
				},
				RunsOn:   "worker", // a delay blocks
				Clusters: []server.ClusterExplained{{Name: "a", Share: 1, Balancer: "least-request", Endpoints: endpointsOfA}},
				Headers:  []string{`set via to "relevo"`, `add hop "1" if absent`, "remove tenant"},
				Timeout:  "10m", // max_timeout
				Retry:    &config.Defaults().Routes[0].Rules[0].Retry,
			},
		}},
	}
	if diff := cmp.Diff(want, e); diff != "" {
		t.Errorf("Explain (-want +got):\n%s", diff)
	}
}

func TestExplainShares(t *testing.T) {
	e := explain(t, parse(t, manyRules), "plain", "service", "orders")
	r := e.Listeners[0].Rule
	if r == nil || r.Name != "rule-2" || r.RunsOn != "worker" || r.Retry.Attempts != 1 {
		t.Fatalf("got %+v, want rule-2, on a worker as the listener says, in one attempt", r)
	}
	want := []server.ClusterExplained{
		{Name: "a", Share: 0.75, Balancer: "least-request", Endpoints: endpointsOfA},
		{Name: "b", Share: 0.25, Balancer: "round-robin", Endpoints: endpointsOfB},
	}
	if diff := cmp.Diff(want, r.Clusters); diff != "" {
		t.Errorf("clusters (-want +got):\n%s", diff)
	}
	wantOver := []server.RulePassedOver{{
		Name: "gray", Number: 1, Why: `service is "orders", want exactly "order"; header zone is absent, want exactly "gray"`,
	}}
	if diff := cmp.Diff(wantOver, e.Listeners[0].PassedOver); diff != "" {
		t.Errorf("rules passed over (-want +got):\n%s", diff)
	}
}

func TestExplainAnswers(t *testing.T) {
	c := parse(t, manyRules)
	e := explain(t, c, "", "service", "stock")
	if len(e.Listeners) != 3 || !e.Matched {
		t.Fatalf("got %d listeners, matched %v; want all 3, and a match at the first two", len(e.Listeners), e.Matched)
	}
	first, last := e.Listeners[0], e.Listeners[2]
	if r := first.Rule; r == nil || r.Name != "last" || r.Number != 3 || r.Status != "ERROR" || r.Why != "it takes everything" ||
		r.Clusters != nil || r.Timeout != "" || r.Retry != nil || r.RunsOn != "read loop" || first.Status != "" {
		t.Errorf("at the first listener: got %+v, want the answer ERROR of the last rule", r)
	}
	if last.Rule != nil || last.Status != "NO_PROCESSOR" || len(last.PassedOver) != 1 ||
		last.PassedOver[0].Why != `service is "stock", want exactly "order"; method is absent, want regex "(get|list).*"` {
		t.Errorf("at the last listener: got %+v, want no rule, and why", last)
	}
	if e := explain(t, c, "strict", "service", "stock"); e.Matched {
		t.Error("a request that no rule matches is called matched")
	}
	if e := explain(t, c, "strict", "service", "order", "sofa_head_method_name", "getAll"); !e.Matched {
		t.Errorf("got %+v, want the rule that asks for the method", e.Listeners[0])
	}
}

// What the road would refuse is refused here as well.
func TestExplainRefuses(t *testing.T) {
	c := parse(t, manyRules)
	c.Routes[1].Rules[0].Match.Header = map[string]config.Text{config.ServiceKey: config.Exactly("stock")}
	_, err := server.Explain(c, server.Request{})
	want := `route table strict: rule 0: service is asked for exactly "order" and exactly "stock", which never hold both`
	if e, ok := errors.AsType[*server.ConfigError](err); !ok || e.Error() != want {
		t.Errorf("a rule that cannot match: got %v, want a configuration error %q", err, want)
	}
	c = parse(t, manyRules)
	c.Listeners[0].Filters[0] = config.Filter{}
	if _, err = server.Explain(c, server.Request{}); err == nil || !strings.Contains(err.Error(), "listener in: filter 0: ") {
		t.Errorf("a filter that is none: got %v, want an error that names it", err)
	}
}

func TestExplainCountsWhatIsTooMuchToRead(t *testing.T) {
	c := parse(t, manyRules)
	allow := &c.Listeners[0].ConnectionFilters[0].Source.Allow
	*allow = nil
	for i := range 20 {
		*allow = append(*allow, config.Prefix(fmt.Sprintf("10.0.0.%d", i)))
	}
	does := explain(t, c, "in").Listeners[0].Connections[0].Does
	if want := "10.0.0.6, 10.0.0.7, and 12 more; deny 127.0.0.9"; !strings.HasSuffix(does, want) {
		t.Errorf("got %s, want the end to be %s", does, want)
	}
}
