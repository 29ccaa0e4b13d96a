package forwarder_test

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/relevo-proxy/relevo/forwarder"
)

// tracer writes the subject's transcript, and stops exchanges at steps.
type tracer struct {
	changed chan struct{} // holds one; never closed

	// Guarded by mu.
	mu    sync.Mutex
	lines []line
	stops []*stop
}

// line is one step of the transcript.
type line struct {
	text  string
	batch any
	phase string
	last  bool // who carries the exchange lets go of it here
}

// stop is a step at which an exchange waits, with the goroutine that carries it, the first time that it gets there.
type stop struct {
	id      uint32
	phase   string
	reached chan struct{} // closed when it is there
	on      chan struct{} // closed by goOn
	once    sync.Once
}

// stopAt makes the exchange of that id wait at a phase, until goOn at the latest when the test ends.
func (s *scene) stopAt(id uint32, phase string) *stop {
	st := &stop{id: id, phase: phase, reached: make(chan struct{}), on: make(chan struct{})}
	s.mu.Lock()
	s.stops = append(s.stops, st)
	s.mu.Unlock()
	s.t.Cleanup(st.goOn)
	return st
}

func (s *stop) goOn() { s.once.Do(func() { close(s.on) }) }

// step is told of each step of each exchange.
func (r *tracer) step(s forwarder.Step) {
	r.mu.Lock()
	if s.ID == subject {
		r.write(s)
	}
	i := slices.IndexFunc(r.stops, func(st *stop) bool { return st.id == s.ID && st.phase == s.Phase })
	var st *stop
	if i >= 0 {
		st = r.stops[i]
		r.stops = slices.Delete(r.stops, i, i+1)
	}
	r.mu.Unlock()
	if st != nil {
		close(st.reached)
		<-st.on
	}
}

// write adds a line. Called with mu held.
func (r *tracer) write(s forwarder.Step) {
	who := carrier()
	detail := ""
	switch s.Phase {
	case "Send":
		if detail = fmt.Sprint("try ", s.Attempts); s.Pieces {
			detail += ", in pieces"
		}
	case "WaitNotify":
		if s.Worker && who != "worker" {
			detail = "for a worker"
		}
	case "Retry":
		detail = s.Reason
	case "Hijack":
		detail = fmt.Sprintf("%v, %s", s.Status, s.Reason)
	case "UpFilter", "Reply":
		detail = s.Reply.String()
	}
	l := line{
		text:  strings.TrimRight(fmt.Sprintf("%-21s %-18s %s", s.Phase, who, detail), " "),
		batch: s.Batch, phase: s.Phase, last: s.Phase == "WaitNotify" || s.Phase == "End" || s.Phase == "Send" && s.Pieces,
	}
	at := len(r.lines)
	if s.Phase == "WaitNotify" { // told when the exchange is somebody else's already, who may have been faster
		for i, o := range slices.Backward(r.lines) {
			if o.batch == s.Batch {
				at = i + 1
				break
			}
		}
	}
	r.lines = slices.Insert(r.lines, at, l)
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// went says whether these are the last steps.
func (r *tracer) went(phases ...string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	from := len(r.lines) - len(phases)
	return from >= 0 && slices.EqualFunc(r.lines[from:], phases, func(l line, phase string) bool { return l.phase == phase })
}

// ended says whether the exchange has ended and everybody who carried it has told the last step.
func (r *tracer) ended() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	ended := false
	last := make(map[any]bool)
	for _, l := range r.lines {
		ended = ended || l.phase == "End"
		last[l.batch] = l.last
	}
	for _, l := range last {
		ended = ended && l
	}
	return ended
}

// carriers are the goroutines of the road by the function at their root.
var carriers = map[string]string{
	"(*downstream).run":  "client's read loop",
	"(*upstream).run":    "server's read loop",
	"(*Forwarder).work":  "worker",
	"(*Forwarder).Close": "who closes",
	"(*Forwarder).Apply": "who applies",
	"(*pool).dial":       "dial",
	"(*sweeper).run":     "sweeper",
	"(*Conn).writer":     "writer",
}

// carrier names the goroutine that calls it.
func carrier() string {
	var pcs [64]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(1, pcs[:])])
	who := "?"
	for {
		f, more := frames.Next()
		for root, name := range carriers {
			if strings.HasSuffix(f.Function, "."+root) {
				who = name
			}
		}
		if !more {
			return who
		}
	}
}
