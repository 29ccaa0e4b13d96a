package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/relevo-proxy/relevo/upgrade"
)

// pollEvery is how often the files of another process are looked at.
const pollEvery = 20 * time.Millisecond

// aWhile is how often they are looked at before it is asked why there is nothing to see.
const aWhile = 50

func upgradeVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Hand over to the binary and configuration that are on disk",
		Long: "Have the running process hand over to a new one, which runs the binary and the configuration that are on\n" +
			"disk now. No connection is closed and no request is lost. If the new process cannot do it, the old one goes\n" +
			"on; the exit status is then 1, and the reason is printed. It is 69 where nothing runs.\n\n" +
			"With --binary the running process, asked through its admin socket, starts that program instead of its own; later\n" +
			"upgrades go on from there, and a restart begins with the unit's program again. The file and its folders may be\n" +
			"writable by root and the user of the process only.",
		Example: "  relevo upgrade\n" +
			"  relevo upgrade -c /etc/relevo/relevo.yaml -o json\n" +
			"  relevo upgrade --binary /opt/relevo-1.5/relevo",
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	wait := cmd.Flags().Bool("wait", true, "wait for the outcome; without, only ask for it")
	form := outputFlag(cmd)
	binary := cmd.Flags().String("binary", "", "the program to go on with, instead of that of the running process")
	address := adminFlags(cmd)
	if err := cmd.MarkFlagFilename("binary"); err != nil {
		panic(err) // a flag that does not exist: a slip in this package
	}
	ownerVerb(cmd, "to wait for it", func(ctx context.Context, dir string) error {
		before, err := upgrade.ReadReport(dir)
		if err != nil {
			return err
		}
		pid, err := tell(dir, syscall.SIGHUP)
		if err != nil || !*wait {
			return err
		}
		r, err := awaitReport(ctx, dir, pid, before.ID)
		if err != nil {
			return err
		}
		return showReport(cmd.OutOrStdout(), *form, r)
	})
	plain := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if *binary == "" {
			return plain(cmd, args)
		}
		return adminVerb(0, 0, func(cmd *cobra.Command, _ []string) error {
			return upgradeTo(cmd, *binary, newAdminClient(*address), *wait, *form)
		})(cmd, args)
	}
	return cmd
}

// awaitReport waits for the final report of an upgrade with a greater number. pid was asked for it; whoever follows it goes
// on with the numbers.
func awaitReport(ctx context.Context, dir string, pid int, before uint64) (upgrade.Report, error) {
	gone, silent := 0, 0
	for {
		r, err := upgrade.ReadReport(dir)
		switch {
		case err != nil:
			return r, err
		case r.ID > before && r.Outcome.Final():
			return r, nil
		}
		if r.ID <= before {
			silent++
		}
		if silent == aWhile { // else it has begun to report long before
			if err := upgrade.Writable(dir); err != nil {
				return r, fmt.Errorf("pid %d was asked, cannot report, and so refuses the upgrade: %w", pid, err)
			}
		}
		if now, err := owner(dir); err == nil && now == 0 {
			gone++ // once may be between two generations
		} else {
			gone = 0
		}
		if gone > aWhile {
			return r, fmt.Errorf("the process that was asked, pid %d, has ended, and no other runs in its place", pid)
		}
		if err := pause(ctx); err != nil {
			return r, fmt.Errorf("waiting for the upgrade: %w%s", err, progress(r, before))
		}
	}
}

// pause waits for the next look.
func pause(ctx context.Context) error {
	if pauseFor(ctx, pollEvery) {
		return nil
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return errors.New("--timeout has passed")
	}
	return errors.New("interrupted")
}

// progress says where an upgrade is that has not ended.
func progress(r upgrade.Report, before uint64) string {
	if r.ID <= before {
		return ": it has not begun"
	}
	return fmt.Sprintf(": upgrade %d has reached the step %s", r.ID, r.Step)
}

// showReport says what has happened. An upgrade that did not succeed is an error.
func showReport(w io.Writer, form outputForm, r upgrade.Report) error {
	if form == outputJSON {
		if err := printJSON(w, r); err != nil {
			return err
		}
	}
	if r.Outcome != upgrade.Done {
		return fmt.Errorf("upgrade %d: %s at the step %s: %s", r.ID, r.Outcome, r.Step, r.Reason)
	}
	if form == outputJSON {
		return nil
	}
	c := r.Carried
	_, err := fmt.Fprintf(w, "upgrade %d: done: pid %d (%s) to pid %d (%s), pause %v, %s and %s carried\n",
		r.ID, r.From, r.ReleaseFrom, r.To, r.ReleaseTo, seconds(r.Pause),
		count(c.Downstreams+c.Upstreams, "connection"), count(c.Streams+c.Requests+c.Replies+c.Uploads, "request"))
	return err
}

func seconds(s float64) time.Duration {
	return time.Duration(s * float64(time.Second)).Round(10 * time.Microsecond)
}
