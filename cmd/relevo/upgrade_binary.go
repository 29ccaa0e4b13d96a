package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/relevo-proxy/relevo/upgrade"
)

const upgradeAPI = "/v1/upgrade"

// upgradeTo has the running process go on with another program, and follows.
func upgradeTo(cmd *cobra.Command, binary string, c *adminClient, wait bool, form outputForm) error {
	limit, err := cmd.Flags().GetDuration("timeout")
	if err != nil || limit <= 0 {
		return misused("--timeout %v: want more than 0", limit)
	}
	path, err := filepath.Abs(binary)
	if err != nil {
		return fmt.Errorf("looking for %s: %w", binary, err)
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), limit)
	defer cancel()
	body, _ := json.Marshal(map[string]string{"binary": path}) // a string
	a, err := c.ask(ctx, question{
		method: http.MethodPost, path: upgradeAPI, header: map[string]string{"Content-Type": "application/json"}, body: body,
	})
	if err != nil {
		return refused(err, exitFailed)
	}
	var asked struct{ ID uint64 }
	if err := c.decode(a, &asked); err != nil || !wait {
		return err
	}
	r, err := c.awaitReport(ctx, asked.ID)
	if err != nil {
		return err
	}
	return showReport(cmd.OutOrStdout(), form, r)
}

// awaitReport waits for the final report of this upgrade, which both processes may tell.
func (c *adminClient) awaitReport(ctx context.Context, id uint64) (upgrade.Report, error) {
	var last upgrade.Report
	silent := time.Now() // since when nothing answers
	for {
		var list struct{ Reports []upgrade.Report }
		_, err := c.get(ctx, upgradeAPI, &list)
		if err == nil {
			silent = time.Now()
		} else if no, ok := errors.AsType[*failure](err); ok && no.status != exitNothing || time.Since(silent) > adminPatience {
			return last, err
		}
		for _, r := range list.Reports {
			switch {
			case r.ID == id && r.Outcome.Final():
				return r, nil
			case r.ID == id:
				last = r
			}
		}
		if err := pause(ctx); err != nil {
			return last, fmt.Errorf("waiting for the upgrade: %w%s", err, progress(last, id-1))
		}
	}
}
