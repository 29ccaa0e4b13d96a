package server

import (
	"errors"
	"fmt"
	"maps"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/route"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/server/config"
)

// Request is as much of a request as decides where it goes.
type Request struct {
	// Listener is the one at which it arrives; empty means all, one after the other.
	Listener string
	// Headers are all that it has, config.ServiceKey and config.MethodKey among them.
	Headers map[string]string
}

// Explanation says what becomes of a request. Durations are as a configuration has them, shares are fractions of 1.
type Explanation struct {
	Headers   map[string]string   `json:"headers"`
	Matched   bool                `json:"matched"` // at one listener at least
	Listeners []ListenerExplained `json:"listeners"`
}

// ListenerExplained is what becomes of a request that arrives at one listener. Rule is nil when none matches; Status is
// then what the request is answered.
type ListenerExplained struct {
	Name        string            `json:"name"`
	Address     string            `json:"address"`
	Protocol    string            `json:"protocol"`
	Routes      string            `json:"routes"`
	Connections []FilterExplained `json:"connection_filters"`
	Filters     []FilterExplained `json:"filters"`     // that see it before the route is known, in order
	PassedOver  []RulePassedOver  `json:"passed_over"` // the rules before the one that matches
	Rules       int               `json:"rules"`       // in the route table
	Rule        *RuleExplained    `json:"rule"`
	Status      string            `json:"status,omitempty"`
}

// RulePassedOver is a rule that does not match. Number is its place, counted from 1.
type RulePassedOver struct {
	Name   string `json:"name"`
	Number int    `json:"number"`
	Why    string `json:"why"`
}

// RuleExplained is the rule that matches, and what it does. It has Clusters, or answers with Status.
type RuleExplained struct {
	Name     string             `json:"name"`
	Number   int                `json:"number"`
	Why      string             `json:"why"`
	Filters  []FilterExplained  `json:"filters"` // that see the request and its route, in order
	RunsOn   string             `json:"runs_on"` // read loop, or worker
	Status   string             `json:"status,omitempty"`
	Clusters []ClusterExplained `json:"clusters,omitempty"`
	Headers  []string           `json:"headers,omitempty"` // changed each time that it is sent, in words
	Timeout  string             `json:"timeout,omitempty"` // the longest that it may take
	Retry    *config.Retry      `json:"retry,omitempty"`
}

// ClusterExplained is a cluster to which a rule leads.
type ClusterExplained struct {
	Name      string            `json:"name"`
	Share     float64           `json:"share"` // of the rule's requests
	Balancer  string            `json:"balancer"`
	Endpoints []config.Endpoint `json:"endpoints"`
	Discovery *config.Discovery `json:"discovery,omitempty"` // where they are found, which is not asked
}

// Where exchanges run.
const (
	onReadLoop = "read loop"
	onWorker   = "worker"
)

// Explain says what a valid configuration makes of a request: it asks the same rules as the road, and opens nothing. An
// error is a *ConfigError.
func Explain(c *config.Config, r Request) (*Explanation, error) {
	spec, err := Spec(c)
	if err != nil {
		return nil, &ConfigError{err}
	}
	e := &explainer{c: c, clusters: map[string]*config.Cluster{}, tables: map[string]*table{}}
	for i := range c.Clusters {
		e.clusters[c.Clusters[i].Name] = &c.Clusters[i]
	}
	var errs []error
	for i := range c.Routes {
		e.tables[c.Routes[i].Name] = &table{&c.Routes[i], &spec.Routes[i]}
		// What no road can be built of is not explained either.
		if _, err := route.New(matches(&spec.Routes[i])); err != nil {
			errs = append(errs, fmt.Errorf("route table %s: %w", c.Routes[i].Name, err))
		}
	}
	if len(errs) > 0 {
		return nil, &ConfigError{errors.Join(errs...)}
	}
	out := &Explanation{Headers: r.Headers, Listeners: []ListenerExplained{}}
	for i := range c.Listeners {
		if r.Listener != "" && r.Listener != c.Listeners[i].Name {
			continue
		}
		l := e.listener(&c.Listeners[i], &spec.Listeners[i], r.Headers)
		out.Matched = out.Matched || l.Rule != nil
		out.Listeners = append(out.Listeners, l)
	}
	return out, nil
}

