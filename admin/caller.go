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

// connKey is the key of a connection, a *limitConn, in its context.
type connKey struct{}

// withConn asks the kernel once a connection who has opened it.
func withConn(ctx context.Context, conn net.Conn) context.Context {
	c := limitOf(conn)
	if c == nil {
		return ctx
	}
	if u, ok := c.Conn.(*net.UnixConn); ok {
		if who, err := peerOf(u); err == nil { // else the audit trail says unix, and no more
			c.peer = &who
		}
	}
	return context.WithValue(ctx, connKey{}, c) //nolint:forbidigo // net/http has no other way from a connection to its requests
}

// connOf is the connection of a request, nil for one that came in another way.
func connOf(r *http.Request) *limitConn {
	c, _ := r.Context().Value(connKey{}).(*limitConn)
	return c
}

// peerAt is who is at the other end of a request's unix socket, nil where that is not known.
func peerAt(r *http.Request) *caller {
	if c := connOf(r); c != nil {
		return c.peer
	}
	return nil
}

// visitorKey is the key of a visitor in the context of a request that came through a Guard.
type visitorKey struct{}

// visitor is who makes a request, and whether he may still.
type visitor struct {
	author revision.Author
	may    func() bool
}

func withVisitor(r *http.Request, v visitor) *http.Request {
	ctx := context.WithValue(r.Context(), visitorKey{}, v) //nolint:forbidigo // handlers know http.Request only
	return r.WithContext(ctx)
}

// mayStill says whether who has made a request might make it now: for answers that take long.
func mayStill(r *http.Request) bool {
	v, ok := r.Context().Value(visitorKey{}).(visitor)
	return !ok || v.may()
}

// authorOf is who makes a request.
func authorOf(r *http.Request) revision.Author {
	if v, ok := r.Context().Value(visitorKey{}).(visitor); ok {
		return v.author
	}
	a := revision.Author{Door: revision.DoorUnix}
	c := peerAt(r)
	if c == nil {
		return a
	}
	a.PID, a.UID = c.pid, new(c.uid)
	if u, err := user.LookupId(strconv.Itoa(c.uid)); err == nil {
		a.Who = u.Username
	}
	return a
}
