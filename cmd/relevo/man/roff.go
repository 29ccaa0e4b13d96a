// Package man writes manual pages: those of verbs from the tree of commands, that of the configuration from its reference
// in Markdown. What a page says is said where people read it anyway, and here it only gets another form.
package man

import (
	"fmt"
	"strings"
	"time"
)

// Title is what stands at the top and the bottom of a page.
type Title struct {
	Version string    // of the program
	Date    time.Time // of the release
}

// page is a page that is being written, in roff with the macros of man(7).
type page struct{ strings.Builder }

// begin writes the title and the section NAME.
func (p *page) begin(t Title, name string, section int, what string) {
	fmt.Fprintf(p, ".TH %q %d %q %q\n", strings.ToUpper(name), section, t.Date.UTC().Format(time.DateOnly), "Relevo "+t.Version)
	p.WriteString(".nh\n.ad l\n") // no hyphenation, no justified lines: both spoil what people copy
	p.heading("Name")
	p.text(name + ` - ` + strings.ToLower(what[:1]) + what[1:])
}

func (p *page) heading(s string) { fmt.Fprintf(p, ".SH %s\n", escape(strings.ToUpper(s))) }
func (p *page) sub(s string)     { fmt.Fprintf(p, ".SS %s\n", escape(s)) }

// text writes a paragraph's lines, without the macro that begins one.
func (p *page) text(s string) {
	for line := range strings.Lines(s) {
		p.line(escape(strings.TrimSpace(line)))
	}
}

// line writes a line of roff. What would be taken for a macro is guarded.
func (p *page) line(roff string) {
	if strings.HasPrefix(roff, ".") || strings.HasPrefix(roff, "'") {
		roff = `\&` + roff
	}
	p.WriteString(roff + "\n")
}

// paragraphs writes text as the help of a verb has it: paragraphs with blank lines between them; one whose lines are
// indented is kept as it is.
func (p *page) paragraphs(s string) {
	for i, para := range strings.Split(strings.Trim(s, "\n"), "\n\n") {
		switch {
		case strings.HasPrefix(para, " "):
			p.verbatim(para)
			continue
		case i > 0:
			p.WriteString(".PP\n")
		}
		p.text(para)
	}
}

// verbatim writes lines as they are, without the indentation that they share.
func (p *page) verbatim(s string) {
	p.WriteString(".PP\n.RS 4\n.nf\n")
	lines := strings.Split(strings.Trim(s, "\n"), "\n")
	indent := len(s)
	for _, line := range lines {
		if strings.TrimSpace(line) != "" {
			indent = min(indent, len(line)-len(strings.TrimLeft(line, " ")))
		}
	}
	for _, line := range lines {
		p.line(escape(line[min(indent, len(line)):]))
	}
	p.WriteString(".fi\n.RE\n")
}

// item writes one thing and what is to be said of it. Both are roff.
func (p *page) item(tag, text string) {
	p.WriteString(".TP\n")
	p.line(tag)
	p.line(text)
}

// bold sets a word of text.
func bold(s string) string { return `\fB` + escape(s) + `\fR` }

// escape makes text roff: no character of it has a meaning, a hyphen is the one that people type, and what is not ASCII
// is named, so that no page depends on an encoding.
func escape(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '\\':
			b.WriteString(`\e`)
		case r == '-':
			b.WriteString(`\-`)
		case r == '^', r == '~', r == '`', r == '\'':
			fmt.Fprintf(&b, `\[%s]`, map[rune]string{'^': "ha", '~': "ti", '`': "ga", '\'': "aq"}[r])
		case r > '~':
			fmt.Fprintf(&b, `\[u%04X]`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
