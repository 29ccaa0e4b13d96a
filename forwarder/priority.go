package forwarder

import (
	"github.com/relevo-proxy/relevo/forwarder/cluster"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// Priority is how much a rule's requests matter when there is not room for all. A greater one matters more.
type Priority int8

// The priorities.
const (
	PriorityLow    Priority = iota - 1 // gets four fifths of a cluster's requests, and is refused first
	PriorityNormal                     // refused behind those
	PriorityHigh                       // refused by the limits alone
)

// priorities are all of them, in the order in which they are refused.
var priorities = [...]Priority{PriorityLow, PriorityNormal, PriorityHigh}

func (p Priority) String() string {
	switch p {
	case PriorityLow:
		return "low"
	case PriorityNormal:
		return "normal"
	default:
		return "high"
	}
}

// acquire takes one of a cluster's requests. It returns the reason for which there is none, or "".
func (p Priority) acquire(requests *cluster.Limit) (reason string) {
	if p == PriorityLow {
		if requests.TryAcquireLow() == 0 {
			return ReasonLowMaxRequests
		}
		return ""
	}
	if requests.TryAcquire(1) == 0 {
		return ReasonMaxRequests
	}
	return ""
}

// ruleLimit bounds the requests in flight of one rule, of all listeners and clusters together.
type ruleLimit struct {
	*cluster.Limit
	breaker breaker
}

// ruleLimits are those of a snapshot, by table/rule.
type ruleLimits struct {
	bounds map[string]*ruleLimit // of rules that have one
	left   map[string]*ruleLimit // of others, which had one, and have requests in flight that count
}

// newRuleLimits makes those of a spec. What is taken of old ones counts on; the bounds become others in enter.
func newRuleLimits(spec *Spec, old ruleLimits) ruleLimits {
	s := ruleLimits{make(map[string]*ruleLimit), make(map[string]*ruleLimit)}
	eachBounded(spec, func(name string, rule *RuleSpec) {
		l := old.named(name)
		if l == nil {
			l = &ruleLimit{Limit: cluster.NewLimit(rule.MaxRequests)}
			l.breaker.limit = l.Limit
		}
		s.bounds[name] = l
	})
	for _, were := range []map[string]*ruleLimit{old.bounds, old.left} {
		for name, l := range were {
			if s.bounds[name] == nil && l.Used() > 0 {
				s.left[name] = l
			}
		}
	}
	return s
}

// eachBounded calls fn for each rule that bounds its requests.
func eachBounded(spec *Spec, fn func(name string, rule *RuleSpec)) {
	for i := range spec.Routes {
		t := &spec.Routes[i]
		for j := range t.Rules {
			if rule := &t.Rules[j]; rule.MaxRequests > 0 {
				fn(t.Name+"/"+rule.Name, rule)
			}
		}
	}
}

// named is the one of a rule, nil if there is none.
func (s *ruleLimits) named(name string) *ruleLimit {
	if l := s.bounds[name]; l != nil {
		return l
	}
	return s.left[name]
}

// enter puts the spec's bounds into force.
func (s *ruleLimits) enter(spec *Spec) {
	eachBounded(spec, func(name string, rule *RuleSpec) { s.bounds[name].SetMax(rule.MaxRequests) })
}

// admitByRule takes one of the rule's requests, where they are bounded, and refuses what the process has no memory for. Of what
// another process had admitted, it does not ask for memory again.
func (b *batch) admitByRule() {
	x := &b.x
	t := x.target
	switch {
	case t.priority < b.refusing && x.holds&routed == 0:
		b.f.overload.refused[t.priority-PriorityLow].Add(1)
		b.hijack(wire.Busy, ReasonOverload)
	case t.limit == nil || x.kind != wire.Request:
	case t.limit.TryAcquire(1) == 0:
		b.hijack(wire.Busy, ReasonRouteMaxRequests)
	default:
		x.holds |= holdsRule
	}
}

// adopt counts a request of the rule that another process has begun.
func (l *ruleLimit) adopt(x *exchange) {
	if l != nil {
		l.Adopt(1)
		x.holds |= holdsRule
	}
}
