package admin

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/server/config"
)

const (
	// lookEvery is how often files are looked at, at most.
	lookEvery = time.Second
	// settled is how long after a file was written another write shows in its time.
	settled = 2 * time.Second
	// maxCredentials is the size in bytes of the largest file of tokens, certificates or keys.
	maxCredentials = 1 << 20
)

// watched is what some files say. They are read anew when they have changed, and as long as they cannot be used, which is looked at
// when somebody asks; what cannot be used is logged, and what held before holds on.
type watched[T any] struct {
	// Static after watch.
	files []string
	load  func() (T, error)
	log   *zap.Logger

	mu sync.Mutex
	// Guarded by mu.
	value  T
	seen   []fs.FileInfo // as value was read, or not; nil for a file that is not there
	at     time.Time     // when that was
	looked time.Time
	fault  string // why the files' content is not what holds, "" if it is
}

// watch reads the files for the first time; the error is load's.
func watch[T any](log *zap.Logger, load func() (T, error), files ...string) (*watched[T], error) {
	w := &watched[T]{files: files, load: load, log: log}
	w.at = time.Now()
	w.looked, w.seen = w.at, stat(files)
	var err error
	w.value, err = load()
	return w, err
}

// get is what the files say, or the last of what they said that could be used; and whether it is the latter.
func (w *watched[T]) get(now time.Time) (value T, stale bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now.Sub(w.looked) >= lookEvery {
		w.look(now)
	}
	return w.value, w.fault != ""
}

func (w *watched[T]) look(now time.Time) {
	w.looked = now
	seen := stat(w.files)
	changed := !same(w.seen, seen)
	if !changed && w.fault == "" && w.isSettled() { // what could not be read may be readable now: descriptors may just have run out
		return
	}
	w.seen, w.at = seen, now
	value, err := w.load()
	files := zap.Strings("files", w.files)
	switch {
	case err == nil:
		if changed || w.fault != "" {
			w.log.Info("credentials were read anew", files)
		}
		w.value, w.fault = value, ""
	case err.Error() != w.fault:
		w.fault = err.Error()
		w.log.Warn("credentials cannot be used: what was there before holds", files, zap.Error(err))
	}
}

// isSettled says that no file has changed since it was read: one that was read within settled of its last change may have been
// changed once more without a trace.
func (w *watched[T]) isSettled() bool {
	return !slices.ContainsFunc(w.seen, func(f fs.FileInfo) bool { return f != nil && w.at.Sub(f.ModTime()) < settled })
}

// same says whether files look as they did.
func same(was, is []fs.FileInfo) bool {
	return slices.EqualFunc(was, is, func(a, b fs.FileInfo) bool {
		if a == nil || b == nil {
			return a == nil && b == nil
		}
		return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime()) && a.Mode() == b.Mode()
	})
}

func stat(files []string) []fs.FileInfo {
	out := make([]fs.FileInfo, len(files))
	for i, f := range files {
		if info, err := os.Stat(f); err == nil {
			out[i] = info
		}
	}
	return out
}

// readCredentials reads a file, which must be one, and none that is large.
func readCredentials(path string) ([]byte, fs.FileInfo, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // opening a pipe might wait for ever
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat() // of what is read, whatever takes its place meanwhile
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s is not a file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxCredentials+1))
	if err == nil && len(data) > maxCredentials {
		err = fmt.Errorf("%s has more than %d bytes", path, maxCredentials)
	}
	return data, info, err
}

// faults are what is wrong with files, each at the field of admin.tcp that names the file.
type faults []config.Fault

func (f *faults) add(field, format string, args ...any) {
	*f = append(*f, config.Fault{
		Path: "admin.tcp." + field, Pointer: "/admin/tcp/" + strings.ReplaceAll(field, ".", "/"), Message: fmt.Sprintf(format, args...),
	})
}

func (f *faults) error() error {
	if len(*f) == 0 {
		return nil
	}
	return &config.Errors{Faults: *f}
}

// CheckFiles reads the files of a door on TCP, as NewGuard does. The error, a *config.Errors, has all that is wrong with
// them.
func CheckFiles(c *config.AdminTCP) error {
	var all faults
	for _, err := range []error{loadedKeys(c.TLS), loadedTokens(c.TokensFile)} {
		if e, ok := errors.AsType[*config.Errors](err); ok {
			all = append(all, e.Faults...)
		}
	}
	return all.error()
}

func loadedKeys(c *config.TLS) error {
	if c == nil {
		return nil
	}
	_, err := loadKeys(c)
	return err
}

func loadedTokens(path string) error {
	if path == "" {
		return nil
	}
	_, err := loadTokens(path)
	return err
}
