package accesslog

import (
	"errors"
	"fmt"
	"os"

	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/systemd"
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
		j, ok := systemd.OpenJournal()
		if !ok {
			return nil, errors.New("access log: there is no journal here: nobody listens at systemd's journal socket")
		}
		return newJournalSink(e, j), nil
	}
	s := &stream{encoder: e, path: c.Path, piece: filePiece}
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("access log: %w", err)
	}
	return s, nil
}
