// Package file finds endpoints in a file. It watches the file's folder, so that it sees a file that another one takes the place of
// by a rename, also where that is a link further up, as in a ConfigMap of Kubernetes; and looks now and then all the same.
//
// Its watch has a goroutine of fsnotify's, which ends with Run.
package file

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/relevo-proxy/relevo/forwarder/discovery"
)

// MaxSize is the size in bytes of the largest file that is read.
const MaxSize = 8 << 20

// How often it looks whatever the kernel says: watched, and while there is nothing to be watched.
const (
	pollWatched = 10 * time.Second
	pollBlind   = time.Second
)

// Who writes into the file in place is given time to come to an end: it is read once nothing has happened for settle, at the
// latest after settleMost.
const (
	settle     = 50 * time.Millisecond
	settleMost = 500 * time.Millisecond
)

// Options are what a Source is made from.
type Options struct {
	Path string // absolute
	// Parse makes a whole set of the file's content, or says on one line what is wrong with it.
	Parse func([]byte) ([]discovery.Endpoint, error)
}

// Source is a file of endpoints. It implements discovery.Source.
type Source struct {
	// Static after New.
	path  string
	parse func([]byte) ([]discovery.Endpoint, error)

	// Owned by Run.
	folder folder
	seen   fs.FileInfo       // of the content that was told last; nil: that was an error
	sum    [sha256.Size]byte // of the content that was parsed last
	bad    error             // what is wrong with that content; nil: nothing
}

// New returns a source that has not looked yet.
func New(o Options) *Source { return &Source{path: o.Path, parse: o.Parse} }

// Check says what is wrong with a file as it is now.
func Check(path string, parse func([]byte) ([]discovery.Endpoint, error)) error {
	data, _, err := read(path)
	if err != nil {
		return err
	}
	if _, err = parse(data); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// Run implements discovery.Source.
func (s *Source) Run(ctx context.Context, tell func(discovery.Update)) {
	s.folder = folder{path: filepath.Dir(s.path)}
	defer s.folder.close()
	s.seen, s.bad = nil, nil
	for touched := true; ctx.Err() == nil; {
		s.folder.watch() // before it looks: what changes from here on is seen
		s.look(touched, tell)
		touched = s.wait(ctx)
	}
}

// wait returns when it is time to look. touched says that the file itself may have been written.
func (s *Source) wait(ctx context.Context) (touched bool) {
	poll := pollWatched
	if !s.folder.watched() {
		poll = pollBlind
	}
	timer := time.NewTimer(poll)
	defer timer.Stop()
	var first time.Time // of what happened
	for {
		select {
		case e := <-s.folder.events():
			touched = touched || e.Name == s.path
			now := time.Now()
			if first.IsZero() {
				first = now
			}
			timer.Reset(max(0, min(settle, settleMost-now.Sub(first))))
		case err := <-s.folder.errors(): // events are lost
			return err != nil
		case <-timer.C:
			return touched
		case <-ctx.Done():
			return false
		}
	}
}

// look tells of the file, unless it is what was told last. Where it was not touched its stamp decides that.
func (s *Source) look(touched bool, tell func(discovery.Update)) {
	info, err := os.Stat(s.path)
	if err == nil && !touched && s.seen != nil && same(s.seen, info) {
		return
	}
	var data []byte
	if err == nil {
		data, info, err = read(s.path)
	}
	if err == nil {
		sum := sha256.Sum256(data)
		if s.seen != nil && sum == s.sum {
			s.seen = info
			return
		}
		if sum != s.sum || s.bad == nil { // what is wrong once is wrong again, and a large file takes seconds
			s.sum = sum
			var set []discovery.Endpoint
			if set, s.bad = s.parse(data); s.bad == nil {
				s.seen = info
				tell(discovery.Update{Endpoints: set})
				return
			}
		}
		err = fmt.Errorf("%s: %w", s.path, s.bad)
	}
	s.seen = nil
	tell(discovery.Update{Err: err})
}

// same says that two stamps are of one content, as far as stamps tell.
func same(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// read reads a regular file within bounds. Anything else could make it wait.
func read(path string) ([]byte, fs.FileInfo, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s: is not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, nil, err
	}
	if len(data) > MaxSize {
		return nil, nil, fmt.Errorf("%s: has more than %d bytes", path, MaxSize)
	}
	return data, info, nil
}

// folder is the watch of one, which may not be there, or come and go.
type folder struct {
	path    string
	watcher *fsnotify.Watcher // nil: not watched
	info    fs.FileInfo       // of what is watched: another one of the same name is not
}

// watch sees to it that the folder is watched that has the path now, where there is one.
func (f *folder) watch() {
	info, err := os.Stat(f.path)
	if err == nil && f.watcher != nil && os.SameFile(info, f.info) && len(f.watcher.WatchList()) > 0 {
		return
	}
	f.close()
	if err != nil {
		return
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return // the kernel has no more watches: it is polled
	}
	if err := w.Add(f.path); err != nil {
		_ = w.Close() // it watches nothing
		return
	}
	f.watcher, f.info = w, info
}

func (f *folder) watched() bool { return f.watcher != nil }

// events and errors never bring anything while nothing is watched.
func (f *folder) events() <-chan fsnotify.Event {
	if f.watcher == nil {
		return nil
	}
	return f.watcher.Events
}

func (f *folder) errors() <-chan error {
	if f.watcher == nil {
		return nil
	}
	return f.watcher.Errors
}

func (f *folder) close() {
	if f.watcher != nil {
		_ = f.watcher.Close() // it has nothing that could be lost
		f.watcher = nil
	}
}
