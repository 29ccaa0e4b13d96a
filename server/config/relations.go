package config

import (
	"maps"
	"reflect"
	"slices"
)

// relations checks what the fields of one structure say of each other, beyond what tags can tell.
func (v *validator) relations(p place, s reflect.Value) {
	switch s := s.Addr().Interface().(type) {
	case *Rule:
		v.shares(p.field("clusters"), s.Clusters)
		v.retries(p, s)
	case *Match:
		v.match(p, s)
	case *HeaderEdits:
		v.edits(p, s)
	case *SourceFilter:
		v.source(p, s)
	case *OutlierDetection:
		v.ejectionTimes(p, s)
	case *Admin:
		v.unixOnly(p, s)
	case *AdminTCP:
		v.open(p, s)
	case *Overload:
		v.ascending(p, s)
	case *HealthCheck:
		v.check(p, s)
	case *Discovery:
		v.discovery(p, s)
	}
}

// retries reports conditions that are not for every request, and times that do not go together.
func (v *validator) retries(p place, r *Rule) {
	p = p.field("retry")
	for i, on := range r.Retry.On {
		if sent := on == Reset || on == Busy || on == TryTimeout; sent && !r.Idempotent {
			v.report.add(p.field("on").item(i, ""), "%s needs idempotent: true in the rule: the request was sent, and a server may run it twice", on)
		}
	}
	if r.Retry.PerTryTimeout > 0 && !slices.Contains(r.Retry.On, TryTimeout) {
		v.report.add(p.field("per_try_timeout"), "has a meaning only with timeout among on")
	}
	if b := r.Retry.BackOff; b.Base > b.Max {
		v.report.add(p.field("back_off").field("base"), "%v must not be more than max, which is %v", b.Base, b.Max)
	}
}

// ejectionTimes reports a bound that the first ejection would pass.
func (v *validator) ejectionTimes(p place, o *OutlierDetection) {
	if o.MaxEjectionTime < o.EjectionTime && !v.report.has(p.field("ejection_time")) && !v.report.has(p.field("max_ejection_time")) {
		v.report.add(p.field("max_ejection_time"), "%v is less than ejection_time, %v", o.MaxEjectionTime, o.EjectionTime)
	}
}

// unixOnly reports what means nothing without a unix socket.
func (v *validator) unixOnly(p place, a *Admin) {
	for name, value := range map[string]string{"mode": a.Mode, "group": a.Group} {
		if value != "" && a.Address == "" {
			v.report.add(p.field(name), "is about a unix socket, and address is not there")
		}
	}
}

// open reports a door that other hosts reach without a credential, or with one that everybody on the way can read.
func (v *validator) open(p place, t *AdminTCP) {
	switch {
	case t.Address == "" || t.Address.isLoopback():
	case t.ReadOnly():
		v.report.add(p.field("address"), "%s can be reached from other hosts, and this door asks nobody who he is: configure tls, and "+
			"tokens_file or tls.client_ca_file; or use 127.0.0.1, [::1] or localhost", quote(string(t.Address)))
	case t.TLS == nil:
		v.report.add(p.field("address"), "%s can be reached from other hosts, and tokens would go there unencrypted: configure tls; "+
			"or use 127.0.0.1, [::1] or localhost", quote(string(t.Address)))
	}
}

// check reports checks that would not be over when the next one is due.
func (v *validator) check(p place, c *HealthCheck) {
	if c.Timeout > c.Interval && !v.report.has(p.field("interval")) && !v.report.has(p.field("timeout")) {
		v.report.add(p.field("timeout"), "%v is more than interval, which is %v: a check must be over when the next one is due", c.Timeout, c.Interval)
	}
}

// shares reports clusters that a rule names twice.
func (v *validator) shares(p place, shares []Share) {
	seen := map[string]place{}
	for i, s := range shares {
		at := p.item(i, "").field("cluster")
		if first, ok := seen[s.Cluster]; ok && s.Cluster != "" {
			v.report.add(at, "%s stands in the list twice, the first time at %s", quote(s.Cluster), first.path)
			continue
		}
		seen[s.Cluster] = at
	}
}

