package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/relevo-proxy/relevo/admin"
)

// printable is text that somebody else chose, on one line of a terminal.
func printable(s string) string {
	q := strconv.Quote(s)
	return strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
}

func statusVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "status",
		Short:             "Show listeners, clusters and endpoints as they are now",
		Example:           "  relevo status\n  relevo status -o json",
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	address, form := adminFlags(cmd), outputFlag(cmd, outputYAML)
	cmd.RunE = adminVerb(0, 0, func(cmd *cobra.Command, _ []string) error {
		c := newAdminClient(*address)
		var s struct {
			Ready   bool
			Reasons []string
			admin.Status
		}
		a, err := c.get(cmd.Context(), "/v1/status", &s)
		if err != nil {
			return err
		}
		return show(cmd.OutOrStdout(), *form, a.body, func(w io.Writer) error {
			if s.Ready {
				fmt.Fprintf(w, "ready, since %s", s.Started.Format(time.RFC3339))
			} else {
				fmt.Fprintf(w, "not ready: %s", strings.Join(s.Reasons, ", "))
			}
			if newest, err := c.revisions(cmd.Context(), 1); err == nil && len(newest) > 0 {
				fmt.Fprintf(w, "; revision %d, by %s", newest[0].Number, newest[0].Author)
			}
			fmt.Fprint(w, "\n")
			if s.UnitChanged {
				fmt.Fprintln(w, "warning: the unit of systemd has changed since Relevo was started: an upgrade does not bring that, "+
					"but systemctl daemon-reload and systemctl restart do")
			}
			for _, a := range s.Overload.Actions {
				fmt.Fprintf(w, "overload: little is left of %s: %s, for %v\n", a.Resource, a.Action, seconds(a.For))
			}
			fmt.Fprintln(w)
			return printStatus(w, &s.Status)
		})
	})
	return cmd
}

func printStatus(w io.Writer, s *admin.Status) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "LISTENER\tADDRESS\tPROTOCOL\tCONNECTIONS\tSTATE")
	for _, l := range s.Listeners {
		state := "accepting"
		if !l.Accepting {
			state = "not accepting"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\n", l.Name, l.Address, l.Protocol, l.Connections, state)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	fmt.Fprintln(t, "CLUSTER\tENDPOINT\tWEIGHT\tCONNECTIONS\tIN FLIGHT\tSTATE")
	for _, c := range s.Clusters {
		if len(c.Endpoints) == 0 {
			fmt.Fprintf(t, "%s\t-\t-\t-\t-\tno endpoints\n", c.Name)
		}
		for _, e := range c.Endpoints {
			state := "usable"
			if !e.Usable {
				state = e.Reason
			}
			fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%s\n", c.Name, e.Address, e.Weight, e.Connections, e.InFlight, state)
		}
	}
	return t.Flush()
}

// orDash is text for a table's cell.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return printable(s)
}
