package config

import "slices"

// Warnings is what a valid tree says that can hardly be meant, in the tree's order: rules that never match,
// tables and clusters that nothing leads to, clusters whose endpoints all drain, slow starts that nothing comes of, limits that
// another limit makes void.
func (c *Config) Warnings() []Fault {
	var w []Fault
	w = append(w, c.shadowedRules()...)
	w = append(w, c.oddRules()...)
	w = append(w, c.oddFilters()...)
	w = append(w, c.unused()...)
	w = append(w, c.drained()...)
	w = append(w, c.voidSlowStarts()...)
	w = append(w, c.voidLimits()...)
	sortFaults(w)
	return w
}

// unused finds route tables without a listener and clusters without a rule.
func (c *Config) unused() []Fault {
	var w []Fault
	used := map[string]bool{}
	for i := range c.Listeners {
		used[c.Listeners[i].Routes] = true
	}
	for i := range c.Routes {
		if !used[c.Routes[i].Name] {
			w = append(w, tablePlace(i, &c.Routes[i]).fault("no listener uses this route table"))
		}
	}
	used = map[string]bool{}
	for i := range c.Routes {
		for j := range c.Routes[i].Rules {
			for _, name := range c.Routes[i].Rules[j].clusterNames(place{}) {
				used[name] = true
			}
		}
	}
	for i := range c.Clusters {
		if !used[c.Clusters[i].Name] {
			w = append(w, clusterPlace(i, &c.Clusters[i]).fault("no rule leads to this cluster"))
		}
	}
	return w
}

// drained finds clusters that no request can be sent to, because all of their endpoints drain.
func (c *Config) drained() []Fault {
	var w []Fault
	for i := range c.Clusters {
		k := &c.Clusters[i]
		if k.Discovery == nil && !slices.ContainsFunc(k.Endpoints, func(e Endpoint) bool { return !e.Drain }) {
			w = append(w, clusterPlace(i, k).field("endpoints").fault("all of them drain: requests are answered ERROR_COMM"))
		}
	}
	return w
}

// voidSlowStarts finds slow starts of clusters whose balancer knows none.
func (c *Config) voidSlowStarts() []Fault {
	var w []Fault
	for i := range c.Clusters {
		if k := &c.Clusters[i]; k.Balancer == Maglev && k.SlowStart != None {
			w = append(w, clusterPlace(i, k).field("slow_start").fault("maglev knows none: an endpoint has all of its keys at once"))
		}
	}
	return w
}

// voidLimits finds timeouts above the process's cap, and listeners that take frames which a cluster behind
// them cannot queue.
func (c *Config) voidLimits() []Fault {
	var w []Fault
	clusters := map[string]int{}
	for i := range c.Clusters {
		clusters[c.Clusters[i].Name] = i
	}
	narrowest := map[string]int{}
	for i := range c.Routes {
		table := tablePlace(i, &c.Routes[i])
		for j := range c.Routes[i].Rules {
			r := &c.Routes[i].Rules[j]
			if r.Reply == nil && r.Timeout > c.MaxTimeout {
				w = append(w, rulePlace(table, j, r).field("timeout").fault("%v is more than max_timeout, so %v holds", r.Timeout, c.MaxTimeout))
			}
			for _, name := range r.clusterNames(place{}) {
				k, known := clusters[name]
				least, seen := narrowest[c.Routes[i].Name]
				if known && (!seen || c.Clusters[k].MaxQueued < c.Clusters[least].MaxQueued) {
					narrowest[c.Routes[i].Name] = k
				}
			}
		}
	}
	for i := range c.Listeners {
		l := &c.Listeners[i]
		// What is passed on in pieces is never queued as a whole.
		field, whole := "max_frame", l.MaxFrame
		if l.StreamAbove != NoSize && l.StreamAbove < whole {
			field, whole = "stream_above", l.StreamAbove
		}
		if k, ok := narrowest[l.Routes]; ok && whole > c.Clusters[k].MaxQueued {
			w = append(w, listenerPlace(i, l).field(field).fault(
				"%v is more than max_queued of %s, which is %v: a larger request cannot be sent there",
				whole, clusterPlace(k, &c.Clusters[k]).path, c.Clusters[k].MaxQueued))
		}
	}
	return w
}
