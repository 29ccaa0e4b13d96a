package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
	"github.com/relevo-proxy/relevo/cmd/relevo/call"
	"github.com/relevo-proxy/relevo/server"
	"github.com/relevo-proxy/relevo/server/config"
	"github.com/relevo-proxy/relevo/systemd"
)

// The exit statuses. Those above 2 have the numbers of sysexits.h, which systemd and scripts know.
const (
	exitDone       = 0
	exitFailed     = 1  // the thing asked for did not succeed
	exitUsage      = 2  // wrong usage
	exitNothing    = 69 // nothing to talk to
	exitPermission = 77 // no permission
	exitConfig     = 78 // configuration refused
)

// usageError is what somebody typed and no verb understands.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// misused makes a usageError.
func misused(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// failure is an error whose exit status cannot be told from the error itself.
type failure struct {
	status int
	err    error
}

func (e *failure) Error() string { return e.err.Error() }
func (e *failure) Unwrap() error { return e.err }

// statusOf is the exit status that err stands for.
func statusOf(err error) int {
	if err == nil {
		return exitDone
	}
	if f, ok := errors.AsType[*failure](err); ok {
		return f.status
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		return exitUsage
	}
	if _, ok := errors.AsType[*config.Errors](err); ok {
		return exitConfig
	}
	if _, ok := errors.AsType[*server.ConfigError](err); ok {
		return exitConfig
	}
	switch {
	case errors.Is(err, call.ErrNothing), errors.Is(err, bench.ErrNothing): // whatever the reason of that is
		return exitNothing
	case errors.Is(err, fs.ErrPermission):
		return exitPermission
	}
	return exitFailed
}

// complain writes the error to w: one line, but for a configuration's faults, of which each has its own. Where w is standard error
// and leads to the journal, each is an entry with a priority and fields, as those of the log are.
func complain(w io.Writer, err error) {
	lines := strings.Split(strings.TrimRight(err.Error(), "\n"), "\n")
	if w == os.Stderr && systemd.StderrIsJournal() {
		if j, ok := systemd.OpenJournal(); ok && complainTo(j, lines, statusOf(err)) == nil {
			return
		}
	}
	for _, line := range lines {
		fmt.Fprintf(w, "relevo: %s\n", line)
	}
}

// settleTimeout bounds the wait for the journal.
const settleTimeout = time.Second

// complainTo is complain where the journal is.
func complainTo(j systemd.Journal, lines []string, status int) error {
	for _, line := range lines {
		if err := j.Send(systemd.Entry{Message: line, Priority: systemd.Error, Vars: map[string]string{
			systemd.Field("error"): line, systemd.Field("exit_status"): strconv.Itoa(status),
		}}); err != nil {
			return err
		}
	}
	_ = j.Settle(settleTimeout) // at worst the journal does not know whose words these are
	return nil
}

// oneLine is the text of an error that may have been joined from several.
func oneLine(err error) string { return strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ") }
