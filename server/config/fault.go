package config

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Fault is one thing that is wrong with a configuration, or odd about it.
type Fault struct {
	// Path is for people: listeners[0] (client).max_frame. It is empty for a fault of the file as a whole.
	Path string `json:"path"`
	// Pointer is the same place as a JSON pointer (RFC 6901): /listeners/0/max_frame.
	Pointer string `json:"pointer"`
	Message string `json:"message"`
}

// String is one line: the path and the message.
func (f Fault) String() string {
	if f.Path == "" {
		return f.Message
	}
	return f.Path + ": " + f.Message
}

// Errors is everything that is wrong with a configuration, in the tree's order. There is at least one fault.
type Errors struct {
	// Source is the file that was loaded. It is empty where there was none.
	Source string
	Faults []Fault
}

// Error is one line a fault, without a final line feed.
func (e *Errors) Error() string {
	lines := make([]string, len(e.Faults))
	for i, f := range e.Faults {
		lines[i] = f.String()
		if e.Source != "" {
			lines[i] = e.Source + ": " + lines[i]
		}
	}
	return strings.Join(lines, "\n")
}

// maxFaults bounds a report: nobody reads more, and a file can hold millions.
const maxFaults = 1000

// report collects faults: with add, one a place, and none inside a place that is itself at fault.
type report struct {
	faults []Fault
	// seen are the pointers of faults that add noted, and within those of everything around any fault.
	seen, within map[string]bool
	dropped      int
}

func (r *report) add(p place, format string, args ...any) {
	for at := p.pointer; ; {
		if r.seen[at] {
			return
		}
		cut := strings.LastIndexByte(at, '/')
		if cut < 0 {
			break
		}
		at = at[:cut]
	}
	if r.seen == nil {
		r.seen = map[string]bool{}
	}
	if r.note(p, format, args...) {
		r.seen[p.pointer] = true
	}
}

// note adds a fault that hides no other. It says whether there was room.
func (r *report) note(p place, format string, args ...any) bool {
	if len(r.faults) == maxFaults {
		r.dropped++
		return false
	}
	r.faults = append(r.faults, p.fault(format, args...))
	if r.within == nil {
		r.within = map[string]bool{}
	}
	for at := p.pointer; !r.within[at]; {
		r.within[at] = true
		at = at[:max(0, strings.LastIndexByte(at, '/'))]
	}
	return true
}

// has says whether there is a fault at p itself, and hasWithin whether there is one there or deeper.
func (r *report) has(p place) bool { return r.seen[p.pointer] }

func (r *report) hasWithin(p place) bool { return r.within[p.pointer] }

// errors is nil where there is no fault.
func (r *report) errors() error {
	if len(r.faults) == 0 {
		return nil
	}
	sortFaults(r.faults)
	if r.dropped > 0 {
		r.faults = append(r.faults, Fault{Message: fmt.Sprintf("and %d more faults", r.dropped)})
	}
	return &Errors{Faults: r.faults}
}

// sortFaults brings faults into the order in which the tree's types list their fields.
func sortFaults(faults []Fault) {
	s := tree()
	order := make(map[string][]int, len(faults))
	for _, f := range faults {
		order[f.Pointer] = s.order(f.Pointer)
	}
	slices.SortStableFunc(faults, func(a, b Fault) int {
		return cmp.Or(slices.Compare(order[a.Pointer], order[b.Pointer]), cmp.Compare(a.Pointer, b.Pointer))
	})
}

// place is where in the tree something stands.
type place struct {
	path    string
	pointer string
}

func (p place) field(name string) place {
	path := name
	if !validName(name) {
		path = quote(name)
	}
	if p.path != "" {
		path = p.path + "." + path
	}
	return place{path, p.pointer + "/" + pointerEscape.Replace(name)}
}

func (p place) item(i int, label string) place {
	path := p.path + "[" + strconv.Itoa(i) + "]"
	if label != "" {
		path += " (" + label + ")"
	}
	return place{path, p.pointer + "/" + strconv.Itoa(i)}
}

var pointerEscape = strings.NewReplacer("~", "~0", "/", "~1")

func (p place) fault(format string, args ...any) Fault {
	return Fault{Path: p.path, Pointer: p.pointer, Message: fmt.Sprintf(format, args...)}
}

// The places that more than one check speaks of.

func listenerPlace(i int, l *Listener) place {
	return place{}.field("listeners").item(i, label(l.Name))
}

func tablePlace(i int, t *RouteTable) place {
	return place{}.field("routes").item(i, label(t.Name))
}

func rulePlace(table place, i int, r *Rule) place {
	return table.field("rules").item(i, ruleLabel(i, r.Name))
}

func clusterPlace(i int, c *Cluster) place {
	return place{}.field("clusters").item(i, label(c.Name))
}

// label is what a path shows of an item's name.
func label(name string) string {
	if !validName(name) {
		return ""
	}
	return name
}

// ruleLabel leaves out the name that says nothing but the number.
func ruleLabel(i int, name string) string {
	if name == ruleName(i) {
		return ""
	}
	return label(name)
}

const (
	nameCharacters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"
	maxName        = 64
)

func validName(s string) bool {
	return s != "" && len(s) <= maxName && strings.Trim(s, nameCharacters) == ""
}

// clip shortens text from a file for a message, and quote shortens and quotes it: a message is one line of
// bounded length.
func clip(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return r == utf8.RuneError || !strconv.IsPrint(r) }) {
		return quote(s)
	}
	if len(s) > maxName {
		return truncate(s) + "..."
	}
	return s
}

func quote(s string) string {
	if len(s) > maxName {
		return strconv.Quote(truncate(s)) + "..."
	}
	return strconv.Quote(s)
}

func truncate(s string) string {
	cut := maxName
	for cut > maxName-utf8.UTFMax && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut]
}
