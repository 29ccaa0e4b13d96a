package handoff

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Conn is one end of the socket between two generations. Of its methods each may be called by any goroutine; messages are
// sent one at a time, and received one at a time.
//
// It starts no goroutine. One that waits in Receive or Send is woken by Close, and one in Receive by SetReadDeadline.
type Conn struct {
	// Static after Pair or Open.
	file   *os.File
	raw    syscall.RawConn
	closed chan struct{} // closed by Close
	// sendmsg is unix.SendmsgN, but for tests.
	sendmsg func(fd int, p, oob []byte) (int, error)

	closing sync.Once

	sending sync.Mutex
	// Guarded by sending.
	out bytes.Buffer // the frame that is sent
	cut error        // what cut a frame short: nothing can be sent behind it

	receiving sync.Mutex
	// Guarded by receiving.
	in    []byte       // in[read:] is what has arrived and was not used
	read  int          // bytes of in that were used
	at    uint64       // where in the stream in[read] stands
	queue []descriptor // what has arrived and belongs to no frame yet, in order
	oob   []byte       // room for the descriptors of one read
	ended error        // what ended the stream: nothing can be received behind it
}

// Pair makes a connection: our end, and a file to be inherited by the process that opens it with Open.
//
// Whoever has started that process closes theirs: as long as a copy is left here, the end of that process is not seen.
func Pair() (ours *Conn, theirs *os.File, err error) {
	fds, err := socketpair()
	if err != nil {
		return nil, nil, fmt.Errorf("making the hand-over socket: %w", os.NewSyscallError("socketpair", err))
	}
	theirs = os.NewFile(uintptr(fds[1]), "hand-over")
	ours, err = newConn(os.NewFile(uintptr(fds[0]), "hand-over"))
	if err != nil {
		return nil, nil, fmt.Errorf("making the hand-over socket: %w", err)
	}
	return ours, theirs, nil
}

// Open makes a Conn of an end that was inherited. It takes the file over and closes it, whatever it returns.
func Open(f *os.File) (*Conn, error) {
	// The way here may have made the socket a blocking one, and f with it. So it is set again, and a file made that knows.
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("opening the hand-over socket: %w", err)
	}
	fd := -1
	var failed error
	err = raw.Control(func(theirs uintptr) {
		if typ, err := unix.GetsockoptInt(int(theirs), unix.SOL_SOCKET, unix.SO_TYPE); err != nil || typ != unix.SOCK_STREAM {
			failed = fmt.Errorf("it is no stream socket: type %d, %w", typ, cmp.Or(err, error(unix.EPROTOTYPE)))
			return
		}
		if fd, failed = unix.FcntlInt(theirs, unix.F_DUPFD_CLOEXEC, 3); failed != nil {
			return
		}
		failed = unix.SetNonblock(fd, true)
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		if fd >= 0 {
			_ = unix.Close(fd) // the first error is the one to tell
		}
		return nil, fmt.Errorf("opening the hand-over socket: %w", err)
	}
	return newConn(os.NewFile(uintptr(fd), "hand-over"))
}

// newConn owns f, which does not block.
func newConn(f *os.File) (*Conn, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &Conn{
		file:   f,
		raw:    raw,
		closed: make(chan struct{}),
		sendmsg: func(fd int, p, oob []byte) (int, error) {
			return unix.SendmsgN(fd, p, oob, nil, sendFlags)
		},
		oob: make([]byte, unix.CmsgSpace(4*maxFiles)),
	}, nil
}

// SetReadDeadline bounds every Receive, also one that waits. The zero time is no bound; with one in the past, Receive
// returns what has arrived and waits for nothing.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.file.SetReadDeadline(t) }

// explain gives an error of the file the name that callers know: a closed file does not say so in one voice.
func (c *Conn) explain(err error) error {
	select {
	case <-c.closed:
		return os.ErrClosed
	default:
		return err
	}
}

// Close ends the connection, and whoever waits in Send or Receive. Descriptors that have arrived and were not handed out
// are closed. Closing twice is fine.
//
// To the other side it is the end of the stream, which says more than that: see docs/wire/handover.md.
func (c *Conn) Close() error {
	var err error
	c.closing.Do(func() {
		close(c.closed)
		err = c.file.Close() // from here nobody waits with receiving held
		c.receiving.Lock()
		defer c.receiving.Unlock()
		c.end(os.ErrClosed)
	})
	return err
}
