package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp/syntax"
	"slices"
	"strings"
)

// TextForm is how a Text is compared with a value.
type TextForm string

// The forms. The zero form belongs to a Text that asks for nothing.
const (
	ExactText  TextForm = "exact"
	PrefixText TextForm = "prefix"
	// RegexText is a regular expression in the syntax of Go (RE2) that the whole value must match.
	RegexText TextForm = "regex"
)

var textForms = []string{string(ExactText), string(PrefixText), string(RegexText)}

// Text is a condition on one value of a request, which has to be there. The zero Text is none. In a file it is text,
// which then is exact, or a mapping of one form to text.
type Text struct {
	Form  TextForm
	Value string
}

// Exactly is the Text that only value fits.
func Exactly(value string) Text { return Text{ExactText, value} }

// MarshalJSON is the text alone where it is exact, else a mapping with one key.
func (t Text) MarshalJSON() ([]byte, error) {
	if t.Form == ExactText {
		return json.Marshal(t.Value)
	}
	return json.Marshal(map[TextForm]string{t.Form: t.Value})
}

const textHint = "write text, or a mapping with one of " // and the forms

func (t *Text) set(n node) error {
	if n.kind != objectNode {
		text, err := n.string()
		if err == nil {
			*t = Exactly(text)
		}
		return err
	}
	hint := textHint + strings.Join(textForms, ", ")
	for _, key := range slices.Sorted(maps.Keys(n.fields)) {
		if !slices.Contains(textForms, key) {
			return fmt.Errorf("there is no %s%s: %s", quote(key), didYouMean(key, textForms), hint)
		}
	}
	if len(n.fields)+len(n.duplicates)+len(n.problems) != 1 {
		return errors.New("has not exactly one key: " + hint)
	}
	for key, value := range n.fields {
		text, err := value.string()
		if err != nil {
			return fmt.Errorf("%s %w", key, err)
		}
		*t = Text{TextForm(key), text}
	}
	return nil
}

const (
	// maxRegex is the length in bytes of the longest regex that is looked at.
	maxRegex = 4096
	// maxRegexSize is the number of instructions that a regex may compile to: about one for each character of its
	// pattern, times the counts of its repetitions. The routes refuse more, too.
	maxRegexSize = 10_000
)

// check refuses what no value could ever fit, or only at a price.
func (t Text) check() error {
	switch t.Form {
	case ExactText, PrefixText:
		return nil
	case RegexText:
		return checkRegex(t.Value)
	}
	return fmt.Errorf("%s is not one of %s", quote(string(t.Form)), strings.Join(textForms, ", "))
}

func checkRegex(pattern string) error {
	switch {
	case pattern == "":
		return errors.New("the regex must not be empty")
	case len(pattern) > maxRegex:
		return fmt.Errorf("the regex has %d bytes; it may have %d", len(pattern), maxRegex)
	}
	tree, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		if e, ok := errors.AsType[*syntax.Error](err); ok {
			return fmt.Errorf("%s is not a regex: %s: %s", quote(pattern), e.Code, clip(e.Expr))
		}
		return fmt.Errorf("%s is not a regex", quote(pattern))
	}
	program, err := syntax.Compile(tree.Simplify())
	if err != nil {
		return fmt.Errorf("%s is not a regex: %s", quote(pattern), clip(err.Error()))
	}
	if size := len(program.Inst); size > maxRegexSize {
		return fmt.Errorf("the regex %s takes %d instructions; it may take %d", quote(pattern), size, maxRegexSize)
	}
	return nil
}
