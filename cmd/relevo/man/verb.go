package man

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Program is the page of the program itself: what it is, and which verbs there are.
func Program(root *cobra.Command, t Title) string {
	p := &page{}
	p.begin(t, root.Name(), 8, root.Short)
	p.heading("Synopsis")
	p.line(bold(root.Name()) + ` \fIverb\fR [\fIoptions\fR]`)
	p.heading("Description")
	p.paragraphs(root.Long)
	p.heading("Verbs")
	for _, c := range Verbs(root) {
		p.item(fmt.Sprintf(`\fB%s\fR(1)`, escape(pageName(c))), escape(c.Short+"."))
	}
	p.examples(root)
	p.heading("Files")
	for _, f := range [][2]string{
		{"/etc/relevo/relevo.yaml", "The configuration, see relevo.yaml(5)."},
		{"/run/relevo/relevo.pid", "The pid of the process that has the connections."},
		{"/run/relevo/upgrade.json", "What came of the last upgrade."},
		{"/run/relevo/admin.sock", "The door for people and scrapers."},
		{"/var/lib/relevo", "What outlives the process."},
		{"/usr/share/doc/relevo", "The manual, examples, alert rules and a dashboard."},
	} {
		p.item(`\fI`+escape(f[0])+`\fR`, escape(f[1]))
	}
	p.seeAlso(root, Verbs(root)...)
	return p.String()
}

// Verb is the page of one verb, with those below it.
func Verb(c *cobra.Command, t Title) string {
	p := &page{}
	p.begin(t, pageName(c), 1, c.Short)
	subs := Verbs(c)
	p.heading("Synopsis")
	if len(subs) == 0 || len(flagsOf(c)) > 0 { // else it does nothing without one of those below it
		p.synopsis(c)
	}
	for _, sub := range subs {
		p.synopsis(sub)
	}
	p.heading("Description")
	p.paragraphs(about(c))
	p.options(c)
	for _, sub := range subs {
		p.heading(strings.TrimPrefix(sub.CommandPath(), c.Root().Name()+" "))
		p.paragraphs(about(sub))
		p.options(sub)
		p.examples(sub)
	}
	p.examples(c)
	p.seeAlso(c, c.Root())
	return p.String()
}

// Verbs are those that people are told of, in the order of the help.
func Verbs(c *cobra.Command) (list []*cobra.Command) {
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() && sub.Name() != "help" {
			list = append(list, sub)
		}
	}
	return list
}

// Name is the file of a verb's page.
func Name(c *cobra.Command) string { return pageName(c) + ".1" }

func pageName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// about is what a verb says of itself.
func about(c *cobra.Command) string {
	if c.Long != "" {
		return c.Long
	}
	return c.Short + "."
}

func (p *page) synopsis(c *cobra.Command) {
	p.WriteString(".PP\n")
	line := bold(c.CommandPath())
	if rest := strings.TrimPrefix(c.Use, c.Name()); rest != "" {
		line += escape(rest)
	}
	if flags := flagsOf(c); len(flags) > 0 {
		line += ` [\fIoptions\fR]`
	}
	p.line(line)
}

// options are the flags of a verb, as its help has them.
func (p *page) options(c *cobra.Command) {
	flags := flagsOf(c)
	if len(flags) == 0 {
		return
	}
	if c.HasParent() && c.Parent().HasParent() {
		p.sub("Options")
	} else {
		p.heading("Options")
	}
	for _, f := range flags {
		kind, usage := pflag.UnquoteUsage(f)
		tag := bold("--" + f.Name)
		if f.Shorthand != "" {
			tag = bold("-"+f.Shorthand) + ", " + tag
		}
		if kind != "" {
			tag += ` \fI` + escape(kind) + `\fR`
		}
		text := strings.ToUpper(usage[:1]) + usage[1:]
		if d := f.DefValue; d != "" && d != "0" && d != "0s" && d != "false" && !strings.Contains(usage, "default") {
			text += " (default " + d + ")"
		}
		p.item(tag, escape(text+"."))
	}
}

func flagsOf(c *cobra.Command) (list []*pflag.Flag) {
	c.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden && f.Name != "help" {
			list = append(list, f)
		}
	})
	return list
}

func (p *page) examples(c *cobra.Command) {
	if c.Example == "" {
		return
	}
	if c.HasParent() && c.Parent().HasParent() {
		p.sub("Examples")
	} else {
		p.heading("Examples")
	}
	p.verbatim(c.Example)
}

// seeAlso names the other pages.
func (p *page) seeAlso(c *cobra.Command, others ...*cobra.Command) {
	p.heading("See also")
	for _, other := range others {
		section := 1
		if other == c.Root() {
			section = 8
		}
		p.line(fmt.Sprintf(`%s(%d),`, bold(pageName(other)), section))
	}
	p.line(bold("relevo.yaml") + "(5)")
}
