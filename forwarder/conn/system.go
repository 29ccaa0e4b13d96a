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

// brief is the size in bytes up to which a read or a write keeps its processor: sockets of the road do not block, and so much
// is copied sooner than the scheduler has given the processor to another thread and back.
const brief = aheadSize

// transfer is read, write or writev. One that copies more than brief lets other goroutines have the processor meanwhile.
func transfer(call, fd uintptr, of unsafe.Pointer, n, size int) (int, error) {
	for {
		var done uintptr
		var errno syscall.Errno
		if size <= brief {
			done, _, errno = syscall.RawSyscall(call, fd, uintptr(of), uintptr(n))
		} else {
			done, _, errno = syscall.Syscall(call, fd, uintptr(of), uintptr(n))
		}
		switch errno {
		case 0:
			return int(done), nil
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}

// osSystem asks the operating system.
var osSystem = system{read: osRead, write: osWrite, unsent: osUnsent, finish: osFinish}

func osRead(fd uintptr, p []byte) (int, error) {
	return transfer(syscall.SYS_READ, fd, unsafe.Pointer(unsafe.SliceData(p)), len(p), len(p))
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
	if len(bufs) == 1 {
		return transfer(syscall.SYS_WRITE, fd, unsafe.Pointer(unsafe.SliceData(bufs[0])), len(bufs[0]), len(bufs[0]))
	}
	var iov [maxIOV]syscall.Iovec
	size := 0
	for i, b := range bufs {
		iov[i].Base = unsafe.SliceData(b)
		iov[i].SetLen(len(b))
		size += len(b)
	}
	return transfer(syscall.SYS_WRITEV, fd, unsafe.Pointer(&iov[0]), len(bufs), size)
}
