package accesslog

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/relevo-proxy/relevo/forwarder/stats"
)

// order is the fields of a record as the configuration's document lists them.
const order = "time listener client protocol kind service method trace rpc id upstream_id route cluster endpoint attempts " +
	"status reason request_bytes reply_bytes wait server total"

func answered() stats.Record {
	return stats.Record{
		Time:     time.Date(2026, 3, 4, 5, 6, 7, 8_009_999, time.FixedZone("", 3600)),
		Listener: "client", Client: "127.0.0.1:40000", Protocol: "bolt", Kind: "request",
		Service: "com.example.Order:1.0", Method: "create", Trace: "0a0fe8cc17", RPC: "0.1", ID: 7, Upstream: 4_000_000_000,
		Route: "rpc/orders", Cluster: "order", Endpoint: "127.0.0.1:12200", Attempts: 2, Status: "SUCCESS",
		Request: 512, Reply: 1024, Wait: 250 * time.Microsecond, Server: 1500 * time.Millisecond, Total: 1_500_250_001,
	}
}

func refused() stats.Record {
	return stats.Record{
		Time: time.Unix(0, 0), Listener: "client", Client: "unix socket", Protocol: "bolt", Kind: "request",
		Service: "a \"b\"\n{c}", Status: "NO_PROCESSOR", Reason: "no-route", Request: 60,
	}
}

func encoderOf(t *testing.T, c Config) *encoder {
	t.Helper()
	c.Path, c.Sample, c.Buffer = PathStderr, 1, 1
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	return newEncoder(&c)
}

func TestFieldsAreInOrder(t *testing.T) {
	if diff := cmp.Diff(strings.Fields(order), Fields()); diff != "" {
		t.Errorf("the fields differ from those of the document (-want +got):\n%s", diff)
	}
}

