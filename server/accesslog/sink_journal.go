package accesslog

import (
	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/systemd"
)

// journalSink makes an entry of each record: its line as MESSAGE, and beside it each field under a name of its own,
// RELEVO_SERVICE for one, durations in seconds.
type journalSink struct {
	// Static after New.
	encoder *encoder
	fields  []*field
	journal systemd.Journal

	// Owned by Run.
	buf  []byte
	vars map[string]string
}

func newJournalSink(e *encoder, j systemd.Journal) *journalSink {
	return &journalSink{encoder: e, fields: e.all(), journal: j, vars: make(map[string]string)}
}

// deliver counts as bytes those of the lines.
func (s *journalSink) deliver(batch []stats.Record) (records, bytes int, err error) {
	for i := range batch {
		s.buf = s.encoder.appendLine(s.buf[:0], &batch[i])
		clear(s.vars)
		for _, f := range s.fields {
			if v := f.value(&batch[i]); v.known {
				s.vars[f.journal] = v.machine()
			}
		}
		if err := s.journal.Send(systemd.Entry{Message: string(s.buf), Priority: systemd.Info, Vars: s.vars}); err != nil {
			return records, bytes, err
		}
		records++
		bytes += len(s.buf)
	}
	return records, bytes, nil
}

// reopen does nothing: each entry is a datagram of its own.
func (s *journalSink) reopen() (bool, error) { return false, nil }

func (s *journalSink) close() error { return nil }
