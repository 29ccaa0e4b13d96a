package server

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/route"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/server/config"
)

// retries are the conditions of a retry.
var retries = map[config.RetryOn]forwarder.RetryOn{
	config.ConnectFailure:  forwarder.RetryConnectFailure,
	config.ResetBeforeSend: forwarder.RetryResetBeforeSend,
}

// priorities say whose requests are refused first.
var priorities = map[config.Priority]forwarder.Priority{
	config.HighPriority: forwarder.PriorityHigh, config.NormalPriority: forwarder.PriorityNormal, config.LowPriority: forwarder.PriorityLow,
}

// textKinds are the ways to compare a text.
var textKinds = map[config.TextForm]route.Kind{
	config.ExactText:  route.Exact,
	config.PrefixText: route.Prefix,
	config.RegexText:  route.Regex,
}

// statuses are the statuses by name, but for the one that stands for all that have none.
var statuses = func() map[config.Status]wire.Status {
	byName := map[config.Status]wire.Status{}
	for s := range wire.NumStatus {
		if s != wire.Other {
			byName[config.Status(s.String())] = s
		}
	}
	return byName
}()

func routeSpec(t *config.RouteTable) (forwarder.RouteSpec, error) {
	out := forwarder.RouteSpec{Name: t.Name}
	var errs []error
	for i := range t.Rules {
		rule, err := ruleSpec(&t.Rules[i])
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", t.Rules[i].Name, err))
		}
		out.Rules = append(out.Rules, rule)
	}
	return out, errors.Join(errs...)
}

func ruleSpec(r *config.Rule) (forwarder.RuleSpec, error) {
	s := forwarder.RuleSpec{
		Name: r.Name, Match: routeMatch(&r.Match), Headers: edits(&r.Headers),
		Timeout: r.Timeout.D(), Attempts: r.Retry.Attempts, MaxRequests: max(0, int(r.MaxRequests)), Priority: priorities[r.Priority],
	}
	for _, on := range r.Retry.On {
		s.RetryOn |= retries[on]
	}
	switch {
	case r.Reply != nil:
		status, ok := statuses[r.Reply.Status]
		if !ok {
			return s, errNoStatus(r.Reply.Status)
		}
		s.Reply = status
	case r.Cluster != "":
		s.Clusters = []forwarder.Share{{Cluster: r.Cluster, Weight: 1}}
	default:
		for _, share := range r.Clusters {
			s.Clusters = append(s.Clusters, forwarder.Share{Cluster: share.Cluster, Weight: share.Weight})
		}
	}
	var err error
	s.Filters, err = exchangeFilters(r.Filters, filter.AtRule)
	return s, err
}

func errNoStatus(s config.Status) error { return fmt.Errorf("there is no status %q", s) }

func routeMatch(m *config.Match) route.Match {
	out := route.Match{Service: routeText(m.Service), Method: routeText(m.Method)}
	for _, key := range slices.Sorted(maps.Keys(m.Header)) {
		out.Headers = append(out.Headers, route.Header{Key: key, Text: routeText(m.Header[key])})
	}
	return out
}

// routeText is t in the road's terms; the zero Text gives the zero Text.
func routeText(t config.Text) route.Text { return route.Text{Kind: textKinds[t.Form], Value: t.Value} }

// edits are the changes in a fixed order, which does not matter: no key is named twice.
func edits(e *config.HeaderEdits) []wire.Edit {
	var out []wire.Edit
	for _, key := range slices.Sorted(maps.Keys(e.Set)) {
		out = append(out, wire.Edit{Op: wire.SetHeader, Key: []byte(key), Value: []byte(e.Set[key])})
	}
	for _, key := range slices.Sorted(maps.Keys(e.Add)) {
		out = append(out, wire.Edit{Op: wire.AddHeader, Key: []byte(key), Value: []byte(e.Add[key])})
	}
	for _, key := range e.Remove {
		out = append(out, wire.Edit{Op: wire.RemoveHeader, Key: []byte(key)})
	}
	return out
}
