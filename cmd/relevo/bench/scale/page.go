package main

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench/yard"
)

const introduction = `## Scale

What a request costs Relevo, as there is more of something: CPU µs per request of its process, medians of %d rounds of %v each. The load
generator, the server and the proxies share the cores of one machine.
`

// write writes the section and its charts, or prints the section.
func write(ctx context.Context, o options, chosen []curve, found []measured) error {
	var b strings.Builder
	fmt.Fprintf(&b, introduction, o.rounds, o.duration)
	for i, c := range chosen {
		fmt.Fprintf(&b, "\n### %s\n\n%s\n\n", c.title, yard.Wrap(c.text))
		if o.out != "" {
			file := c.name + ".svg"
			if err := yard.WriteFile(filepath.Join(filepath.Dir(o.out), o.charts, file), []byte(chart(c, found[i].series))); err != nil {
				return err
			}
			fmt.Fprintf(&b, "![%s](%s)\n\n", c.title, path.Join(o.charts, file))
		}
		writeTable(&b, c, found[i])
		fmt.Fprintf(&b, "\n%s\n", yard.Wrap(c.why))
	}
	fmt.Fprintf(&b, "\nMeasured on %s with:\n\n- %s\n- %s\n", time.Now().UTC().Format(time.DateOnly), yard.Machine(ctx), yard.FirstLine(ctx, o.relevo, "version"))
	if o.haproxy != "" {
		fmt.Fprintf(&b, "- %s\n", yard.FirstLine(ctx, o.haproxy, "-v"))
	}
	b.WriteString("\n    make bench-scale\n")
	if o.out == "" {
		_, err := os.Stdout.WriteString(b.String())
		return err
	}
	return yard.WriteSection(o.out, "scale", "make bench-scale", b.String())
}

// writeTable writes a row for each x. The first series has them all.
func writeTable(b *strings.Builder, c curve, m measured) {
	row := func(cells []string) { fmt.Fprintf(b, "| %s |\n", strings.Join(cells, " | ")) }
	head := []string{c.x}
	for _, s := range m.series {
		head = append(head, s.name)
	}
	for _, n := range m.notes {
		head = append(head, n.name)
	}
	row(head)
	fmt.Fprintf(b, "|%s\n", strings.Repeat("--:|", len(head)))
	for i, p := range m.series[0].points {
		cells := []string{thousands(p.x)}
		for _, s := range m.series {
			cell := ""
			if i < len(s.points) {
				cell = fmt.Sprintf("%.2f", s.points[i].y)
			}
			cells = append(cells, cell)
		}
		for _, n := range m.notes {
			cells = append(cells, n.cells[i])
		}
		row(cells)
	}
}
