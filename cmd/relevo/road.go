package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/relevo-proxy/relevo/admin"
	"github.com/relevo-proxy/relevo/server/config"
)

// roadVerb is a verb that shows a list of the API, or one of it by its name: what the path is for that.
func roadVerb(use, short, list string, print func(t io.Writer, body []byte, one bool) error) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, ValidArgsFunction: cobra.NoFileCompletions}
	address, form := adminFlags(cmd), outputFlag(cmd, outputYAML)
	cmd.RunE = adminVerb(0, 1, func(cmd *cobra.Command, args []string) error {
		path := "/v1/" + list
		if len(args) > 0 {
			path += "/" + url.PathEscape(args[0])
		}
		a, err := newAdminClient(*address).ask(cmd.Context(), question{method: http.MethodGet, path: path})
		if err != nil {
			return err
		}
		return show(cmd.OutOrStdout(), *form, a.body, func(w io.Writer) error {
			t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
			if err := print(t, a.body, len(args) > 0); err != nil {
				return err
			}
			return t.Flush()
		})
	})
	return cmd
}

// listOf reads the list of this name, or the only one of it that was asked for.
func listOf[T any](body []byte, list string, one bool) ([]T, error) {
	var all map[string][]T
	var only T
	var err error
	if one {
		err = json.Unmarshal(body, &only)
		all = map[string][]T{list: {only}}
	} else {
		err = json.Unmarshal(body, &all)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the answer: %w", err)
	}
	return all[list], nil
}

// ofMost is a number and its bound.
func ofMost(n, most int) string { return fmt.Sprintf("%d of %d", n, most) }

// size is a number of bytes, short.
func size(n uint64) string {
	units, i, v := []string{"B", "KiB", "MiB", "GiB", "TiB"}, 0, float64(n)
	for ; v >= 1024 && i < len(units)-1; i++ {
		v /= 1024
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}

func listenersVerb() *cobra.Command {
	return roadVerb("listeners [NAME]", "Show listeners: connections, requests and bytes", "listeners", func(t io.Writer, body []byte, one bool) error {
		all, err := listOf[admin.Listener](body, "listeners", one)
		if err != nil {
			return err
		}
		fmt.Fprintln(t, "LISTENER\tADDRESS\tPROTOCOL\tROUTES\tCONNECTIONS\tGATED\tIN FLIGHT\tREQUESTS\tREAD\tWRITTEN\tSTATE")
		for _, l := range all {
			state := "accepting"
			switch {
			case l.Leaving:
				state = "leaving"
			case !l.Accepting:
				state = "not accepting"
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%s\t%s\t%s\n", l.Name, orDash(l.Address), l.Protocol, orDash(l.Routes),
				ofMost(l.Connections, l.MaxConnections), l.Gated, l.InFlight, l.Requests, size(l.BytesRead), size(l.BytesWritten), state)
		}
		return nil
	})
}

func routesVerb() *cobra.Command {
	type table struct {
		Name  string
		Rules []struct {
			Name, Reply  string
			Match        json.RawMessage
			Clusters     []admin.RuleCluster
			Timeout      float64
			Retry        *config.Retry
			Requests     uint64
			Retries      uint64
			LocalReplies uint64 `json:"local_replies"`
		}
	}
	return roadVerb("routes [NAME]", "Show route tables: rules in order, and what they have counted", "routes", func(t io.Writer, body []byte, one bool) error {
		all, err := listOf[table](body, "routes", one)
		if err != nil {
			return err
		}
		fmt.Fprintln(t, "RULE\tMATCH\tTO\tTIMEOUT\tTRIES\tREQUESTS\tRETRIES\tANSWERED HERE")
		for _, table := range all {
			for _, r := range table.Rules {
				tries := 1
				if r.Retry != nil {
					tries = r.Retry.Attempts
				}
				fmt.Fprintf(t, "%s/%s\t%s\t%s\t%v\t%d\t%d\t%d\t%d\n", table.Name, r.Name, matchInWords(r.Match), leadsTo(r.Reply, r.Clusters),
					config.Duration(seconds(r.Timeout)), tries, r.Requests, r.Retries, r.LocalReplies)
			}
		}
		return nil
	})
}

// matchInWords is a match as a configuration in one line has it.
func matchInWords(match json.RawMessage) string {
	fields := map[string]json.RawMessage{}
	if json.Unmarshal(match, &fields) != nil || len(fields) == 0 {
		return "everything"
	}
	text, err := json.Marshal(fields) // without indents
	if err != nil {
		return "?"
	}
	return printable(string(text))
}

func leadsTo(reply string, clusters []admin.RuleCluster) string {
	if reply != "" {
		return "answered " + reply
	}
	sum := 0
	for _, c := range clusters {
		sum += c.Weight
	}
	var to []string
	for _, c := range clusters {
		if len(clusters) == 1 {
			to = append(to, c.Cluster)
			continue
		}
		to = append(to, c.Cluster+" "+percent(float64(c.Weight)/float64(sum)))
	}
	return strings.Join(to, ", ")
}

func clustersVerb() *cobra.Command {
	return roadVerb("clusters [NAME]", "Show clusters: their limits, and how far these are used", "clusters", func(t io.Writer, body []byte, one bool) error {
		all, err := listOf[admin.Cluster](body, "clusters", one)
		if err != nil {
			return err
		}
		fmt.Fprintln(t, "CLUSTER\tPROTOCOL\tBALANCER\tUSABLE\tIN FLIGHT\tCONNECTIONS\tWAITING\tBYTES WAITING")
		for _, c := range all {
			usable := 0
			for _, e := range c.Endpoints {
				if e.State == "usable" {
					usable++
				}
			}
			l, of := &c.Limits, ofMost(usable, len(c.Endpoints))
			if c.Panic {
				of += ", panic"
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.Name, c.Protocol, c.Balancer, of,
				ofMost(l.Requests.Used, l.Requests.Max), ofMost(l.Connections.Used, l.Connections.Max), ofMost(l.Pending.Used, l.Pending.Max),
				fmt.Sprintf("%s of %s", size(uint64(l.PendingBytes.Used)), size(uint64(l.PendingBytes.Max))))
		}
		for _, c := range all {
			if d := c.Discovery; d != nil && d.State != "ok" {
				fmt.Fprintf(t, "%s: discovery by %s %s is %s, with %s: %s\n", c.Name, d.Source, printable(d.Of), d.State, count(d.Endpoints, "endpoint"),
					printable(cmp.Or(d.Error, "it has told nothing yet")))
			}
		}
		return nil
	})
}
