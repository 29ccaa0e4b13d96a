package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/relevo-proxy/relevo/admin"
)

const logAPI = "/v1/log"

var levels = []string{"debug", "info", "warn", "error"}

func logVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "log [LEVEL]",
		Short: "Show the level of the log, or log at another one for a while",
		Long: "Show the level of the running process's log. With LEVEL (debug, info, warn, error) it logs at that level for a while,\n" +
			"also over upgrades; then, or with \"relevo log reset\", the configured level holds again. To change the level for\n" +
			"good: relevo config set log/level LEVEL.",
		Example:           "  relevo log\n  relevo log debug --for 30m\n  relevo log reset",
		ValidArgsFunction: cobra.FixedCompletions(append(slices.Clone(levels), "reset"), cobra.ShellCompDirectiveNoFileComp),
	}
	address, form := adminFlags(cmd), outputFlag(cmd, outputYAML)
	length := cmd.Flags().String("for", "10m", "how long another level holds, as in 30s or 2h; at most 24h")
	cmd.RunE = adminVerb(0, 1, func(cmd *cobra.Command, args []string) error {
		q := question{method: http.MethodGet, path: logAPI}
		switch {
		case len(args) == 0 && cmd.Flags().Changed("for"):
			return misused("--for without a level: which one?")
		case len(args) > 0 && args[0] == "reset" && cmd.Flags().Changed("for"):
			return misused("reset ends it now: it takes no --for")
		case len(args) > 0 && args[0] == "reset":
			q.method = http.MethodDelete
		case len(args) > 0 && !slices.Contains(levels, args[0]):
			return misused("%q is no level of the log: want one of %s, or reset", args[0], strings.Join(levels, ", "))
		case len(args) > 0:
			q.method, q.header = http.MethodPut, map[string]string{"Content-Type": "application/json"}
			q.body, _ = json.Marshal(map[string]string{"level": args[0], "for": *length}) // strings
		}
		c := newAdminClient(*address)
		a, err := c.ask(cmd.Context(), q)
		if err != nil {
			return refused(err, exitUsage)
		}
		var l admin.LogLevel
		if err := c.decode(a, &l); err != nil {
			return err
		}
		return show(cmd.OutOrStdout(), *form, a.body, func(w io.Writer) error {
			_, err := fmt.Fprintln(w, logLine(&l))
			return err
		})
	})
	return cmd
}

// logLine says on one line what is logged.
func logLine(l *admin.LogLevel) string {
	if l.Author == nil {
		return string(l.Level)
	}
	return fmt.Sprintf("%s until %s, by %s; then %s, which is configured", l.Level, l.Until.Format(time.RFC3339), l.Author, l.Configured)
}
