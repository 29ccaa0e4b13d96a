package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/relevo-proxy/relevo/server/config"
	"github.com/relevo-proxy/relevo/server/revision"
)

const (
	configPath = "/v1/config"
	// maxBodies is the number of bodies that are read or used at once; others wait.
	maxBodies = 4
	// maxComment is the length in bytes of the longest X-Comment: a revision keeps no longer one.
	maxComment = 1024
	retryAfter = "1" // seconds
)

// configDoor serves what a Control has: the configuration and its revisions, and the road.
type configDoor struct {
	control Control
	bodies  chan struct{} // one element a body; never closed
}

func newConfigDoor(c Control) *configDoor { return &configDoor{c, make(chan struct{}, maxBodies)} }

// controls returns what a Control has.
func controls(c Control) []route {
	d := newConfigDoor(c)
	const below = configPath + "/*"
	return []route{
		{http.MethodGet, configPath, "the configuration in force; ?effective=true with its defaults", http.HandlerFunc(d.get)},
		{http.MethodPut, configPath, "replace it; If-Match; ?dry_run=true only says what would change", http.HandlerFunc(d.put)},
		{http.MethodPatch, configPath, "change it by a JSON merge patch", http.HandlerFunc(d.patch)},
		{http.MethodGet, below, "a part of it, as in clusters/order/endpoints/127.0.0.1:12200", http.HandlerFunc(d.get)},
		{http.MethodPut, below, "make or replace a part", http.HandlerFunc(d.put)},
		{http.MethodPatch, below, "change a part by a JSON merge patch", http.HandlerFunc(d.patch)},
		{http.MethodDelete, below, "delete a part", http.HandlerFunc(d.remove)},
		{http.MethodGet, "/v1/revisions", "the newest revisions; ?before=N&limit=N", http.HandlerFunc(d.list)},
		{http.MethodGet, "/v1/revisions/{n}", "a revision", http.HandlerFunc(d.revision)},
		{http.MethodGet, "/v1/revisions/{n}/diff/{m}", "what leads from revision n to m", http.HandlerFunc(d.diff)},
		{http.MethodPost, "/v1/revisions/{n}/restore", "put a revision into force again; If-Match of the whole", http.HandlerFunc(d.restore)},
		{http.MethodGet, "/v1/failures", "the last exchanges that failed or were answered here", serveJSON(func() any { return failures(c) })},
	}
}

// pathOf is the path in the document that a request names. ok is false for one that ends in a slash.
func pathOf(r *http.Request) (path string, ok bool) {
	path, below := strings.CutPrefix(r.URL.EscapedPath(), configPath+"/")
	if !below {
		return "", true
	}
	return path, path != ""
}

func (d *configDoor) get(w http.ResponseWriter, r *http.Request) {
	path, ok := pathOf(r)
	if !ok {
		writeProblem(w, http.StatusNotFound, "there is nothing at this path")
		return
	}
	info, document, tree := d.control.Current()
	part, err := document.Get(path)
	if err == nil {
		w.Header().Set("ETag", quoted(part.ETag()))
	}
	if asks(r, "effective") {
		part, err = effective(tree, path)
	}
	if err != nil {
		writeError(w, err)
		return
	}
	w.Header().Set("X-Revision", strconv.FormatUint(info.Number, 10))
	writePart(w, r, part)
}

// effective is a part of the configuration with its defaults.
func effective(tree *config.Config, path string) (config.Part, error) {
	text, err := json.Marshal(tree)
	if err != nil {
		return config.Part{}, err
	}
	document, err := config.ParseDocument(text)
	if err != nil {
		return config.Part{}, err
	}
	return document.Get(path)
}

func (d *configDoor) put(w http.ResponseWriter, r *http.Request) {
	d.write(w, r, []string{"application/json", "application/yaml", "application/x-yaml", "text/yaml"}, (*config.Document).Put)
}

func (d *configDoor) patch(w http.ResponseWriter, r *http.Request) {
	d.write(w, r, []string{"application/merge-patch+json", "application/json", "application/yaml"}, (*config.Document).Patch)
}

// write changes what is at the path by the body.
func (d *configDoor) write(w http.ResponseWriter, r *http.Request, types []string, edit func(d *config.Document, path string, body []byte) (*config.Document, error)) {
	select {
	case d.bodies <- struct{}{}:
		defer func() { <-d.bodies }()
	case <-r.Context().Done():
		return // nobody waits for the answer
	}
	body, ok := readBody(w, r, types)
	if !ok {
		return
	}
	d.change(w, r, func(d *config.Document, path string) (*config.Document, error) { return edit(d, path, body) })
}

// readBody is the body of a request, of one of these types; it answers where there is none.
func readBody(w http.ResponseWriter, r *http.Request, types []string) (body []byte, ok bool) {
	if !accepted(w, r, types) {
		return nil, false
	}
	body, err := io.ReadAll(r.Body)
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		writeProblem(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the body has more than %d bytes", tooLarge.Limit))
		return nil, false
	}
	if err != nil {
		writeProblem(w, http.StatusBadRequest, "reading the body: "+err.Error())
		return nil, false
	}
	return body, true
}

// accepted answers 415 to a body of another type than these. One that says none may be any.
func accepted(w http.ResponseWriter, r *http.Request, types []string) bool {
	said := r.Header.Get("Content-Type")
	if said == "" {
		return true
	}
	kind, _, err := mime.ParseMediaType(said)
	for _, t := range types {
		if err == nil && kind == t {
			return true
		}
	}
	w.Header().Set("Accept", strings.Join(types, ", "))
	writeProblem(w, http.StatusUnsupportedMediaType, "the body may be "+strings.Join(types, ", "))
	return false
}

