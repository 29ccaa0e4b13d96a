package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/relevo-proxy/relevo/admin"
	"github.com/relevo-proxy/relevo/server/config"
	"github.com/relevo-proxy/relevo/server/revision"
)

const (
	configAPI    = "/v1/config"
	revisionsAPI = "/v1/revisions"
)

func configVerb() *cobra.Command {
	return family("verb", &cobra.Command{
		Use:   "config",
		Short: "Read and change the configuration of the running process",
		Long: "Read and change the configuration of the running process, over its admin door. A PATH leads to a part of it, as in\n" +
			"clusters/order/endpoints/127.0.0.1:12200/weight: items of lists go by their name or address. What is changed is kept as a\n" +
			"revision, which a restart and an upgrade go on with; a file that is edited later wins over it.",
	},
		configGetVerb(), configExportVerb(),
		configWriteVerb("set PATH VALUE", "Make or replace a part", "  relevo config set clusters/order/endpoints/127.0.0.1:12200/weight 50\n"+
			"  relevo config set clusters/order/endpoints/127.0.0.1:12201 '{weight: 10}'", http.MethodPut, "application/yaml"),
		configWriteVerb("patch PATH JSON", "Change a part by a JSON merge patch; / is the whole", `  relevo config patch log '{"level": "debug"}'`, http.MethodPatch, "application/merge-patch+json"),
		configWriteVerb("delete PATH", "Delete a part, so that its default holds again", "  relevo config delete clusters/order/endpoints/127.0.0.1:12201", http.MethodDelete, ""),
		configDiffVerb(), configHistoryVerb(), configRestoreVerb(),
	)
}

// notQuery escapes what would end the path of a URL, and may be in the key of a header.
var notQuery = strings.NewReplacer("?", "%3F", "#", "%23")

// partAPI is where the API has a part.
func partAPI(path string) string {
	if path = strings.Trim(path, "/"); path == "" {
		return configAPI
	}
	return configAPI + "/" + notQuery.Replace(path)
}

func configGetVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "get [PATH]",
		Short:             "Print the configuration in force, or a part of it",
		Example:           "  relevo config get clusters/order/endpoints\n  relevo config get --effective log -o json",
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	address, form := adminFlags(cmd), outputFlag(cmd, outputYAML)
	effective := cmd.Flags().Bool("effective", false, "with the defaults of what is not said")
	cmd.RunE = adminVerb(0, 1, func(cmd *cobra.Command, args []string) error {
		path := partAPI(strings.Join(args, ""))
		if *effective {
			path += "?effective=true"
		}
		return printPart(cmd, newAdminClient(*address), path, *form)
	})
	return cmd
}

func configExportVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "export",
		Short:             "Print the configuration in force, as a file to start from",
		Example:           "  relevo config export > relevo.yaml",
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	address, form := adminFlags(cmd), outputFlag(cmd, outputYAML)
	cmd.RunE = adminVerb(0, 0, func(cmd *cobra.Command, _ []string) error {
		return printPart(cmd, newAdminClient(*address), configAPI, *form)
	})
	return cmd
}

// printPart prints a part of the configuration, as YAML unless JSON is wanted.
func printPart(cmd *cobra.Command, c *adminClient, path string, form outputForm) error {
	kind := "application/yaml"
	if form == outputJSON {
		kind = "application/json"
	}
	a, err := c.ask(cmd.Context(), question{method: http.MethodGet, path: path, header: map[string]string{"Accept": kind}})
	if err == nil {
		_, err = cmd.OutOrStdout().Write(a.body)
	}
	return err
}

// changeFlags are those of the verbs that change something.
type changeFlags struct {
	address *adminDoor
	form    *outputForm
	comment *string
	dryRun  *bool
}

func newChangeFlags(cmd *cobra.Command) changeFlags {
	return changeFlags{
		adminFlags(cmd), outputFlag(cmd, outputYAML),
		cmd.Flags().String("comment", "", "why, for the history"),
		cmd.Flags().Bool("dry-run", false, "say what would change, and change nothing"),
	}
}

