package main

import (
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/relevo-proxy/relevo/admin"
)

func streamsVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "streams",
		Short:             "List the oldest requests in flight",
		Example:           "  relevo streams --cluster order --limit 10",
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	address, form := adminFlags(cmd), outputFlag(cmd, outputYAML)
	query := queryFlags(cmd,
		[2]string{"listener", "only those that came in there"}, [2]string{"cluster", "only those to this cluster"},
		[2]string{"endpoint", "only those that were sent there"}, [2]string{"service", "only those to this service, as the client names it"})
	cmd.RunE = adminVerb(0, 0, func(cmd *cobra.Command, _ []string) error {
		q, err := query()
		if err != nil {
			return err
		}
		var s admin.Streams
		a, err := newAdminClient(*address).get(cmd.Context(), "/v1/streams"+q, &s)
		if err != nil {
			return err
		}
		return show(cmd.OutOrStdout(), *form, a.body, func(w io.Writer) error {
			t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
			if len(s.Streams) > 0 {
				fmt.Fprintln(t, "AGE\tLEFT\tPHASE\tSERVICE\tROUTE\tCLIENT\tID\tENDPOINT\tCONNECTION\tTRIES")
			}
			for _, x := range s.Streams {
				connection := "-"
				if x.ServerConnection > 0 {
					connection = strconv.FormatUint(x.ServerConnection, 10)
				}
				fmt.Fprintf(t, "%v\t%v\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%d\n", coarse(x.Age), coarse(x.Left), x.Phase, orDash(x.Service), orDash(x.Route),
					orDash(x.Client), x.ID, orDash(x.Endpoint), connection, x.Attempts)
			}
			if err := t.Flush(); err != nil {
				return err
			}
			fmt.Fprintf(w, "%d in all", s.Total)
			if s.InFilters > 0 {
				fmt.Fprintf(w, ", and %d inside filters", s.InFilters)
			}
			_, err := fmt.Fprintln(w)
			return err
		})
	})
	return cmd
}
