package admin

import (
	"crypto/tls"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/server/config"
	"github.com/relevo-proxy/relevo/server/revision"
)

// Guard is who may do what at a door on TCP. Its files are read anew when they change; it has no goroutine for that.
type Guard struct {
	// Static after NewGuard.
	address  string // as configured
	readOnly bool
	tokens   *watched[[]token] // nil: none
	keys     *watched[*keys]   // nil: no TLS
	refused  *buckets
	refusals map[refusal]*stats.Counter
}

// refusal is why a request is not let through: a label of a metric.
type refusal string

const (
	refusedHost       refusal = "host"
	refusedOrigin     refusal = "origin"
	refusedReadOnly   refusal = "read-only"
	refusedCredential refusal = "credential" // none that holds
	refusedRole       refusal = "role"
	refusedPath       refusal = "path"
)

// NewGuard reads the files of c. The error, a *config.Errors, has all that is wrong with them.
func NewGuard(c *config.AdminTCP, reg *stats.Registry, log *zap.Logger) (*Guard, error) {
	g := &Guard{address: string(c.Address), readOnly: c.ReadOnly(), refused: newBuckets(refusedRate, refusedBurst)}
	if err := CheckFiles(c); err != nil {
		return nil, err
	}
	var tokensErr, keysErr error
	if c.TokensFile != "" {
		g.tokens, tokensErr = watch(log, func() ([]token, error) { return loadTokens(c.TokensFile) }, c.TokensFile)
	}
	if t := c.TLS; t != nil {
		files := []string{t.CertFile, t.KeyFile}
		if t.ClientCAFile != "" {
			files = append(files, t.ClientCAFile)
		}
		g.keys, keysErr = watch(log, func() (*keys, error) { return loadKeys(t) }, files...)
	}
	if err := errors.Join(tokensErr, keysErr); err != nil { // they have changed just now
		return nil, err
	}
	g.refusals = make(map[refusal]*stats.Counter)
	for _, why := range []refusal{refusedHost, refusedOrigin, refusedReadOnly, refusedCredential, refusedRole, refusedPath} {
		g.refusals[why] = reg.Counter("relevo_admin_refused_total", "Requests that admin.tcp did not let through, by reason.", stats.Label{Name: "reason", Value: string(why)})
	}
	reg.GaugeFunc("relevo_admin_stale_files", "Sets of files of admin.tcp (tokens; certificates) whose content is not what holds, because it cannot be used.", g.stale)
	return g, nil
}

func (g *Guard) stale() (n float64) {
	now := time.Now()
	if g.tokens != nil {
		if _, stale := g.tokens.get(now); stale {
			n++
		}
	}
	if g.keys != nil {
		if _, stale := g.keys.get(now); stale {
			n++
		}
	}
	return n
}

// TLS is for Server.TLS; nil: the door has none.
func (g *Guard) TLS() *tls.Config {
	if g.keys == nil {
		return nil
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		k, _ := g.keys.get(time.Now())
		return k.config, nil
	}}
}

// privileged are the paths at which reading needs the right to write: they cost time, or show memory.
var privileged = [][]string{{"debug", "pprof"}}

// needsWrite says whether a request needs the right to write.
func needsWrite(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
	default:
		return true
	}
	path, _ := segments(r.URL.EscapedPath())
	return slices.ContainsFunc(privileged, func(prefix []string) bool { return begins(path, prefix) })
}

// isProbe says whether a request asks for what everybody may know.
func isProbe(r *http.Request) bool {
	path := r.URL.EscapedPath()
	return !needsWrite(r) && (path == "/healthz" || path == "/readyz")
}

// protect lets nobody through who may not do what he asks for. What it lets through has an author.
func (g *Guard) protect(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !g.isOurs(r):
			g.refuse(w, refusedHost, http.StatusMisdirectedRequest,
				"the Host of the request is neither a loopback name nor the address of this door, nor a name in its certificate")
		case isForeign(r):
			g.refuse(w, refusedOrigin, http.StatusForbidden, "this door answers no requests from pages of other sites")
		case isProbe(r), g.readOnly && !needsWrite(r):
			next.ServeHTTP(w, withVisitor(r, visitor{authorFrom(r), func() bool { return true }}))
		case g.readOnly:
			g.refuse(w, refusedReadOnly, http.StatusForbidden,
				"this door only reads: have admin.tcp.tokens_file or admin.tcp.tls.client_ca_file say who may write, or write through a unix socket, admin.address")
		default:
			g.admit(w, r, next)
		}
	})
}

func (g *Guard) refuse(w http.ResponseWriter, why refusal, code int, detail string) {
	g.refusals[why].Add(1)
	writeProblem(w, code, detail)
}

// admit asks for a credential.
func (g *Guard) admit(w http.ResponseWriter, r *http.Request, next http.Handler) {
	now := time.Now()
	t, author, ok := g.identify(r, now)
	switch {
	case !ok:
		code, detail := http.StatusUnauthorized, "this takes a token, or a client certificate, that holds here"
		if g.refused.allow(originOf(r), now) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="relevo"`)
		} else {
			w.Header().Set("Retry-After", retryAfter)
			code, detail = http.StatusTooManyRequests, "too many requests without a credential that holds"
		}
		g.refuse(w, refusedCredential, code, detail)
	case needsWrite(r) && t.role != RoleWrite:
		g.refuse(w, refusedRole, http.StatusForbidden, "the token "+t.name+" may only read")
	case !t.covers(r.URL.EscapedPath()):
		g.refuse(w, refusedPath, http.StatusForbidden, "the token "+t.name+" is not for this path")
	default:
		next.ServeHTTP(w, withVisitor(r, visitor{author, func() bool {
			t, _, ok := g.identify(r, time.Now())
			return ok && t.covers(r.URL.EscapedPath())
		}}))
	}
}

// authorFrom is what is known of who makes a request without a credential.
func authorFrom(r *http.Request) revision.Author {
	return revision.Author{Door: revision.DoorTCP, Address: r.RemoteAddr}
}

// identify finds who makes a request, with what he may: a certificate is as good as a token that may write everywhere. A
// token that is wrong is not made good by a certificate.
func (g *Guard) identify(r *http.Request, now time.Time) (t token, author revision.Author, ok bool) {
	author = authorFrom(r)
	if said := r.Header.Values("Authorization"); len(said) > 0 {
		scheme, secret, _ := strings.Cut(said[0], " ")
		if len(said) > 1 || !strings.EqualFold(scheme, "Bearer") || g.tokens == nil {
			return t, author, false
		}
		list, _ := g.tokens.get(now)
		t, ok = find(list, secret)
		author.Token = t.name
		return t, author, ok
	}
	if g.keys == nil {
		return t, author, false
	}
	k, _ := g.keys.get(now)
	author.Who, ok = k.subject(r.TLS)
	return token{role: RoleWrite}, author, ok
}

// isForeign says whether a browser made the request for a page that did not come from this door. Unlike
// http.CrossOriginProtection it judges reads as well: no page has any business here.
func isForeign(r *http.Request) bool {
	for _, site := range r.Header.Values("Sec-Fetch-Site") {
		if site != "same-origin" && site != "none" {
			return true
		}
	}
	for _, said := range r.Header.Values("Origin") {
		// The scheme is not compared: host and port are this door's, and it speaks one only.
		if u, err := url.Parse(said); err != nil || u.Host == "" || !strings.EqualFold(u.Host, r.Host) {
			return true
		}
	}
	return false
}
