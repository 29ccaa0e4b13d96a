package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/relevo-proxy/relevo/admin"
)

func eventsVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Follow what happens in the running process",
		Long: "Print, one line each, what happens in the running process until it is interrupted: changes of the configuration, steps\n" +
			"and outcomes of upgrades, endpoints that are passed over and work again, listeners, the level of the log. It goes on\n" +
			"over upgrades.",
		Example:           "  relevo events\n  relevo events --recent --type upgrade,endpoint -o json",
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	address, form := adminFlags(cmd), outputFlag(cmd)
	types := cmd.Flags().StringSlice("type", nil, "only these: config, upgrade, endpoint, listener, log")
	complete(cmd, "type", "config", "upgrade", "endpoint", "listener", "log")
	recent := cmd.Flags().Bool("recent", false, "begin with those that are remembered, at most 256")
	cmd.RunE = adminVerb(0, 0, func(cmd *cobra.Command, _ []string) error {
		f := &follower{admin: newAdminClient(*address), out: cmd.OutOrStdout(), json: *form == outputJSON, path: "/v1/events"}
		if len(*types) > 0 {
			f.path += "?types=" + url.QueryEscape(strings.Join(*types, ","))
		}
		if *recent {
			f.last = "0" // which no process has
		}
		err := f.follow(cmd.Context())
		if cmd.Context().Err() != nil {
			return nil // that is how it ends
		}
		return err
	})
	return cmd
}

// follower prints events, of one process after another.
type follower struct {
	// Static.
	admin *adminClient
	path  string
	out   io.Writer
	json  bool

	last string // the id of the event that was seen last
}

// follow prints until ctx ends, the answer is no, or nothing has answered for adminPatience.
func (f *follower) follow(ctx context.Context) error {
	var heard time.Time // nothing yet
	for {
		err := f.stream(ctx)
		no, said := errors.AsType[*failure](err)
		switch {
		case err == nil:
			heard = time.Now()
		case said && no.status != exitNothing, time.Since(heard) > adminPatience:
			return err
		}
		if !pauseFor(ctx, reconnectEvery) {
			return ctx.Err()
		}
	}
}

// reconnectEvery is how long is waited before the next process is asked.
const reconnectEvery = 100 * time.Millisecond

// maxEventLine is the length in bytes of the longest line of a stream.
const maxEventLine = 1 << 20

// stream prints the events of one connection. No error means that there was one, and that it has ended.
func (f *follower) stream(ctx context.Context) error {
	header := map[string]string{}
	if f.last != "" {
		header["Last-Event-ID"] = f.last
	}
	resp, err := f.admin.open(ctx, question{method: http.MethodGet, path: f.path, header: header})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, maxEventLine)) // what there is of a problem
		return problemOf(f.admin, adminAnswer{resp.StatusCode, resp.Header, body})
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxEventLine)
	var id, data string
	for lines.Scan() {
		switch name, value, _ := strings.Cut(lines.Text(), ": "); {
		case name == "id":
			id = value
		case name == "data":
			data = value
		case name == "" && data != "": // it is whole
			if err := f.print(id, data); err != nil {
				return &failure{exitFailed, err}
			}
			f.last, id, data = cmp.Or(id, f.last), "", ""
		}
	}
	return nil // however it has ended, there may be another one
}

// print prints one event.
func (f *follower) print(id, data string) error {
	var e admin.Event
	if err := json.Unmarshal([]byte(data), &e); err != nil {
		return fmt.Errorf("reading an event: %w", err)
	}
	e.ID = id
	if f.json {
		return json.NewEncoder(f.out).Encode(e)
	}
	_, err := fmt.Fprintf(f.out, "%s %-8s %s\n", e.Time.Format(time.RFC3339), e.Type, eventLine(&e))
	return err
}

// eventLine is an event for people, without its time and type.
func eventLine(e *admin.Event) string {
	switch {
	case e.Config != nil:
		c := e.Config
		line := fmt.Sprintf("revision %d, by %s", c.Revision, c.Author)
		if c.Why != "" {
			line += ": " + printable(c.Why)
		}
		if len(c.Paths) > 0 {
			line += fmt.Sprintf(" (%s: %s)", count(uint64(c.Changes), "change"), strings.Join(c.Paths, " "))
		}
		return line
	case e.Upgrade != nil:
		u := e.Upgrade
		line := fmt.Sprintf("upgrade %d: %s", u.ID, u.Outcome)
		if u.Step != "" {
			line += " at the step " + u.Step
		}
		if u.Reason != "" {
			line += ": " + printable(u.Reason)
		}
		return line
	case e.Endpoint != nil:
		return fmt.Sprintf("%s of cluster %s is %s", e.Endpoint.Address, e.Endpoint.Cluster, e.Endpoint.State)
	case e.Listener != nil:
		if e.Listener.Accepting {
			return fmt.Sprintf("%s accepts at %s", e.Listener.Name, e.Listener.Address)
		}
		return e.Listener.Name + " does not accept any more"
	case e.Log != nil:
		return logLine(e.Log)
	case e.Lost > 0:
		return fmt.Sprintf("%d events came too fast to be printed", e.Lost)
	default:
		return e.End
	}
}
