package route

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
)

// none is the index of a rule that is not there: after all that are.
const none = math.MaxInt

// Table holds the matches of one list of rules. Static after New.
//
// The rules are grouped by the set of keys that they ask for. Within a group one look into a hash map finds the
// first rule that fits, so the cost of Match grows with the number of groups, not with that of rules; lists
// of rules have one or two groups.
type Table struct {
	keys       [][]byte
	groups     []group // by their lowest rule, so that the walk can end early
	everything int     // the first rule that asks for nothing
}

// group is the rules that ask for the same keys.
type group struct {
	keys    []uint8 // indexes into Table.keys, ascending
	mask    uint16  // the same as bits
	lowest  int     // the first rule of the group
	longest int     // bytes of the longest string in rules: nothing longer can fit
	rules   map[string]int
}

// New builds the table of these matches. The error names all that is wrong, each with its rule's index.
func New(matches []Match) (*Table, error) {
	var errs []error
	conditions := make([][]Header, len(matches))
	var keys []string
	for i, m := range matches {
		all, err := m.conditions()
		if err != nil {
			errs = append(errs, fmt.Errorf("rule %d: %w", i, err))
		}
		conditions[i] = all
		for _, h := range all {
			if at, known := slices.BinarySearch(keys, h.Key); !known {
				keys = slices.Insert(keys, at, h.Key)
			}
		}
	}
	if len(keys) > MaxKeys {
		errs = append(errs, fmt.Errorf("the rules ask for %d different header keys, at most %d can be", len(keys), MaxKeys))
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}

	t := &Table{everything: none}
	for _, k := range keys {
		t.keys = append(t.keys, []byte(k))
	}
	at := map[uint16]int{}
	for rule, all := range conditions {
		if len(all) == 0 {
			t.everything = min(t.everything, rule)
			continue
		}
		t.add(at, keys, rule, all)
	}
	slices.SortFunc(t.groups, func(a, b group) int { return cmp.Compare(a.lowest, b.lowest) })
	return t, nil
}

// add puts a rule into its group; at finds the groups that exist.
func (t *Table) add(at map[uint16]int, keys []string, rule int, all []Header) {
	var g group
	var combined []byte
	for _, h := range all {
		key, _ := slices.BinarySearch(keys, h.Key)
		g.keys = append(g.keys, uint8(key))
		g.mask |= 1 << key
		combined = appendValue(combined, []byte(h.Value))
	}
	value := string(combined)
	if len(all) == 1 {
		value = all[0].Value
	}
	i, known := at[g.mask]
	if !known {
		i = len(t.groups)
		at[g.mask] = i
		g.lowest, g.rules = rule, map[string]int{}
		t.groups = append(t.groups, g)
	}
	to := &t.groups[i]
	to.longest = max(to.longest, len(value))
	if _, shadowed := to.rules[value]; !shadowed {
		to.rules[value] = rule
	}
}

// Keys are the header keys that any rule asks for, sorted; empty if none asks. The caller must not change them.
func (t *Table) Keys() [][]byte { return t.keys }

// Match returns the index of the first rule that fits, or -1. values[i] is the value of the header Keys()[i],
// nil if the request has no such header: an absent header has no value, not even the empty one. There must be
// as many values as keys. Match keeps nothing of them.
func (t *Table) Match(values [][]byte) int {
	best := t.everything
	var present uint16
	for i := range t.keys {
		if values[i] != nil {
			present |= 1 << i
		}
	}
	for i := range t.groups {
		g := &t.groups[i]
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
	if best == none {
		return -1
	}
	return best
}

// find returns the first rule of the group that fits. What is longer than any rule is not looked at: a long
// value costs nothing unless a rule is as long.
func (g *group) find(values [][]byte) (int, bool) {
	if len(g.keys) > 1 {
		return g.findCombined(values)
	}
	v := values[g.keys[0]]
	if len(v) > g.longest {
		return 0, false
	}
	rule, ok := g.rules[string(v)]
	return rule, ok
}

func (g *group) findCombined(values [][]byte) (int, bool) {
	size := 0
	for _, k := range g.keys {
		size += valueSize(values[k])
	}
	if size > g.longest {
		return 0, false
	}
	var buf [256]byte
	b := buf[:0]
	if size > len(buf) {
		b = make([]byte, 0, size)
	}
	for _, k := range g.keys {
		b = appendValue(b, values[k])
	}
	rule, ok := g.rules[string(b)]
	return rule, ok
}

// appendValue appends v behind its length, so that "a","bc" and "ab","c" differ.
func appendValue(b, v []byte) []byte {
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(v))), v...)
}

func valueSize(v []byte) int { return 4 + len(v) }
