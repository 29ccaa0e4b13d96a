package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/relevo-proxy/relevo/server/config"
	"github.com/relevo-proxy/relevo/server/revision"
)

// The bounds of the time for which another level holds than the configured one.
const (
	defaultLogTime = 10 * time.Minute
	maxLogTime     = 24 * time.Hour
)

var logLevels = []config.LogLevel{config.LevelDebug, config.LevelInfo, config.LevelWarn, config.LevelError}

// LogRequest asks for a level of the log for a while.
type LogRequest struct {
	Level  config.LogLevel // empty: the configured one holds again
	For    time.Duration
	Author revision.Author
}

// logDoor serves the level of the log.
type logDoor struct{ control Control }

func (d *logDoor) get(w http.ResponseWriter, r *http.Request) {
	serveJSON(func() any { return d.control.Log() }).ServeHTTP(w, r)
}

func (d *logDoor) put(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Level json.RawMessage `json:"level"`
		For   *string         `json:"for"`
	}
	if !readJSON(w, r, &body) {
		return
	}
	want := LogRequest{For: defaultLogTime, Author: authorOf(r)}
	var faults []fault
	if err := json.Unmarshal(body.Level, &want.Level); err != nil || string(body.Level) != "null" && !slices.Contains(logLevels, want.Level) {
		faults = append(faults, fault{"/level", "want one of " + joined(logLevels) + ", or null for the configured one"})
	}
	if body.For != nil {
		length, err := config.ParseDuration(*body.For)
		if err == nil && (length.D() < time.Second || length.D() > maxLogTime) {
			err = fmt.Errorf("%v is out of range: 1s to %v", length, config.Duration(maxLogTime))
		}
		if err != nil {
			faults = append(faults, fault{"/for", err.Error()})
		}
		want.For = length.D()
	}
	if len(faults) > 0 {
		writeFaults(w, "the body says no level of the log", faults)
		return
	}
	d.set(w, r, want)
}

func (d *logDoor) reset(w http.ResponseWriter, r *http.Request) {
	d.set(w, r, LogRequest{Author: authorOf(r)})
}

func (d *logDoor) set(w http.ResponseWriter, r *http.Request, want LogRequest) {
	now, err := d.control.SetLog(r.Context(), want)
	if err != nil {
		writeError(w, err)
		return
	}
	serveJSON(func() any { return now }).ServeHTTP(w, r)
}

// maxSmallBody is the size in bytes of the largest body that is not a part of the configuration.
const maxSmallBody = 16 << 10

// readJSON reads a small body into v, and answers where it is not what v has room for.
func readJSON(w http.ResponseWriter, r *http.Request, v any) bool {
	if !accepted(w, r, []string{"application/json"}) {
		return false
	}
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxSmallBody))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil {
		if _, err = d.Token(); err == nil {
			err = errors.New("there is more behind it")
		} else if errors.Is(err, io.EOF) {
			return true
		}
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("it is empty")
	}
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		writeProblem(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the body has more than %d bytes", tooLarge.Limit))
		return false
	}
	writeProblem(w, http.StatusBadRequest, "reading the body: "+err.Error())
	return false
}

// writeFaults answers 422 with all that is wrong with a body.
func writeFaults(w http.ResponseWriter, detail string, faults []fault) {
	const code = http.StatusUnprocessableEntity
	writeProblemOf(w, code, struct {
		problem
		Errors []fault `json:"errors"`
	}{problem{"about:blank", http.StatusText(code), code, detail}, faults})
}
