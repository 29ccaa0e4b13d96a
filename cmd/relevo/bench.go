package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

func benchVerb() *cobra.Command {
	return protocols(&cobra.Command{
		Use:   "bench",
		Short: "Send load, verify every reply and measure",
	}, benchBolt())
}

func benchBolt() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bolt",
		Short: "Send Bolt requests, verify every reply and measure",
		Long: "Send Bolt requests to an echo server, or to a forwarder before one, verify the id and payload of every\n" +
			"reply, and report throughput, latency and all that went wrong. Without --rate a closed loop keeps\n" +
			"--in-flight requests going on each connection; with it an open loop sends by a schedule, and latency\n" +
			"counts from the moment a request was due.\n\n" +
			"The exit status is 1 if any request came to anything but one right reply, 69 where nothing listens.",
		Example: "  relevo bench bolt --addr 127.0.0.1:12220 --duration 5s\n" +
			"  relevo bench bolt --addr 127.0.0.1:12220 --connections 64 --rate 20000 --size 4096\n" +
			"  relevo bench bolt --addr 127.0.0.1:12220 --count 100000 --pid $(pgrep -n relevo) -o json",
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	var (
		o     bench.Options
		pairs headers
	)
	f := cmd.Flags()
	f.StringVar(&o.Addr, "addr", "", "where to send, HOST:PORT; several with commas")
	f.IntVar(&o.Connections, "connections", 0, "number of connections (default 8)")
	f.IntVar(&o.InFlight, "in-flight", 0, "requests in flight on each (default 64; with --rate at most 10000)")
	f.IntVar(&o.Size, "size", 1024, "bytes of content of a request")
	f.DurationVar(&o.Duration, "duration", 0, "how long to measure (default 10s, without --count)")
	f.Uint64Var(&o.Count, "count", 0, "number of requests to send (default no limit)")
	f.DurationVar(&o.Warmup, "warmup", 0, "time of load before the measurement")
	f.Float64Var(&o.Rate, "rate", 0, "requests a second over all connections: an open loop (default a closed one)")
	f.StringVar(&o.Service, "service", "com.relevo.Echo:1.0", "value of the header service")
	f.Var(&pairs, "header", "a further header; may be given often")
	f.DurationVar(&o.Timeout, "timeout", 0, "of a request (default 3s)")
	f.BoolVar(&o.Oneway, "oneway", false, "send requests that get no reply")
	f.IntVar(&o.PID, "pid", 0, "process whose CPU time and memory to report")
	protocol, form := versionFlag(cmd), outputFlag(cmd)
	require(cmd, "addr")
	cmd.RunE = verb(func(cmd *cobra.Command) error {
		ctx, stop := interruptible(cmd)
		defer stop()
		if err := checkAddresses("addr", strings.Split(o.Addr, ",")...); err != nil {
			return err
		}
		if err := refuseZero(cmd, "connections", "in-flight", "duration", "count", "rate", "timeout", "pid"); err != nil {
			return err
		}
		o.Headers, o.Version = pairs, bolt.Version(*protocol)
		r, err := bench.Run(ctx, o)
		switch {
		case err == nil:
		case errors.Is(err, bench.ErrNothing), ctx.Err() != nil:
			return err
		default: // all else that keeps a run from beginning is in the options
			return misused("%s", oneLine(err))
		}
		if *form == outputJSON {
			err = printJSON(cmd.OutOrStdout(), r)
		} else {
			err = r.Print(cmd.OutOrStdout())
		}
		if err != nil {
			return err
		}
		return verdict(r)
	})
	return cmd
}

// verdict is why a run did not succeed, nil if it did.
func verdict(r *bench.Report) error {
	switch {
	case r.Failed():
		var other uint64
		for _, n := range r.Statuses {
			other += n
		}
		return fmt.Errorf("bench: not every request came to one right reply: of %d sent %d ok, %d of another status, "+
			"%d timed out, %d lost, %d mismatched, %d duplicated, %d malformed; %d due and not sent",
			r.Sent, r.OK, other, r.Timeouts, r.Lost, r.Mismatched, r.Duplicated, r.Malformed, r.Overrun)
	case r.Interrupted:
		return errors.New("bench: interrupted")
	}
	return nil
}
