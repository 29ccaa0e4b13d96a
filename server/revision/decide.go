package revision

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/relevo-proxy/relevo/server/config"
)

// File is the configuration file as it is now.
type File struct {
	Document *config.Document
	// SHA256 is that of its content.
	SHA256 string
}

// NewFile reads a file's content. Its error is a *config.Errors.
func NewFile(data []byte) (File, error) {
	d, err := config.ParseDocument(data)
	if err != nil {
		return File{}, err
	}
	return File{d, Sum(data)}, nil
}

// Decision is what a start applies.
type Decision struct {
	Document *config.Document
	// Config is the tree that Document makes.
	Config *config.Config
	// Newest is the newest revision that there is, 0 for none: what Append expects.
	Newest uint64
	// FromFile says that the file is applied, and is to become the next revision (Next).
	FromFile bool
	// Undid are the changes that the file makes to the newest revision, where FromFile.
	Undid config.Changes
	// Message says on one line which won and why.
	Message string

	sha256 string
}

// Next is the revision that the file becomes, where FromFile.
func (d *Decision) Next(now time.Time) Revision {
	why := d.Message
	if len(why) > maxText {
		why = strings.ToValidUTF8(why[:maxText], "")
	}
	return Revision{Info{When: now, Author: Author{Door: DoorFile}, Why: why, FileSHA256: d.sha256}, d.Document}
}

// Decide chooses between the file and the newest revision: the last change wins, whichever door it came through. The
// newest revision is applied unless the file's content is no longer what it was when that revision was made, or ignore says
// to start from the file. It writes nothing. What it chose is valid; else the error wraps a *config.Errors.
func Decide(f File, s *Store, ignore bool) (Decision, error) {
	newest, err := s.Newest()
	if err != nil {
		return Decision{}, err
	}
	d := Decision{Document: f.Document, Newest: newest.Number, FromFile: true, sha256: f.SHA256}
	made := made(newest.Info)
	switch {
	case newest.Number == 0:
		d.Message = "the file is applied: there is no revision yet"
	case ignore:
		d.Undid = newest.Document.Changes(f.Document)
		d.Message = "the file is applied, as asked for, in place of " + made + undoing(newest.Author.Door, d.Undid)
	case newest.FileSHA256 != f.SHA256:
		d.Undid = newest.Document.Changes(f.Document)
		d.Message = "the file is applied: it has changed since " + made + undoing(newest.Author.Door, d.Undid)
	default:
		d.FromFile, d.Document = false, newest.Document
		d.Message = made + ", is applied: the file has not changed since"
		if n := count(newest.Document.Changes(f.Document)); n == 1 {
			d.Message += ", and differs from it in 1 place"
		} else if n > 0 {
			d.Message += fmt.Sprintf(", and differs from it in %d places", n)
		}
	}
	d.Config, err = d.Document.Config()
	if faults, ok := errors.AsType[*config.Errors](err); ok && !d.FromFile {
		faults.Source = fmt.Sprintf("revision %d", newest.Number)
		return Decision{}, fmt.Errorf("the newest revision is not valid in this version, and the file has not changed since; "+
			"to start from the file, change it, if only by a comment, or ignore the revisions:\n%w", faults)
	}
	if err != nil {
		return Decision{}, err
	}
	return d, nil
}

// made says where a revision came from.
func made(i Info) string {
	from := "made by " + i.Author.String()
	if i.Author.Door == DoorFile {
		from = "taken from the file"
	}
	return fmt.Sprintf("revision %d, %s at %s", i.Number, from, i.When.Format(time.RFC3339))
}

func count(c config.Changes) int { return len(c.List) + c.More }

// maxUndone bounds the changes that a message names.
const maxUndone = 5

// undoing says on one line what the file undoes of a revision that came through this door. It does not undo itself.
func undoing(door Door, c config.Changes) string {
	n, verb := count(c), "undoes"
	if door == DoorFile {
		verb = "changes"
	}
	if n == 0 {
		return "; it " + verb + " nothing"
	}
	parts := make([]string, 0, maxUndone)
	for _, change := range c.List[:min(maxUndone, len(c.List))] {
		parts = append(parts, change.String())
	}
	text := "; it " + verb + ": " + strings.Join(parts, "; ")
	if n > maxUndone {
		text += fmt.Sprintf("; and %d more", n-maxUndone)
	}
	return text
}
