package route

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"
)

const (
	// MaxRegexSize is the number of instructions that a regex may compile to: about one for each character of
	// its pattern, times the counts of its repetitions.
	MaxRegexSize = 10_000

	// MaxRegexValue is the longest value, in bytes, that a regex is tried on; it matches nothing longer. With
	// it the cost of a regex is bounded whatever a client sends.
	MaxRegexValue = 1024
)

// Kind is how a Text is compared with a value.
type Kind uint8

// The kinds.
const (
	Any    Kind = iota // not asked: the value may be anything, or absent
	Exact              // the value is the text
	Prefix             // the value begins with the text; with the empty one every value does
	Regex              // the whole value matches the text, a regular expression in the syntax of Go (RE2)
)

// Text is a condition on one value, which has to be there. The zero Text is none.
//
// A regex is anchored at both ends, as if it stood between \A(?: and )\z: "order" matches nothing but "order". Bytes
// that are not UTF-8 are matched one by one as U+FFFD.
type Text struct {
	Kind  Kind
	Value string
}

// errNoText is the fault of a header that is named without saying what its value must be.
var errNoText = errors.New("no text")

// Exactly is the text that equals value.
func Exactly(value string) Text { return Text{Exact, value} }

// String says the text as a person would: exactly "order", prefix "com.", regex "com[.].*".
func (t Text) String() string {
	switch t.Kind {
	case Any:
		return "anything"
	case Exact:
		return "exactly " + quoted(t.Value)
	case Prefix:
		return "prefix " + quoted(t.Value)
	case Regex:
		return "regex " + pattern(t.Value)
	}
	return fmt.Sprintf("text of the unknown kind %d", t.Kind)
}

// narrows says whether what fits t fits u as well. Neither is a regex.
func (t Text) narrows(u Text) bool {
	if u.Kind == Prefix {
		return strings.HasPrefix(t.Value, u.Value)
	}
	return t == u
}

// holds says whether value, which is there, fits t.
func (t Text) holds(value string) (bool, error) {
	switch t.Kind {
	case Exact:
		return value == t.Value, nil
	case Prefix:
		return strings.HasPrefix(value, t.Value), nil
	case Regex:
		re, err := t.compile()
		return err == nil && fits(re, []byte(value)), err
	default: // Any, which asks for nothing that could hold
		return false, errNoText
	}
}

// fits says whether the whole value matches re, which compile made.
func fits(re *regexp.Regexp, value []byte) bool {
	return len(value) <= MaxRegexValue && re.Match(value)
}

// compile makes the regex of t, anchored at both ends. The error names it and the reason.
func (t Text) compile() (*regexp.Regexp, error) {
	tree, err := syntax.Parse(t.Value, syntax.Perl)
	if err != nil {
		return nil, t.refused(err)
	}
	program, err := syntax.Compile(tree.Simplify())
	if err != nil {
		return nil, t.refused(err)
	}
	if n := len(program.Inst); n > MaxRegexSize {
		return nil, fmt.Errorf("%s: it takes %d instructions, at most %d can be", t, n, MaxRegexSize)
	}
	// Written anew from its tree, since an open \Q would quote what is put behind it.
	re, err := regexp.Compile(`\A(?:` + tree.String() + `)\z`)
	if err != nil {
		return nil, t.refused(err)
	}
	return re, nil
}

// refused says why a regex is none, and where that is not all of it, which part is to blame.
func (t Text) refused(err error) error {
	e, ok := errors.AsType[*syntax.Error](err)
	switch {
	case !ok:
		return fmt.Errorf("%s: %w", t, err)
	case e.Expr == "" || !strings.Contains(t.Value, e.Expr) || e.Expr == t.Value:
		return fmt.Errorf("%s: %s", t, e.Code)
	}
	return fmt.Errorf("%s: %s: %s", t, e.Code, pattern(e.Expr))
}

// maxQuoted is the number of bytes of a text that are shown.
const maxQuoted = 200

// quoted is s in quotes, cut where it is too long to be read.
func quoted(s string) string {
	if len(s) > maxQuoted {
		return fmt.Sprintf("%q... (%d bytes)", s[:maxQuoted], len(s))
	}
	return fmt.Sprintf("%q", s)
}

// pattern is a regex in quotes that leave its backslashes alone.
func pattern(s string) string {
	if len(s) > maxQuoted || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == '"' || r == 0x7f }) {
		return quoted(s)
	}
	return `"` + s + `"`
}
