package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// none is the word that switches a bound off, where that is allowed.
const none = "none"

var errNoneHere = errors.New("none is not allowed here: this bound cannot be switched off")

// Duration is a span of time, in nanoseconds. In a file it carries a unit: 3s, 500ms, 1h30m.
type Duration time.Duration

// None is the Duration of a timer that is switched off.
const None Duration = -1

// D is d as the standard library has it. None is zero.
func (d Duration) D() time.Duration { return time.Duration(max(d, 0)) }

// String is d as a file would have it.
func (d Duration) String() string {
	if d == None {
		return none
	}
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// ParseDuration reads a Duration as a file has it.
func ParseDuration(text string) (d Duration, err error) {
	err = d.set(node{kind: textNode, text: text})
	return d, err
}

// MarshalText is String.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

var (
	durationForm = regexp.MustCompile(`^([0-9]+(\.[0-9]+)?(ns|us|µs|μs|ms|s|m|h))+$`)
	bareNumber   = regexp.MustCompile(`^[0-9]+(\.[0-9]+)?$`)
)

func (d *Duration) set(n node) error {
	switch {
	case n.kind != textNode && n.kind != numberNode:
		return fmt.Errorf("must be a duration such as 3s or 500ms, not %s", n.kind)
	case n.text == none && n.kind == textNode:
		*d = None
		return nil
	case strings.HasPrefix(n.text, "-"):
		return fmt.Errorf("%s is negative; a duration is not", clip(n.text))
	case n.kind == numberNode || bareNumber.MatchString(n.text):
		return fmt.Errorf("%s needs a unit: 3s, 500ms", clip(n.text))
	case !durationForm.MatchString(n.text):
		return fmt.Errorf("%s is not a duration: write a number with its unit (ms, s, m, h): 3s, 500ms, 1h30m", quote(n.text))
	}
	v, err := time.ParseDuration(n.text)
	if err != nil {
		return fmt.Errorf("%s is longer than a duration can be", clip(n.text))
	}
	*d = Duration(v)
	return nil
}

// NoSize is the Size that `none` stands for, where that is allowed.
const NoSize Size = -1

// Size is a number of bytes. In a file it is a plain number or carries a unit: 4096, 64KiB, 16MiB, 1GiB.
type Size int64

var sizeUnits = []struct {
	name  string
	bytes Size
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

// String is s as a file would have it.
func (s Size) String() string {
	if s == NoSize {
		return none
	}
	for _, u := range sizeUnits {
		if s != 0 && s%u.bytes == 0 {
			return strconv.FormatInt(int64(s/u.bytes), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// MarshalJSON is a number of bytes, or a string where a unit makes that shorter or there is none.
func (s Size) MarshalJSON() ([]byte, error) {
	text := s.String()
	if s == NoSize || strings.HasSuffix(text, "B") {
		return json.Marshal(text)
	}
	return []byte(text), nil
}

var (
	sizeForm       = regexp.MustCompile(`^([0-9]+)(KiB|MiB|GiB|TiB|B)?$`)
	errSizeTooLong = errors.New("is more bytes than a size can be")
)

func (s *Size) set(n node) error {
	if n.kind != textNode && n.kind != numberNode {
		return fmt.Errorf("must be a size such as 64KiB or 16MiB, not %s", n.kind)
	}
	if n.text == none && n.kind == textNode {
		*s = NoSize
		return nil
	}
	if strings.HasPrefix(n.text, "-") {
		return fmt.Errorf("%s is negative; a size is not", clip(n.text))
	}
	m := sizeForm.FindStringSubmatch(n.text)
	if m == nil || ambiguous(m[1]) {
		return fmt.Errorf("%s is not a size: write whole bytes, or a unit of 1024 (KiB, MiB, GiB, TiB): 4096, 64KiB", quote(n.text))
	}
	v, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil {
		return fmt.Errorf("%s %w", clip(n.text), errSizeTooLong)
	}
	unit := Size(1)
	for _, u := range sizeUnits {
		if u.name == m[2] {
			unit = u.bytes
		}
	}
	if v > math.MaxInt64/int64(unit) {
		return fmt.Errorf("%s %w", clip(n.text), errSizeTooLong)
	}
	*s = Size(v) * unit
	return nil
}

// Rate is a number of events per second.
type Rate int64

// Unlimited is the Rate that `none` stands for.
const Unlimited Rate = -1

// String is r as a file would have it.
func (r Rate) String() string {
	if r == Unlimited {
		return none
	}
	return strconv.FormatInt(int64(r), 10)
}

// MarshalJSON is a number, or the string none.
func (r Rate) MarshalJSON() ([]byte, error) {
	if r == Unlimited {
		return json.Marshal(none)
	}
	return []byte(r.String()), nil
}

func (r *Rate) set(n node) error {
	if n.kind == textNode && n.text == none {
		*r = Unlimited
		return nil
	}
	v, err := wholeNumber(n)
	*r = Rate(v)
	return err
}

// Percent is a share, in hundredths of a percent. In a file it carries its sign: 100%, 12.5%, 0.01%.
type Percent int64

// NoPercent is the Percent that `none` stands for, where that is allowed.
const NoPercent Percent = -1

// String is p as a file would have it.
func (p Percent) String() string {
	if p == NoPercent {
		return none
	}
	whole, part := p/100, p%100
	if part == 0 {
		return fmt.Sprintf("%d%%", whole)
	}
	return strings.TrimRight(fmt.Sprintf("%d.%02d", whole, part), "0") + "%"
}

// MarshalText is String.
func (p Percent) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

var percentForm = regexp.MustCompile(`^([0-9]{1,9})(?:\.([0-9]{1,2}))?%$`)

func (p *Percent) set(n node) error {
	if n.kind == textNode && n.text == none {
		*p = NoPercent
		return nil
	}
	m := percentForm.FindStringSubmatch(n.text)
	switch {
	case n.kind != textNode && n.kind != numberNode:
		return fmt.Errorf("must be a percentage such as 5%% or 0.5%%, not %s", n.kind)
	case strings.HasPrefix(n.text, "-"):
		return fmt.Errorf("%s is negative; a percentage is not", clip(n.text))
	case n.kind == numberNode || bareNumber.MatchString(n.text):
		return fmt.Errorf("%s needs a percent sign: 5%%, 0.5%%", clip(n.text))
	case m == nil || ambiguous(m[1]):
		return fmt.Errorf("%s is not a percentage: write a number with at most two decimals and its sign: 5%%, 0.5%%", quote(n.text))
	}
	hundredths, err := strconv.ParseInt(m[1]+(m[2] + "00")[:2], 10, 64)
	*p = Percent(hundredths)
	return err
}

// wholeNumber reads a decimal number. Forms that YAML reads otherwise than a person would (010, 1_000, 0x10,
// 1e3) are refused.
func wholeNumber(n node) (int64, error) {
	switch {
	case n.kind == textNode && n.text == none:
		return 0, errNoneHere
	case n.kind == textNode:
		return 0, fmt.Errorf("must be a whole number, not the text %s", quote(n.text))
	case n.kind != numberNode:
		return 0, fmt.Errorf("must be a whole number, not %s", n.kind)
	case strings.HasPrefix(n.text, "-"):
		return 0, fmt.Errorf("%s is negative; it must be a whole number from 0", clip(n.text))
	case strings.Trim(n.text, "0123456789") != "" || ambiguous(n.text):
		return 0, fmt.Errorf("%s is not a whole number in plain decimal digits", clip(n.text))
	}
	v, err := strconv.ParseInt(n.text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s is too large", clip(n.text))
	}
	return v, nil
}

// ambiguous says that digits could be meant as an octal number.
func ambiguous(digits string) bool { return len(digits) > 1 && digits[0] == '0' }
