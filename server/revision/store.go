package revision

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Options say where revisions are kept and how many.
type Options struct {
	// State is the folder for what outlives the process, which must be there; empty keeps the revisions in memory.
	State string
	// File is the absolute path of the configuration file whose revisions these are. Only a store in memory may do without.
	File string
	// Keep and Bytes bound what is kept: the oldest go, never the newest. Zero means 200 and 64 MiB.
	Keep  int
	Bytes int64
	// LockWait is how long an Append waits for other processes. Zero means 5 s.
	LockWait time.Duration
	// Look makes no folder: what there is is looked at, perhaps by another user than the one whose revisions these are.
	Look bool
}

// Store keeps the revisions of one configuration file. Its methods may be called at once.
type Store struct {
	// Static after Open.
	o Options
	// folder is empty where revisions are kept in memory.
	folder string
	// turn holds a token that an Append takes, and gives back. Never closed.
	turn chan struct{}

	// Owned by who has the turn.
	// sizes are those of files that were written or looked at here: a file is never written twice.
	sizes map[uint64]int64
	// swept says that sweep was called.
	swept bool
	// listed are the numbers of the folder when something was written here last, which is the last of them. None: nothing was.
	listed []uint64

	mu sync.Mutex
	// Guarded by mu.
	// memory is the revisions from the oldest to the newest, where there is no folder.
	memory []kept
	// troubles are those with files, by their names, and log is who is told of each of them once; nil: he is not there yet.
	troubles map[string]trouble
	log      *zap.Logger
}

// kept is a revision in memory, encoded as in a file so that it counts as much.
type kept struct {
	number uint64
	data   []byte
}

// ErrNoRevision is what Get returns for a revision that there is not, or no more.
var ErrNoRevision = errors.New("there is no such revision")

// ErrLocked is what Append returns where other writers took longer than it may wait.
var ErrLocked = errors.New("another writer has the lock, and did not let go of it in time")

// ConflictError is what Append returns where another revision came first.
type ConflictError struct {
	// Expected is the newest revision that the writer knew of, and Newest the one that there is.
	Expected, Newest uint64
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("revision %d is not the newest: that is %d", e.Expected, e.Newest)
}

const revisionsFolder = "revisions"

// Open makes a store. In a folder it has the revisions that are there: State/revisions/HASH/NNNNNN.json, where HASH is of
// the configuration file's path.
func Open(o Options) (*Store, error) {
	if o.Keep == 0 {
		o.Keep = 200
	}
	if o.Bytes == 0 {
		o.Bytes = 64 << 20
	}
	if o.LockWait == 0 {
		o.LockWait = 5 * time.Second
	}
	s := &Store{o: o, turn: make(chan struct{}, 1), troubles: map[string]trouble{}, sizes: map[uint64]int64{}}
	s.turn <- struct{}{}
	if o.State == "" {
		return s, nil
	}
	if !filepath.IsAbs(o.File) {
		return nil, fmt.Errorf("opening the revisions: %q is not the absolute path of a configuration file", o.File)
	}
	s.o.File = filepath.Clean(o.File)
	parent := filepath.Join(o.State, revisionsFolder)
	s.folder = filepath.Join(parent, Sum([]byte(s.o.File))[:32])
	if _, err := os.Stat(s.folder); o.Look && errors.Is(err, fs.ErrNotExist) {
		s.folder = "" // there are no revisions, as in a memory that is new
		within := parent
		if _, err := os.Stat(parent); errors.Is(err, fs.ErrNotExist) {
			within = o.State
		}
		if err := unix.Access(within, unix.W_OK|unix.X_OK); err != nil {
			return nil, fmt.Errorf("opening the revisions: %w", &fs.PathError{Op: "access", Path: within, Err: err})
		}
		return s, nil
	}
	for _, folder := range []string{parent, s.folder} {
		if err := os.Mkdir(folder, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("opening the revisions: %w", err)
		}
	}
	if _, err := s.files(); err != nil {
		return nil, fmt.Errorf("opening the revisions: %w", err)
	}
	return s, nil
}

// Folder is where the revisions are; empty means in memory.
func (s *Store) Folder() string { return s.folder }

// Newest is the newest revision that is whole. Its number is 0 where there is none.
func (s *Store) Newest() (Revision, error) {
	r, err := s.newest()
	if err != nil {
		return Revision{}, fmt.Errorf("reading the newest revision: %w", err)
	}
	return r, nil
}

func (s *Store) newest() (Revision, error) {
	numbers, err := s.numbers()
	if err != nil {
		return Revision{}, err
	}
	return newestOf[Revision](s, numbers)
}

