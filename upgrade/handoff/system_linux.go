package handoff

import "golang.org/x/sys/unix"

const (
	sendFlags = unix.MSG_NOSIGNAL
	recvFlags = unix.MSG_CMSG_CLOEXEC
)

// socketpair returns the two ends of a new connection, neither of which blocks or is inherited.
func socketpair() ([2]int, error) {
	return unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
}
