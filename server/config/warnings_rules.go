package config

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// shadowedRules finds rules before which another takes all that they would. A regex is taken for nothing but itself:
// what else it takes of another text is not looked into.
func (c *Config) shadowedRules() []Fault {
	var w []Fault
	for i := range c.Routes {
		table := tablePlace(i, &c.Routes[i])
		s := shadows{first: map[string]int{}, prefixes: map[string][]int{}}
		for j := range c.Routes[i].Rules {
			r := &c.Routes[i].Rules[j]
			asked := r.Match.conditions()
			earlier, covered := s.covers(asked)
			switch {
			case !covered:
				s.add(j, asked)
			case c.Routes[i].Rules[earlier].Match.takesAll():
				w = append(w, rulePlace(table, j, r).fault("never matches: rules[%d] takes everything before it", earlier))
			default:
				w = append(w, rulePlace(table, j, r).fault("never matches: rules[%d] takes all of it before", earlier))
			}
		}
	}
	return w
}

// condition is what a match asks of one header.
type condition struct {
	key  string
	text Text
}

// conditions are what m asks for, sorted by key.
func (m *Match) conditions() []condition {
	var all []condition
	if m.Service != (Text{}) {
		all = append(all, condition{ServiceKey, m.Service})
	}
	if m.Method != (Text{}) {
		all = append(all, condition{MethodKey, m.Method})
	}
	for key, text := range maps.All(m.Header) {
		all = append(all, condition{key, text})
	}
	slices.SortFunc(all, func(a, b condition) int { return cmp.Compare(a.key, b.key) })
	return all
}

func (m *Match) takesAll() bool {
	return m.Service == (Text{}) && m.Method == (Text{}) && len(m.Header) == 0
}

// shadows knows the matches of a table so far, but for those that are shadowed themselves.
type shadows struct {
	// first is the first rule that asks for just these conditions.
	first map[string]int
	// prefixes are the lengths of the prefixes that are asked for, by key.
	prefixes map[string][]int
}

func (s *shadows) add(rule int, asked []condition) {
	id := ""
	for _, c := range asked {
		id = c.behind(id)
		if n := len(c.text.Value); c.text.Form == PrefixText && !slices.Contains(s.prefixes[c.key], n) {
			s.prefixes[c.key] = append(s.prefixes[c.key], n)
		}
	}
	s.first[id] = rule
}

// behind is the name of a list of conditions that c is added to.
func (c condition) behind(list string) string {
	return strings.Join([]string{list, strconv.Quote(c.key), string(c.text.Form), strconv.Quote(c.text.Value)}, " ")
}

// maxLooks bounds the matches that are looked for on behalf of one rule. More than a few only a strange file needs.
const maxLooks = 2048

// covers looks for a match that asks for no more: for every list of some of the conditions, or of prefixes of them. It
// gives the first rule's index.
func (s *shadows) covers(asked []condition) (rule int, ok bool) {
	lists := []string{""}
	for _, c := range asked {
		weaker := []condition{c}
		for _, n := range s.prefixes[c.key] {
			if n > len(c.text.Value) || n > 0 && c.text.Form == RegexText {
				continue
			}
			if prefix := (Text{PrefixText, c.text.Value[:n]}); prefix != c.text {
				weaker = append(weaker, condition{c.key, prefix})
			}
		}
		if len(lists)*(1+len(weaker)) > maxLooks {
			return 0, false
		}
		for _, list := range lists {
			for _, w := range weaker {
				lists = append(lists, w.behind(list))
			}
		}
	}
	for _, list := range lists {
		if i, found := s.first[list]; found && (!ok || i < rule) {
			rule, ok = i, true
		}
	}
	return rule, ok
}

// leastShare is the denominator of the smallest share that weights keep exactly enough.
const leastShare = 10_000

// oddRules finds conditions that clients of one kind never meet, shares that are next to nothing, timeouts of tries that
// another one never follows, and changes of requests that are not sent.
func (c *Config) oddRules() []Fault {
	var w []Fault
	for i := range c.Routes {
		table := tablePlace(i, &c.Routes[i])
		for j := range c.Routes[i].Rules {
			r := &c.Routes[i].Rules[j]
			p := rulePlace(table, j, r)
			w = append(w, oddMatch(p.field("match"), &r.Match)...)
			sum := 0
			for _, share := range r.Clusters {
				sum += share.Weight
			}
			for k, share := range r.Clusters {
				if share.Weight*leastShare < sum {
					w = append(w, p.field("clusters").item(k, "").field("weight").fault(
						"%d of %d is less than 1 in %d of the requests", share.Weight, sum, leastShare))
				}
			}
			if at, per := p.field("retry"), r.Retry.PerTryTimeout; slices.Contains(r.Retry.On, TryTimeout) {
				switch {
				case per == None:
					w = append(w, at.field("on").fault("timeout never happens without per_try_timeout: behind the request's own deadline nothing is tried"))
				case per >= r.Timeout:
					w = append(w, at.field("per_try_timeout").fault("%v is not less than the rule's timeout, which is %v: behind that nothing is tried", per, r.Timeout))
				}
			}
			if r.Reply != nil && !r.Headers.empty() {
				w = append(w, p.field("headers").fault("is never used: the rule answers, and nothing is sent"))
			}
		}
	}
	return w
}

func (e *HeaderEdits) empty() bool { return len(e.Set)+len(e.Add)+len(e.Remove) == 0 }

// oddMatch warns of a match that asks for the method.
func oddMatch(p place, m *Match) []Fault {
	at := p.field("method")
	if _, ok := m.Header[MethodKey]; ok {
		at = p.field("header").field(MethodKey)
	} else if m.Method == (Text{}) {
		return nil
	}
	return []Fault{at.fault("hessian2 clients of sofa-rpc-node send no %s, so their requests never match", MethodKey)}
}

// oddFilters finds filters that do something else than where they stand suggests.
func (c *Config) oddFilters() []Fault {
	var w []Fault
	faults := func(p place, filters []Filter) {
		for i := range filters {
			if f := filters[i].Fault; f != nil {
				w = append(w, oddMatch(p.field("filters").item(i, "").field("fault").field("match"), &f.Match)...)
			}
		}
	}
	for i := range c.Listeners {
		faults(listenerPlace(i, &c.Listeners[i]), c.Listeners[i].Filters)
	}
	for i := range c.Routes {
		table := tablePlace(i, &c.Routes[i])
		for j := range c.Routes[i].Rules {
			r := &c.Routes[i].Rules[j]
			p := rulePlace(table, j, r)
			faults(p, r.Filters)
			for k := range r.Filters {
				if limit := r.Filters[k].RateLimit; limit != nil && limit.By == LimitByListener {
					w = append(w, p.field("filters").item(k, "").field("rate_limit").field("by").fault(
						"listener, at a rule, is not one limit for a whole listener: each has a bucket of its own for what this rule takes"))
				}
			}
		}
	}
	return w
}