// newestOf is the newest whole revision of these numbers, which ascend, or what is known of it beside its document. The seal
// of a file is looked at either way.
func newestOf[T Revision | Info](s *Store, numbers []uint64) (newest T, err error) {
	for _, n := range slices.Backward(numbers) {
		var r T
		if whole, err := s.read(n, &r); whole || err != nil {
			return r, err
		}
	}
	return newest, nil
}

// Get is the revision with this number. Its error wraps ErrNoRevision where there is none.
func (s *Store) Get(n uint64) (Revision, error) {
	var r Revision
	whole, err := s.read(n, &r)
	if err != nil {
		return Revision{}, fmt.Errorf("reading revision %d: %w", n, err)
	}
	if !whole {
		return Revision{}, fmt.Errorf("revision %d: %w", n, ErrNoRevision)
	}
	return r, nil
}

// maxPage is the most that List returns at once.
const maxPage = 100

// List is up to limit revisions from the newest on, or of those with a number below before if that is not 0. next is
// before for the next page, 0 where there is none. No limit, or one above 100, means 100.
func (s *Store) List(before uint64, limit int) (page []Info, next uint64, err error) {
	if limit <= 0 || limit > maxPage {
		limit = maxPage
	}
	numbers, err := s.numbers()
	if err != nil {
		return nil, 0, fmt.Errorf("listing the revisions: %w", err)
	}
	for _, n := range slices.Backward(numbers) {
		if before != 0 && n >= before {
			continue
		}
		if len(page) == limit {
			return page, page[limit-1].Number, nil
		}
		var i Info
		whole, err := s.read(n, &i)
		if err != nil {
			return nil, 0, fmt.Errorf("listing the revisions: %w", err)
		}
		if whole {
			page = append(page, i)
		}
	}
	return page, 0, nil
}

// standing is all numbers, ascending, and that of the newest whole revision, 0 where there is none. It is called with the lock
// held. Where nobody has written since this store did, no folder is listed and no file is read.
func (s *Store) standing() (numbers []uint64, newest uint64, err error) {
	if n := len(s.listed); n > 0 && s.isLast(s.listed[n-1]) {
		return s.listed, s.listed[n-1], nil
	}
	if numbers, err = s.numbers(); err != nil {
		return nil, 0, err
	}
	i, err := newestOf[Info](s, numbers)
	return numbers, i.Number, err
}

// Append makes r the newest revision and returns it with its number. expected is the newest that the writer has seen, 0
// for none; where that is another by now, the error is a *ConflictError and nothing has changed. After any other error the
// newest revision is the one that it was.
func (s *Store) Append(ctx context.Context, expected uint64, r Revision) (Revision, error) {
	r, err := s.append(ctx, expected, r)
	if err != nil {
		return Revision{}, fmt.Errorf("appending a revision: %w", err)
	}
	return r, nil
}

func (s *Store) append(ctx context.Context, expected uint64, r Revision) (Revision, error) {
	if err := r.check(); err != nil {
		return r, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.o.LockWait)
	defer cancel()
	select {
	case <-s.turn:
	case <-ctx.Done():
		return r, ErrLocked
	}
	defer func() { s.turn <- struct{}{} }()
	if s.folder != "" {
		unlock, err := lock(ctx, filepath.Join(s.folder, lockFile))
		if err != nil {
			return r, err
		}
		defer unlock()
	}

	numbers, newest, err := s.standing()
	if err != nil {
		return r, err
	}
	if newest != expected {
		return r, &ConflictError{expected, newest}
	}
	r.Number = 1
	if len(numbers) > 0 { // the last may be of a file that is torn
		r.Number = numbers[len(numbers)-1] + 1
	}
	r.When = r.When.Round(0).UTC()
	data, err := encode(s.o.File, &r)
	if err != nil {
		return r, err
	}
	if s.folder == "" {
		s.remember(kept{r.Number, data})
		return r, nil
	}
	s.sweep()
	if err := s.write(r.Number, data); err != nil {
		return r, err
	}
	s.sizes[r.Number] = int64(len(data))
	s.listed = s.prune(append(numbers, r.Number))
	return r, nil
}

// numbers are those of all revisions, ascending, and of files that only look like one.
func (s *Store) numbers() ([]uint64, error) {
	if s.folder != "" {
		return s.files()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var numbers []uint64
	for _, k := range s.memory {
		numbers = append(numbers, k.number)
	}
	return numbers, nil
}

// read fills v, a Revision or an Info, from revision n. It says whether there is one that is whole.
func (s *Store) read(n uint64, v any) (whole bool, err error) {
	if s.folder != "" {
		return s.readFile(n, v)
	}
	s.mu.Lock()
	i, ok := slices.BinarySearchFunc(s.memory, n, func(k kept, n uint64) int { return compare(k.number, n) })
	var data []byte
	if ok {
		data = s.memory[i].data
	}
	s.mu.Unlock()
	if !ok {
		return false, nil
	}
	return true, open(data, s.o.File, n, v)
}
