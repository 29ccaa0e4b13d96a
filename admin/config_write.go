package admin

import (
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/server/config"
	"github.com/relevo-proxy/relevo/server/revision"
)

func rawJSON(b []byte) json.RawMessage { return b }

// quoted is an ETag as HTTP writes it.
func quoted(etag string) string { return `"` + etag + `"` }

// asks says whether a request has this parameter, and does not say false.
func asks(r *http.Request, name string) bool {
	return slices.ContainsFunc(r.URL.Query()[name], func(said string) bool { return said != "false" })
}

// writePart answers with a part of the configuration, as YAML if that is what the client wants first, else as JSON.
func writePart(w http.ResponseWriter, r *http.Request, p config.Part) {
	w.Header().Set("Vary", "Accept")
	if !wantsYAML(r) {
		serveJSON(func() any { return rawJSON(p.JSON()) }).ServeHTTP(w, r)
		return
	}
	text, err := p.YAML()
	if err != nil {
		writeProblem(w, http.StatusInternalServerError, "encode the answer: "+err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write(text)
}

func wantsYAML(r *http.Request) bool {
	for item := range strings.SplitSeq(r.Header.Get("Accept"), ",") {
		switch kind, _, err := mime.ParseMediaType(item); {
		case err != nil:
		case kind == "application/yaml", kind == "application/x-yaml", kind == "text/yaml":
			return true
		case kind == "application/json", kind == "*/*":
			return false
		}
	}
	return false
}

// page is a part of the list of revisions.
type page struct {
	Revisions []revision.Info `json:"revisions"`
	// Next is what before is to be for the next page, absent where there is none.
	Next uint64 `json:"next,omitempty"`
}

func (d *configDoor) list(w http.ResponseWriter, r *http.Request) {
	before, ok := number(w, "before", r.URL.Query().Get("before"))
	if !ok {
		return
	}
	limit, ok := number(w, "limit", r.URL.Query().Get("limit"))
	if !ok {
		return
	}
	infos, next, err := d.control.Revisions().List(before, int(min(limit, 1000)))
	if err != nil {
		writeError(w, err)
		return
	}
	serveJSON(func() any { return page{orEmpty(infos), next} }).ServeHTTP(w, r)
}

// number reads a number, 0 for nothing, and answers 400 where it is none.
func number(w http.ResponseWriter, name, text string) (uint64, bool) {
	if text == "" {
		return 0, true
	}
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil {
		writeProblem(w, http.StatusBadRequest, fmt.Sprintf("%s is not a number: %.40q", name, text))
	}
	return n, err == nil
}

// find is the revision that the path names under this name; it answers where there is none.
func (d *configDoor) find(w http.ResponseWriter, r *http.Request, name string) (found revision.Revision, ok bool) {
	n, ok := number(w, "a revision", chi.URLParam(r, name))
	if !ok {
		return found, false
	}
	found, err := d.control.Revisions().Get(n)
	if err != nil {
		writeError(w, err)
		return found, false
	}
	return found, true
}

func (d *configDoor) revision(w http.ResponseWriter, r *http.Request) {
	if found, ok := d.find(w, r, "n"); ok {
		serveJSON(func() any { return found }).ServeHTTP(w, r)
	}
}

func (d *configDoor) diff(w http.ResponseWriter, r *http.Request) {
	from, ok := d.find(w, r, "n")
	if !ok {
		return
	}
	if to, ok := d.find(w, r, "m"); ok {
		serveJSON(func() any { return from.Document.Changes(to.Document) }).ServeHTTP(w, r)
	}
}

func (d *configDoor) restore(w http.ResponseWriter, r *http.Request) {
	found, ok := d.find(w, r, "n")
	if !ok {
		return
	}
	if r.Header.Get("X-Comment") == "" {
		r.Header.Set("X-Comment", fmt.Sprintf("restore revision %d", found.Number))
	}
	d.change(w, r, func(*config.Document, string) (*config.Document, error) { return found.Document, nil })
}

// failedExchange is a stats.Record as the API writes it.
type failedExchange struct {
	Time     time.Time `json:"time"`
	Listener string    `json:"listener"`
	Client   string    `json:"client"`
	Kind     string    `json:"kind"`
	Service  string    `json:"service,omitempty"`
	Method   string    `json:"method,omitempty"`
	Trace    string    `json:"trace,omitempty"`
	ID       uint32    `json:"id"`
	Route    string    `json:"route,omitempty"`
	Cluster  string    `json:"cluster,omitempty"`
	Endpoint string    `json:"endpoint,omitempty"`
	Attempts int       `json:"attempts"`
	Status   string    `json:"status,omitempty"`
	Reason   string    `json:"reason,omitempty"`
	Total    float64   `json:"total"` // seconds
}

// failuresAnswer is the body of /v1/failures.
type failuresAnswer struct {
	Total    uint64           `json:"total"`
	Failures []failedExchange `json:"failures"`
}

func failures(c Control) failuresAnswer {
	records, total := c.Failures()
	a := failuresAnswer{total, make([]failedExchange, 0, len(records))}
	for i := range records {
		a.Failures = append(a.Failures, failedOf(&records[i]))
	}
	return a
}

func failedOf(r *stats.Record) failedExchange {
	return failedExchange{
		r.Time, r.Listener, r.Client, r.Kind, r.Service, r.Method, r.Trace, r.ID, r.Route, r.Cluster, r.Endpoint,
		r.Attempts, r.Status, r.Reason, r.Total.Seconds(),
	}
}
