package yard

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// A page has a text of its own and, behind it, sections that are written one at a time: each stands between two marks.

// marks are the lines around the section of a name.
func marks(name, command string) (begin, end string) {
	return fmt.Sprintf("<!-- %s: from here on `%s` writes -->\n", name, command), fmt.Sprintf("<!-- %s: up to here -->\n", name)
}

// WriteSection replaces a section of the page in a file by what the command has found, or adds it at the page's end. It changes
// nothing else.
func WriteSection(file, name, command, section string) error {
	page, err := readPage(file)
	if err != nil {
		return err
	}
	return WriteFile(file, []byte(withSection(page, name, command, section)))
}

func withSection(page, name, command, section string) string {
	begin, end := marks(name, command)
	head, rest, found := strings.Cut(page, begin)
	if !found {
		head = strings.TrimRight(head, "\n") + "\n\n"
	}
	_, tail, _ := strings.Cut(rest, end)
	return head + begin + section + end + tail
}

// WriteText replaces the page's own text and keeps its sections.
func WriteText(file, text string) error {
	page, err := readPage(file)
	if err != nil {
		return err
	}
	return WriteFile(file, []byte(text+sections(page)))
}

// sections are those of a page, marks included, with an empty line before each; one whose end is missing is none.
func sections(page string) string {
	var all, open strings.Builder
	end := "" // the mark that ends the open section; empty while none is
	for line := range strings.Lines(page) {
		if name, _, ok := strings.Cut(line, ": from here on "); ok && end == "" && strings.HasPrefix(name, "<!-- ") {
			open.Reset()
			open.WriteString("\n")
			end = name + ": up to here -->\n"
		}
		if end == "" {
			continue
		}
		open.WriteString(line)
		if line == end {
			all.WriteString(open.String())
			end = ""
		}
	}
	return all.String()
}

// columns is how long the lines of a page are at most.
const columns = 130

// Wrap breaks the lines of a text where they are longer than those of a page; what stands in one line of its own may be longer.
func Wrap(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		at := 0
		for word := range strings.FieldsSeq(line) {
			n := utf8.RuneCountInString(word)
			switch {
			case at == 0:
			case at+1+n > columns:
				b.WriteByte('\n')
				at = 0
			default:
				b.WriteByte(' ')
				at++
			}
			b.WriteString(word)
			at += n
		}
		b.WriteByte('\n')
	}
	return strings.TrimSuffix(b.String(), "\n")
}
