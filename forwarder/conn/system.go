package conn

import (
	"syscall"
	"unsafe"
)

// maxIOV is the number of chunks that one write hands to the kernel.
const maxIOV = 4

// system is the system calls of the road, so that tests run the loops on a kernel of their own.
type system struct {
	read   func(fd uintptr, p []byte) (int, error)
	write  func(fd uintptr, bufs [][]byte) (int, error)
	unsent func(fd uintptr) int // bytes that the kernel took and the peer has not
	finish func(fd uintptr)     // tell the peer that no more follows
}

// osSystem asks the operating system.
var osSystem = system{read: osRead, write: osWrite, unsent: osUnsent, finish: osFinish}

func osRead(fd uintptr, p []byte) (int, error) {
	for {
		n, err := syscall.Read(int(fd), p)
		if err != syscall.EINTR {
			return n, err
		}
	}
}

// osUnsent asks for what tcp(7) calls SIOCOUTQ; 0 where the kernel does not tell.
func osUnsent(fd uintptr) int {
	var n int32
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCOUTQ, uintptr(unsafe.Pointer(&n))); errno != 0 {
		return 0
	}
	return int(n)
}

func osFinish(fd uintptr) { _ = syscall.Shutdown(int(fd), syscall.SHUT_WR) } // it may be closed already

func osWrite(fd uintptr, bufs [][]byte) (int, error) {
	var iov [maxIOV]syscall.Iovec
	for i, b := range bufs {
		iov[i].Base = unsafe.SliceData(b)
		iov[i].SetLen(len(b))
	}
	for {
		var n uintptr
		var errno syscall.Errno
		if len(bufs) == 1 {
			n, _, errno = syscall.Syscall(syscall.SYS_WRITE, fd, uintptr(unsafe.Pointer(iov[0].Base)), uintptr(iov[0].Len))
		} else {
			n, _, errno = syscall.Syscall(syscall.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&iov[0])), uintptr(len(bufs)))
		}
		switch errno {
		case 0:
			return int(n), nil
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}
