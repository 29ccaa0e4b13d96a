package main

import (
	"context"
	"fmt"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/relevo-proxy/relevo/upgrade"
)

func stopVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "stop",
		Short: "Stop the running process, and wait until it has ended",
		Long: "Stop the running process as SIGTERM does: it accepts no more, lets requests in flight finish within\n" +
			"stop_timeout, and ends. If it is just being upgraded, whichever process has the connections stops. The exit\n" +
			"status is 69 where nothing runs. A service is stopped by systemctl stop: systemd starts again what ends otherwise.",
		Example: "  relevo stop\n" +
			"  relevo stop --runtime-dir /run/relevo --timeout 10s",
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	ownerVerb(cmd, "to wait for its end", func(ctx context.Context, dir string) error {
		pid, err := tell(dir, syscall.SIGTERM)
		if err != nil {
			return err
		}
		return awaitEnd(ctx, dir, pid)
	})
	return cmd
}

// awaitEnd waits until pid has ended, and whoever has the pid file after it. That one is sent no signal: it was told by the
// process before it, and a second signal would end it at once.
func awaitEnd(ctx context.Context, dir string, pid int) error {
	for {
		runs, err := upgrade.Runs(pid)
		if err == nil && !runs {
			next, err := owner(dir)
			if err != nil {
				return fmt.Errorf("looking for who has followed pid %d: %w", pid, err)
			}
			if next == 0 {
				return nil
			}
			pid = next
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("waiting for the end of pid %d: %w", pid, err)
		}
	}
}
