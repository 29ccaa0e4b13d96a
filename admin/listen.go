package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// defaultMode lets the owner and the group of a unix socket in, and nobody else.
	defaultMode fs.FileMode = 0o660
	// probeTimeout bounds the question whether somebody answers on a socket file that is in the way.
	probeTimeout = time.Second
	// maxSocketPath is the longest path that the kernel takes for a unix socket, in bytes.
	maxSocketPath = 107
)

// SocketFile says who may open a unix socket. The zero value means mode 0660 and the group of the process.
type SocketFile struct {
	Mode  fs.FileMode
	Group string // a name or a number; empty is that of the process
}

// Listen opens HOST:PORT, or unix:/PATH with the rights in file.
//
// A socket file that is in the way is removed only if it is a socket and nothing answers on it, which is what
// a process that was killed leaves behind. Anything else in the way is an error and stays as it is. Closing
// the listener leaves the file; the Server removes it.
func Listen(address string, file SocketFile) (net.Listener, error) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		l, err := listenUnix(path, file)
		if err != nil {
			return nil, fmt.Errorf("listen on unix:%s: %w", path, err)
		}
		return l, nil
	}
	if _, _, err := net.SplitHostPort(address); err != nil {
		return nil, fmt.Errorf("listen on %q: want HOST:PORT or unix:/PATH: %w", address, err)
	}
	return net.Listen("tcp", address) // its error says what was being done, and where
}

// Check says why nobody could be given these rights on this host; nil: nothing is known against it.
func (f SocketFile) Check() error {
	_, err := groupID(f.Group)
	return err
}

// Grant gives the file of a unix socket the rights in file, where another process has opened it. To any other address it does
// nothing.
func Grant(address string, file SocketFile) error {
	path, ok := strings.CutPrefix(address, "unix:")
	if !ok {
		return nil
	}
	gid, err := groupID(file.Group)
	if err == nil {
		err = grant(path, file.Mode, gid)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // nobody can come through a file that is gone
		return fmt.Errorf("the rights of unix:%s: %w", path, err)
	}
	return nil
}

func listenUnix(path string, file SocketFile) (net.Listener, error) {
	if !filepath.IsAbs(path) {
		return nil, errors.New("the path is not absolute")
	}
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("the path has %d bytes, the kernel takes %d", len(path), maxSocketPath)
	}
	gid, err := groupID(file.Group)
	if err != nil {
		return nil, err
	}
	l, err := bind(path)
	if errors.Is(err, syscall.EADDRINUSE) {
		if err := removeStale(path); err != nil {
			return nil, err
		}
		l, err = bind(path)
	}
	if err != nil {
		return nil, err
	}
	if err := grant(path, file.Mode, gid); err != nil {
		return nil, errors.Join(err, os.Remove(path), l.Close())
	}
	return l, nil
}

// bind makes the socket file with no rights but the owner's: the group must be set before it is let in.
func bind(path string) (net.Listener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) }), err)
	}}
	l, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	return l, nil
}

// grant sets the group, then the mode.
func grant(path string, mode fs.FileMode, gid int) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if has, ok := info.Sys().(*syscall.Stat_t); !ok || int(has.Gid) != gid { // a sandbox may not allow what changes nothing
		if err := os.Chown(path, -1, gid); err != nil {
			return err
		}
	}
	if mode == 0 {
		mode = defaultMode
	}
	return os.Chmod(path, mode.Perm())
}

func groupID(group string) (int, error) {
	if group == "" {
		return os.Getegid(), nil
	}
	g, err := user.LookupGroup(group)
	if err == nil {
		group = g.Gid
	}
	if id, convErr := strconv.ParseUint(group, 10, 31); convErr == nil {
		return int(id), nil
	}
	return 0, err
}

// removeStale removes the socket file that a dead process left at path. It returns an error, and removes
// nothing, if the file is no socket, if somebody answers on it, or if that cannot be told. Two processes that
// start on one path at the same moment are not kept apart here.
func removeStale(path string) error {
	before, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if before.Mode().Type() != fs.ModeSocket {
		return errors.New("the path exists and is not a socket")
	}
	c, err := net.DialTimeout("unix", path, probeTimeout)
	if err == nil {
		return errors.Join(errors.New("another process answers there"), c.Close())
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("a socket is there already, and it cannot be told whether it is in use: %w", err)
	}
	after, err := os.Lstat(path)
	if err != nil || !os.SameFile(before, after) {
		return errors.New("another process changes the path at the same time")
	}
	return os.Remove(path)
}

// socketFile is the file that a listener was bound to. The zero socketFile is that of TCP: there is none.
type socketFile struct {
	path string
	info fs.FileInfo
}

func socketFileOf(l net.Listener) socketFile {
	a, ok := l.Addr().(*net.UnixAddr)
	if !ok {
		return socketFile{}
	}
	info, err := os.Lstat(a.Name)
	if err != nil {
		return socketFile{}
	}
	return socketFile{a.Name, info}
}

// remove removes the file if it is still the one of the listener, which must not be closed yet: an open
// listener keeps its inode from being given to another file.
func (f socketFile) remove() error {
	if f.info == nil {
		return nil
	}
	now, err := os.Lstat(f.path)
	if err != nil || !os.SameFile(f.info, now) {
		return nil // gone, or another process has put its own there
	}
	return os.Remove(f.path)
}
