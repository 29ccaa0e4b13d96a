package demo

import (
	"io"
	"strings"
	"unicode/utf8"
)

// indent stands before everything that belongs to a phase.
const indent = "   "

// table is rows of cells: the first column to the left, numbers to the right.
type table struct {
	rows   [][]string
	widths []int
}

func newTable(head ...string) *table {
	t := &table{}
	t.row(head...)
	return t
}

func (t *table) row(cells ...string) {
	t.rows = append(t.rows, cells)
	for i, c := range cells {
		if i == len(t.widths) {
			t.widths = append(t.widths, 0)
		}
		t.widths[i] = max(t.widths[i], utf8.RuneCountInString(c))
	}
}

// print writes the table. Who shows something can do no more about a closed output than go on.
func (t *table) print(w io.Writer) {
	var b strings.Builder
	for _, cells := range t.rows {
		b.WriteString(indent)
		for i, c := range cells {
			pad := strings.Repeat(" ", t.widths[i]-utf8.RuneCountInString(c))
			if i == 0 {
				b.WriteString(c + pad)
			} else {
				b.WriteString("  " + pad + c)
			}
		}
		b.WriteByte('\n')
	}
	_, _ = io.WriteString(w, b.String())
}
