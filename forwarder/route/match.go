// Package route picks the rule that a request falls under, by the values of its headers.
//
// A Table is built once and never changes; it belongs to nobody and is read by any number of goroutines. The
// package knows no frame and no protocol: it says which header keys it wants to know (Keys), and is shown
// their values as bytes. It knows no cluster either: the answer is the index of a rule, whose meaning is the
// caller's.
package route

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ServiceKey is the header key that Match.Service stands for.
const ServiceKey = "service"

// MaxKeys is the number of different header keys that the rules of one table may ask for.
const MaxKeys = 16

// Match is the condition of one rule: all that it names must be so. An empty Match holds for everything.
type Match struct {
	Service string // the exact value of the header ServiceKey; empty: not asked
	Headers []Header
}

// Header asks for one header. The header must be there and have exactly this value, which may be empty.
type Header struct {
	Key, Value string
}

// conditions are the headers that m asks for, sorted by key, each key once.
func (m Match) conditions() ([]Header, error) {
	all := slices.Clone(m.Headers)
	if m.Service != "" {
		all = append(all, Header{ServiceKey, m.Service})
	}
	slices.SortFunc(all, func(a, b Header) int {
		if c := strings.Compare(a.Key, b.Key); c != 0 {
			return c
		}
		return strings.Compare(a.Value, b.Value)
	})
	all = slices.Compact(all)
	var errs []error
	for i, h := range all {
		switch {
		case h.Key == "":
			errs = append(errs, errors.New("a header key is empty"))
		case i > 0 && all[i-1].Key == h.Key:
			errs = append(errs, fmt.Errorf("header %q is asked to be both %q and %q, which never holds", h.Key, all[i-1].Value, h.Value))
		}
	}
	return all, errors.Join(errs...)
}
