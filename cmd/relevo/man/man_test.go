package man

import (
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

var title = Title{Version: "1.2.3", Date: time.Unix(0, 0)}

// What people write must never be taken for roff: a macro swallows the line that it stands on.
func TestTextIsNoRoff(t *testing.T) {
	c := &cobra.Command{Use: "relevo"}
	c.AddCommand(&cobra.Command{
		Use: "try", Short: "Try", Run: func(*cobra.Command, []string) {},
		Long:    ".SH is no heading,\n'br no break, \\fB not bold, and µs is micro.\n\n  kept   as it is\n  .TP",
		Example: "  relevo try --all",
	})
	got := Verb(c.Commands()[0], title)
	for _, want := range []string{
		".TH \"RELEVO-TRY\" 1 \"1970-01-01\" \"Relevo 1.2.3\"\n",
		"\nrelevo\\-try \\- try\n",
		"\n\\&.SH is no heading,\n\\[aq]br no break, \\efB not bold, and \\[u00B5]s is micro.\n",
		".nf\nkept   as it is\n\\&.TP\n.fi",
		".nf\nrelevo try \\-\\-all\n.fi",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the page lacks %q:\n%s", want, got)
		}
	}
}

// Only what is shown in the help is in the pages, and verbs below a verb are on its page.
func TestPagesHaveVerbsAndFlags(t *testing.T) {
	run := func(*cobra.Command, []string) {}
	root := &cobra.Command{Use: "relevo", Short: "Forward", Long: "It forwards."}
	bench, bolt := &cobra.Command{Use: "bench", Short: "Measure", Run: run}, &cobra.Command{Use: "bolt", Short: "Measure Bolt", Run: run}
	bolt.Flags().IntP("size", "s", 1024, "bytes of content")
	bolt.Flags().Bool("secret", false, "not for people")
	if err := bolt.Flags().MarkHidden("secret"); err != nil {
		t.Fatal(err)
	}
	bench.AddCommand(bolt)
	root.AddCommand(bench, &cobra.Command{Use: "man", Hidden: true, Run: run})

	if got, want := len(Verbs(root)), 1; got != want {
		t.Errorf("there are %d verbs to write pages of, want %d: the hidden one is for nobody", got, want)
	}
	if got, want := Name(bench), "relevo-bench.1"; got != want {
		t.Errorf("the page is called %s, want %s", got, want)
	}
	program, page := Program(root, title), Verb(bench, title)
	if !strings.Contains(program, `\fBrelevo\-bench\fR(1)`) || strings.Contains(program, `relevo\-man`) {
		t.Errorf("the page of the program must name bench, and not man:\n%s", program)
	}
	for _, want := range []string{
		".SH BENCH BOLT\n", ".SS Options\n",
		".TP\n\\fB\\-s\\fR, \\fB\\-\\-size\\fR \\fIint\\fR\nBytes of content (default 1024).\n",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
	if strings.Contains(page, "secret") {
		t.Errorf("the page has a hidden flag:\n%s", page)
	}
}

// A verb that does something by itself, too, has a line of its own in the synopsis.
func TestSynopsisOfAVerbWithVerbs(t *testing.T) {
	run := func(*cobra.Command, []string) {}
	root := &cobra.Command{Use: "relevo"}
	list := &cobra.Command{Use: "endpoints [CLUSTER]", Short: "Show endpoints", Run: run}
	list.Flags().Bool("all", false, "not only some")
	list.AddCommand(&cobra.Command{Use: "drain CLUSTER", Short: "Drain one", Run: run})
	family := &cobra.Command{Use: "echo", Short: "Answer", Run: run}
	family.AddCommand(&cobra.Command{Use: "bolt", Short: "Answer Bolt", Run: run})
	root.AddCommand(list, family)
	const own, below = "\\fBrelevo endpoints\\fR [CLUSTER] [\\fIoptions\\fR]\n", "\\fBrelevo endpoints drain\\fR CLUSTER\n"
	if page := Verb(list, title); !strings.Contains(page, own) || !strings.Contains(page, below) {
		t.Errorf("the page lacks %q or %q:\n%s", own, below, page)
	}
	if page := Verb(family, title); strings.Contains(page, "\\fBrelevo echo\\fR\n") {
		t.Errorf("the page promises that echo does something by itself:\n%s", page)
	}
}

func TestReferenceIsReadAsMarkdown(t *testing.T) {
	got := Reference("x.yaml", "A file", "# Title\n\nSee [the `check`](check.md) and **this**.\n\nOr `a[0](b)`.\n\n"+
		"## Fields\n\n| field | type | default | meaning |\n|---|---|---|---|\n| `a` | text | required | The \\| of [a](#a). |\n"+
		"| `b` | | `1` | Of b. |\n\n* one\n  and more\n\n```yaml\n- .a: 1\n```\n", title)
	for _, want := range []string{
		".SH NAME\nx.yaml \\- a file\n",
		"See the \\fBcheck\\fR and \\fBthis\\fR.\n.PP\nOr \\fBa[0](b)\\fR.\n",
		".SH FIELDS\n.TP\n\\fBa\\fR\nThe | of a. (type: text; required)\n.TP\n\\fBb\\fR\nOf b. (default: \\fB1\\fR)\n",
		".IP \\(bu 2\none and more\n",
		".nf\n\\- .a: 1\n.fi",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the page lacks %q:\n%s", want, got)
		}
	}
	if strings.Contains(got, "|--") || strings.Contains(got, "Title") {
		t.Errorf("the page has marks of Markdown, or its title twice:\n%s", got)
	}
}
