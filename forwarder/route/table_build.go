package route

import (
	"cmp"
	"encoding/binary"
	"regexp"
	"slices"
)

// builder is a table that is being built.
type builder struct {
	keys    []string // that any rule asks for, sorted
	rules   [][]condition
	regexes regexes
}

// groups finds the group of each shape, which is its parts as bytes.
type groups struct {
	at  map[string]int
	all []group
}

func (b *builder) build() *Table {
	t := &Table{everything: none}
	for _, k := range b.keys {
		t.keys = append(t.keys, []byte(k))
	}
	if len(b.regexes) > 0 {
		t.tests = make([]test, len(b.rules))
	}
	plain, regex := groups{at: map[string]int{}}, groups{at: map[string]int{}}
	// From the last rule on: the first of equal rules stays, and each is linked to the next behind it.
	for rule, all := range slices.Backward(b.rules) {
		g, value, patterns := b.shape(all)
		switch {
		case len(patterns) > 0:
			if next, known := regex.put(g, value, rule); known {
				t.tests[rule] = test{patterns, next}
			} else {
				t.tests[rule] = test{patterns, none}
			}
		case len(all) == 0:
			t.everything = rule
		default:
			plain.put(g, value, rule)
		}
	}
	t.plain, t.regex = plain.sorted(), regex.sorted()
	return t
}

// shape splits a rule's conditions into the group that it belongs to, what it is found by in there, and the regexes
// that are left to ask.
func (b *builder) shape(all []condition) (g group, value string, patterns []keyed) {
	var values []string
	for _, c := range all {
		i, _ := slices.BinarySearch(b.keys, c.key)
		key := uint8(i)
		for _, re := range c.regexes {
			patterns = append(patterns, keyed{key, re})
		}
		if c.text.Kind == Any {
			continue
		}
		p := part{key, whole}
		if c.text.Kind == Prefix {
			p.cut = len(c.text.Value)
		}
		g.parts = append(g.parts, p)
		g.mask |= 1 << key
		values = append(values, c.text.Value)
	}
	if len(values) == 1 {
		return g, values[0], patterns
	}
	var combined []byte
	for _, v := range values {
		combined = appendValue(combined, []byte(v))
	}
	return g, string(combined), patterns
}

// put puts a rule into the group that looks like g, and returns the rule that was found by the same value before.
func (l *groups) put(g group, value string, rule int) (before int, known bool) {
	var shape []byte
	for _, p := range g.parts {
		shape = append(shape, p.key)
		shape = binary.LittleEndian.AppendUint64(shape, uint64(p.cut))
	}
	i, there := l.at[string(shape)]
	if !there {
		i = len(l.all)
		l.at[string(shape)] = i
		g.rules = map[string]int{}
		l.all = append(l.all, g)
	}
	to := &l.all[i]
	to.lowest = rule
	to.longest = max(to.longest, len(value))
	before, known = to.rules[value]
	to.rules[value] = rule
	return before, known
}

// sorted returns the groups by their lowest rule.
func (l *groups) sorted() []group {
	slices.SortFunc(l.all, func(a, b group) int { return cmp.Compare(a.lowest, b.lowest) })
	return l.all
}

// regexes are those that the rules of one table ask for, by pattern: a table that names one in many rules has it once.
type regexes map[string]*regexp.Regexp

func (r regexes) compile(t Text) (*regexp.Regexp, error) {
	if re := r[t.Value]; re != nil {
		return re, nil
	}
	re, err := t.compile()
	if err == nil {
		r[t.Value] = re
	}
	return re, err
}
