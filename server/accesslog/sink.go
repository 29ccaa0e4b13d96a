package accesslog

import (
	"errors"
	"fmt"
	"os"

	"github.com/coreos/go-systemd/v22/journal"

	"github.com/relevo-proxy/relevo/forwarder/stats"
)

// sink is where records go. One goroutine uses it.
type sink interface {
	// deliver writes records and says how many of them, and how many bytes, were written. With an error the others are
	// lost.
	deliver([]stats.Record) (records, bytes int, err error)
	// reopen opens the sink anew, or says that there is nothing to open. With an error it stays as it is.
	reopen() (bool, error)
	close() error
}

// open opens the sink of a configuration that has been checked.
func open(c *Config) (sink, error) {
	e := newEncoder(c)
	switch c.Path {
	case PathStderr:
		return &stream{encoder: e, file: os.Stderr, piece: pipePiece}, nil
	case PathJournal:
		if !journal.Enabled() {
			return nil, errors.New("access log: there is no journal here: nobody listens at systemd's journal socket")
		}
		return newJournalSink(e, journal.Send), nil
	}
	s := &stream{encoder: e, path: c.Path, piece: filePiece}
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("access log: %w", err)
	}
	return s, nil
}
