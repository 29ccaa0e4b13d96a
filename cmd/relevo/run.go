package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/relevo-proxy/relevo/server"
	"github.com/relevo-proxy/relevo/upgrade"
)

func runVerb(typed string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Forward requests until told to stop",
		Long: "Forward requests as the configuration says. SIGHUP starts the program anew, as it is on disk, with the\n" +
			"configuration as it is on disk, and hands it all listeners, connections and requests; \"relevo upgrade\" does that\n" +
			"and says what came of it. SIGTERM and SIGINT stop accepting, let requests in flight finish within stop_timeout,\n" +
			"and end; a second one ends at once. SIGUSR1 opens the access log's file anew, SIGQUIT writes all stacks and the\n" +
			"last failed exchanges to the log.\n\n" +
			"With --trial, a built-in configuration is run, with an echo server to forward to.",
		Example: "  relevo run -c /etc/relevo/relevo.yaml\n" +
			"  relevo run --trial",
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	file := configFlag(cmd, "file to run")
	ignore := cmd.Flags().Bool("ignore-revisions", false, "start from the file, whatever was changed over the admin door since")
	trial := cmd.Flags().Bool("trial", false, "try Relevo out, without a file")
	cmd.RunE = verb(func(cmd *cobra.Command) error {
		if *trial && cmd.Flags().Changed("config") {
			return misused("--trial takes no --config")
		}
		if *trial {
			return runTrial(cmd, typed)
		}
		// Whoever takes over goes on with what is in force.
		origin, err := openOrigin(*file, cmd.InOrStdin(), *ignore && !upgrade.IsHeir())
		if _, unread := errors.AsType[*failure](err); unread && errors.Is(err, fs.ErrNotExist) && !cmd.Flags().Changed("config") {
			err = fmt.Errorf("%w; -c names another file, and --trial needs none", err)
		}
		if err != nil {
			upgrade.GiveUp("configuration", err)
			return err
		}
		return runServer(cmd, *file, origin)
	})
	return cmd
}

// tap is server.Options.Tap. Static: it is nil but in the processes of some tests, which set it before anything runs.
var tap upgrade.Tap

// runServer runs a configuration, which came from this file: in a fresh process, or in the heir of one.
func runServer(cmd *cobra.Command, file string, origin *server.Origin) error {
	c := origin.Config()
	log, level := server.NewLogger(c.Log, cmd.ErrOrStderr())
	defer func() { _ = log.Sync() }() // a terminal cannot be synced, and says so
	o := server.Options{Config: c, Log: log, Level: level, Origin: origin, Build: buildInfo(), Tap: tap}
	generation, err := server.NewGeneration(o, file)
	if err != nil {
		return err
	}
	defer generation.Close()
	// Before anything is bound: a signal that comes while it is stops what is bound by then. And to the end of the process: Close
	// may wait, and passes on what comes by then. The end of ctx is a signal, so nobody else ends it.
	var running atomic.Pointer[server.Server]
	ctx, _ := server.Signals(log, running.Load, generation.Request)
	srv, err := generation.Serve(ctx)
	if errors.Is(err, upgrade.ErrAborted) {
		return nil // the process before this one goes on, and has said why
	}
	if err != nil {
		return err
	}
	running.Store(srv)
	err = srv.Run(ctx)
	if errors.Is(err, server.ErrStuck) {
		go func() { // ends with the process, which it bounds: whatever still wants to be said may be stuck, too
			time.Sleep(settleTimeout)
			os.Exit(statusOf(err))
		}()
	}
	return err
}
