package config

import (
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Warnings is what a valid tree says that can hardly be meant, in the tree's order: rules that never match,
// tables and clusters that nothing leads to, limits that another limit makes void.
func (c *Config) Warnings() []Fault {
	var w []Fault
	w = append(w, c.shadowedRules()...)
	w = append(w, c.unused()...)
	w = append(w, c.voidLimits()...)
	sortFaults(w)
	return w
}

// shadowedRules finds rules before which another takes all that they would.
func (c *Config) shadowedRules() []Fault {
	var w []Fault
	for i := range c.Routes {
		table := tablePlace(i, &c.Routes[i])
		first := map[string]int{}
		for j := range c.Routes[i].Rules {
			r := &c.Routes[i].Rules[j]
			earlier, covered := coveredBy(&r.Match, first)
			switch {
			case !covered:
				first[matchKey(r.Match.Service, headerPairs(&r.Match))] = j
			case c.Routes[i].Rules[earlier].Match.takesAll():
				w = append(w, rulePlace(table, j, r).fault("never matches: rules[%d] takes everything before it", earlier))
			default:
				w = append(w, rulePlace(table, j, r).fault("never matches: rules[%d] takes all of it before", earlier))
			}
		}
	}
	return w
}

func (m *Match) takesAll() bool { return m.Service == "" && len(m.Header) == 0 }

// coveredBy looks for a match that asks for no more than m does: for every subset of m's conditions, of which
// maxMatchHeaders allows a few hundred. It gives the first rule's index.
func coveredBy(m *Match, first map[string]int) (rule int, ok bool) {
	pairs := headerPairs(m)
	if len(pairs) > maxMatchHeaders {
		return 0, false
	}
	services := []string{""}
	if m.Service != "" {
		services = append(services, m.Service)
	}
	subset := make([]string, 0, len(pairs))
	for mask := range 1 << len(pairs) {
		subset = subset[:0]
		for i, pair := range pairs {
			if mask&(1<<i) != 0 {
				subset = append(subset, pair)
			}
		}
		for _, service := range services {
			if i, found := first[matchKey(service, subset)]; found && (!ok || i < rule) {
				rule, ok = i, true
			}
		}
	}
	return rule, ok
}

func headerPairs(m *Match) []string {
	pairs := make([]string, 0, len(m.Header))
	for _, key := range slices.Sorted(maps.Keys(m.Header)) {
		pairs = append(pairs, strconv.Quote(key)+"="+strconv.Quote(m.Header[key]))
	}
	return pairs
}

func matchKey(service string, pairs []string) string {
	return strconv.Quote(service) + " " + strings.Join(pairs, " ")
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
			used[c.Routes[i].Rules[j].Cluster] = true
		}
	}
	for i := range c.Clusters {
		if !used[c.Clusters[i].Name] {
			w = append(w, clusterPlace(i, &c.Clusters[i]).fault("no rule leads to this cluster"))
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
			if r.Timeout > c.MaxTimeout {
				w = append(w, rulePlace(table, j, r).field("timeout").fault("%v is more than max_timeout, so %v holds", r.Timeout, c.MaxTimeout))
			}
			k, known := clusters[r.Cluster]
			least, seen := narrowest[c.Routes[i].Name]
			if known && (!seen || c.Clusters[k].MaxQueued < c.Clusters[least].MaxQueued) {
				narrowest[c.Routes[i].Name] = k
			}
		}
	}
	for i := range c.Listeners {
		l := &c.Listeners[i]
		if k, ok := narrowest[l.Routes]; ok && l.MaxFrame > c.Clusters[k].MaxQueued {
			w = append(w, listenerPlace(i, l).field("max_frame").fault(
				"%v is more than max_queued of %s, which is %v: a larger request cannot be sent there",
				l.MaxFrame, clusterPlace(k, &c.Clusters[k]).path, c.Clusters[k].MaxQueued))
		}
	}
	return w
}
