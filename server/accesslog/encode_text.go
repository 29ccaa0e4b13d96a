package accesslog

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/relevo-proxy/relevo/forwarder/stats"
)

// DefaultTemplate is the form of a text record when there is no other.
const DefaultTemplate = "{time} {listener} {client} {service} {method} {route} {endpoint} {status} {reason} {wait} {server} {total}"

// maxTemplate is the most that a template can be, in bytes.
const maxTemplate = 4096

// piece is a part of a template: a field, or where that is nil, text.
type piece struct {
	field *field
	text  string
}

// CheckTemplate says what is wrong with a template, and where: the first byte is at position 1. In a template {name}
// stands for the field of that name, {{ and }} for a brace.
func CheckTemplate(template string) error {
	_, err := parseTemplate(template)
	return err
}

func parseTemplate(template string) ([]piece, error) {
	if len(template) > maxTemplate {
		return nil, fmt.Errorf("the template is longer than %d bytes", maxTemplate)
	}
	if !utf8.ValidString(template) {
		return nil, errors.New("the template is not UTF-8")
	}
	var (
		pieces []piece
		plain  strings.Builder
		named  bool
	)
	flush := func() {
		if plain.Len() > 0 {
			pieces = append(pieces, piece{text: plain.String()})
			plain.Reset()
		}
	}
	for i := 0; i < len(template); {
		c, rest := template[i], template[i+1:]
		switch {
		case (c == '{' || c == '}') && rest != "" && rest[0] == c:
			plain.WriteByte(c)
			i += 2
		case c == '}':
			return nil, fmt.Errorf("position %d of the template: } closes nothing; a brace is written }}", i+1)
		case c == '{':
			name, _, closed := strings.Cut(rest, "}")
			if !closed {
				return nil, fmt.Errorf("position %d of the template: { is not closed; a brace is written {{", i+1)
			}
			f, ok := fieldNamed(name)
			if !ok {
				return nil, fmt.Errorf("position %d of the template: there is no field %q; there are %s", i+1, name, strings.Join(Fields(), ", "))
			}
			flush()
			pieces = append(pieces, piece{field: f})
			named = true
			i += len(name) + 2
		case c < ' ' && c != '\t' || c == 0x7f:
			return nil, fmt.Errorf("position %d of the template: the control character %q, and a record is one line", i+1, c)
		default:
			plain.WriteByte(c)
			i++
		}
	}
	flush()
	if !named {
		return nil, errors.New("the template names no field")
	}
	return pieces, nil
}

// separators are the characters of a template's text that a value must not show unquoted, because a reader would take
// it for two: all but letters, digits, and what names and addresses are made of.
func separators(pieces []piece) string {
	var out strings.Builder
	for _, p := range pieces {
		for _, r := range p.text {
			word := r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || strings.ContainsRune(":/.-_@", r)
			if !word && !strings.ContainsRune(out.String(), r) {
				out.WriteRune(r)
			}
		}
	}
	return out.String()
}

// appendText appends a record in the template's form. What is not known is a dash.
func (e *encoder) appendText(b []byte, r *stats.Record) []byte {
	for i := range e.pieces {
		p := &e.pieces[i]
		if p.field == nil {
			b = append(b, p.text...)
			continue
		}
		v := p.field.value(r)
		switch {
		case !v.known:
			b = append(b, '-')
		case v.sort == sortText && e.mustQuote(v.text):
			b = strconv.AppendQuote(b, v.text)
		default:
			b = v.appendPlain(b)
		}
	}
	return b
}

// appendPlain appends a value as people read it.
func (v value) appendPlain(b []byte) []byte {
	switch v.sort {
	case sortText:
		b = append(b, v.text...)
	case sortNumber:
		b = strconv.AppendInt(b, v.n, 10)
	case sortDuration:
		b = append(b, time.Duration(v.n).String()...)
	case sortTime:
		b = appendTime(b, v.n)
	}
	return b
}

// machine is a value as programs read it: as in JSON, without quotes.
func (v value) machine() string {
	if v.sort == sortDuration {
		return string(appendSeconds(nil, v.n))
	}
	return string(v.appendPlain(nil))
}

// mustQuote says whether a value, shown as it is, could be taken for something else than one value.
func (e *encoder) mustQuote(s string) bool {
	if s == "-" || s != "" && strings.ContainsRune("'`", rune(s[0])) { // Go's other quotes: a reader would take them for quotes
		return true
	}
	for i, r := range s {
		if r <= ' ' || r == '"' || r == '\\' || !strconv.IsPrint(r) {
			return true
		}
		if r == utf8.RuneError && !strings.HasPrefix(s[i:], "\uFFFD") {
			return true
		}
	}
	return strings.ContainsAny(s, e.quoted)
}
