// Package revision keeps every configuration that was applied, as numbered revisions: who made it, when, through which
// door and why, the state of the configuration file at that time, and the document itself.
//
// A Store keeps them in a folder, one file a revision, or in memory. Who appends says which revision is the newest that it
// knows, so that of two writers at once the later one is told and none is lost, be they in one process or in two. Decide
// is the rule by which a start chooses between the newest revision and the file.
//
// It does not apply a configuration and does not check one beyond what reading it takes; Decide does check what it chose.
// It starts no goroutine.
package revision

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/relevo-proxy/relevo/server/config"
)

// Door is where a revision came in.
type Door string

// The doors.
const (
	// DoorFile is the configuration file.
	DoorFile Door = "file"
	// DoorUnix is the REST API's unix socket, and DoorTCP its TCP address.
	DoorUnix Door = "unix"
	DoorTCP  Door = "tcp"
)

// Author is who made a revision, and from where.
type Author struct {
	// Who is the name of a user of this host, or the subject of a certificate.
	Who  string `json:"who,omitempty"`
	Door Door   `json:"door"`
	// PID and UID are the caller's, at a unix socket. UID is nil where it is not known.
	PID int  `json:"pid,omitempty"`
	UID *int `json:"uid,omitempty"`
	// Token is the name of the token, never its secret.
	Token string `json:"token,omitempty"`
	// Address is the client's, over TCP.
	Address string `json:"address,omitempty"`
}

// String is for the log: alice (unix, uid 1000, pid 4711); tcp, token ci, from 10.1.2.3:4711.
func (a Author) String() string {
	text := string(a.Door)
	if a.UID != nil {
		text += fmt.Sprintf(", uid %d", *a.UID)
	}
	if a.PID != 0 {
		text += fmt.Sprintf(", pid %d", a.PID)
	}
	if a.Token != "" {
		text += ", token " + a.Token
	}
	if a.Address != "" {
		text += ", from " + a.Address
	}
	if a.Who == "" {
		return text
	}
	return a.Who + " (" + text + ")"
}

// Info is what is known of a revision without its document.
type Info struct {
	// Number is 1 for the first revision. Later ones have higher numbers, which may leave some out.
	Number uint64    `json:"number"`
	When   time.Time `json:"when"`
	Author Author    `json:"author"`
	// Why is the author's comment.
	Why string `json:"why,omitempty"`
	// FileSHA256 is the hash of the configuration file's content when the revision was made, in hexadecimal. It is empty
	// where there was no file.
	FileSHA256 string `json:"file_sha256,omitempty"`
}

// Revision is one configuration that was applied.
type Revision struct {
	Info
	Document *config.Document `json:"document"`
}

// maxText is the length in bytes of the longest comment or name that a revision keeps.
const maxText = 1024

func (r *Revision) check() error {
	for _, text := range []struct{ what, said string }{{"comment", r.Why}, {"name", r.Author.Who}, {"token's name", r.Author.Token}} {
		switch {
		case len(text.said) > maxText:
			return fmt.Errorf("the %s has %d bytes; it may have %d", text.what, len(text.said), maxText)
		case !utf8.ValidString(text.said):
			return fmt.Errorf("the %s is not valid UTF-8", text.what)
		}
	}
	if r.Document == nil {
		return errors.New("a revision has no document")
	}
	return nil
}

// format is the number of the form in which a revision is written.
const format = 1

// sealed is a revision as a file holds it.
type sealed struct {
	Format int `json:"format"`
	// File is the absolute path of the configuration file that the revision is of.
	File string `json:"file"`
	// SHA256 is that of the bytes of Revision.
	SHA256   string          `json:"sha256"`
	Revision json.RawMessage `json:"revision"`
}

func encode(file string, r *Revision) ([]byte, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	data, err := json.Marshal(sealed{format, file, Sum(body), body})
	return append(data, '\n'), err
}

// open takes the seal off and fills v, a Revision or an Info, whose number must be n.
func open(data []byte, file string, n uint64, v any) error {
	var s sealed
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("is torn or no revision: %w", err)
	}
	var i Info
	switch {
	case s.Format != format:
		return fmt.Errorf("has format %d; this version reads %d", s.Format, format)
	case s.File != file:
		return fmt.Errorf("is of the file %q", s.File)
	case s.SHA256 != Sum(s.Revision):
		return errors.New("has not the content that was written")
	}
	if err := json.Unmarshal(s.Revision, &i); err != nil {
		return fmt.Errorf("is no revision: %w", err)
	}
	if i.Number != n {
		return fmt.Errorf("holds revision %d", i.Number)
	}
	if err := json.Unmarshal(s.Revision, v); err != nil {
		return fmt.Errorf("is no revision: %w", err)
	}
	if r, ok := v.(*Revision); ok && r.Document == nil {
		return errors.New("has no document")
	}
	return nil
}

// Sum names content by its SHA-256, in hexadecimal digits: what File.SHA256 and Info.FileSHA256 are.
func Sum(data []byte) string {
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}
