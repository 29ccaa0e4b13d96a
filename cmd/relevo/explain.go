package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/relevo-proxy/relevo/server"
	"github.com/relevo-proxy/relevo/server/config"
)

// errNoRule says of a request that no rule matches it. What there is to say about that has been printed.
var errNoRule = errors.New("no rule matches")

func explainVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain",
		Short: "Say which rule a request falls under, and what becomes of it",
		Long: "Say what a configuration makes of a request, without running it: the rule that matches it and why those\n" +
			"before it do not, and the filters, clusters, endpoints, timeout and retries that it meets. The exit status is 0\n" +
			"when a rule matches, 1 when none does.",
		Example: "  relevo explain -c relevo.yaml --service com.example.Order:1.0\n" +
			"  relevo explain -c relevo.yaml --service com.example.Order:1.0 --method get --header zone=1 --listener client",
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	file := configFlag(cmd, "configuration to ask, - for standard input")
	var (
		service, method, listener string
		pairs                     headers
	)
	f := cmd.Flags()
	f.StringVar(&service, "service", "", "value of the header "+config.ServiceKey+"; left out, the request has none")
	f.StringVar(&method, "method", "", "value of the header "+config.MethodKey+"; left out, the request has none")
	f.Var(&pairs, "header", "a further header; may be given often")
	f.StringVar(&listener, "listener", "", "where the request arrives; left out, all listeners are asked")
	form := outputFlag(cmd)
	f.Var(f.Lookup("output").Value, "format", "the same as --output")
	complete(cmd, "format", string(outputText), string(outputJSON))
	cmd.RunE = verb(func(cmd *cobra.Command) error {
		r := server.Request{Listener: listener, Headers: map[string]string{}}
		if f.Changed("service") {
			r.Headers[config.ServiceKey] = service
		}
		if f.Changed("method") {
			r.Headers[config.MethodKey] = method
		}
		for _, p := range pairs {
			if _, twice := r.Headers[p.Key]; twice {
				return misused("header %q is given twice", p.Key)
			}
			r.Headers[p.Key] = p.Value
		}
		c, err := load(*file, cmd.InOrStdin())
		if err != nil {
			return err
		}
		if err = knownListener(c, listener); err != nil {
			return err
		}
		e, err := server.Explain(c, r)
		if err != nil {
			return err
		}
		if *form == outputJSON {
			err = printJSON(cmd.OutOrStdout(), e)
		} else {
			err = printExplanation(cmd.OutOrStdout(), e)
		}
		if err == nil && !e.Matched {
			return errNoRule
		}
		return err
	})
	return cmd
}

// knownListener refuses a listener that the configuration does not have.
func knownListener(c *config.Config, name string) error {
	var there []string
	for i := range c.Listeners {
		there = append(there, c.Listeners[i].Name)
	}
	if name == "" || slices.Contains(there, name) {
		return nil
	}
	return misused("there is no listener %q, there is: %s", name, strings.Join(there, ", "))
}

// The text of an explanation is to be taken in at a glance; -o json has it all.
const (
	maxPassedOver = 10 // rules before the one that matches
	maxEndpoints  = 10 // of a cluster
)

// printExplanation writes e for people, in the order in which a request meets all that.
func printExplanation(w io.Writer, e *server.Explanation) error {
	var b strings.Builder
	for i := range e.Listeners {
		if i > 0 {
			b.WriteByte('\n')
		}
		printListener(&b, &e.Listeners[i])
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func printListener(b *strings.Builder, l *server.ListenerExplained) {
	line := func(what, format string, args ...any) {
		fmt.Fprintf(b, "  %-12s %s\n", what, fmt.Sprintf(format, args...))
	}
	filters := func(what string, list []server.FilterExplained) {
		for _, f := range list {
			does := f.Does
			if f.Skip != "" {
				does += "; not this one: " + f.Skip
			}
			line(what, "%s: %s", f.Name, does)
		}
	}
	fmt.Fprintf(b, "listener %s at %s, protocol %s, route table %s\n", l.Name, l.Address, l.Protocol, l.Routes)
	filters("clients", l.Connections)
	filters("filter", l.Filters)
	passed := l.PassedOver
	if more := len(passed) - maxPassedOver; more > 0 && l.Rule != nil {
		line("passed over", "%s, and", count(more, "rule"))
		passed = passed[more:]
	}
	for _, p := range passed {
		line("passed over", "%s (%d of %d): %s", p.Name, p.Number, l.Rules, p.Why)
	}
	r := l.Rule
	if r == nil {
		line("answered", "%s here, because no rule matches", l.Status)
		return
	}
	line("rule", "%s (%d of %d): %s", r.Name, r.Number, l.Rules, r.Why)
	filters("filter", r.Filters)
	if r.Status != "" {
		line("answered", "%s here", r.Status)
		line("runs on", "a %s", r.RunsOn)
		return
	}
	for _, k := range r.Clusters {
		line("cluster", "%s, %s of the requests, %s", k.Name, percent(k.Share), k.Balancer)
		for _, to := range k.Endpoints[:min(len(k.Endpoints), maxEndpoints)] {
			if to.Drain {
				line("", "%s, drains", to.Address)
				continue
			}
			line("", "%s, weight %d", to.Address, to.Weight)
		}
		if more := len(k.Endpoints) - maxEndpoints; more > 0 {
			line("", "and %s", count(more, "more endpoint"))
		}
		if k.Discovery != nil {
			kind, of := k.Discovery.Source()
			line("", "endpoints found by %s %s", kind, of)
		}
	}
	for _, h := range r.Headers {
		line("header", "%s", h)
	}
	line("timeout", "%s, or less if the request says so", r.Timeout)
	line("retry", "%s", retryInWords(r.Retry))
	line("runs on", "a %s", r.RunsOn)
}

func retryInWords(r *config.Retry) string {
	if r.Attempts == 1 || len(r.On) == 0 {
		return "none"
	}
	var on []string
	for _, reason := range r.On {
		on = append(on, string(reason))
	}
	words := fmt.Sprintf("%d tries at most, after %s", r.Attempts, inWords(on))
	if r.PerTryTimeout > 0 {
		words += fmt.Sprintf("; %v each, but the last", r.PerTryTimeout)
	}
	return words
}

// inWords is a list as one says it.
func inWords(list []string) string {
	last := len(list) - 1
	if last < 1 {
		return strings.Join(list, "")
	}
	return strings.Join(list[:last], ", ") + " and " + list[last]
}

// percent is a fraction of 1 with at most two decimals.
func percent(share float64) string {
	s := strconv.FormatFloat(100*share, 'f', 2, 64)
	return strings.TrimRight(strings.TrimRight(s, "0"), ".") + "%"
}
