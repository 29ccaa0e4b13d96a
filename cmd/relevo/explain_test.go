package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/relevo-proxy/relevo/server"
	"github.com/relevo-proxy/relevo/server/config"
)

const explainConfig = `
listeners:
  - {name: client, address: "127.0.0.1:12220", protocol: bolt, routes: rpc,
     connection_filters: [{source: {deny: [10.0.0.0/8]}}], filters: [{rate_limit: {rate: 1000}}]}
  - {name: other, address: "127.0.0.1:12221", protocol: bolt, routes: other}
routes:
  - name: rpc
    rules:
      - {name: canary, match: {service: {prefix: com.example.}, header: {zone: "1"}}, cluster: order}
      - {match: {service: {prefix: com.example.}}, clusters: [{cluster: order, weight: 2}, {cluster: stock, weight: 1}],
         headers: {set: {via: relevo}}, timeout: 500ms, retry: {attempts: 1},
         filters: [{fault: {match: {method: get}, abort: {status: TIMEOUT}}}]}
      - {name: closed, match: {service: closed}, reply: {status: ERROR}}
  - {name: other, rules: [{name: all, match: {service: {regex: "org[.].*"}}, cluster: stock}]}
clusters:
  - {name: order, protocol: bolt, endpoints: [{address: "127.0.0.1:12200"}, {address: "127.0.0.1:12201", weight: 50}, {address: "127.0.0.1:12202", drain: true}]}
  - {name: stock, protocol: bolt, balancer: round-robin, endpoints: [{address: "127.0.0.1:12210"}]}
`

func TestExplainText(t *testing.T) {
	const client = `listener client at 127.0.0.1:12220, protocol bolt, route table rpc
  clients      source: deny 10.0.0.0/8
  filter       rate_limit: let 1000 a second pass, 1000 at once, of all at this listener
`
	for _, c := range []struct {
		args, out, errOut string
		status            int
	}{
		{
			"--service com.example.Order:1.0 --method find --listener client", client +
				`  passed over  canary (1 of 3): header zone is absent, want exactly "1"
  rule         rule-2 (2 of 3): service is "com.example.Order:1.0", with prefix "com.example."
  filter       fault: answer 100% of the requests with TIMEOUT; not this one: method is "find", want exactly "get"
  cluster      order, 66.67% of the requests, least-request
               127.0.0.1:12200, weight 100
               127.0.0.1:12201, weight 50
               127.0.0.1:12202, drains
  cluster      stock, 33.33% of the requests, round-robin
               127.0.0.1:12210, weight 100
  header       set via to "relevo"
  timeout      500ms, or less if the request says so
  retry        none
  runs on      a read loop
`, "", exitDone,
		},
		{
			"--service com.example.Order:1.0 --header zone=1 --listener client", client +
				`  rule         canary (1 of 3): service is "com.example.Order:1.0", with prefix "com.example."; header zone is exactly "1"
  cluster      order, 100% of the requests, least-request
               127.0.0.1:12200, weight 100
               127.0.0.1:12201, weight 50
               127.0.0.1:12202, drains
  timeout      3s, or less if the request says so
  retry        2 tries at most, after connect-failure and reset-before-send
  runs on      a read loop
`, "", exitDone,
		},
		{
			"--service closed", client +
				`  passed over  canary (1 of 3): service is "closed", want prefix "com.example."; header zone is absent, want exactly "1"
  passed over  rule-2 (2 of 3): service is "closed", want prefix "com.example."
  rule         closed (3 of 3): service is exactly "closed"
  answered     ERROR here
  runs on      a read loop

listener other at 127.0.0.1:12221, protocol bolt, route table other
  passed over  all (1 of 1): service is "closed", want regex "org[.].*"
  answered     NO_PROCESSOR here, because no rule matches
`, "", exitDone,
		},
		{
			"--service closed --listener other",
			`listener other at 127.0.0.1:12221, protocol bolt, route table other
  passed over  all (1 of 1): service is "closed", want regex "org[.].*"
  answered     NO_PROCESSOR here, because no rule matches
`, "relevo: no rule matches\n", exitFailed,
		},
	} {
		status, out, errOut := relevo(t, explainConfig, append([]string{"explain", "-c", "-"}, strings.Fields(c.args)...)...)
		if status != c.status || errOut != c.errOut {
			t.Errorf("explain %s: exit status %d and %q on stderr, want %d and %q", c.args, status, errOut, c.status, c.errOut)
		}
		if diff := cmp.Diff(c.out, out); diff != "" {
			t.Errorf("explain %s (-want +got):\n%s", c.args, diff)
		}
	}
}

