package accesslog

import (
	"strconv"
	"unicode/utf8"

	"github.com/relevo-proxy/relevo/forwarder/stats"
)

// appendJSON appends a record as a JSON object. Fields of which nothing is known are left out.
func (e *encoder) appendJSON(b []byte, r *stats.Record) []byte {
	b = append(b, '{')
	first := true
	for _, f := range e.fields {
		v := f.value(r)
		if !v.known {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = append(b, '"')
		b = append(b, f.name...)
		b = append(b, '"', ':')
		switch v.sort {
		case sortText:
			b = appendString(b, v.text)
		case sortNumber:
			b = strconv.AppendInt(b, v.n, 10)
		case sortDuration:
			b = appendSeconds(b, v.n)
		case sortTime:
			b = append(b, '"')
			b = appendTime(b, v.n)
			b = append(b, '"')
		}
	}
	return append(b, '}')
}

const hex = "0123456789abcdef"

// appendString appends s as a JSON string. Bytes that are not UTF-8 become U+FFFD.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	from := 0 // what comes before it has been appended
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if c >= ' ' && c != '"' && c != '\\' && c != 0x7f {
				i++
				continue
			}
			b = append(b, s[from:i]...)
			switch c {
			case '"', '\\':
				b = append(b, '\\', c)
			case '\n':
				b = append(b, '\\', 'n')
			case '\r':
				b = append(b, '\\', 'r')
			case '\t':
				b = append(b, '\\', 't')
			default:
				b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			}
			i++
			from = i
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			b = append(b, s[from:i]...)
			b = append(b, "\uFFFD"...)
			from = i + size
		case r < 0xa0 || r == '\u2028' || r == '\u2029': // what some take for the end of a line, or a terminal's control
			b = append(b, s[from:i]...)
			b = append(b, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
			from = i + size
		}
		i += size
	}
	b = append(b, s[from:]...)
	return append(b, '"')
}

// appendSeconds appends nanoseconds as a decimal number of seconds, exactly and without an exponent.
func appendSeconds(b []byte, nanos int64) []byte {
	n := uint64(nanos)
	if nanos < 0 {
		b = append(b, '-')
		n = -n
	}
	b = strconv.AppendUint(b, n/1e9, 10)
	n %= 1e9
	if n == 0 {
		return b
	}
	b = append(b, '.')
	for unit := uint64(1e8); n > 0; unit /= 10 {
		b = append(b, byte('0'+n/unit))
		n %= unit
	}
	return b
}
