package handoff

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(childRole); role != "" {
		os.Exit(child(role))
	}
	goleak.VerifyTestMain(m)
}

// reporter is what *testing.T, *testing.B and *rapid.T have in common.
type reporter interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Cleanup(f func())
}

// pair returns both ends of a connection, the second one as a process opens it that has inherited it.
func pair(t reporter) (a, b *Conn) {
	t.Helper()
	a, f, err := Pair()
	if err != nil {
		t.Fatalf("%v", err)
	}
	if b, err = Open(f); err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// soon is a deadline that is met only when something hangs.
func soon() time.Time { return time.Now().Add(20 * time.Second) }

// canary is a descriptor to be sent. It knows whether a copy of it is open anywhere.
type canary struct {
	read  int // of the pipe
	write *os.File
}

func newCanary(t reporter) *canary {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatalf("making a pipe: %v", err)
	}
	c := &canary{p[0], os.NewFile(uintptr(p[1]), "canary")}
	t.Cleanup(func() { _ = unix.Close(c.read); c.write.Close() })
	return c
}

// raw is the descriptor as Send wants it.
func (c *canary) raw() syscall.RawConn {
	raw, err := c.write.SyscallConn()
	if err != nil {
		panic(err)
	}
	return raw
}

// raws are n times the same.
func (c *canary) raws(n int) []syscall.RawConn {
	all := make([]syscall.RawConn, n)
	for i := range all {
		all[i] = c.raw()
	}
	return all
}

// gone reports whether every copy but ours is closed; it closes ours. The kernel may take a moment for those of a process
// that has died.
func (c *canary) gone() bool {
	c.write.Close()
	for {
		fds := []unix.PollFd{{Fd: int32(c.read), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 2000)
		if err != unix.EINTR {
			return err == nil && n == 1 && fds[0].Revents&unix.POLLHUP != 0
		}
	}
}

// checkGone closes both ends and then wants no copy left.
func (c *canary) checkGone(t reporter, ends ...*Conn) {
	t.Helper()
	for _, end := range ends {
		end.Close()
	}
	if !c.gone() {
		t.Errorf("a copy of a descriptor that nobody took is still open: it leaks")
	}
}

// put writes bytes and descriptors as no Send would. It must find room at once.
func put(t reporter, c *Conn, p []byte, files ...syscall.RawConn) {
	t.Helper()
	var failed error
	err := c.raw.Control(func(fd uintptr) {
		failed = gather(files, nil, func(fds []int) {
			var oob []byte
			if len(fds) > 0 {
				oob = unix.UnixRights(fds...)
			}
			n, err := unix.SendmsgN(int(fd), p, oob, nil, unix.MSG_NOSIGNAL)
			if err != nil || n != len(p) {
				t.Fatalf("the socket took %d of %d bytes: %v", n, len(p), err)
			}
		})
	})
	if err := errors.Join(err, failed); err != nil {
		t.Fatalf("writing to the socket: %v", err)
	}
}

// full returns a channel that is closed when c has found the socket full. To be called before it sends.
func full(c *Conn) <-chan struct{} {
	found := make(chan struct{})
	sendmsg := c.sendmsg
	var once sync.Once
	c.sendmsg = func(fd int, p, oob []byte) (int, error) {
		n, err := sendmsg(fd, p, oob)
		if err == unix.EAGAIN {
			once.Do(func() { close(found) })
		}
		return n, err
	}
	return found
}

// framed is m as a frame.
func framed(t reporter, m Message) []byte {
	t.Helper()
	p, err := encoded(m)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return p
}

// conns is a message that names n descriptors.
func conns(n int) *Conns {
	m := &Conns{}
	for i := range n {
		m.Downstreams = append(m.Downstreams, Downstream{
			Ref: uint32(i + 1), Listener: "client", Client: "192.0.2.1:40000", Protocol: "bolt", Frames: uint64(i),
			Bytes: Bytes{Unread: make([]byte, i%32), LastRead: 1e15, RX: 4711, TX: 4712},
		})
	}
	return m
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