func TestLines(t *testing.T) {
	for _, c := range []struct {
		name   string
		config Config
		record stats.Record
		want   string
	}{
		{
			"JSON of all fields",
			Config{Format: FormatJSON},
			answered(),
			`{"time":"2026-03-04T04:06:07.008009Z","listener":"client","client":"127.0.0.1:40000","protocol":"bolt",` +
				`"kind":"request","service":"com.example.Order:1.0","method":"create","trace":"0a0fe8cc17","rpc":"0.1","id":7,` +
				`"upstream_id":4000000000,"route":"rpc/orders","cluster":"order","endpoint":"127.0.0.1:12200","attempts":2,` +
				`"status":"SUCCESS","request_bytes":512,"reply_bytes":1024,"wait":0.00025,"server":1.5,"total":1.500250001}`,
		},
		{
			"JSON leaves out what is not known",
			Config{Format: FormatJSON},
			refused(),
			`{"time":"1970-01-01T00:00:00.000000Z","listener":"client","client":"unix socket","protocol":"bolt",` +
				`"kind":"request","service":"a \"b\"\n{c}","id":0,"attempts":0,` +
				`"status":"NO_PROCESSOR","reason":"no-route","request_bytes":60,"wait":0,"total":0}`,
		},
		{
			"JSON of chosen fields, in that order",
			Config{Format: FormatJSON, Fields: []string{"total", "reason", "service", "id"}},
			answered(), `{"total":1.500250001,"service":"com.example.Order:1.0","id":7}`,
		},
		{"JSON of a field that is not known", Config{Format: FormatJSON, Fields: []string{"endpoint"}}, refused(), `{}`},
		{
			"text as people get it",
			Config{Format: FormatText},
			answered(),
			`2026-03-04T04:06:07.008009Z client 127.0.0.1:40000 com.example.Order:1.0 create rpc/orders 127.0.0.1:12200 ` +
				`SUCCESS - 250µs 1.5s 1.500250001s`,
		},
		{
			"text quotes what is not one word",
			Config{Format: FormatText},
			refused(),
			`1970-01-01T00:00:00.000000Z client "unix socket" "a \"b\"\n{c}" - - - NO_PROCESSOR no-route 0s - 0s`,
		},
		{
			"text with braces",
			Config{Format: FormatText, Template: "{{{id}}} {{x}} {attempts}"},
			answered(),
			`{7} {x} 2`,
		},
		{
			"text quotes what holds the template's separator",
			Config{Format: FormatText, Template: "{service}|{route}"},
			stats.Record{Service: "a|b", Route: "rpc/x"},
			`"a|b"|rpc/x`,
		},
		{
			"text tells a dash from nothing",
			Config{Format: FormatText, Template: "{service} {method}"},
			stats.Record{Service: "-"},
			`"-" -`,
		},
		{
			"text of bytes that are no text",
			Config{Format: FormatText, Template: "{service}\t{method} {trace}"},
			stats.Record{Service: "\xff", Method: "\u202ex", Trace: "Grüße\uFFFD"},
			`"\xff"` + "\t" + `"\u202ex" Grüße` + "\uFFFD",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, string(encoderOf(t, c.config).appendLine(nil, &c.record))); diff != "" {
				t.Errorf("the line differs (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSeconds(t *testing.T) {
	for nanos, want := range map[int64]string{
		0: "0", 1: "0.000000001", 10: "0.00000001", 100_000_000: "0.1", 999_999_999: "0.999999999", 1e9: "1", 61e9 + 5e8: "61.5",
		-1: "-0.000000001", -1 << 63: "-9223372036.854775808", 1<<63 - 1: "9223372036.854775807",
	} {
		if got := string(appendSeconds(nil, nanos)); got != want {
			t.Errorf("%d ns are %q seconds, want %q", nanos, got, want)
		}
	}
}

func TestCheckTemplate(t *testing.T) {
	for template, want := range map[string]string{
		DefaultTemplate:           "",
		"{{{time}}}":              "",
		"{time}\t{id}":            "",
		"{time} {servic}":         `position 8 of the template: there is no field "servic"; there are time, `,
		"{}":                      `position 1 of the template: there is no field ""`,
		"{ time }":                `position 1 of the template: there is no field " time "`,
		"a {time":                 "position 3 of the template: { is not closed",
		"a } {time}":              "position 3 of the template: } closes nothing",
		"{time}}":                 "position 7 of the template: } closes nothing",
		"{time}\n{id}":            `position 7 of the template: the control character '\n'`,
		"{{time}}":                "names no field",
		"":                        "names no field",
		"\xff {time}":             "not UTF-8",
		strings.Repeat("x", 5000): "longer than 4096 bytes",
	} {
		err := CheckTemplate(template)
		if want == "" {
			if err != nil {
				t.Errorf("template %q: got %v, want no error", template, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("template %q: got %v, want %q", template, err, want)
		}
	}
}

// What the program's own log says of a record is what the access log's JSON says.
func TestObjectIsAsInJSON(t *testing.T) {
	for _, r := range []stats.Record{answered(), refused()} {
		var want, got map[string]any
		if err := json.Unmarshal(encoderOf(t, Config{Format: FormatJSON}).appendLine(nil, &r), &want); err != nil {
			t.Fatal(err)
		}
		buf, err := zapcore.NewJSONEncoder(zapcore.EncoderConfig{}).EncodeEntry(zapcore.Entry{}, []zapcore.Field{zap.Object("x", Object{&r})})
		if err != nil {
			t.Fatal(err)
		}
		var line struct{ X map[string]any }
		if err := json.Unmarshal(buf.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		got = line.X
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("the object differs from the line (-line +object):\n%s", diff)
		}
	}
}

// valid is s as a decoder of JSON gets it: bytes that are not UTF-8 are U+FFFD, one each.
func valid(s string) string { return string([]rune(s)) }

func FuzzJSON(f *testing.F) {
	f.Add("com.example.Order:1.0", "create", int64(1500), uint32(7), int64(1_700_000_000_123_456))
	f.Add("\"\\\b\f\n\r\t\x00\x1f\x7f", "\xff\xc3\u2028\u2029\u0085\uFFFD", int64(-1), uint32(0), int64(0))
	f.Add("\U0001F600", "<&>", int64(1<<62), uint32(1<<31), int64(-1))
	e := newEncoder(&Config{Format: FormatJSON})
	f.Fuzz(func(t *testing.T, service, method string, nanos int64, id uint32, micros int64) {
		micros %= 200_000_000_000_000_000 // up to the year 8307
		if micros < -60_000_000_000_000_000 {
			micros = 0 // from the year 68
		}
		r := stats.Record{Time: time.UnixMicro(micros), Service: service, Method: method, Total: time.Duration(nanos), Upstream: id, Reply: int(id)}
		line := e.appendLine(nil, &r)
		if !utf8.Valid(line) {
			t.Fatalf("%q is not UTF-8", line)
		}
		if i := slices.IndexFunc(line, func(c byte) bool { return c < ' ' || c == 0x7f }); i >= 0 {
			t.Fatalf("%q holds a control character", line)
		}
		var got struct {
			Time            time.Time
			Service, Method *string
			Upstream        *uint32 `json:"upstream_id"`
			Total           json.Number
		}
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		for _, c := range []struct {
			name string
			got  *string
			want string
		}{{"service", got.Service, service}, {"method", got.Method, method}} {
			if c.want == "" && c.got != nil || c.want != "" && (c.got == nil || *c.got != valid(c.want)) {
				t.Errorf("%s of %q is not %q", c.name, line, c.want)
			}
		}
		if id == 0 && got.Upstream != nil || id != 0 && (got.Upstream == nil || *got.Upstream != id) {
			t.Errorf("upstream_id of %q is not %d", line, id)
		}
		if !got.Time.Equal(time.UnixMicro(micros)) {
			t.Errorf("the time of %q is not %v", line, time.UnixMicro(micros).UTC())
		}
		whole, fraction, _ := strings.Cut(strings.TrimPrefix(got.Total.String(), "-"), ".")
		n, err := strconv.ParseUint(whole+fraction+strings.Repeat("0", 9-len(fraction)), 10, 64)
		if sum := int64(n); err != nil || sum != nanos && -sum != nanos || strings.HasPrefix(got.Total.String(), "-") != (nanos < 0) {
			t.Errorf("the total of %q is not %d ns: %v", line, nanos, err)
		}
	})
}

// Whoever reads a text line by its template gets the values that were written: nobody can forge a field or a line.
func FuzzTextCannotBeForged(f *testing.F) {
	f.Add("com.example.Order:1.0", "create", "", " ")
	f.Add("a b", "c|d", "-", "|")
	f.Add("x\" \"y", "\n\r", "\xff\\", ",")
	f.Add("a=b", "\u00a0", "\u2028", "=")
	f.Add("a·b", "·", "", "·")
	f.Add("''", "`", "'a'", " ")
	f.Fuzz(func(t *testing.T, service, method, trace, separator string) {
		template := "{service}" + strings.NewReplacer("{", "{{", "}", "}}").Replace(separator) + "{method} {trace}"
		pieces, err := parseTemplate(template)
		if err != nil {
			return
		}
		if len(separators(pieces)) == 1 && separator != " " {
			return // it is made of what names are made of: who asks for that gets it
		}
		if strings.ContainsFunc(separator, func(r rune) bool { return r == '"' }) {
			return // nobody could read such lines
		}
		for _, r := range separator {
			if !strings.ContainsRune(separators(pieces), r) {
				return
			}
		}
		e := newEncoder(&Config{Format: FormatText, Template: template})
		line := string(e.appendLine(nil, &stats.Record{Service: service, Method: method, Trace: trace}))
		rest := line
		for i, want := range []string{service, method, trace} {
			end := []string{separator, " ", ""}[i]
			var got string
			if quoted, err := strconv.QuotedPrefix(rest); err == nil {
				got, _ = strconv.Unquote(quoted)
				rest = rest[len(quoted):]
			} else {
				at := len(rest)
				if end != "" {
					at = strings.Index(rest, end)
				}
				if at < 0 {
					t.Fatalf("%q: no %q behind field %d", line, end, i+1)
				}
				if got = rest[:at]; got == "-" {
					got = ""
				}
				rest = rest[at:]
			}
			if got != want {
				t.Fatalf("field %d of %q reads %q, want %q", i+1, line, got, want)
			}
			if !strings.HasPrefix(rest, end) {
				t.Fatalf("%q: behind field %d is %q, want %q", line, i+1, rest, end)
			}
			rest = rest[len(end):]
		}
		if rest != "" || strings.ContainsAny(line, "\n\r") {
			t.Fatalf("%q is not one line of three fields", line)
		}
	})
}
