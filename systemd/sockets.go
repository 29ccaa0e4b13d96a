package systemd

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// Socket is a listening socket that systemd has passed on.
type Socket struct {
	// Name is FileDescriptorName= of a socket unit, by default the unit's own name; or the name in the store.
	Name     string
	Stored   bool // it comes from the store
	Listener net.Listener
}

// Sockets are the listening sockets that came with the process, by activation and from the store. It takes LISTEN_PID and
// its like out of the environment, so that no child takes them for its own; a second call returns nothing. What is no
// listening stream socket is closed, and the error, beside the others, says so.
func Sockets() ([]Socket, error) { return socketsOf(activation.Files(true)) }

// socketsOf takes the files over.
func socketsOf(files []*os.File) ([]Socket, error) {
	var out []Socket
	var errs []error
	for _, f := range files {
		l, err := listenerOf(f)
		if err != nil {
			errs = append(errs, fmt.Errorf("taking the socket %q from systemd: %w", f.Name(), err))
		} else {
			out = append(out, Socket{Name: f.Name(), Stored: strings.HasPrefix(f.Name(), storePrefix), Listener: l})
		}
		_ = f.Close() // the listener has a descriptor of its own
	}
	return out, errors.Join(errs...)
}

// errNotListening is a socket on which connections cannot be accepted.
var errNotListening = errors.New("it is not a stream socket that listens (ListenStream=, with Accept=no)")

func listenerOf(f *os.File) (net.Listener, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var accepts int
	var optErr error
	if err := raw.Control(func(fd uintptr) { accepts, optErr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ACCEPTCONN) }); err != nil {
		return nil, err
	}
	if optErr != nil && !errors.Is(optErr, syscall.ENOTSOCK) {
		return nil, optErr
	}
	if optErr != nil || accepts == 0 {
		return nil, errNotListening
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	switch l := l.(type) {
	case *net.TCPListener:
		return l, nil
	case *net.UnixListener:
		if l.Addr().Network() == "unix" {
			l.SetUnlinkOnClose(false)
			return l, nil
		}
	}
	_ = l.Close() // of another kind
	return nil, errNotListening
}

const (
	storePrefix = "listen="
	// maxFDName is the longest name that systemd takes, in bytes.
	maxFDName = 255
)

// StoreName is the name in the store for a key. Keys that differ have names that differ, and a name never has the characters
// that systemd refuses.
func StoreName(key string) string {
	var b strings.Builder
	b.WriteString(storePrefix)
	for i := range len(key) {
		if c := key[i]; c <= ' ' || c >= 0x7f || c == ':' || c == '%' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	if b.Len() > maxFDName {
		return fmt.Sprintf("%s%%%x", storePrefix, sha256.Sum256([]byte(key))) // no escape has a small letter or 64 digits behind it
	}
	return b.String()
}
