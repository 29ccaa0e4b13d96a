package yard

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{
		{nil, 0},
		{[]float64{3}, 3},
		{[]float64{9, 1, 2}, 2},
		{[]float64{4, 1, 2, 100}, 3},
	} {
		given := slices.Clone(c.values)
		if got := Median(c.values); got != c.want {
			t.Errorf("Median(%v) = %v, want %v", c.values, got, c.want)
		}
		if !slices.Equal(given, c.values) {
			t.Errorf("median reordered %v to %v", given, c.values)
		}
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	said := &tail{}
	if got := said.String(); got != "nothing" {
		t.Errorf("an empty tail says %q, want nothing", got)
	}
	for range 3 {
		fmt.Fprint(said, strings.Repeat("x", tailSize-1))
	}
	fmt.Fprintln(said, "the end")
	if got := said.String(); len(got) != tailSize-1 || !strings.HasSuffix(got, "xthe end") {
		t.Errorf("the tail has %d bytes and ends with %q, want %d bytes that end with the last words", len(got), got[len(got)-10:], tailSize-1)
	}
}

func TestMetricReadsOneSeries(t *testing.T) {
	const text = `# HELP relevo_buffered_bytes Bytes.
# TYPE relevo_buffered_bytes gauge
relevo_buffered_bytes 1.5e+06
relevo_buffered_limit_bytes 7
relevo_listener_connections{listener="bench",state="reading"} 63
relevo_listener_connections{state="gated",listener="bench"} 1
`
	for _, c := range []struct {
		series string
		want   float64
	}{
		{"relevo_buffered_bytes", 1.5e6},
		{`relevo_listener_connections{listener="bench",state="gated"}`, 1},
	} {
		if got, err := Metrics(text).Value(c.series); got != c.want || err != nil {
			t.Errorf("the value of %s is %v (%v), want %v", c.series, got, err, c.want)
		}
	}
	for _, series := range []string{"relevo_buffered", `relevo_listener_connections{state="gated"}`, "relevo_listener_connections"} {
		if got, err := Metrics(text).Value(series); err == nil {
			t.Errorf("the value of %s is %v, want an error", series, got)
		}
	}
}

func TestKibibytes(t *testing.T) {
	if got, err := kibibytes("12 kB"); got != 12288 || err != nil {
		t.Errorf("kibibytes(12 kB) = %v (%v), want 12288", got, err)
	}
	for _, s := range []string{"", "12", "x kB", "12 MB"} {
		if got, err := kibibytes(s); err == nil {
			t.Errorf("kibibytes(%q) = %v, want an error", s, got)
		}
	}
}

func TestSectionIsReplacedAndNothingElse(t *testing.T) {
	begin, end := marks("scale", "make scale")
	one := withSection("# Page\n\nfirst\n", "scale", "make scale", "one\n")
	two := withSection(one+"\nlast\n", "scale", "make scale", "two\n")
	if want := "# Page\n\nfirst\n\n" + begin + "two\n" + end + "\nlast\n"; two != want {
		t.Errorf("the page is\n%s\nwant\n%s", two, want)
	}
}

func TestSectionsOutliveTheText(t *testing.T) {
	section := func(name string) string { return "\n" + withSection("", name, "make "+name, "## "+name+"\n")[2:] }
	for page, want := range map[string]string{
		"":                              "",
		"# Benchmarks\n":                "",
		"# Benchmarks\n" + section("a"): section("a"),
		"# Benchmarks\n" + section("a") + "between\n" + section("b") + "last\n":               section("a") + section("b"),
		section("a") + "<!-- b: from here on `make b` writes -->\n## b\n":                     section("a"),
		"<!-- a: up to here -->\n<!-- a: from here on `make a` writes -->\n":                  "",
		"<!-- a: from here on `make a` writes -->\n<!-- b: up to here -->\n" + section("b"):   "",
		"text <!-- a: from here on `make a` writes -->\n## a\n<!-- a: up to here -->\n":       "",
		section("a") + "\n<!-- a comment of somebody's -->\n" + section("b") + "# And more\n": section("a") + section("b"),
	} {
		if got := sections(page); got != want {
			t.Errorf("of the page\n%s\nis kept\n%s\nwant\n%s", page, got, want)
		}
	}
}

func TestWrapKeepsTheWordsAndTheParagraphs(t *testing.T) {
	long := strings.Repeat("words ", 60)
	text := "short\n\n" + long + "\nlast"
	wrapped := Wrap(text)
	if got, want := strings.Fields(wrapped), strings.Fields(text); !slices.Equal(got, want) {
		t.Errorf("of %d words %d are left, or not in their order", len(want), len(got))
	}
	lines := strings.Split(wrapped, "\n")
	if lines[0] != "short" || lines[1] != "" || lines[len(lines)-1] != "last" || len(lines) != 3+3 {
		t.Errorf("wrapped into %q, want the short lines as they are and the long one in 3", lines)
	}
	for _, line := range lines {
		if len(line) > columns {
			t.Errorf("a line has %d bytes, want %d at most", len(line), columns)
		}
	}
}
