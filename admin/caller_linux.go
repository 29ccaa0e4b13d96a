package admin

import (
	"errors"
	"net"

	"golang.org/x/sys/unix"
)

// peerOf asks the kernel who has opened the other end.
func peerOf(c *net.UnixConn) (who caller, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return who, err
	}
	var cred *unix.Ucred
	var asked error
	err = raw.Control(func(fd uintptr) { cred, asked = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, asked); err != nil {
		return who, err
	}
	return caller{int(cred.Uid), int(cred.Pid)}, nil
}
