// Package route picks the rule that a request falls under, by the values of its headers.
//
// A Table is built once and never changes; it belongs to nobody and is read by any number of goroutines. The
// package knows no frame and no protocol: it says which header keys it wants to know (Keys), and is shown
// their values as bytes. It knows no cluster either: the answer is the index of a rule, whose meaning is the
// caller's. Where a rule has several answers, Shares says which is next.
package route

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// The header keys that Match.Service and Match.Method stand for.
const (
	ServiceKey = "service"
	MethodKey  = "sofa_head_method_name"
)

// MaxKeys is the number of different header keys that the rules of one table may ask for.
const MaxKeys = 16

// Match is the condition of one rule: all that it names must be so. An empty Match holds for everything.
type Match struct {
	Service Text // the value of the header ServiceKey
	Method  Text // the value of the header MethodKey
	Headers []Header
}

// Header asks for one header. The header must be there, and its value, which may be empty, must be as Text says.
type Header struct {
	Key string
	Text
}

// condition is what a rule asks of one header: one text that is exact or a prefix, regexes, or both.
type condition struct {
	key     string
	text    Text // of the kind Any where only regexes ask
	regexes []*regexp.Regexp
}

// asked lists all that m names, in the order in which a person would say it.
func (m Match) asked() []Header {
	var all []Header
	if m.Service != (Text{}) {
		all = append(all, Header{ServiceKey, m.Service})
	}
	if m.Method != (Text{}) {
		all = append(all, Header{MethodKey, m.Method})
	}
	return append(all, m.Headers...)
}

// conditions are what m asks for, sorted by key, each key once, and all that is wrong with it.
func (m Match) conditions(known regexes) (list []condition, errs []error) {
	all := m.asked()
	slices.SortStableFunc(all, func(a, b Header) int { return strings.Compare(a.Key, b.Key) })
	for _, h := range all {
		if h.Key == "" {
			errs = append(errs, errors.New("a header key is empty"))
			continue
		}
		if len(list) == 0 || list[len(list)-1].key != h.Key {
			list = append(list, condition{key: h.Key})
		}
		if err := list[len(list)-1].add(h.Text, known); err != nil {
			errs = append(errs, fmt.Errorf("%s is asked for %w", named(h.Key), err))
		}
	}
	for i := range list {
		if err := list[i].settle(); err != nil {
			errs = append(errs, fmt.Errorf("%s is asked for %w", named(list[i].key), err))
		}
	}
	return list, errs
}

// add asks for t as well. Of two texts the narrower one stays.
func (c *condition) add(t Text, known regexes) error {
	switch {
	case t.Kind == Regex:
		re, err := known.compile(t)
		if err != nil {
			return err
		}
		c.regexes = append(c.regexes, re)
	case t.Kind != Exact && t.Kind != Prefix:
		return errNoText
	case c.text.Kind == Any || t.narrows(c.text):
		c.text = t
	case !c.text.narrows(t):
		return fmt.Errorf("%s and %s, which never hold both", c.text, t)
	}
	return nil
}

// settle asks the regexes now where there is only one value that they could be asked about.
func (c *condition) settle() error {
	if c.text.Kind != Exact {
		return nil
	}
	for _, re := range c.regexes {
		if !fits(re, []byte(c.text.Value)) {
			return fmt.Errorf("%s and a regex that does not match it, which never hold both", c.text)
		}
	}
	c.regexes = nil
	return nil
}

// Explain says whether the match holds, and in words why it does or what is wanting. value returns what a request
// has in a header, and whether it has it. Explain is for people and takes its time.
func (m Match) Explain(value func(key string) (string, bool)) (ok bool, why string) {
	var holds, wants []string
	for _, h := range m.asked() {
		v, present := value(h.Key)
		fits, err := h.holds(v)
		name := named(h.Key)
		switch {
		case err != nil:
			wants = append(wants, fmt.Sprintf("%s is asked for %v", name, err))
		case !present:
			wants = append(wants, fmt.Sprintf("%s is absent, want %s", name, h.Text))
		case h.Kind == Regex && len(v) > MaxRegexValue:
			wants = append(wants, fmt.Sprintf("%s has %d bytes, and no regex matches more than %d", name, len(v), MaxRegexValue))
		case !fits:
			wants = append(wants, fmt.Sprintf("%s is %s, want %s", name, quoted(v), h.Text))
		case h.Kind == Prefix:
			holds = append(holds, fmt.Sprintf("%s is %s, with %s", name, quoted(v), h.Text))
		case h.Kind == Regex:
			holds = append(holds, fmt.Sprintf("%s is %s, matching %s", name, quoted(v), h.Text))
		default:
			holds = append(holds, fmt.Sprintf("%s is %s", name, h.Text))
		}
	}
	switch {
	case len(wants) > 0:
		return false, strings.Join(wants, "; ")
	case len(holds) == 0:
		return true, "it takes everything"
	}
	return true, strings.Join(holds, "; ")
}

// named is what people call a header.
func named(key string) string {
	switch key {
	case ServiceKey:
		return "service"
	case MethodKey:
		return "method"
	}
	if key == "" || strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' }) {
		return fmt.Sprintf("header %q", key)
	}
	return "header " + key
}
