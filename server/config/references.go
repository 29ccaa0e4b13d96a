package config

import (
	"iter"
	"strings"
)

// names reports names that two of a kind share.
func (v *validator) names(c *Config) {
	unique := func(p place, name string, seen map[string]place) {
		if name == "" {
			return
		}
		if first, ok := seen[name]; ok {
			v.report.add(p.field("name"), "%s is the name of %s as well", quote(name), first.path)
			return
		}
		seen[name] = p
	}
	seen := map[string]place{}
	for i := range c.Listeners {
		unique(listenerPlace(i, &c.Listeners[i]), c.Listeners[i].Name, seen)
	}
	seen = map[string]place{}
	for i := range c.Routes {
		table := tablePlace(i, &c.Routes[i])
		unique(table, c.Routes[i].Name, seen)
		rules := map[string]place{}
		for j := range c.Routes[i].Rules {
			r := &c.Routes[i].Rules[j]
			unique(rulePlace(table, j, r), r.Name, rules)
		}
	}
	seen = map[string]place{}
	for i := range c.Clusters {
		unique(clusterPlace(i, &c.Clusters[i]), c.Clusters[i].Name, seen)
	}
}

// addresses reports listening addresses that exclude each other, and endpoints that a cluster has twice.
func (v *validator) addresses(c *Config) {
	b := binder{taken: map[string]place{}, everywhere: map[string]place{}, somewhere: map[string]place{}}
	for i := range c.Listeners {
		b.bind(v.report, listenerPlace(i, &c.Listeners[i]).field("address"), c.Listeners[i].Address)
	}
	if c.Admin != nil {
		b.bind(v.report, place{}.field("admin").field("address"), c.Admin.Address)
		if c.Admin.TCP != nil {
			b.bind(v.report, place{}.field("admin").field("tcp").field("address"), c.Admin.TCP.Address)
		}
	}
	if c.Metrics != nil {
		b.bind(v.report, place{}.field("metrics").field("address"), c.Metrics.Address)
	}
	for i := range c.Clusters {
		v.endpoints(clusterPlace(i, &c.Clusters[i]).field("endpoints"), c.Clusters[i].Endpoints)
	}
}

// endpoints reports those that a list has twice.
func (v *validator) endpoints(list place, endpoints []Endpoint) {
	seen := map[string]place{}
	for j, e := range endpoints {
		p, key := list.item(j, ""), e.Address.canonical()
		if first, ok := seen[key]; ok && e.Address != "" {
			v.report.add(p.field("address"), "%s is the address of %s as well", clip(string(e.Address)), first.path)
			continue
		}
		seen[key] = p
	}
}

// binder knows the addresses that are listened on so far.
type binder struct {
	taken map[string]place
	// everywhere and somewhere hold, by family and port, the address that takes the port on all addresses
	// and the first that takes it on one.
	everywhere, somewhere map[string]place
}

func (b *binder) bind(r *report, p place, a Address) {
	key := a.canonical()
	if a == "" || strings.HasSuffix(key, ":0") {
		return
	}
	if first, ok := b.taken[key]; ok {
		r.add(p, "%s is taken by %s", clip(string(a)), first.path)
		return
	}
	b.taken[key] = p
	port, all, families := a.reach()
	for _, family := range families {
		slot := family + ":" + port
		first, ok := b.everywhere[slot]
		if !ok && all {
			first, ok = b.somewhere[slot]
		}
		if ok {
			r.add(p, "%s overlaps with %s", clip(string(a)), first.path)
			return
		}
	}
	for _, family := range families {
		slot := family + ":" + port
		if all {
			b.everywhere[slot] = p
		} else if _, ok := b.somewhere[slot]; !ok {
			b.somewhere[slot] = p
		}
	}
}

// references reports names of route tables and clusters that do not exist.
func (v *validator) references(c *Config) {
	tables := make([]string, len(c.Routes))
	known := map[string]bool{}
	for i, t := range c.Routes {
		tables[i] = t.Name
		known[t.Name] = true
	}
	for i := range c.Listeners {
		p, name := listenerPlace(i, &c.Listeners[i]).field("routes"), c.Listeners[i].Routes
		switch {
		case name == "" && len(tables) > 1:
			v.report.add(p, "is missing, and there are %d route tables to choose from", len(tables))
		case name == "":
			v.report.add(p, "is missing")
		case !known[name]:
			v.report.add(p, "there is no route table %s%s", quote(name), didYouMean(name, tables))
		}
	}

	clusters := make([]string, len(c.Clusters))
	known = map[string]bool{}
	for i := range c.Clusters {
		clusters[i] = c.Clusters[i].Name
		known[clusters[i]] = true
	}
	for i := range c.Routes {
		table := tablePlace(i, &c.Routes[i])
		for j := range c.Routes[i].Rules {
			for p, name := range c.Routes[i].Rules[j].clusterNames(rulePlace(table, j, &c.Routes[i].Rules[j])) {
				if name != "" && !known[name] {
					v.report.add(p, "there is no cluster %s%s", quote(name), didYouMean(name, clusters))
				}
			}
		}
	}
}

// clusterNames are the clusters that the rule at p leads to, each with the place that names it.
func (r *Rule) clusterNames(p place) iter.Seq2[place, string] {
	return func(yield func(place, string) bool) {
		if r.Cluster != "" && !yield(p.field("cluster"), r.Cluster) {
			return
		}
		for i := range r.Clusters {
			if !yield(p.field("clusters").item(i, "").field("cluster"), r.Clusters[i].Cluster) {
				return
			}
		}
	}
}

// limits reports limits of one listener or cluster that contradict each other.
func (v *validator) limits(c *Config) {
	for i := range c.Listeners {
		l := &c.Listeners[i]
		p := listenerPlace(i, l)
		if l.QueueLow >= l.QueueHigh {
			v.report.add(p.field("queue_low"), "%v must be less than queue_high, which is %v", l.QueueLow, l.QueueHigh)
		}
		if l.QueueHigh > l.MaxQueued {
			v.report.add(p.field("queue_high"), "%v must not be more than max_queued, which is %v", l.QueueHigh, l.MaxQueued)
		}
	}
	for i := range c.Clusters {
		k := &c.Clusters[i]
		if k.ConnectionsPerEndpoint > k.MaxConnections {
			v.report.add(clusterPlace(i, k).field("connections_per_endpoint"),
				"%d must not be more than max_connections, which is %d", k.ConnectionsPerEndpoint, k.MaxConnections)
		}
	}
}