func (d *configDoor) remove(w http.ResponseWriter, r *http.Request) {
	d.change(w, r, (*config.Document).Delete)
}

// change makes a change at the request's path, under its conditions.
func (d *configDoor) change(w http.ResponseWriter, r *http.Request, edit func(d *config.Document, path string) (*config.Document, error)) {
	path, ok := pathOf(r)
	if !ok {
		writeProblem(w, http.StatusNotFound, "there is nothing at this path")
		return
	}
	match, some := matchOf(r, path)
	if !some {
		writeProblem(w, http.StatusPreconditionRequired,
			"say If-Match with the ETag that GET gives here, or If-None-Match: * for what is not there yet")
		return
	}
	d.changeAt(w, r, path, match, edit)
}

// changeAt makes a change at a path under a condition.
func (d *configDoor) changeAt(w http.ResponseWriter, r *http.Request, path string, match func(*config.Document) error, edit func(d *config.Document, path string) (*config.Document, error)) {
	if _, ok := parameters(w, r, "dry_run"); !ok {
		return
	}
	why := r.Header.Get("X-Comment")
	switch {
	case len(why) > maxComment:
		writeProblem(w, http.StatusBadRequest, fmt.Sprintf("X-Comment has %d bytes; it may have %d", len(why), maxComment))
		return
	case !utf8.ValidString(why):
		writeProblem(w, http.StatusBadRequest, "X-Comment is not valid UTF-8")
		return
	}
	var etag string
	out, err := d.control.Change(r.Context(), Edit{
		Match: match,
		Edit: func(d *config.Document) (*config.Document, error) {
			next, err := edit(d, path)
			if err == nil {
				etag, _ = next.ETag(path) // "" for what is deleted
			}
			return next, err
		},
		Author: authorOf(r), Why: why, DryRun: asks(r, "dry_run"),
	})
	if err != nil {
		writeError(w, err)
		return
	}
	if etag != "" && !out.DryRun {
		w.Header().Set("ETag", quoted(etag))
	}
	serveJSON(func() any { return out }).ServeHTTP(w, r)
}

// matchOf is a request's condition on what is at the path. some is false where there is none.
func matchOf(r *http.Request, path string) (match func(*config.Document) error, some bool) {
	want, none := r.Header.Values("If-Match"), r.Header.Values("If-None-Match")
	fits := func(list []string, etag string) bool {
		for item := range strings.SplitSeq(strings.Join(list, ","), ",") {
			if item = strings.TrimSpace(item); item == "*" || item == quoted(etag) {
				return true
			}
		}
		return false
	}
	return func(d *config.Document) error {
		part, err := d.Get(path)
		there := err == nil
		if (len(want) == 0 || there && fits(want, part.ETag())) && (len(none) == 0 || !there || !fits(none, part.ETag())) {
			return nil
		}
		if fault, ok := errors.AsType[*config.PathError](err); ok && fault.Reason != config.NoSuchPath {
			return err
		}
		if !there {
			return &StaleError{}
		}
		return &StaleError{true, part, part.ETag()}
	}, len(want)+len(none) > 0
}

// fault is one of a configuration's faults, as a problem has it.
type fault struct {
	Pointer string `json:"pointer"`
	Detail  string `json:"detail"`
}

// writeError answers with what Change, or the look-up of a path or revision, says.
func writeError(w http.ResponseWriter, err error) {
	if e, ok := errors.AsType[*StaleError](err); ok {
		p := struct {
			problem
			Current any `json:"current,omitempty"`
		}{problem{"about:blank", http.StatusText(http.StatusPreconditionFailed), http.StatusPreconditionFailed, err.Error()}, nil}
		if e.There {
			w.Header().Set("ETag", quoted(e.ETag))
			p.Current = rawJSON(e.Current.JSON())
		}
		writeProblemOf(w, http.StatusPreconditionFailed, p)
		return
	}
	if e, ok := errors.AsType[*config.Errors](err); ok {
		p := struct {
			problem
			Errors []fault `json:"errors"`
		}{problem{"about:blank", http.StatusText(http.StatusUnprocessableEntity), http.StatusUnprocessableEntity, "the configuration would not be valid"}, nil}
		for _, f := range e.Faults {
			p.Errors = append(p.Errors, fault{f.Pointer, f.Message})
		}
		writeProblemOf(w, http.StatusUnprocessableEntity, p)
		return
	}
	code := http.StatusInternalServerError
	if e, ok := errors.AsType[*config.PathError](err); ok {
		code = map[config.PathReason]int{
			config.NoSuchPath: http.StatusNotFound, config.NotAContainer: http.StatusNotFound, config.MalformedPath: http.StatusBadRequest,
		}[e.Reason]
		if code == 0 {
			code = http.StatusUnprocessableEntity
		}
	} else if _, ok := errors.AsType[*RefusedError](err); ok {
		code = http.StatusUnprocessableEntity
	} else if _, ok := errors.AsType[*revision.ConflictError](err); ok {
		code = http.StatusConflict
	} else if errors.Is(err, revision.ErrNoRevision) {
		code = http.StatusNotFound
	} else if errors.Is(err, ErrBusy) {
		code = http.StatusServiceUnavailable
		w.Header().Set("Retry-After", retryAfter)
	}
	writeProblem(w, code, err.Error())
}
