package config

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Decimal is a number with up to two decimals, in hundredths.
type Decimal int64

// String is d as a file would have it.
func (d Decimal) String() string {
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%d.%02d", d/100, d%100), "0"), ".")
}

// Float is d as a number.
func (d Decimal) Float() float64 { return float64(d) / 100 }

// MarshalJSON is a number.
func (d Decimal) MarshalJSON() ([]byte, error) { return json.RawMessage(d.String()), nil }

var decimalForm = regexp.MustCompile(`^([0-9]{1,9})(?:\.([0-9]{1,2}))?$`)

func (d *Decimal) set(n node) error {
	m := decimalForm.FindStringSubmatch(n.text)
	switch {
	case n.kind == textNode && n.text == none:
		return errNoneHere
	case n.kind != numberNode:
		return fmt.Errorf("must be a number such as 2 or 1.9, not %s", n.kind)
	case strings.HasPrefix(n.text, "-"):
		return fmt.Errorf("%s is negative; it must be a number from 0", clip(n.text))
	case m == nil || ambiguous(m[1]):
		return fmt.Errorf("%s is not a number with at most two decimals: 2, 1.9", clip(n.text))
	}
	hundredths, err := strconv.ParseInt(m[1]+(m[2] + "00")[:2], 10, 64)
	*d = Decimal(hundredths)
	return err
}