// match reports conditions that are said twice: they agree or never hold. No service and no method is empty.
func (v *validator) match(p place, m *Match) {
	for _, named := range []struct {
		field, key string
		text       Text
	}{{"service", ServiceKey, m.Service}, {"method", MethodKey, m.Method}} {
		if named.text == Exactly("") {
			v.report.add(p.field(named.field), "must not be empty")
		}
		if _, ok := m.Header[named.key]; ok && named.text != (Text{}) {
			v.report.add(p.field("header").field(named.key), "is what %s stands for: give one of the two", named.field)
		}
	}
}

// edits reports keys that stand in two places: what holds would depend on an order.
func (v *validator) edits(p place, e *HeaderEdits) {
	for _, key := range slices.Sorted(maps.Keys(e.Add)) {
		if _, ok := e.Set[key]; ok {
			v.report.add(p.field("add").field(key), "stands in set as well: a key may be named once")
		}
	}
	for i, key := range e.Remove {
		at := p.field("remove").item(i, "")
		if _, ok := e.Set[key]; ok {
			v.report.add(at, "%s stands in set as well: a key may be named once", quote(key))
		} else if _, ok := e.Add[key]; ok {
			v.report.add(at, "%s stands in add as well: a key may be named once", quote(key))
		}
	}
}

// source reports networks that are allowed and denied.
func (v *validator) source(p place, s *SourceFilter) {
	denied := map[string]bool{}
	for _, prefix := range s.Deny {
		denied[prefix.canonical()] = true
	}
	for i, prefix := range s.Allow {
		if denied[prefix.canonical()] {
			v.report.add(p.field("allow").item(i, ""), "%s stands in deny as well, which wins", clip(string(prefix)))
		}
	}
}

// maxTableKeys is the number of different header keys that the rules of one table may ask for: each is looked for in
// every request.
const maxTableKeys = 16

// keys reports tables whose rules ask for too many headers.
func (v *validator) keys(c *Config) {
	for i := range c.Routes {
		keys := map[string]bool{}
		for j := range c.Routes[i].Rules {
			for _, k := range c.Routes[i].Rules[j].Match.conditions() {
				keys[k.key] = true
			}
		}
		if len(keys) > maxTableKeys {
			v.report.add(tablePlace(i, &c.Routes[i]).field("rules"),
				"ask for %d different header keys, service and method included; there may be %d", len(keys), maxTableKeys)
		}
	}
}

// inline reports filters that may block at listeners that are said to have no workers.
func (v *validator) inline(c *Config) {
	blocking := map[string]place{} // by table
	for i := range c.Routes {
		table := tablePlace(i, &c.Routes[i])
		for j := range c.Routes[i].Rules {
			r := &c.Routes[i].Rules[j]
			if at, ok := firstDelay(rulePlace(table, j, r), r.Filters); ok && blocking[c.Routes[i].Name] == (place{}) {
				blocking[c.Routes[i].Name] = at
			}
		}
	}
	for i := range c.Listeners {
		l := &c.Listeners[i]
		if l.Forwarding != ForwardInline {
			continue
		}
		p := listenerPlace(i, l)
		at, ok := firstDelay(p, l.Filters)
		if !ok {
			at, ok = blocking[l.Routes]
		}
		if ok {
			v.report.add(p.field("forwarding"), "inline has no workers, and %s needs one: use auto or worker, or take the delay away", at.path)
		}
	}
}

// firstDelay is the place of the first filter of the listener or rule at p that delays, which is what may block.
func firstDelay(p place, filters []Filter) (at place, ok bool) {
	for i := range filters {
		if f := filters[i].Fault; f != nil && f.Delay != nil {
			return p.field("filters").item(i, "").field("fault").field("delay"), true
		}
	}
	return place{}, false
}

// ascending reports shares of memory at which more is done than at a larger one.
func (v *validator) ascending(p place, o *Overload) {
	steps := []struct {
		field string
		share Percent
	}{{"stop_reading", o.StopReading}, {"stop_accepting", o.StopAccepting}, {"refuse_low", o.RefuseLow}, {"refuse_normal", o.RefuseNormal}}
	for i, s := range steps[1:] {
		if before := steps[i]; s.share < before.share {
			v.report.add(p.field(s.field), "%v is less than %s, which is %v: what hurts less comes first", s.share, before.field, before.share)
		}
	}
}
