package man

import (
	"regexp"
	"strings"
)

// Reference is the page of a file, from its reference in Markdown: headings, paragraphs, lists, tables and code, which is all
// that docs/configuration.md has. The first heading is left to the page's title.
func Reference(name, what, markdown string, t Title) string {
	p := &page{}
	p.begin(t, name, 5, what)
	p.heading("Description")
	var columns []string // of the table that is being read
	var para []string
	fresh := true // behind a heading no macro is needed
	flush := func() {
		if len(para) == 0 {
			return
		}
		if !fresh {
			p.WriteString(".PP\n")
		}
		p.line(inline(strings.Join(para, " ")))
		para, fresh = nil, false
	}
	lines := strings.Split(markdown, "\n")
	for i := 0; i < len(lines); i++ {
		line := lines[i]
		word := strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			columns = nil
		}
		switch {
		case strings.HasPrefix(line, "# "):
		case strings.HasPrefix(line, "## "):
			flush()
			p.heading(line[len("## "):])
			fresh = true
		case strings.HasPrefix(line, "### "):
			flush()
			p.sub(line[len("### "):])
			fresh = true
		case strings.HasPrefix(line, "```"):
			flush()
			var code []string
			for i++; i < len(lines) && !strings.HasPrefix(lines[i], "```"); i++ {
				code = append(code, lines[i])
			}
			p.verbatim(strings.Join(code, "\n"))
			fresh = false
		case strings.HasPrefix(line, "|"):
			flush()
			cells := row(line)
			switch {
			case columns == nil:
				columns = cells
			case strings.Trim(strings.Join(cells, ""), "-: ") == "":
			default:
				p.item(`\fB`+plain(cells[0])+`\fR`, described(columns, cells))
			}
			fresh = false
		case strings.HasPrefix(line, "* "), strings.HasPrefix(line, "- "):
			flush()
			item := []string{line[2:]}
			for i+1 < len(lines) && strings.HasPrefix(lines[i+1], "  ") {
				i++
				item = append(item, strings.TrimSpace(lines[i]))
			}
			p.WriteString(".IP \\(bu 2\n")
			p.line(inline(strings.Join(item, " ")))
			fresh = false
		case word == "":
			flush()
		default:
			para = append(para, word)
		}
	}
	flush()
	p.heading("See also")
	p.line(bold("relevo") + "(8)")
	return p.String()
}

// row is the cells of a table's line.
func row(line string) []string {
	cells := strings.Split(strings.ReplaceAll(strings.Trim(strings.TrimSpace(line), "|"), `\|`, "\x00"), "|")
	for i := range cells {
		cells[i] = strings.ReplaceAll(strings.TrimSpace(cells[i]), "\x00", "|")
	}
	return cells
}

// described is what a table says of its row's first cell: the last column, and then what the others say.
func described(columns, cells []string) string {
	last := len(cells) - 1
	text := inline(cells[last])
	var more []string
	for i := 1; i < last && i < len(columns); i++ {
		switch cells[i] {
		case "":
		case "required", "one of these", "at least one of these":
			more = append(more, escape(cells[i]))
		default:
			more = append(more, escape(columns[i])+": "+inline(cells[i]))
		}
	}
	if len(more) > 0 {
		text = strings.TrimSpace(text + " (" + strings.Join(more, "; ") + ")")
	}
	return text
}

var (
	link = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`)
	mark = regexp.MustCompile("`[^`]+`|\\*\\*[^*]+\\*\\*")
)

// inline makes roff of a paragraph: code and what is bold is set bold, a link is its text.
func inline(s string) string {
	if strings.Contains(s, "`](") {
		s = link.ReplaceAllString(s, "$1") // around code; in code, brackets are what they are
	}
	var b strings.Builder
	rest := 0
	words := func(s string) { b.WriteString(escape(link.ReplaceAllString(s, "$1"))) }
	for _, at := range mark.FindAllStringIndex(s, -1) {
		words(s[rest:at[0]])
		b.WriteString(bold(strings.Trim(s[at[0]:at[1]], "`*")))
		rest = at[1]
	}
	words(s[rest:])
	return b.String()
}

// plain is a cell without its marks.
func plain(s string) string { return escape(strings.Trim(link.ReplaceAllString(s, "$1"), "`*")) }
