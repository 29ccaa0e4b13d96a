package admin

import (
	"context"
	"errors"

	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/server/config"
	"github.com/relevo-proxy/relevo/server/revision"
)

// Control is what the admin door shows and changes beside State. Its methods are called from any goroutine.
type Control interface {
	Road
	// Current is the configuration in force: its revision, the document, and the tree that it makes.
	Current() (revision.Info, *config.Document, *config.Config)
	// Change puts another configuration into force, or does nothing and says why: a *StaleError, *config.PathError,
	// *config.Errors, *RefusedError or *revision.ConflictError, or what wraps ErrBusy, or another error of the system.
	Change(ctx context.Context, e Edit) (Outcome, error)
	// Revisions are those of the configuration.
	Revisions() *revision.Store
	// Failures are the newest exchanges that failed or were answered here, oldest first, and how many there have been.
	Failures() ([]stats.Record, uint64)
	// Upgrade is what there is to say about upgrades.
	Upgrade() UpgradeStatus
	// RequestUpgrade asks for an upgrade, to the program at this path or, where it is empty, to the one that runs, as it is on
	// disk; by is who wants it. It says which number its report will have. The error says why there can be none: it is a *RefusedError if that is
	// the program.
	RequestUpgrade(by revision.Author, binary string) (id uint64, err error)
	// Log is the level of the log, and SetLog asks for another one. The error wraps ErrBusy, or says that it cannot be changed.
	Log() LogLevel
	SetLog(ctx context.Context, r LogRequest) (LogLevel, error)
	// Events is what happens.
	Events() *Events
	// Profiles says whether profiles of the runtime are served.
	Profiles() bool
}

// Edit is a change that somebody wants.
type Edit struct {
	// Match says whether the configuration is the one that is to be changed, nil, or a *StaleError.
	Match func(d *config.Document) error
	// Edit makes the new document.
	Edit   func(d *config.Document) (*config.Document, error)
	Author revision.Author
	Why    string
	// DryRun says what would happen, and does nothing.
	DryRun bool
}

// Outcome is what a change did, or would do.
type Outcome struct {
	// Revision is the number of the revision in force.
	Revision uint64 `json:"revision"`
	DryRun   bool   `json:"dry_run,omitempty"`
	config.Changes
	// NeedsUpgrade are JSON pointers to what is not in force before the next upgrade or restart, of this change or of one
	// before it.
	NeedsUpgrade []string `json:"needs_upgrade"`
	Cost         Cost     `json:"cost"`
}

// Cost is what a change does to connections, counted at the moment at which it was made or tried.
type Cost struct {
	// ClientsDraining are the client connections of listeners that go: they close when they are quiet.
	ClientsDraining int `json:"client_connections_draining"`
	// EndpointsDraining are the endpoints that go or are to drain, and ServersDraining the connections to them.
	EndpointsDraining int `json:"endpoints_draining"`
	ServersDraining   int `json:"server_connections_draining"`
	// ServersDialled are the connections that new endpoints may have, or old ones more than before.
	ServersDialled int `json:"server_connections_dialled"`
}

// ErrBusy is why nothing can be changed now, and can be soon: an upgrade is under way, or the process stops.
var ErrBusy = errors.New("nothing can be changed now")

// StaleError says that what was to be changed is not what the writer has seen.
type StaleError struct {
	// There says whether there is anything at the path; Current and ETag are what.
	There   bool
	Current config.Part
	ETag    string
}

func (e *StaleError) Error() string {
	if !e.There {
		return "there is nothing at this path, and If-Match says that there is"
	}
	return "it is not what If-Match or If-None-Match says: somebody else has changed it, or it was there before"
}

// RefusedError says why a configuration that is valid in itself cannot be applied here.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return e.Reason }