func TestExplainJSON(t *testing.T) {
	for _, c := range []struct {
		args    string
		status  int
		matched bool
	}{
		{"--service com.example.Order:1.0 -o json", exitDone, true},
		{"--service nobody --format json", exitFailed, false},
	} {
		status, out, _ := relevo(t, explainConfig, append([]string{"explain", "-c", "-"}, strings.Fields(c.args)...)...)
		var got server.Explanation
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			t.Fatalf("explain %s: %v in %q", c.args, err, out)
		}
		if status != c.status || got.Matched != c.matched || len(got.Listeners) != 2 || len(got.Listeners[0].PassedOver) == 0 {
			t.Errorf("explain %s: exit status %d, %+v; want %d, matched %v, both listeners, rules passed over", c.args, status, got, c.status, c.matched)
		}
	}
}

// A long list is not printed where nobody reads it: before the rule that matches. Without one, all of it is the answer.
func TestExplainOfManyRules(t *testing.T) {
	var rules, endpoints []string
	for i := range 100 {
		rules = append(rules, fmt.Sprintf("{match: {service: s%d}, cluster: a}", i))
		endpoints = append(endpoints, fmt.Sprintf(`{address: "127.0.0.1:%d"}`, 1000+i))
	}
	file := fileWith(t, fmt.Sprintf(`
listeners: [{name: client, address: "127.0.0.1:12220", protocol: bolt}]
routes: [{name: rpc, rules: [%s]}]
clusters: [{name: a, protocol: bolt, endpoints: [%s]}]
`, strings.Join(rules, ", "), strings.Join(endpoints, ", ")))
	_, out, _ := relevo(t, "", "explain", "-c", file, "--service", "s99")
	for _, want := range []string{
		"passed over  89 rules, and\n", "rule-99 (99 of 100)", "rule-90 (90 of 100)", "rule         rule-100 (100 of 100)",
		"127.0.0.1:1009, weight 100\n               and 90 more endpoints\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the last of 100 rules: want %q in\n%s", want, out)
		}
	}
	if strings.Contains(out, "rule-89 ") {
		t.Errorf("rule-89 is shown, but only the last %d rules before the match should be:\n%s", maxPassedOver, out)
	}
	_, out, _ = relevo(t, "", "explain", "-c", file, "--service", "s100")
	if got := strings.Count(out, "passed over"); got != 100 {
		t.Errorf("no rule matches, and %d of 100 reasons are shown:\n%s", got, out)
	}
}

func TestRetryInWords(t *testing.T) {
	for want, r := range map[string]*config.Retry{
		"none":                                  {Attempts: 1, On: []config.RetryOn{config.Busy}},
		"2 tries at most, after busy":           {Attempts: 2, On: []config.RetryOn{config.Busy}},
		"2 tries at most, after reset and busy": {Attempts: 2, On: []config.RetryOn{config.Reset, config.Busy}},
		"3 tries at most, after reset, busy and timeout; 500ms each, but the last": {
			Attempts: 3, On: []config.RetryOn{config.Reset, config.Busy, config.TryTimeout}, PerTryTimeout: config.Duration(500 * time.Millisecond),
		},
	} {
		if got := retryInWords(r); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
