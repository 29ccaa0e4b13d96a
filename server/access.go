package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/server/accesslog"
	"github.com/relevo-proxy/relevo/server/config"
)

// wholePercent is 100 % as a config.Percent, which counts hundredths of one.
const wholePercent config.Percent = 100_00

// accessConfig translates a valid configuration into the access log's own terms.
func accessConfig(a *config.AccessLog) accesslog.Config {
	c := accesslog.Config{
		Path: a.Path, Format: string(a.Format), Template: a.Template,
		Sample: float64(a.Sample) / float64(wholePercent), Failed: a.Only == config.OnlyFailed, Buffer: a.Buffer,
	}
	for _, f := range a.Fields {
		c.Fields = append(c.Fields, string(f))
	}
	return c
}

// openAccess opens the access log, if there is to be one, and has the road write to it. The error is that of New.
func (s *Server) openAccess(spec *forwarder.Spec) error {
	if s.config().AccessLog == nil {
		return nil
	}
	c := accessConfig(s.config().AccessLog)
	if err := c.Check(); err != nil {
		return &ConfigError{fmt.Errorf("access_log: %w", err)}
	}
	l, err := accesslog.New(c, s.reg, s.log)
	if err != nil {
		return lasting(fmt.Errorf("starting: %w", err))
	}
	s.access, spec.Access = l, l
	return nil
}

// checkAccess says whether the access log can be written, or made in its folder.
func checkAccess(a *config.AccessLog) error {
	if a == nil || a.Path == accesslog.PathStderr || a.Path == accesslog.PathJournal {
		return nil
	}
	folder := filepath.Dir(a.Path)
	info, err := os.Stat(folder)
	if err == nil && !info.IsDir() {
		err = syscall.ENOTDIR
	}
	if err != nil {
		return lasting(fmt.Errorf("access_log.path: the folder %s: %w", folder, err))
	}
	err = unix.Access(a.Path, unix.W_OK)
	if errors.Is(err, syscall.ENOENT) { // it is made
		err = unix.Access(folder, unix.W_OK|unix.X_OK)
	}
	if err != nil {
		return lasting(fmt.Errorf("access_log.path: %s cannot be written: %w", a.Path, err))
	}
	return nil
}

// closeAccess closes the log that a failed start has opened.
func (s *Server) closeAccess() {
	if s.access != nil {
		_ = s.access.Close() // nothing has been written yet
	}
}

// runAccess runs the access log until end is called, which waits for it and for what it still has to write.
func (s *Server) runAccess() (end func() error) {
	if s.access == nil {
		return func() error { return nil }
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)               // never closed; holds the one answer
	go func() { done <- s.access.Run(ctx) }() // ends with ctx
	return func() error {
		cancel()
		return <-done
	}
}

// ReopenAccessLog has the access log's file opened anew, without waiting for it; what comes of it is logged. It says
// whether there is an access log.
func (s *Server) ReopenAccessLog() bool {
	if s.access == nil {
		return false
	}
	s.access.Reopen()
	return true
}

// Failures are the newest exchanges that failed or were answered here, oldest first, and how many there have been.
func (s *Server) Failures() (records []stats.Record, total uint64) { return s.road.Failures() }

// logFailures writes Failures to the program's log, a line each.
func (s *Server) logFailures(log *zap.Logger) {
	records, total := s.Failures()
	log.Warn("failed or locally answered exchanges, oldest first", zap.Int("kept", len(records)), zap.Uint64("total", total))
	for i := range records {
		log.Warn("exchange", zap.Object("exchange", accesslog.Object{Record: &records[i]}))
	}
}
