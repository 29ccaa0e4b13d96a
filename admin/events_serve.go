package admin

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

const (
	maxStreams     = 32               // clients that follow events at once
	keepAliveEvery = 15 * time.Second // a line without meaning, so that nobody on the way takes the stream for dead
	streamTimeout  = 10 * time.Second // for a client to take what is written
	farewellTime   = 200 * time.Millisecond
)

// eventDoor serves events.
type eventDoor struct {
	events    *Events
	places    chan struct{} // one element a stream; never closed
	keepAlive time.Duration
	timeout   time.Duration
}

func newEventDoor(s *Events) *eventDoor {
	return &eventDoor{s, make(chan struct{}, maxStreams), keepAliveEvery, streamTimeout}
}

// ServeHTTP streams events until the client goes, is too slow, or the process ends or hands over.
func (d *eventDoor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	types, err := typesOf(r)
	if err != nil {
		writeProblem(w, http.StatusBadRequest, err.Error())
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	if r.Method == http.MethodHead {
		return
	}
	select {
	case d.places <- struct{}{}:
		defer func() { <-d.places }()
	default:
		w.Header().Set("Retry-After", retryAfter)
		writeProblem(w, http.StatusServiceUnavailable, fmt.Sprintf("%d clients follow events already", maxStreams))
		return
	}
	s := &eventStream{eventDoor: d, w: w, control: http.NewResponseController(w), done: make(chan struct{})}
	_ = s.control.SetReadDeadline(time.Time{}) // the door's would end the request; where there is none, none is needed
	watched := make(chan struct{})
	go func() { // ends with the stream, which waits for it
		defer close(watched)
		s.watch()
	}()
	s.run(r, types)
	close(s.done)
	<-watched
}

// typesOf are the types that a client wants, nil for all.
func typesOf(r *http.Request) (types []EventType, err error) {
	for _, list := range r.URL.Query()["types"] {
		for name := range strings.SplitSeq(list, ",") {
			if !slices.Contains(eventTypes, EventType(name)) {
				return nil, fmt.Errorf("types: %.40q is no type of events; there is: %s", name, joined(eventTypes))
			}
			types = append(types, EventType(name))
		}
	}
	return types, nil
}

// joined is a list for people.
func joined[T ~string](list []T) string {
	words := make([]string, len(list))
	for i, w := range list {
		words[i] = string(w)
	}
	return strings.Join(words, ", ")
}

// eventStream is the events on their way to one client.
type eventStream struct {
	*eventDoor
	w       http.ResponseWriter
	control *http.ResponseController
	done    chan struct{} // closed when the stream has ended
}

// run writes until there is nothing more to be written. The client has a cursor and nothing else that could fill up.
func (s *eventStream) run(r *http.Request, types []EventType) {
	text := []byte("retry: 1000\n\n") // of a client that is cut off, in milliseconds
	tick := time.NewTicker(s.keepAlive)
	defer tick.Stop()
	for at := s.events.from(r.Header.Get("Last-Event-ID")); ; {
		list, last, lost, over, grown := s.events.behind(at)
		at = last
		if lost > 0 {
			text = append(text, blockOf("", Event{Type: EventLost, Time: time.Now().UTC(), Lost: lost})...)
		}
		for _, e := range list {
			if types == nil || slices.Contains(types, e.kind) || !slices.Contains(eventTypes, e.kind) {
				text = append(text, e.block...)
			}
		}
		if len(text) > 0 && (!mayStill(r) || s.write(text) != nil) {
			return // the client has gone, does not read, or may not any more
		}
		text = text[:0]
		if over {
			return
		}
		if len(list) > 0 {
			continue
		}
		select {
		case <-grown:
		case <-tick.C:
			text = append(text, ": still here\n\n"...)
		case <-r.Context().Done():
			return
		}
	}
}

// write writes within a bound of time.
func (s *eventStream) write(text []byte) error {
	s.allow(s.timeout)
	select {
	case <-s.events.ended: // watch may have come first
		s.allow(farewellTime)
	default:
	}
	if _, err := s.w.Write(text); err != nil {
		return err
	}
	return s.control.Flush()
}

// allow gives the client so much time to take what is being written.
func (s *eventStream) allow(d time.Duration) {
	_ = s.control.SetWriteDeadline(time.Now().Add(d)) // where there is no deadline, nothing waits either
}

// watch sees to it that the end of the process does not wait for a client that does not read.
func (s *eventStream) watch() {
	select {
	case <-s.events.ended:
		s.allow(farewellTime)
	case <-s.done:
	}
}
