package main

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/relevo-proxy/relevo/admin"
)

// queryFlags adds to a verb flags that are parameters of the API, and returns the query that they make.
func queryFlags(cmd *cobra.Command, flags ...[2]string) func() (string, error) {
	values := make([]*string, len(flags))
	for i, f := range flags {
		values[i] = cmd.Flags().String(f[0], "", f[1])
	}
	limit := cmd.Flags().Int("limit", 100, "how many at most; at most 1000")
	return func() (string, error) {
		if *limit < 1 || *limit > 1000 {
			return "", misused("--limit %d: want 1 to 1000", *limit)
		}
		q := url.Values{"limit": {strconv.Itoa(*limit)}}
		for i, f := range flags {
			if *values[i] != "" {
				q.Set(f[0], *values[i])
			}
		}
		return "?" + q.Encode(), nil
	}
}

func connectionsVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "connections",
		Short: "List connections of clients and to servers, or close one",
		Long: "List connections of clients and to servers, in the order in which they were made. An id is that of one connection and of\n" +
			"no other, also over upgrades.",
		Example:           "  relevo connections --listener client --client 10.1.0.0/16\n  relevo connections --cluster order\n  relevo connections close 4711",
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	address, form := adminFlags(cmd), outputFlag(cmd, outputYAML)
	query := queryFlags(cmd,
		[2]string{"side", "only those of clients (client) or to servers (server)"}, [2]string{"listener", "only clients of this listener"},
		[2]string{"cluster", "only those to endpoints of this cluster"}, [2]string{"endpoint", "only those to this endpoint"},
		[2]string{"client", "only clients from ADDRESS, ADDRESS:PORT or NETWORK/BITS"}, [2]string{"after", "only ids above this one"})
	complete(cmd, "side", "client", "server")
	cmd.RunE = adminVerb(0, 0, func(cmd *cobra.Command, _ []string) error {
		q, err := query()
		if err != nil {
			return err
		}
		var list struct {
			Connections []admin.Connection
			Next        uint64
		}
		a, err := newAdminClient(*address).get(cmd.Context(), "/v1/connections"+q, &list)
		if err != nil {
			return err
		}
		return show(cmd.OutOrStdout(), *form, a.body, func(w io.Writer) error {
			if len(list.Connections) == 0 {
				_, err := fmt.Fprintln(w, "no connections")
				return err
			}
			t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "ID\tSIDE\tOF\tPEER\tSTATE\tAGE\tIDLE\tIN FLIGHT\tQUEUED\tREAD\tWRITTEN")
			for _, c := range list.Connections {
				of := c.Listener
				if c.Side == "server" {
					of = c.Cluster + " " + c.Endpoint
				}
				fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%v\t%v\t%d\t%s\t%s\t%s\n", c.ID, c.Side, of, orDash(c.Remote), c.State, coarse(c.Age), coarse(c.Idle),
					c.InFlight, size(uint64(max(c.Queued, 0))), size(c.BytesRead), size(c.BytesWritten))
			}
			if err := t.Flush(); err != nil || list.Next == 0 {
				return err
			}
			_, err := fmt.Fprintf(w, "more: --after %d\n", list.Next)
			return err
		})
	})
	cmd.AddCommand(closeConnectionVerb())
	return cmd
}

// coarse is a number of seconds as far as people care.
func coarse(s float64) time.Duration {
	d := seconds(s)
	if d >= 10*time.Second {
		return d.Round(time.Second)
	}
	return d.Round(time.Millisecond)
}

func closeConnectionVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "close ID",
		Short: "Close a connection",
		Long: "Close a connection. A client connection is closed at once, as if its client had gone. A server connection takes no more\n" +
			"requests and closes behind its last reply; with --now at once, and its requests in flight are answered ERROR_COMM.",
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	address := adminFlags(cmd)
	now := cmd.Flags().Bool("now", false, "do not wait for the replies")
	cmd.RunE = adminVerb(1, 1, func(cmd *cobra.Command, args []string) error {
		id, err := strconv.ParseUint(args[0], 10, 63)
		if err != nil {
			return misused("%q is not the id of a connection", args[0])
		}
		path := fmt.Sprintf("/v1/connections/%d", id)
		if *now {
			path += "?now=true"
		}
		a, err := newAdminClient(*address).ask(cmd.Context(), question{method: http.MethodDelete, path: path})
		if err != nil {
			return err
		}
		text := "closed"
		if a.code == http.StatusAccepted {
			text = "it closes behind its last reply"
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), text)
		return err
	})
	return cmd
}
