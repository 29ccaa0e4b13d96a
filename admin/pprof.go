package admin

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"runtime"
	"runtime/pprof"
	"runtime/trace"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"
)

const (
	pprofPath       = "/debug/pprof/"
	defaultProfile  = 30 * time.Second
	defaultTrace    = time.Second
	maxProfile      = 60 * time.Second
	profileMargin   = 10 * time.Second // for a profile to be written when it is taken
	blockProfile    = 10_000           // one sample for so many nanoseconds that goroutines are blocked
	mutexProfile    = 10               // one of so many contentions is sampled
	profileTypeText = "text/plain; charset=utf-8"
)

// profile is one of the runtime's.
type profile struct {
	name  string
	about string
	// length is how long it is taken for where the request does not say; 0: it is of a moment.
	length time.Duration
	// begin begins to take it; end ends it, and writes it unless it is written already.
	begin func(w http.ResponseWriter) (end func(debug int), err error)
}

var profiles = []profile{
	{"allocs", "what has been allocated since the start", 0, stored("allocs")},
	{"block", "where goroutines wait; ?seconds=N", defaultProfile, sampled("block", runtime.SetBlockProfileRate, blockProfile)},
	{"goroutine", "all goroutines; ?debug=2 with whole stacks", 0, stored("goroutine")},
	{"heap", "what is in memory", 0, stored("heap")},
	{"mutex", "who holds locks that others wait for; ?seconds=N", defaultProfile, sampled("mutex", func(rate int) {
		runtime.SetMutexProfileFraction(rate)
	}, mutexProfile)},
	{"profile", "where processor time goes; ?seconds=N", defaultProfile, func(w http.ResponseWriter) (func(int), error) {
		err := pprof.StartCPUProfile(w)
		return func(int) { pprof.StopCPUProfile() }, err
	}},
	{"threadcreate", "what has made threads", 0, stored("threadcreate")},
	{"trace", "what the scheduler does, for go tool trace; ?seconds=N", defaultTrace, func(w http.ResponseWriter) (func(int), error) {
		err := trace.Start(w)
		return func(int) { trace.Stop() }, err
	}},
}

// stored is a profile that the runtime keeps.
func stored(name string) func(http.ResponseWriter) (func(int), error) {
	return func(w http.ResponseWriter) (func(int), error) {
		return func(debug int) {
			if debug > 0 {
				w.Header().Set("Content-Type", profileTypeText)
			}
			_ = pprof.Lookup(name).WriteTo(w, debug) // a client that has gone needs no answer
		}, nil
	}
}

// sampled is one that it keeps only while it is told to: it costs something.
func sampled(name string, setRate func(int), rate int) func(http.ResponseWriter) (func(int), error) {
	return func(w http.ResponseWriter) (func(int), error) {
		setRate(rate)
		end, _ := stored(name)(w)
		return func(debug int) {
			setRate(0)
			end(debug)
		}, nil
	}
}

// pprofDoor serves profiles, one at a time: two disturb each other, and some cannot run twice.
type pprofDoor struct {
	enabled func() bool
	busy    chan struct{} // an element while a profile is taken; never closed
}

// oneProfile is busy of all doors: what a profile switches on is the process's.
var oneProfile = make(chan struct{}, 1)

// allowed answers 404 where profiles are off.
func (d *pprofDoor) allowed(next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !d.enabled() {
			writeProblem(w, http.StatusNotFound, "profiles are off: `admin.pprof: true` in the configuration switches them on")
			return
		}
		next(w, r)
	})
}

// index lists the profiles.
func (d *pprofDoor) index(w http.ResponseWriter, _ *http.Request) {
	var text bytes.Buffer
	for _, p := range profiles {
		fmt.Fprintf(&text, "%-14s %s\n", p.name, p.about)
	}
	w.Header().Set("Content-Type", profileTypeText)
	_, _ = w.Write(text.Bytes())
}

func (d *pprofDoor) take(w http.ResponseWriter, r *http.Request) {
	name := chi.URLParam(r, "name")
	for _, p := range profiles {
		if p.name == name {
			d.serve(w, r, p)
			return
		}
	}
	writeProblem(w, http.StatusNotFound, "there is no such profile; "+pprofPath+" lists them")
}

func (d *pprofDoor) serve(w http.ResponseWriter, r *http.Request, p profile) {
	length, debug, err := profileQuery(r, p)
	if err != nil {
		writeProblem(w, http.StatusBadRequest, err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if r.Method == http.MethodHead {
		return
	}
	select {
	case d.busy <- struct{}{}:
		defer func() { <-d.busy }()
	default:
		writeProblem(w, http.StatusConflict, "another profile is being taken")
		return
	}
	control, by := http.NewResponseController(w), time.Now().Add(length+profileMargin)
	_, _ = control.SetReadDeadline(by), control.SetWriteDeadline(by) // where there is no deadline, nothing waits either
	end, err := p.begin(w)
	if err != nil { // nothing is written yet
		writeProblem(w, http.StatusConflict, err.Error())
		return
	}
	pauseFor(r.Context(), length)
	end(debug)
}

// profileQuery is how long a profile is to be taken for, and in which form: 0 is for go tool pprof, more for people.
func profileQuery(r *http.Request, p profile) (length time.Duration, debug int, err error) {
	length = p.length
	if text := r.URL.Query().Get("seconds"); text != "" {
		n, err := strconv.Atoi(text)
		switch {
		case length == 0:
			return 0, 0, fmt.Errorf("seconds: the profile %s is of one moment", p.name)
		case err != nil || n < 1 || n > int(maxProfile/time.Second):
			return 0, 0, fmt.Errorf("seconds: want 1 to %d, not %.40q", maxProfile/time.Second, text)
		}
		length = time.Duration(n) * time.Second
	}
	if text := r.URL.Query().Get("debug"); text != "" {
		if debug, err = strconv.Atoi(text); err != nil || debug < 0 || debug > 2 {
			return 0, 0, fmt.Errorf("debug: want 0, 1 or 2, not %.40q", text)
		}
	}
	return length, debug, nil
}

// pauseFor waits for so long, or until the client has gone.
func pauseFor(ctx context.Context, d time.Duration) {
	if d == 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
