package systemd

import (
	"strings"

	"github.com/coreos/go-systemd/v22/journal"
)

// Entry is one entry of the journal. Vars are its fields by the names that Field makes, and are Journal's to add to.
type Entry struct {
	Message  string
	Priority Priority
	Vars     map[string]string
}

// Priority is that of syslog(3).
type Priority = journal.Priority

// The priorities in use.
const (
	Critical = journal.PriCrit
	Error    = journal.PriErr
	Warning  = journal.PriWarning
	Info     = journal.PriInfo
	Debug    = journal.PriDebug
)

// identifier is what the journal shows in front of the message.
const identifier = "relevo"

// Journal sends entries to the journal.
type Journal struct {
	send func(message string, p journal.Priority, vars map[string]string) error
}

// OpenJournal is the journal of this machine. It says false where there is none.
func OpenJournal() (Journal, bool) { return Journal{journal.Send}, journal.Enabled() }

// NewJournal sends to a function, for tests.
func NewJournal(send func(string, Priority, map[string]string) error) Journal { return Journal{send} }

// Send sends one entry.
func (j Journal) Send(e Entry) error {
	e.Vars["SYSLOG_IDENTIFIER"] = identifier
	return j.send(e.Message, e.Priority, e.Vars)
}

// StderrIsJournal says whether what is written to standard error ends up in the journal, line by line.
func StderrIsJournal() bool {
	yes, err := journal.StderrIsJournalStream()
	return yes && err == nil
}

// Field is the journal's name for a field of ours: RELEVO_SERVICE for service.
func Field(name string) string {
	return "RELEVO_" + strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, name)
}