func configWriteVerb(use, short, example, method, contentType string) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Example: example, ValidArgsFunction: cobra.NoFileCompletions}
	if method != http.MethodDelete {
		cmd.Long = short + ". A value that is - is read from standard input."
	}
	flags := newChangeFlags(cmd)
	n := strings.Count(use, " ")
	cmd.RunE = adminVerb(n, n, func(cmd *cobra.Command, args []string) error {
		q := question{method: method, path: partAPI(args[0]), header: map[string]string{}}
		if n > 1 {
			q.header["Content-Type"], q.body = contentType, []byte(args[1])
			if args[1] == stdinName {
				var err error
				if q.body, err = io.ReadAll(cmd.InOrStdin()); err != nil {
					return fmt.Errorf("reading the value: %w", err)
				}
			}
		}
		return change(cmd, flags, q.path, q)
	})
	return cmd
}

// change makes a change under the condition that what is at the path on, stays until then what it is now.
func change(cmd *cobra.Command, flags changeFlags, on string, q question) error {
	ctx, c := cmd.Context(), newAdminClient(*flags.address)
	before, err := c.ask(ctx, question{method: http.MethodGet, path: on})
	if p, ok := errors.AsType[*problemAnswer](err); ok && p.code == http.StatusNotFound && q.method != http.MethodDelete {
		q.header["If-None-Match"] = "*"
	} else if err != nil {
		return err
	} else {
		q.header["If-Match"] = before.header.Get("ETag")
	}
	err = sendChange(cmd, flags, c, q)
	if p, ok := errors.AsType[*problemAnswer](err); ok && p.code == http.StatusPreconditionFailed {
		return fmt.Errorf("nothing was changed: %s", c.meanwhile(ctx))
	}
	return err
}

// sendChange makes a change and says what came of it.
func sendChange(cmd *cobra.Command, flags changeFlags, c *adminClient, q question) error {
	if *flags.comment != "" {
		q.header["X-Comment"] = *flags.comment
	}
	if *flags.dryRun {
		q.path += "?dry_run=true"
	}
	a, err := c.ask(cmd.Context(), q)
	if err != nil {
		return err
	}
	var out admin.Outcome
	if err := c.decode(a, &out); err != nil {
		return err
	}
	return show(cmd.OutOrStdout(), *flags.form, a.body, func(w io.Writer) error { return printOutcome(w, &out) })
}

// meanwhile says who has changed the configuration last.
func (c *adminClient) meanwhile(ctx context.Context) string {
	newest, err := c.revisions(ctx, 1)
	if err != nil || len(newest) == 0 {
		return "somebody else has changed it meanwhile"
	}
	r := &newest[0]
	return fmt.Sprintf("%s has changed it meanwhile, at %s: revision %d", r.Author, r.When.Format(time.RFC3339), r.Number)
}