func matches(spec *forwarder.RouteSpec) []route.Match {
	out := make([]route.Match, len(spec.Rules))
	for i := range spec.Rules {
		out[i] = spec.Rules[i].Match
	}
	return out
}

// explainer is a configuration whose names are resolved.
type explainer struct {
	c        *config.Config
	clusters map[string]*config.Cluster
	tables   map[string]*table
}

// table is a route table as the configuration and as the road has it.
type table struct {
	c    *config.RouteTable
	spec *forwarder.RouteSpec
}

// listener follows the request from a listener to a rule. Filters change headers on the way, so each step sees what the
// one before has left.
func (e *explainer) listener(l *config.Listener, spec *forwarder.ListenerSpec, headers map[string]string) ListenerExplained {
	out := ListenerExplained{
		Name: l.Name, Address: string(l.Address), Protocol: string(l.Protocol), Routes: l.Routes,
		Connections: connectionsExplained(l.ConnectionFilters),
		Filters:     []FilterExplained{}, PassedOver: []RulePassedOver{},
	}
	seen := maps.Clone(headers)
	if seen == nil {
		seen = map[string]string{}
	}
	after := []FilterExplained{}
	var late []*config.Filter // at the listener, but asked when the route is known
	for i := range l.Filters {
		if beforeRoute(spec.Filters[i]) {
			out.Filters = append(out.Filters, explainFilter(&l.Filters[i], atListener, seen))
		} else {
			late = append(late, &l.Filters[i])
		}
	}

	t := e.tables[l.Routes]
	out.Rules = len(t.c.Rules)
	value := func(key string) (string, bool) {
		v, ok := seen[key]
		return v, ok
	}
	for i := range t.c.Rules {
		rule := &t.c.Rules[i]
		ok, why := t.spec.Rules[i].Match.Explain(value)
		if !ok {
			out.PassedOver = append(out.PassedOver, RulePassedOver{rule.Name, i + 1, why})
			continue
		}
		for _, f := range late {
			after = append(after, explainFilter(f, atListener, seen))
		}
		for j := range rule.Filters {
			after = append(after, explainFilter(&rule.Filters[j], atRule, seen))
		}
		out.Rule = e.rule(rule, &t.spec.Rules[i])
		out.Rule.Number, out.Rule.Why, out.Rule.Filters = i+1, why, after
		if l.Forwarding == config.ForwardWorker || l.Forwarding == config.ForwardAuto &&
			filter.NewChain(spec.Filters, t.spec.Rules[i].Filters).Blocks() {
			out.Rule.RunsOn = onWorker
		}
		return out
	}
	out.Status = wire.NoProcessor.String()
	return out
}

// beforeRoute says whether a filter sees requests before their route is known, or sees replies only.
func beforeRoute(f filter.Filter) bool {
	switch f.(type) {
	case filter.AfterRoute, filter.BlockingAfterRoute:
		return false
	}
	return true
}

// rule says where a rule leads.
func (e *explainer) rule(r *config.Rule, spec *forwarder.RuleSpec) *RuleExplained {
	out := &RuleExplained{Name: r.Name, RunsOn: onReadLoop}
	if r.Reply != nil {
		out.Status = string(r.Reply.Status)
		return out
	}
	sum := 0
	for _, s := range spec.Clusters {
		sum += s.Weight
	}
	for _, s := range spec.Clusters {
		k := e.clusters[s.Cluster]
		out.Clusters = append(out.Clusters, ClusterExplained{
			Name: k.Name, Share: float64(s.Weight) / float64(sum), Balancer: string(k.Balancer), Endpoints: append([]config.Endpoint{}, k.Endpoints...),
			Discovery: k.Discovery,
		})
	}
	out.Headers = editsInWords(edits(&r.Headers))
	out.Timeout = min(r.Timeout, e.c.MaxTimeout).String()
	out.Retry = &r.Retry
	return out
}
