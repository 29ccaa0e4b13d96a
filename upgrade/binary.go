package upgrade

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrUnderWay says that another program cannot be asked for now, because an upgrade runs or has been asked for.
var ErrUnderWay = errors.New("an upgrade is under way: ask again when it has ended")

// Binary is the file that the next upgrade starts, as it is now.
func (g *Generation) Binary() (string, error) {
	path, err := exec.LookPath(g.sys.program) // as tableflip does
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return "", fmt.Errorf("looking for the program: %w", err)
	}
	return path, nil
}

// RequestBinary asks for an upgrade to another program, from which later upgrades go on; if this one does not succeed, they
// start the program of now. It says which number the upgrade has. The error is a *BinaryError, ErrUnderWay, or that of Able.
func (g *Generation) RequestBinary(path string) (id uint64, err error) {
	if err := g.Able(); err != nil {
		return 0, err
	}
	name, err := program(os.Getpid())
	if err != nil {
		return 0, fmt.Errorf("looking for the program: %w", err)
	}
	if err := checkBinary(path, name, os.Geteuid()); err != nil {
		return 0, &BinaryError{path, err.Error()}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.last.Outcome == Running || g.program != "" {
		return 0, ErrUnderWay
	}
	g.program = path
	g.Request()
	return g.last.ID + 1, nil
}

// begin makes r the last report, and says which program its upgrade starts. Both at once: who asks for a program asks for it
// before an upgrade begins, or is told that one runs.
func (g *Generation) begin(r Report) (program string) {
	g.remember(r.clone())
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.program == "" {
		return g.sys.program
	}
	program, g.program = g.program, ""
	select {
	case <-g.asked: // RequestBinary has asked for this upgrade, which began on somebody else's word
	default:
	}
	return program
}

// BinaryError says why a file is not started.
type BinaryError struct{ Path, Reason string }

func (e *BinaryError) Error() string { return e.Path + " is not started: " + e.Reason }

// checkBinary says why a file is none that a process of this user may start on somebody's word: only root or that user can
// have put it there, and nobody else can put another one in its place. It has the name of the program that runs: by that the
// process is known from then on (see Runs).
func checkBinary(path, name string, uid int) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return errors.New("want an absolute path with no . or .. in it")
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return reasonOf(err)
	}
	if real != path {
		return errors.New("a symbolic link is on the way: name " + real)
	}
	if filepath.Base(path) != name {
		return fmt.Errorf("want a file called %s: by its name the process that runs is told from others", name)
	}
	info, err := os.Lstat(path)
	switch {
	case err != nil:
		return reasonOf(err)
	case !info.Mode().IsRegular():
		return errors.New("it is no regular file")
	case unix.Access(path, unix.X_OK) != nil:
		return errors.New("this process may not execute it")
	}
	if err := trusted(info, uid, false); err != nil {
		return fmt.Errorf("it %w", err)
	}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		info, err := os.Lstat(dir)
		if err != nil {
			return reasonOf(err)
		}
		// In a sticky folder all but its owner can make files, and cannot rename this one: good enough above, not beside it.
		sticky := info.Mode()&fs.ModeSticky != 0 && dir != filepath.Dir(path)
		if err := trusted(info, uid, sticky); err != nil {
			return fmt.Errorf("its folder %s %w", dir, err)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

// reasonOf is an error without the path, which the reader knows.
func reasonOf(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	return err
}

// trusted says why others than root and this user can change a file.
func trusted(info fs.FileInfo, uid int, shared bool) error {
	if s, ok := info.Sys().(*syscall.Stat_t); ok && s.Uid != 0 && int(s.Uid) != uid {
		return fmt.Errorf("belongs to uid %d: want root, or uid %d, which this process has", s.Uid, uid)
	}
	if !shared && info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("can be written by its group or by others (mode %04o)", info.Mode().Perm())
	}
	return nil
}
