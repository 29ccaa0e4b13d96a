package admin

import (
	"context"
	"net"
	"net/http"
	"os/user"
	"strconv"

	"github.com/relevo-proxy/relevo/server/revision"
)

// caller is who is at the other end of a unix socket.
type caller struct{ uid, pid int }

// callerKey is the key of a connection's caller in its context.
type callerKey struct{}

// withCaller asks the kernel once a connection who has opened it.
func withCaller(ctx context.Context, c net.Conn) context.Context {
	if l, ok := c.(*limitConn); ok {
		c = l.Conn
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	who, err := peerOf(u)
	if err != nil {
		return ctx // the audit trail says unix, and no more
	}
	return context.WithValue(ctx, callerKey{}, who) //nolint:forbidigo // net/http has no other way from a connection to its requests
}

// authorOf is who makes a request that came through a unix socket.
func authorOf(r *http.Request) revision.Author {
	a := revision.Author{Door: revision.DoorUnix}
	c, ok := r.Context().Value(callerKey{}).(caller)
	if !ok {
		return a
	}
	a.PID, a.UID = c.pid, new(c.uid)
	if u, err := user.LookupId(strconv.Itoa(c.uid)); err == nil {
		a.Who = u.Username
	}
	return a
}

// throughUnix says whether a request came through a unix socket.
func throughUnix(r *http.Request) bool {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	return local != nil && local.Network() == "unix"
}
