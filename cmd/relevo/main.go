// Command relevo is the forwarder, and the tools to try, ask and measure it.
//
// Each verb has a file of its own, but for those that show lists of the road (road.go). It reads the flags, calls the package that
// does the work, and says how it ended: exit.go lists the statuses. Nothing is decided here about how requests are forwarded.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

func main() { os.Exit(execute(os.Args, os.Stdin, os.Stdout, os.Stderr)) }

// execute runs the command line and returns the exit status. args[0] is the program as it was typed.
func execute(args []string, in io.Reader, out, errOut io.Writer) int {
	root := newRoot(args[0])
	root.SetArgs(args[1:])
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	cmd, err := root.ExecuteC()
	if err == nil {
		return exitDone
	}
	if e, ok := errors.AsType[*verbError](err); ok {
		err = e.err
	} else {
		err = &usageError{mistyped(root, args[1:], err)}
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		err = misused("%s; see %s --help", oneLine(err), cmd.CommandPath())
	}
	complain(errOut, err)
	return statusOf(err)
}

// newRoot builds the tree of verbs. typed is what the program was called as, for what it tells people to type.
func newRoot(typed string) *cobra.Command {
	root := &cobra.Command{
		Use:   "relevo",
		Short: "Forward RPC traffic at layer 7",
		Long: "Relevo forwards RPC traffic at layer 7.\n\n" +
			"Exit status: 0 done; 1 the thing asked for did not succeed; 2 wrong usage;\n" +
			"69 nothing to talk to; 77 no permission; 78 configuration refused.",
		Example: "  relevo run --trial\n" +
			"  relevo run -c /etc/relevo/relevo.yaml",
		Version:       buildInfo().Version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	help := helpVerb()
	root.SetHelpCommand(help)
	for _, g := range []struct {
		title string
		verbs []*cobra.Command
	}{
		{"Run it:", []*cobra.Command{runVerb(typed), checkVerb(), explainVerb(), upgradeVerb(), stopVerb()}},
		{"See and change it while it runs:", []*cobra.Command{
			statusVerb(), listenersVerb(), routesVerb(), clustersVerb(), endpointsVerb(), connectionsVerb(), streamsVerb(), failuresVerb(),
			eventsVerb(), logVerb(), configVerb(), tokenVerb(),
		}},
		{"Try and measure it:", []*cobra.Command{callVerb(), echoVerb(), benchVerb(), demoVerb()}},
		{"Further:", []*cobra.Command{schemaVerb(), completionVerb(), versionVerb(), help, manVerb()}},
	} {
		root.AddGroup(&cobra.Group{ID: g.title, Title: g.title})
		for _, v := range g.verbs {
			v.GroupID = g.title
		}
		root.AddCommand(g.verbs...)
	}
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), ".FlagUsages", fmt.Sprintf(".FlagUsagesWrapped %d", helpWidth)))
	finish(root)
	return root
}

// helpWidth is the length of the longest line of a help, in characters: that of most terminals.
const helpWidth = 80

// finish breaks the paragraphs of what a verb, and each below it, says of itself into lines of helpWidth, and has slips in the
// verbs below it guessed.
func finish(c *cobra.Command) {
	c.SuggestionsMinimumDistance = 2
	var b strings.Builder
	for para := range strings.SplitSeq(c.Long, "\n\n") {
		length := 0
		for word := range strings.FieldsSeq(para) {
			n := utf8.RuneCountInString(word)
			switch {
			case length > 0 && length+1+n > helpWidth:
				b.WriteByte('\n')
				length = 0
			case length > 0:
				b.WriteByte(' ')
				length++
			case b.Len() > 0:
				b.WriteString("\n\n")
			}
			b.WriteString(word)
			length += n
		}
	}
	c.Long = b.String()
	for _, sub := range c.Commands() {
		finish(sub)
	}
}

// verbError is the error of a verb that was understood. All that cobra itself finds wrong is about usage.
type verbError struct{ err error }

func (e *verbError) Error() string { return e.err.Error() }

// verb is the RunE of a verb that takes no arguments but flags.
func verb(run func(cmd *cobra.Command) error) func(*cobra.Command, []string) error {
	return arguments(0, 0, func(cmd *cobra.Command, _ []string) error { return run(cmd) })
}

// arguments is the RunE of a verb that takes so many arguments.
func arguments(least, most int, run func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		var err error
		switch {
		case len(args) < least:
			err = misused("an argument is missing: %s", cmd.UseLine())
		case len(args) > most && len(cmd.SuggestionsFor(args[0])) > 0: // the verbs below it
			err = misused("unknown verb %q (did you mean %s?)", args[0], strings.Join(cmd.SuggestionsFor(args[0]), " or "))
		case len(args) > most:
			err = misused("unexpected argument %q", args[most])
		default:
			err = run(cmd, args)
		}
		if err != nil {
			return &verbError{err}
		}
		return nil
	}
}

// kindOf is the annotation of a verb that says what the verbs below it are.
const kindOf = "kind"

// protocols is a verb that exists once a protocol.
func protocols(c *cobra.Command, each ...*cobra.Command) *cobra.Command {
	return family("protocol", c, each...)
}

// family is a verb that needs one of those below it; kind is what these are called.
func family(kind string, c *cobra.Command, each ...*cobra.Command) *cobra.Command {
	c.AddCommand(each...)
	c.Annotations = map[string]string{kindOf: kind}
	c.Args = cobra.ArbitraryArgs // so that mistyped says what is wrong with them
	c.ValidArgsFunction = cobra.NoFileCompletions
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return errors.New("unknown " + kind) // mistyped has more to say
		}
		return &verbError{misused("which %s? there is: %s", kind, strings.Join(names(cmd), ", "))}
	}
	return c
}

// mistyped says it where an error comes from a word that is no verb: cobra may have stumbled over a flag that
// only the right verb has.
func mistyped(root *cobra.Command, args []string, err error) error {
	cmd, rest, _ := root.Find(args)
	if !cmd.HasSubCommands() || cmd.HasParent() && cmd.Annotations[kindOf] == "" { // the latter takes arguments of its own
		return err
	}
	for _, word := range rest {
		if strings.HasPrefix(word, "-") {
			continue
		}
		kind := cmp.Or(cmd.Annotations[kindOf], "verb") // the root has none
		if near := cmd.SuggestionsFor(word); len(near) > 0 {
			return misused("unknown %s %q (did you mean %s?)", kind, word, strings.Join(near, " or "))
		}
		return misused("unknown %s %q, there is: %s", kind, word, strings.Join(names(cmd), ", "))
	}
	return err
}

// names is what the verbs below c are called.
func names(c *cobra.Command) (list []string) {
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			list = append(list, sub.Name())
		}
	}
	return list
}

// helpVerb is "relevo help VERB"; cobra's own exits with 0 for a verb that does not exist.
func helpVerb() *cobra.Command {
	return &cobra.Command{
		Use:   "help [VERB]",
		Short: "Help about a verb",
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			about, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return names(about), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return &verbError{&usageError{mistyped(cmd.Root(), args, misused("unknown verb %q", strings.Join(args, " ")))}}
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}

// interruptible ends with SIGINT and SIGTERM. A second signal ends the process at once.
func interruptible(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}
