package systemd

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
	"golang.org/x/sys/unix"
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
	send   func(message string, p journal.Priority, vars map[string]string) error
	socket string // where send sends to; empty: to nobody who takes his time
}

// journalSocket is where the journal hears entries.
const journalSocket = "/run/systemd/journal/socket"

// OpenJournal is the journal of this machine. It says false where there is none.
func OpenJournal() (Journal, bool) { return Journal{journal.Send, journalSocket}, journal.Enabled() }

// NewJournal sends to a function, for tests.
func NewJournal(send func(string, Priority, map[string]string) error) Journal {
	return Journal{send: send}
}

// Send sends one entry.
func (j Journal) Send(e Entry) error {
	e.Vars["SYSLOG_IDENTIFIER"] = identifier
	return j.send(e.Message, e.Priority, e.Vars)
}

// settleLook is how often Settle looks.
const settleLook = time.Millisecond

// Settle waits until the journal has taken all that was sent. A process that is about to end calls it: the journal asks the kernel
// which unit an entry's process belongs to, and of one that has gone by then nobody knows.
//
// The journal takes one datagram after another, and so has taken the others when it takes this one, which is no entry.
func (j Journal) Settle(limit time.Duration) error {
	if j.socket == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: j.socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("waiting for the journal: %w", err)
	}
	defer c.Close()
	until := time.Now().Add(limit)
	_ = c.SetWriteDeadline(until) // of a socket that is open
	if _, err := c.Write([]byte("\n")); err != nil {
		return fmt.Errorf("waiting for the journal: %w", err)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("waiting for the journal: %w", err)
	}
	for {
		var waiting int // bytes that nobody has read
		var asked error
		if err := raw.Control(func(fd uintptr) { waiting, asked = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); err != nil || asked != nil {
			return fmt.Errorf("waiting for the journal: %w", errors.Join(err, asked))
		}
		if waiting == 0 {
			return nil
		}
		if time.Now().After(until) {
			return fmt.Errorf("waiting for the journal: it has not taken the last entry within %v", limit)
		}
		time.Sleep(settleLook)
	}
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
