package revision

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const (
	lockFile = "lock"
	// tempFile is the file that is being written. Who has the lock is the only one to write.
	tempFile = ".new"
	// tempPrefix begins the names of those of an earlier version.
	tempPrefix = ".new-"
	// maxFileSize is the length in bytes of the longest file that is read. A document has 16 MiB at most, and the escapes
	// of JSON can make it longer.
	maxFileSize = 128 << 20
	// maxTroubles bounds the files that the log is told of.
	maxTroubles = 100
	// lockPoll is how often a lock that another process has is tried again.
	lockPoll = 5 * time.Millisecond
)

// fileName is a number of six digits, or more without a zero in front.
var fileName = regexp.MustCompile(`^([0-9]{6}|[1-9][0-9]{6,14})\.json$`)

func nameOf(n uint64) string { return fmt.Sprintf("%06d.json", n) }

// files are the numbers of those in the folder that are revisions by their names, ascending.
func (s *Store) files() ([]uint64, error) {
	entries, err := os.ReadDir(s.folder)
	if err != nil {
		return nil, err
	}
	var numbers []uint64
	for _, e := range entries {
		m := fileName.FindStringSubmatch(e.Name())
		if m == nil || !e.Type().IsRegular() {
			continue
		}
		n, err := strconv.ParseUint(m[1], 10, 64)
		if err != nil || n == 0 {
			continue
		}
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	return numbers, nil
}

// readFile is read in a folder. A file whose content is not what was written there is told to the log, once, and passed
// over; one that cannot be read may be the newest, and is an error.
func (s *Store) readFile(n uint64, v any) (whole bool, err error) {
	name := filepath.Join(s.folder, nameOf(n))
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0) // a pipe would block
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return false, err
	}
	if len(data) > maxFileSize {
		err = fmt.Errorf("has more than %d bytes", maxFileSize)
	} else {
		err = open(data, s.o.File, n, v)
	}
	if err != nil {
		s.warn(name, passedOver, err)
	}
	return err == nil, nil
}

// trouble is why a file is not what it should be, or where.
type trouble struct {
	what string
	err  error
}

// What the log says of a file.
const (
	passedOver = "a file is passed over, it is no whole revision of this configuration"
	notRemoved = "a file that is not needed any more cannot be removed"
)

// warn has the log told, once.
func (s *Store) warn(name, what string, err error) {
	s.mu.Lock()
	_, known := s.troubles[name]
	known = known || len(s.troubles) == maxTroubles
	t := trouble{what, err}
	if !known {
		s.troubles[name] = t
	}
	log := s.log
	s.mu.Unlock()
	if !known && log != nil {
		t.tell(log, name)
	}
}

func (t trouble) tell(log *zap.Logger, name string) {
	log.Warn(t.what, zap.String("file", name), zap.Error(t.err))
}

// LogTo says whom to tell of files that are passed over, and tells him of those that have been so far: which configuration a start applies is
// known before there is a log.
func (s *Store) LogTo(log *zap.Logger) {
	s.mu.Lock()
	s.log = log
	troubles := maps.Clone(s.troubles)
	s.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(troubles)) {
		troubles[name].tell(log, name)
	}
}

// write makes the file of revision n, whole or not at all. It is called with the lock held.
func (s *Store) write(n uint64, data []byte) (err error) {
	if !fileName.MatchString(nameOf(n)) {
		return fmt.Errorf("there is no number behind %d", n-1)
	}
	temp, name := filepath.Join(s.folder, tempFile), filepath.Join(s.folder, nameOf(n))
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600) // a writer that was killed may have left it
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(temp, name)
	}
	if err != nil {
		_ = os.Remove(temp) // the first error is the one to tell
		return err
	}
	if err := syncFolder(s.folder); err != nil {
		_ = os.Remove(name) // what was not promised shall not be there
		return err
	}
	return nil
}

func syncFolder(folder string) error {
	f, err := os.Open(folder)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// sweep removes, once, what writers of an earlier version left that were killed. With the lock held there is no other one.
func (s *Store) sweep() {
	if s.swept {
		return
	}
	s.swept = true
	left, err := filepath.Glob(filepath.Join(s.folder, tempPrefix+"*"))
	if err != nil {
		return
	}
	for _, name := range left {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.warn(name, notRemoved, err)
		}
	}
}

// isLast says whether revision n, which was the last when it was written here, is so still: whoever writes takes the number
// behind the last, and removes older ones first.
func (s *Store) isLast(n uint64) bool {
	_, err := os.Lstat(filepath.Join(s.folder, nameOf(n)))
	if err != nil {
		return false
	}
	_, err = os.Lstat(filepath.Join(s.folder, nameOf(n+1)))
	return errors.Is(err, fs.ErrNotExist)
}

// prune removes the oldest files that are too many or too large together, and never the last of these numbers, which ascend; it
// returns those that are left. It is called with the lock held. What it cannot remove it leaves to the next one.
func (s *Store) prune(numbers []uint64) []uint64 {
	if len(s.sizes) > 2*len(numbers) {
		clear(s.sizes) // others remove files, too
	}
	path := func(n uint64) string { return filepath.Join(s.folder, nameOf(n)) }
	size := int64(0)
	var left []uint64
	for i, n := range slices.Backward(numbers) {
		bytes, known := s.sizes[n]
		if !known {
			info, err := os.Lstat(path(n))
			if err != nil {
				continue
			}
			bytes = info.Size()
			s.sizes[n] = bytes
		}
		size += bytes
		if newer := len(numbers) - 1 - i; newer == 0 || newer < s.o.Keep && size <= s.o.Bytes {
			left = append(left, n)
			continue
		}
		delete(s.sizes, n)
		if err := os.Remove(path(n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.warn(path(n), notRemoved, err)
			left = append(left, n)
		}
	}
	slices.Reverse(left)
	return left
}

// lock waits until no other process has the lock. The kernel gives it back when its holder dies.
func lock(ctx context.Context, name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	poll := time.NewTicker(lockPoll)
	defer poll.Stop()
	for {
		err := flock(f)
		if err == nil {
			return func() { _ = f.Close() }, nil // which gives it back
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("locking %s: %w", name, err), f.Close())
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return nil, errors.Join(ErrLocked, f.Close())
		}
	}
}

func flock(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var locking error
	if err := raw.Control(func(fd uintptr) { locking = unix.Flock(int(fd), unix.LOCK_EX|unix.LOCK_NB) }); err != nil {
		return err
	}
	return locking
}