// printOutcome says what a change did.
func printOutcome(w io.Writer, o *admin.Outcome) error {
	var b strings.Builder
	if text := oneLineEach(o.Changes); text != "" {
		fmt.Fprintln(&b, text)
	}
	switch {
	case len(o.List) == 0:
		fmt.Fprintf(&b, "nothing changes; revision %d is in force\n", o.Revision)
	case o.DryRun:
		fmt.Fprintln(&b, "nothing was changed: this is a dry run")
	default:
		fmt.Fprintf(&b, "revision %d is in force\n", o.Revision)
	}
	for _, c := range []struct {
		n    int
		what string
	}{
		{o.Cost.ClientsDraining, "client connection"},
		{o.Cost.ServersDraining, "server connection"},
	} {
		if c.n > 0 {
			fmt.Fprintf(&b, "draining: %s\n", count(c.n, c.what))
		}
	}
	if len(o.NeedsUpgrade) > 0 {
		fmt.Fprintf(&b, "in force after the next upgrade (relevo upgrade): %s\n", strings.Join(o.NeedsUpgrade, ", "))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// oneLineEach is a line a change. The API indents the values.
func oneLineEach(c config.Changes) string {
	for i := range c.List {
		for _, v := range []*json.RawMessage{&c.List[i].From, &c.List[i].To} {
			var b bytes.Buffer
			if json.Compact(&b, *v) == nil {
				*v = b.Bytes()
			}
		}
	}
	return c.String()
}

func configDiffVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "diff [N [M]]",
		Short: "Print what leads from one revision to another",
		Long: "Print what leads from revision N to M. Without M, to the one in force; without N, what the last change changed.\n" +
			"+ is what was added, - what was removed, ~ what was changed.",
		Example:           "  relevo config diff\n  relevo config diff 3 7",
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	address, form := adminFlags(cmd), outputFlag(cmd, outputYAML)
	cmd.RunE = adminVerb(0, 2, func(cmd *cobra.Command, args []string) error {
		c := newAdminClient(*address)
		if len(args) < 2 {
			newest, err := c.revisions(cmd.Context(), 2)
			if err != nil {
				return err
			}
			switch {
			case len(newest) == 0, len(args) == 0 && len(newest) < 2:
				return errors.New("there is no revision before this one")
			case len(args) == 0:
				args = []string{strconv.FormatUint(newest[1].Number, 10)}
			}
			args = append(args, strconv.FormatUint(newest[0].Number, 10))
		}
		for _, n := range args {
			if _, err := revisionNumber(n); err != nil {
				return err
			}
		}
		var changes config.Changes
		a, err := c.get(cmd.Context(), fmt.Sprintf("%s/%s/diff/%s", revisionsAPI, args[0], args[1]), &changes)
		if err != nil {
			return err
		}
		return show(cmd.OutOrStdout(), *form, a.body, func(w io.Writer) error {
			_, err := fmt.Fprintln(w, cmp.Or(oneLineEach(changes), "no difference"))
			return err
		})
	})
	return cmd
}

// revisionNumber reads an argument.
func revisionNumber(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		return 0, misused("%q is not the number of a revision", s)
	}
	return n, nil
}

func configHistoryVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "history",
		Short:             "List who changed the configuration, when, and why",
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	address, form := adminFlags(cmd), outputFlag(cmd, outputYAML)
	limit := cmd.Flags().Int("limit", 20, "how many revisions, the newest first; at most 100")
	before := cmd.Flags().Uint64("before", 0, "only those with a number below this")
	cmd.RunE = adminVerb(0, 0, func(cmd *cobra.Command, _ []string) error {
		if *limit < 1 || *limit > 100 {
			return misused("--limit %d: want 1 to 100", *limit)
		}
		var list struct {
			Revisions []revision.Info
			Next      uint64
		}
		a, err := newAdminClient(*address).get(cmd.Context(), fmt.Sprintf("%s?limit=%d&before=%d", revisionsAPI, *limit, *before), &list)
		if err != nil {
			return err
		}
		return show(cmd.OutOrStdout(), *form, a.body, func(w io.Writer) error {
			t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "REVISION\tWHEN\tWHO\tWHY")
			for _, r := range list.Revisions {
				fmt.Fprintf(t, "%d\t%s\t%s\t%s\n", r.Number, r.When.Format(time.RFC3339), r.Author, orDash(r.Why))
			}
			if list.Next > 0 {
				fmt.Fprintf(t, "older ones: --before %d\n", list.Next)
			}
			return t.Flush()
		})
	})
	return cmd
}

func configRestoreVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "restore N",
		Short:             "Put revision N into force again, as a new one",
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	flags := newChangeFlags(cmd)
	cmd.RunE = adminVerb(1, 1, func(cmd *cobra.Command, args []string) error {
		n, err := revisionNumber(args[0])
		if err != nil {
			return err
		}
		q := question{method: http.MethodPost, path: fmt.Sprintf("%s/%d/restore", revisionsAPI, n), header: map[string]string{}}
		return change(cmd, flags, configAPI, q)
	})
	return cmd
}
