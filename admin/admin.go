// Package admin holds the HTTP doors of the process: the metrics door for scrapers and probes, and the admin
// door for people and tools. The first only reads; at the second the configuration is changed, too.
//
// It serves what others know: the numbers of a stats.Registry and the answers of a [State] and a [Control]. It decides
// nothing, but who may do what: a [Guard] does, or the file of a unix socket. [Listen] opens an address, [Metrics] and [Admin] are what is behind the doors,
// and a [Server] puts the two together within bounds of time, size and number.
//
// A door can change hands: another process makes a Server on the same listening socket, and the one that had it
// leaves (see NewServer).
//
// Server.Run owns the goroutines here: one that accepts, and one a connection, which net/http starts. They
// have ended, or their connections are closed, when Run returns.
package admin

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"text/tabwriter"

	"github.com/go-chi/chi/v5"

	"github.com/relevo-proxy/relevo/forwarder/stats"
)

// BuildInfo says which program this is.
type BuildInfo struct {
	Version   string `json:"version"`
	Commit    string `json:"commit"`
	GoVersion string `json:"go_version"`
}

// route is one line of a door: what one method does at a path.
type route struct {
	method  string
	path    string
	about   string
	handler http.Handler
}

// Metrics returns the door for scrapers and probes: /metrics, /healthz and /readyz. It shows nothing that a
// stranger on the network may not see, and answers to any Host.
func Metrics(reg *stats.Registry, state State, build BuildInfo) http.Handler {
	return harden(router(common(reg, state, build)))
}

// Admin returns the door for people and tools: what Metrics has, /v1/build, /v1/status, what control has, which may be
// nil, and a list of it all at /. At a unix socket, whose file says who may come, guard is nil; at a door on TCP it says who
// may do what. There only requests whose Host is a loopback name or address, the configured host, a name in the certificate, or
// the address that the connection came in on are answered; others get 421, so that no web page can read here under a name that
// it has made to resolve to this host.
func Admin(reg *stats.Registry, state State, control Control, build BuildInfo, guard *Guard) http.Handler {
	handler := router(adminRoutes(reg, state, control, build))
	if guard != nil {
		handler = guard.protect(handler)
	}
	return harden(limitRate(newBuckets(requestRate, requestBurst), handler))
}

// adminRoutes returns what the admin door has.
func adminRoutes(reg *stats.Registry, state State, control Control, build BuildInfo) []route {
	routes := append(common(reg, state, build),
		route{http.MethodGet, "/v1/build", "the program: version, commit, Go version", serveJSON(func() any { return build })},
		route{http.MethodGet, "/v1/status", "listeners, clusters and endpoints as they are now", serveJSON(func() any { return status(state) })},
	)
	if control != nil {
		routes = append(append(routes, controls(control)...), roadRoutes(control)...)
		routes = append(routes, observing(reg, state, control, build)...)
	}
	routes = append(routes, descriptions()...)
	return append(routes, route{http.MethodGet, "/", "this list", index(routes, build)})
}

// common returns what both doors have.
func common(reg *stats.Registry, state State, build BuildInfo) []route {
	return []route{
		{http.MethodGet, "/metrics", "all metrics, in the text format of Prometheus", whenCounted(state, metrics(reg, build))},
		{http.MethodGet, "/healthz", "200 while the process answers", serveText(func(*http.Request) (int, string) { return http.StatusOK, "ok\n" })},
		{http.MethodGet, "/readyz", "200 when ready, else 503; ?verbose lists the reasons", serveText(ready(state))},
	}
}

// router answers what is not in routes with a problem.
func router(routes []route) http.Handler {
	r := chi.NewRouter()
	for _, e := range routes {
		r.Method(e.method, e.path, e.handler)
		if e.method == http.MethodGet {
			r.Method(http.MethodHead, e.path, e.handler)
		}
	}
	r.NotFound(func(w http.ResponseWriter, req *http.Request) {
		writeProblem(w, http.StatusNotFound, "there is nothing at this path")
	})
	r.MethodNotAllowed(func(w http.ResponseWriter, req *http.Request) {
		allow := allowed(r, cmp.Or(req.URL.RawPath, req.URL.Path, "/"))
		if len(allow) == 0 { // a method that the router has never heard of, on a path that it has not either
			writeProblem(w, http.StatusNotFound, "there is nothing at this path")
			return
		}
		list := strings.Join(allow, ", ")
		w.Header().Set("Allow", list)
		writeProblem(w, http.StatusMethodNotAllowed, "this path answers to "+list)
	})
	return r
}

// allowed returns the methods that path has, in alphabetical order.
func allowed(r chi.Routes, path string) []string {
	var methods []string
	for _, m := range []string{
		http.MethodDelete, http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPatch, http.MethodPost, http.MethodPut,
	} {
		if r.Match(chi.NewRouteContext(), m, path) {
			methods = append(methods, m)
		}
	}
	return methods
}

// harden keeps answers out of caches and browsers from guessing what they are.
func harden(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		next.ServeHTTP(w, r)
	})
}

func index(routes []route, build BuildInfo) http.Handler {
	var text strings.Builder
	fmt.Fprintf(&text, "Relevo %s\n\n", build.Version)
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	for _, e := range routes {
		fmt.Fprintf(w, "%s %s\t%s\n", e.method, e.path, e.about)
	}
	_ = w.Flush() // a strings.Builder takes everything
	return serveText(func(*http.Request) (int, string) { return http.StatusOK, text.String() })
}

// serveText answers with a status code and a text. A client that has gone away needs no answer, so errors of
// writing end here, as they do below.
func serveText(answer func(*http.Request) (int, string)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		code, text := answer(r)
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(code)
		_, _ = w.Write([]byte(text))
	})
}

// serveJSON answers with what read returns, indented.
func serveJSON(read func() any) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := json.MarshalIndent(read(), "", "  ")
		if err != nil {
			writeProblem(w, http.StatusInternalServerError, "encode the answer: "+err.Error())
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(append(body, '\n'))
	})
}

// problem is the body of an answer that says no, RFC 9457.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
}

func writeProblem(w http.ResponseWriter, code int, detail string) {
	writeProblemOf(w, code, problem{"about:blank", http.StatusText(code), code, detail})
}

// writeProblemOf answers with a problem that has more to say.
func writeProblemOf(w http.ResponseWriter, code int, p any) {
	var body bytes.Buffer
	_ = json.NewEncoder(&body).Encode(p) // strings, numbers and what is JSON already
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(code)
	_, _ = w.Write(body.Bytes())
}
