package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
)

const (
	// settleTimeout bounds the wait for counters: a loop adds up after it has flushed a batch's replies.
	settleTimeout = 10 * time.Second
	// maxAnswer bounds the bytes of an answer that are read.
	maxAnswer = 16 << 20
)

// counters are what a hop says of itself. It was started for the phase, so they count nothing else.
type counters struct {
	requests, oneways, connections uint64
	bytesRead, bytesWritten        uint64
	replies, local                 map[string]uint64 // by status, by reason
}

// settled reads the counters of all hops until they say what the reports say. The error says what they still
// do not when its patience has ended; the counters are then those that were read last.
func settled(ctx context.Context, hops []hop, reports []*bench.Report) ([]counters, error) {
	var want counters
	for _, r := range reports {
		want.requests += r.Sent
		want.connections += r.Dials - r.DialErrors
	}
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	again := time.NewTicker(pollPeriod)
	defer again.Stop()
	for {
		all, err := scrape(ctx, hops)
		if err == nil {
			if err = agree(hops, all, want); err == nil {
				return all, nil
			}
		}
		select {
		case <-ctx.Done():
			return all, err
		case <-again.C:
		}
	}
}

// scrape reads the counters of each hop.
func scrape(ctx context.Context, hops []hop) ([]counters, error) {
	all := make([]counters, len(hops))
	for i, h := range hops {
		text, err := get(ctx, "http://"+h.metrics+"/metrics")
		if err != nil {
			return nil, fmt.Errorf("reading the counters of %s: %w", h.listener, err)
		}
		all[i] = parse(text, h.listener)
	}
	return all, nil
}

// agree says which hop counted something else than what was sent.
func agree(hops []hop, all []counters, want counters) error {
	var errs []error
	for i, c := range all {
		bad := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("listener %s: %s", hops[i].listener, fmt.Sprintf(format, args...)))
		}
		if c.requests != want.requests || c.oneways != 0 {
			bad("counts %d requests and %d one-way; %d and 0 were sent", c.requests, c.oneways, want.requests)
		}
		for status, n := range c.replies {
			if status != "SUCCESS" && n > 0 {
				bad("counts %d replies with %s", n, status)
			}
		}
		if n := c.replies["SUCCESS"]; n != want.requests {
			bad("counts %d replies with SUCCESS to %d requests", n, want.requests)
		}
		for reason, n := range c.local {
			if n > 0 {
				bad("answered %d requests itself: %s", n, reason)
			}
		}
		if i == 0 && c.connections != want.connections {
			bad("counts %d connections; %d were made", c.connections, want.connections)
		}
	}
	return errors.Join(errs...)
}

// parse picks the counters of a listener from the text format of Prometheus.
func parse(text, listener string) counters {
	c := counters{replies: map[string]uint64{}, local: map[string]uint64{}}
	for line := range strings.Lines(text) {
		name, labels, value, ok := sample(strings.TrimRight(line, "\n"))
		if !ok || labels["listener"] != listener {
			continue
		}
		switch name {
		case "relevo_listener_requests_total":
			switch labels["kind"] {
			case "request":
				c.requests = value
			case "oneway":
				c.oneways = value
			}
		case "relevo_listener_replies_total":
			c.replies[labels["status"]] = value
		case "relevo_listener_local_replies_total":
			c.local[labels["reason"]] = value
		case "relevo_listener_connections_total":
			c.connections = value
		case "relevo_listener_bytes_total":
			if labels["direction"] == "read" {
				c.bytesRead = value
			} else {
				c.bytesWritten = value
			}
		}
	}
	return c
}

// sample takes a line apart: NAME{LABEL="VALUE",...} NUMBER. Label values with a quotation mark or a comma in
// them are not what is looked for here, and are passed over.
func sample(line string) (name string, labels map[string]string, value uint64, ok bool) {
	name, rest, ok := strings.Cut(line, "{")
	if !ok || strings.HasPrefix(line, "#") {
		return "", nil, 0, false
	}
	inner, number, ok := strings.Cut(rest, "} ")
	if !ok {
		return "", nil, 0, false
	}
	labels = map[string]string{}
	for pair := range strings.SplitSeq(inner, ",") {
		key, quoted, _ := strings.Cut(pair, "=")
		text, err := strconv.Unquote(quoted)
		if err != nil {
			return "", nil, 0, false
		}
		labels[key] = text
	}
	f, err := strconv.ParseFloat(number, 64)
	return name, labels, uint64(max(f, 0)), err == nil
}

// printCounters shows what each hop counted.
func printCounters(w io.Writer, hops []hop, all []counters) {
	if len(all) == 0 {
		return
	}
	fmt.Fprintln(w)
	t := newTable("hop", "connections", "requests", "replies", "answered by itself", "read", "written")
	for i, c := range all {
		t.row(hops[i].listener, fmt.Sprint(c.connections), fmt.Sprint(c.requests), listed(c.replies), listed(c.local),
			megabytes(c.bytesRead), megabytes(c.bytesWritten))
	}
	t.print(w)
}

func megabytes(n uint64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

// listed is counts with their names, the names in order.
func listed(m map[string]uint64) string {
	var parts []string
	for name, n := range m {
		parts = append(parts, fmt.Sprintf("%d %s", n, name))
	}
	if len(parts) == 0 {
		return "0"
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

// get is the text at url, which must be answered with 200.
func get(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return "", err
	}
	answer, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil {
		return "", err
	}
	if answer.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", url, answer.Status)
	}
	return string(text), nil
}
