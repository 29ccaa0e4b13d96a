package route

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
)

// none is the index of a rule that is not there: after all that are.
const none = math.MaxInt

// Table holds the matches of one list of rules. Static after New.
//
// A prefix of n bytes is an exact condition on the first n bytes of a value. So the rules are grouped by the keys
// that they ask for and by how much of each value they look at. Within a group one look into a hash map finds the
// first rule that fits, so the cost of Match grows with the number of groups, not with that of rules; lists of
// rules have one or two groups, and one more for each length that their prefixes have.
//
// Rules with regexes have groups of their own, which are asked last and only for a rule before the best one known:
// a regex is tried when everything else that its rule asks for holds.
type Table struct {
	keys       [][]byte
	plain      []group // rules without a regex, by their lowest rule, so that the walk can end early
	regex      []group // rules with one, in the same order
	everything int     // the first rule that asks for nothing
	tests      []test  // of the rules in regex, by rule; empty if there are none
}

// group is the rules that look at the same parts of the same values.
type group struct {
	parts   []part // by key
	mask    uint16 // their keys as bits
	lowest  int    // the first rule of the group
	longest int    // bytes of the longest string in rules: nothing longer can fit
	rules   map[string]int
}

// part is as much of a value as the rules of a group look at.
type part struct {
	key uint8 // index into Table.keys
	cut int   // bytes; whole for all of it
}

// whole is the cut of a part that is the whole value.
const whole = math.MaxInt

// of returns the part of a value. A value that is shorter than the cut is no prefix's: it is as long as no string
// among the rules.
func (p part) of(value []byte) []byte {
	if len(value) > p.cut {
		return value[:p.cut]
	}
	return value
}

// test is what is left to ask when a rule was found in a group.
type test struct {
	patterns []keyed
	next     int // the next rule that was found with this one; none if there is none
}

// keyed is a regex for the value of one key.
type keyed struct {
	key uint8 // index into Table.keys
	re  *regexp.Regexp
}

// New builds the table of these matches. The error names all that is wrong, each with its rule's index.
func New(matches []Match) (*Table, error) {
	b := builder{regexes: regexes{}, rules: make([][]condition, len(matches))}
	var errs []error
	for i, m := range matches {
		all, wrong := m.conditions(b.regexes)
		for _, err := range wrong {
			errs = append(errs, fmt.Errorf("rule %d: %w", i, err))
		}
		b.rules[i] = all
		for _, c := range all {
			if at, known := slices.BinarySearch(b.keys, c.key); !known {
				b.keys = slices.Insert(b.keys, at, c.key)
			}
		}
	}
	if len(b.keys) > MaxKeys {
		errs = append(errs, fmt.Errorf("the rules ask for %d different header keys, at most %d can be", len(b.keys), MaxKeys))
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return b.build(), nil
}

// Keys are the header keys that any rule asks for, sorted; empty if none asks. The caller must not change them.
func (t *Table) Keys() [][]byte { return t.keys }

// Match returns the index of the first rule that fits, or -1. values[i] is the value of the header Keys()[i],
// nil if the request has no such header: an absent header has no value, not even the empty one. There must be
// as many values as keys. Match keeps nothing of them. It allocates only for a rule that asks for several values which
// have more than 256 bytes together.
func (t *Table) Match(values [][]byte) int {
	best := t.everything
	var present uint16
	for i := range t.keys {
		if values[i] != nil {
			present |= 1 << i
		}
	}
	for i := range t.plain {
		g := &t.plain[i]
		if g.lowest >= best {
			break
		}
		if g.mask&^present != 0 {
			continue
		}
		if rule, ok := g.find(values); ok {
			best = min(best, rule)
		}
	}
	if len(t.regex) > 0 {
		best = t.matchRegex(values, present, best)
	}
	if best == none {
		return -1
	}
	return best
}

// matchRegex returns the first rule before best whose regexes fit too, or best.
func (t *Table) matchRegex(values [][]byte, present uint16, best int) int {
	for i := range t.regex {
		g := &t.regex[i]
		if g.lowest >= best {
			break
		}
		if g.mask&^present != 0 {
			continue
		}
		rule, ok := g.find(values)
		for ok && rule < best {
			if t.tests[rule].holds(values) {
				best = rule
			}
			rule = t.tests[rule].next
		}
	}
	return best
}

// holds says whether all the regexes fit.
func (x *test) holds(values [][]byte) bool {
	for i := range x.patterns {
		p := &x.patterns[i]
		if v := values[p.key]; v == nil || !fits(p.re, v) {
			return false
		}
	}
	return true
}

// find returns the first rule of the group that fits. What is longer than any rule is not looked at: a long
// value costs nothing unless a rule is as long.
func (g *group) find(values [][]byte) (int, bool) {
	if len(g.parts) != 1 {
		return g.findCombined(values)
	}
	p := g.parts[0]
	v := p.of(values[p.key])
	if len(v) > g.longest {
		return 0, false
	}
	rule, ok := g.rules[string(v)]
	return rule, ok
}

func (g *group) findCombined(values [][]byte) (int, bool) {
	size := 0
	for _, p := range g.parts {
		size += valueSize(p.of(values[p.key]))
	}
	if size > g.longest {
		return 0, false
	}
	var buf [256]byte
	b := buf[:0]
	if size > len(buf) {
		b = make([]byte, 0, size)
	}
	for _, p := range g.parts {
		b = appendValue(b, p.of(values[p.key]))
	}
	rule, ok := g.rules[string(b)]
	return rule, ok
}

// appendValue appends v behind its length, so that "a","bc" and "ab","c" differ.
func appendValue(b, v []byte) []byte {
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(v))), v...)
}

func valueSize(v []byte) int { return 4 + len(v) }
