package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/relevo-proxy/relevo/cmd/relevo/echo"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// echoPeriod is the least time between two lines about what an echo server has seen.
const echoPeriod = time.Second

func echoVerb() *cobra.Command {
	return protocols(&cobra.Command{
		Use:   "echo",
		Short: "Run a server that answers each request with its content",
	}, echoBolt())
}

func echoBolt() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bolt",
		Short: "Run a Bolt server that answers each request with its content",
		Long: "Run a Bolt server for trials, which answers each request with its own content until it is\n" +
			"interrupted. It prints its address, and the connections and requests that it has seen.\n\n" +
			"A request's header " + echo.DelayHeader + " says how long the reply to it takes, in place of --delay: 5s, 200ms,\n" +
			"at most 1m. Heartbeats are answered at once.\n\n" +
			"With --audit, one-way requests are told apart by the first 16 bytes of their content, the number of the\n" +
			"request and that of the connection, as relevo bench bolt --oneway sends them: distinct are those that came,\n" +
			"duplicate is what came again, unchecked what has no such bytes.",
		Example: "  relevo echo bolt --listen 127.0.0.1:12221\n" +
			"  relevo echo bolt --listen 127.0.0.1:0 --delay 50ms\n" +
			"  relevo echo bolt --listen 127.0.0.1:12221 --status SERVER_EXCEPTION\n" +
			"  relevo echo bolt --listen 127.0.0.1:12221 --audit",
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	o := echo.Options{}
	status := boltStatus(wire.Success)
	f := cmd.Flags()
	f.StringVar(&o.Listen, "listen", "", "address to listen at, HOST:PORT; port 0 takes any")
	f.DurationVar(&o.Delay, "delay", 0, "time from a request to its reply; none for heartbeats")
	f.Var(&status, "status", "of every reply, by name or number; other than SUCCESS without content")
	f.IntVar(&o.CloseAfter, "close-after", 0, "close each connection after so many requests (default never)")
	f.Float64Var(&o.NoReplyRate, "no-reply-rate", 0, "share of requests that get no reply, 0 to 1")
	f.BoolVar(&o.Audit, "audit", false, "count the one-way requests that came once and those that came again")
	require(cmd, "listen")
	complete(cmd, "status", statusNames()...)
	cmd.RunE = verb(func(cmd *cobra.Command) error {
		ctx, stop := interruptible(cmd)
		defer stop()
		if err := checkAddresses("listen", o.Listen); err != nil {
			return err
		}
		o.Status, o.Log = wire.Status(status), cmd.ErrOrStderr()
		s, err := echo.Listen(o)
		if _, network := errors.AsType[*net.OpError](err); err != nil && !network {
			return misused("%s", oneLine(err))
		}
		if err != nil {
			return err
		}
		return serveEcho(ctx, s, cmd.OutOrStdout())
	})
	return cmd
}

// serveEcho serves until ctx ends, and tells what was seen.
func serveEcho(ctx context.Context, s *echo.Server, out io.Writer) error {
	fmt.Fprintf(out, "echo: listening at %s\n", s.Addr())
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { watchEcho(ctx, s, out) }) // ends with ctx
	err := s.Run(ctx)
	stop()
	wg.Wait()
	fmt.Fprintf(out, "echo: in all %s\n", seen(s.Stats()))
	return err
}

// watchEcho prints what a server has seen when that changes.
func watchEcho(ctx context.Context, s *echo.Server, out io.Writer) {
	t := time.NewTicker(echoPeriod)
	defer t.Stop()
	var last echo.Stats
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if now := s.Stats(); now != last {
			fmt.Fprintf(out, "echo: %d open, %s\n", now.Open, seen(now))
			last = now
		}
	}
}

// seen is a line about all that came; what is rare is left out while there is none.
func seen(n echo.Stats) string {
	parts := []string{count(n.Accepted, "connection"), count(n.Requests, "request")}
	for _, c := range []struct {
		n    uint64
		what string
	}{
		{n.Oneways, "one-way"},
		{n.Heartbeats, "heartbeats"},
		{n.Unanswered, "unanswered"},
		{n.Ignored, "ignored"},
		{n.Malformed, "malformed"},
		{n.Stalled, "stalled"},
	} {
		if c.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", c.n, c.what))
		}
		if c.what == "one-way" && n.OnewaysDistinct+n.OnewaysDuplicate+n.OnewaysUnchecked > 0 {
			parts = append(parts, fmt.Sprintf("of them %d distinct, %d duplicate, %d unchecked", n.OnewaysDistinct, n.OnewaysDuplicate, n.OnewaysUnchecked))
		}
	}
	return strings.Join(parts, ", ")
}
