package main

import (
	"io"
	"net"
	"syscall"
	"unsafe"
)

// socket reads and writes as Relevo does, with system calls that keep their processor, as a floor that is to lie below it has
// to. It is for one reader and one writer at a time.
type socket struct {
	// Static after newSocket. A closure made for each call would allocate.
	conn     *net.TCPConn
	raw      syscall.RawConn
	try, put func(fd uintptr) bool

	// Owned by the reader.
	in      []byte
	n       int
	readErr error

	// Owned by the writer.
	out      []byte
	writeErr error
}

func newSocket(c net.Conn) (*socket, error) {
	s := &socket{conn: c.(*net.TCPConn)}
	var err error
	if s.raw, err = s.conn.SyscallConn(); err != nil {
		return nil, err
	}
	s.try = func(fd uintptr) bool {
		s.n, s.readErr = transfer(syscall.SYS_READ, fd, s.in)
		return s.readErr != syscall.EAGAIN
	}
	s.put = func(fd uintptr) bool {
		for len(s.out) > 0 {
			var n int
			if n, s.writeErr = transfer(syscall.SYS_WRITE, fd, s.out); s.writeErr != nil {
				return s.writeErr != syscall.EAGAIN
			}
			s.out = s.out[n:]
		}
		return true
	}
	return s, nil
}

// transfer is read or write.
func transfer(call, fd uintptr, p []byte) (int, error) {
	for {
		switch n, _, errno := syscall.RawSyscall(call, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p))); errno {
		case 0:
			return int(n), nil
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}

// Read implements io.Reader.
func (s *socket) Read(p []byte) (int, error) {
	s.in = p
	if err := s.raw.Read(s.try); err != nil {
		return 0, err
	}
	if s.n == 0 && s.readErr == nil {
		return 0, io.EOF
	}
	return s.n, s.readErr
}

// Write implements io.Writer.
func (s *socket) Write(p []byte) (int, error) {
	s.out = p
	if err := s.raw.Write(s.put); err != nil {
		return 0, err
	}
	return len(p), s.writeErr
}
