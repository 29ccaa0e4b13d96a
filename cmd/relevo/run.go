package main

import (
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/relevo-proxy/relevo/server"
)

func runVerb(typed string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Forward requests until told to stop",
		Long: "Forward requests as the configuration says. SIGTERM and SIGINT stop accepting, let requests in flight\n" +
			"finish within stop_timeout, and end; a second one ends at once. SIGUSR1 opens the access log's file anew,\n" +
			"SIGQUIT writes all stacks and the last failed exchanges to the log.\n\n" +
			"With --trial, a built-in configuration is run, with an echo server to forward to.",
		Example: "  relevo run -c /etc/relevo/relevo.yaml\n" +
			"  relevo run --trial",
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	file := configFlag(cmd, "file to run")
	trial := cmd.Flags().Bool("trial", false, "try Relevo out, without a file")
	cmd.RunE = verb(func(cmd *cobra.Command) error {
		if *trial && cmd.Flags().Changed("config") {
			return misused("--trial takes no --config")
		}
		if *trial {
			return runTrial(cmd, typed)
		}
		c, err := load(*file, cmd.InOrStdin())
		if err != nil {
			return err
		}
		log := server.NewLogger(c.Log, cmd.ErrOrStderr())
		defer func() { _ = log.Sync() }() // a terminal cannot be synced, and says so
		// Before anything is bound: a signal that comes while it is stops what is bound by then.
		var running atomic.Pointer[server.Server]
		ctx, stop := server.Signals(log, running.Load)
		defer stop()
		srv, err := server.New(server.Options{Config: c, Log: log, Build: buildInfo()})
		if err != nil {
			return err
		}
		running.Store(srv)
		return srv.Run(ctx)
	})
	return cmd
}
