package main

import (
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/relevo-proxy/relevo/cmd/relevo/demo"
)

func demoVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show two hops at work, and their process replaced under load",
		Long: "Show the classic sidecar sample at work: client, client listener, server listener, server; first with\n" +
			"both listeners in one process, then in two; then that one process is replaced three times under load, and\n" +
			"nobody may notice. Every reply is verified, and every hop's counters are compared with what was sent. It\n" +
			"ends by itself and leaves nothing behind; the exit status is 1 if anything was lost, changed or refused.",
		Example:           "  relevo demo\n  relevo demo --load 500ms",
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	o := demo.Options{}
	cmd.Flags().DurationVar(&o.Load, "load", 1500*time.Millisecond, "how long each of the six loads lasts; the upgrades take twice as long")
	cmd.RunE = verb(func(cmd *cobra.Command) error {
		if o.Load <= 0 {
			return misused("--load %v: want more than 0", o.Load)
		}
		// No signal that can be caught may end this process before those that it has started. Without the
		// terminal, or the reader of a pipe, there is nobody left to show anything to.
		ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
		defer stop()
		o.Out = cmd.OutOrStdout()
		return demo.Run(ctx, o)
	})
	return cmd
}
