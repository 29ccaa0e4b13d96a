package accesslog

import "github.com/relevo-proxy/relevo/forwarder/stats"

// encoder makes a line of a record.
type encoder struct {
	// Static after New. One of the two.
	fields []*field // JSON
	pieces []piece  // text
	quoted string   // characters whose presence in a text's value has it quoted, beside those that always do
}

// newEncoder returns the encoder of a configuration that has been checked.
func newEncoder(c *Config) *encoder {
	if c.Format == FormatText {
		template := c.Template
		if template == "" {
			template = DefaultTemplate
		}
		pieces, _ := parseTemplate(template) // checked
		return &encoder{pieces: pieces, quoted: separators(pieces)}
	}
	e := &encoder{}
	for i := range fields {
		if len(c.Fields) == 0 {
			e.fields = append(e.fields, &fields[i])
		}
	}
	for _, name := range c.Fields {
		f, _ := fieldNamed(name) // checked
		e.fields = append(e.fields, f)
	}
	return e
}

// appendLine appends a record as one line, without its end.
func (e *encoder) appendLine(b []byte, r *stats.Record) []byte {
	if e.pieces != nil {
		return e.appendText(b, r)
	}
	return e.appendJSON(b, r)
}

// all are the fields that a record tells: those chosen, or of a text, which is a matter of form, all.
func (e *encoder) all() []*field {
	if e.pieces == nil {
		return e.fields
	}
	return newEncoder(&Config{Format: FormatJSON}).fields
}
