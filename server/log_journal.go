package server

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap/zapcore"

	"github.com/relevo-proxy/relevo/systemd"
)

// journalCore makes an entry of the journal of each line of the log: the message, with its fields behind it for who reads it,
// and each field under a name of its own, RELEVO_LISTENER for one, for who looks for it; durations in seconds.
type journalCore struct {
	// Static.
	zapcore.Core // takes what the journal does not
	journal      systemd.Journal
	fields       []zapcore.Field
}

func newJournalCore(j systemd.Journal, instead zapcore.Core) *journalCore {
	return &journalCore{Core: instead, journal: j}
}

// With implements zapcore.Core.
func (c *journalCore) With(fields []zapcore.Field) zapcore.Core {
	return &journalCore{Core: c.Core.With(fields), journal: c.journal, fields: slices.Concat(c.fields, fields)}
}

// Check implements zapcore.Core.
func (c *journalCore) Check(e zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return checked.AddCore(e, c)
	}
	return checked
}

// Write implements zapcore.Core.
func (c *journalCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	out := systemd.Entry{Priority: priorityOf(e.Level), Vars: make(map[string]string)}
	var message strings.Builder
	message.WriteString(e.Message)
	for _, list := range [][]zapcore.Field{c.fields, fields} {
		for i := range list {
			m := zapcore.NewMapObjectEncoder() // one a field, so that they stay in their order
			list[i].AddTo(m)
			for key, v := range m.Fields {
				text, number := journalText(v)
				out.Vars[systemd.Field(key)] = number
				fmt.Fprintf(&message, " %s=%s", key, quoted(text))
			}
		}
	}
	out.Message = message.String()
	if c.journal.Send(out) == nil {
		return nil
	}
	return c.Core.Write(e, fields)
}

func priorityOf(l zapcore.Level) systemd.Priority {
	switch {
	case l < zapcore.InfoLevel:
		return systemd.Debug
	case l < zapcore.WarnLevel:
		return systemd.Info
	case l < zapcore.ErrorLevel:
		return systemd.Warning
	case l == zapcore.ErrorLevel:
		return systemd.Error
	}
	return systemd.Critical
}

// journalText is a value as people read it, and as programs do.
func journalText(v any) (text, number string) {
	switch v := v.(type) {
	case string:
		return v, v
	case []byte:
		return string(v), string(v)
	case time.Duration:
		return v.String(), strconv.FormatFloat(v.Seconds(), 'f', -1, 64)
	case time.Time:
		text = v.UTC().Format(time.RFC3339Nano)
		return text, text
	case bool, int, int8, int16, int32, int64, uint, uint8, uint16, uint32, uint64, float32, float64:
		text = fmt.Sprint(v)
		return text, text
	}
	if b, err := json.Marshal(v); err == nil {
		return string(b), string(b)
	}
	text = fmt.Sprint(v)
	return text, text
}

// quoted is a value that ends where the next one begins.
func quoted(s string) string {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '"' || r == '=' || r == 0x7f }) {
		return strconv.Quote(s)
	}
	return s
}
