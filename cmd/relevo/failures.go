package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

func failuresVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "failures",
		Short: "List the last requests that failed or that Relevo answered itself",
		Long: "List the last requests (256 are kept) that failed or that Relevo answered itself, oldest first, each with its reason:\n" +
			"docs/limits.md says what each means.",
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	address, form := adminFlags(cmd), outputFlag(cmd, outputYAML)
	cmd.RunE = adminVerb(0, 0, func(cmd *cobra.Command, _ []string) error {
		var f struct {
			Total    uint64
			Failures []struct {
				Time                                             time.Time
				Client, Service, Route, Endpoint, Status, Reason string
				Attempts                                         int
				Total                                            float64
			}
		}
		a, err := newAdminClient(*address).get(cmd.Context(), "/v1/failures", &f)
		if err != nil {
			return err
		}
		return show(cmd.OutOrStdout(), *form, a.body, func(w io.Writer) error {
			t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
			if len(f.Failures) > 0 {
				fmt.Fprintln(t, "TIME\tCLIENT\tSERVICE\tROUTE\tENDPOINT\tTRIES\tSTATUS\tREASON\tTOOK")
			}
			for _, x := range f.Failures {
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%v\n", x.Time.Format(time.RFC3339), x.Client, orDash(x.Service),
					orDash(x.Route), orDash(x.Endpoint), x.Attempts, orDash(x.Status), orDash(x.Reason), seconds(x.Total))
			}
			if err := t.Flush(); err != nil {
				return err
			}
			_, err := fmt.Fprintf(w, "%d in all\n", f.Total)
			return err
		})
	})
	return cmd
}
