package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/server/config"
	"github.com/relevo-proxy/relevo/server/revision"
)

// Origin is where a process has its configuration from: a file, and the revisions of it.
type Origin struct {
	// Static after OpenOrigin; decision until the server is built.
	path     string // of the file, absolute; empty: it cannot be read again
	file     revision.File
	store    *revision.Store
	decision revision.Decision
}

// OpenOrigin decides which configuration a process starts with: that of data, the content of the file with this name, or the
// newest revision of it. ignore is for the file whatever the revisions say. A file that is standard input has revisions in
// memory only. The error is a *config.Errors, a *ConfigError where there is no such folder, or what the operating system said of the
// revisions.
func OpenOrigin(name string, data []byte, ignore bool) (*Origin, error) {
	return openOrigin(name, data, ignore, false)
}

// LookAtOrigin says what OpenOrigin would decide. It writes nothing, so that root may ask, whose folders the service could not use.
func LookAtOrigin(name string, data []byte) (*Origin, error) {
	return openOrigin(name, data, false, true)
}

func openOrigin(name string, data []byte, ignore, look bool) (*Origin, error) {
	file, err := revision.NewFile(data)
	if err != nil {
		return nil, err
	}
	c, err := file.Document.Config()
	if err != nil {
		return nil, err
	}
	o := revision.Options{State: c.StateFolder(os.Getenv(config.StateVariable)), Look: look}
	if name == stdin {
		o.State = ""
	} else if o.File, err = filepath.Abs(name); err != nil {
		return nil, fmt.Errorf("opening the revisions: %w", err)
	}
	store, err := revision.Open(o)
	if err != nil {
		return nil, lasting(fmt.Errorf("state_dir %s: %w", o.State, err))
	}
	d, err := revision.Decide(file, store, ignore)
	if err != nil {
		return nil, err
	}
	return &Origin{o.File, file, store, d}, nil
}

// originOf is where a configuration comes from that is in no file.
func originOf(c *config.Config) (*Origin, error) {
	text, err := c.YAML()
	if err != nil {
		return nil, err
	}
	file, err := revision.NewFile(text)
	if err != nil {
		return nil, err
	}
	store, err := revision.Open(revision.Options{})
	if err != nil {
		return nil, err
	}
	d, err := revision.Decide(file, store, false)
	d.Config = c
	return &Origin{"", file, store, d}, err
}

// Config is the tree that the process starts with.
func (o *Origin) Config() *config.Config { return o.decision.Config }

// Message says on one line which configuration that is, and why.
func (o *Origin) Message() string { return o.decision.Message }

// say is the first line of the log.
func (o *Origin) say(log *zap.Logger) {
	if o == nil {
		return
	}
	to := log.Info
	if len(o.decision.Undid.List) > 0 {
		to = log.Warn
	}
	to("configuration: " + o.decision.Message)
}

// inherit has an heir go on with the revisions that the process before it had in memory.
func (o *Options) inherit(revisions []byte) error {
	if o.Origin == nil || len(revisions) == 0 || o.Origin.store.Folder() != "" {
		return nil
	}
	if err := o.Origin.store.Import(revisions); err != nil {
		o.Log.Warn("the revisions of the process before this one are lost: this release writes others", zap.Error(err))
		return nil
	}
	d, err := revision.Decide(o.Origin.file, o.Origin.store, false)
	if err != nil {
		return err
	}
	o.Origin.decision = d
	o.Config = d.Config
	if o.Level != nil {
		o.Level.SetLevel(levels[d.Config.Log.Level])
	}
	return nil
}

// check is how the program of the next process checks what that will load: the file, or the newest revision, which it finds
// where revisions are in a folder. One that is in memory it is given.
func (o *Origin) check(name string) (args []string, input []byte) {
	args = []string{"check", "--as-started", "-c", name}
	if o == nil || o.store.Folder() != "" { // nil: revisions belong to no file
		return args, nil
	}
	data, err := config.ReadFile(o.path)
	if err != nil {
		return args, nil // which says so
	}
	file, err := revision.NewFile(data)
	if err != nil {
		return args, nil
	}
	d, err := revision.Decide(file, o.store, false)
	if err != nil || d.FromFile || d.Document.Equal(file.Document) {
		return args, nil
	}
	return []string{"check", "--as-started", "-c", stdin}, d.Document.JSON()
}

// appendTimeout bounds the wait for other processes that write revisions.
const appendTimeout = 5 * time.Second

// keepOrigin makes a revision of the file that was applied, before anything is changed. Without one the process runs all the
// same.
func (s *Server) keepOrigin() {
	defer s.live.free()
	d := &s.live.origin.decision
	if !d.FromFile {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), appendTimeout)
	defer cancel()
	r, err := s.live.store.Append(ctx, d.Newest, d.Next(time.Now()))
	if c, ok := errors.AsType[*revision.ConflictError](err); ok {
		s.log.Error("another process writes revisions of the same file: changes will be refused", zap.Error(c))
		return
	}
	if err != nil {
		s.log.Error("the configuration is applied, and is not kept as a revision", zap.Error(err))
		return
	}
	s.live.now.Store(&inForce{r.Info, r.Number, r.Document, s.config()})
	s.tellConfig(r.Info, d.Undid)
}
