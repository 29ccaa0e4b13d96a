package main

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/relevo-proxy/relevo/admin"
)

func endpointsVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "endpoints [CLUSTER]",
		Short: "Show endpoints; drain one, or change its weight",
		Example: "  relevo endpoints order\n  relevo endpoints drain order 127.0.0.1:12200 --comment 'new release'\n" +
			"  relevo endpoints undrain order 127.0.0.1:12200\n  relevo endpoints weight order 127.0.0.1:12200 10",
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	address, form := adminFlags(cmd), outputFlag(cmd, outputYAML)
	cmd.Args = cobra.ArbitraryArgs // adminVerb says what is wrong with them
	cmd.RunE = adminVerb(0, 1, func(cmd *cobra.Command, args []string) error {
		c := newAdminClient(*address)
		path, list := "/v1/clusters", "clusters"
		if len(args) > 0 {
			path, list = path+"/"+url.PathEscape(args[0])+"/endpoints", "endpoints"
		}
		a, err := c.ask(cmd.Context(), question{method: http.MethodGet, path: path})
		if err != nil {
			return err
		}
		return show(cmd.OutOrStdout(), *form, a.body, func(w io.Writer) error {
			var endpoints []admin.Endpoint
			if list == "endpoints" {
				endpoints, err = listOf[admin.Endpoint](a.body, list, false)
			} else {
				var clusters []admin.Cluster
				clusters, err = listOf[admin.Cluster](a.body, list, false)
				for _, k := range clusters {
					endpoints = append(endpoints, k.Endpoints...)
				}
			}
			if err != nil {
				return err
			}
			return printEndpoints(w, endpoints)
		})
	})
	cmd.AddCommand(
		endpointVerb("drain CLUSTER ADDRESS", "Let an endpoint get no new requests; those in flight finish", func([]string) (string, error) { return `{"drain": true}`, nil }),
		endpointVerb("undrain CLUSTER ADDRESS", "Let an endpoint that drains serve again", func([]string) (string, error) { return `{"drain": null}`, nil }),
		endpointVerb("weight CLUSTER ADDRESS N", "Change an endpoint's share of the requests", func(args []string) (string, error) {
			n, err := strconv.ParseUint(args[2], 10, 31)
			if err != nil {
				return "", misused("%q is not a weight", args[2])
			}
			return fmt.Sprintf(`{"weight": %d}`, n), nil
		}),
	)
	return cmd
}

func printEndpoints(w io.Writer, endpoints []admin.Endpoint) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CLUSTER\tENDPOINT\tWEIGHT\tSTATE\tCONNECTIONS\tIN FLIGHT\tWAITING\tREQUESTS\tFAILURES\tLAST FAILURE")
	for _, e := range endpoints {
		failure := "-"
		if f := e.LastFailure; f != nil {
			failure = fmt.Sprintf("%s %s", f.Time.Format(time.RFC3339), printable(cmp.Or(f.Detail, f.Reason)))
		}
		n, weight := &e.Connections, strconv.Itoa(e.Weight)
		if e.Share > 0 { // in its slow start
			weight = fmt.Sprintf("%.0f%% of %s", 100*e.Share, weight)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%s\n", e.Cluster, e.Address, weight, e.State, n.Ready+n.Leased+n.Draining,
			e.InFlight, e.Waiting, e.Requests, e.Failures, failure)
	}
	return t.Flush()
}

// endpointVerb is a verb that changes one endpoint by a merge patch.
func endpointVerb(use, short string, patch func(args []string) (string, error)) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, ValidArgsFunction: cobra.NoFileCompletions,
		Long: short + ". That is a change of the configuration: it is kept as a revision, and survives\nrestarts and upgrades.",
	}
	flags := newChangeFlags(cmd)
	n := strings.Count(use, " ")
	cmd.RunE = adminVerb(n, n, func(cmd *cobra.Command, args []string) error {
		body, err := patch(args)
		if err != nil {
			return err
		}
		return sendChange(cmd, flags, newAdminClient(*flags.address), question{
			method: http.MethodPatch, path: "/v1/clusters/" + url.PathEscape(args[0]) + "/endpoints/" + url.PathEscape(args[1]),
			header: map[string]string{"Content-Type": "application/merge-patch+json"}, body: []byte(body),
		})
	})
	return cmd
}
