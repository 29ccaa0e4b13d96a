package admin

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/relevo-proxy/relevo/server/config"
	"github.com/relevo-proxy/relevo/server/revision"
)

// maxEvents is how many events are remembered.
const maxEvents = 256

// EventType says what an event is about.
type EventType string

// The types of events. A client can ask for some of the first five; it always gets the others.
const (
	EventConfig   EventType = "config"   // another configuration is in force
	EventUpgrade  EventType = "upgrade"  // an upgrade has begun, is at its next step, or has ended
	EventEndpoint EventType = "endpoint" // an endpoint is passed over, works again, or drains
	EventListener EventType = "listener" // a listener accepts, or does not any more
	EventLog      EventType = "log"      // the level of the log is another one
	EventLost     EventType = "lost"     // the client was too slow: so many events are not remembered any more
	EventEnd      EventType = "end"      // the last one of this process
)

var eventTypes = []EventType{EventConfig, EventUpgrade, EventEndpoint, EventListener, EventLog}

// Event is something that has happened. Beside its type and time it has the field that is called like the type.
type Event struct {
	ID       string         `json:"id,omitempty"` // the stream has it in a line of its own
	Type     EventType      `json:"type"`
	Time     time.Time      `json:"time"`
	Config   *ConfigEvent   `json:"config,omitempty"`
	Upgrade  *UpgradeEvent  `json:"upgrade,omitempty"`
	Endpoint *EndpointEvent `json:"endpoint,omitempty"`
	Listener *ListenerEvent `json:"listener,omitempty"`
	Log      *LogLevel      `json:"log,omitempty"`
	Lost     uint64         `json:"lost,omitempty"` // how many
	End      string         `json:"end,omitempty"`  // why
}

// ConfigEvent is a revision that is in force.
type ConfigEvent struct {
	Revision uint64          `json:"revision"`
	Author   revision.Author `json:"author"`
	Why      string          `json:"why,omitempty"`
	Changes  int             `json:"changes"` // how many
	Paths    []string        `json:"paths"`   // of the first of them
}

// UpgradeEvent is where an upgrade is, or how it ended. /v1/upgrade has the whole report.
type UpgradeEvent struct {
	ID         uint64 `json:"id"`
	Outcome    string `json:"outcome"` // running, until it has ended
	Step       string `json:"step,omitempty"`
	Reason     string `json:"reason,omitempty"`
	Generation uint64 `json:"generation"` // of the process that owns the state
	From       int    `json:"from"`       // pids
	To         int    `json:"to,omitempty"`
}

// EndpointEvent is the state of an endpoint.
type EndpointEvent struct {
	Cluster string `json:"cluster"`
	Address string `json:"address"`
	State   string `json:"state"` // usable, passed-over, unhealthy, ejected or drained
}

// ListenerEvent is the state of a listener.
type ListenerEvent struct {
	Name      string `json:"name"`
	Address   string `json:"address"`
	Accepting bool   `json:"accepting"`
}

// LogLevel is what is logged.
type LogLevel struct {
	Level      config.LogLevel `json:"level"`      // in force
	Configured config.LogLevel `json:"configured"` // that holds when nobody has asked for another one
	// Until is when the level that somebody has asked for ends, and Author who that was; absent where nobody has.
	Until  time.Time        `json:"until,omitzero"`
	Author *revision.Author `json:"author,omitempty"`
}

// Events is what has happened in this process, as far as it is remembered. Readers go through it at their own pace: nobody
// waits for one that is slow, and what it has not read in time it is told the number of.
type Events struct {
	// Static after NewEvents.
	process string        // begins the ids of its events, and no other process's
	ended   chan struct{} // closed by End

	mu sync.Mutex
	// Guarded by mu.
	ring  [maxEvents]written // the event of number n at n % maxEvents
	last  uint64             // the number of the newest, counted from 1; 0: there was none
	grown chan struct{}      // closed by the next event; nil: nobody waits for it
	over  bool
}

// written is an event as clients get it.
type written struct {
	kind  EventType
	block []byte // of text/event-stream
}

// NewEvents remembers the events of a process: of this generation, as one that begins anew begins with the first again, and
// begun at this time.
func NewEvents(generation uint64, begun time.Time) *Events {
	return &Events{process: fmt.Sprintf("%d-%x-", generation, begun.UnixMilli()), ended: make(chan struct{})}
}

// Publish adds an event, whose time is now. It waits for nobody. Behind End nothing happens any more.
func (s *Events) Publish(e Event) { s.add(e, false) }

// End adds the last event, and ends every stream behind it. Calling it again does nothing.
func (s *Events) End(why string) { s.add(Event{Type: EventEnd, End: why}, true) }

func (s *Events) add(e Event, over bool) {
	e.Time = time.Now().UTC().Truncate(time.Millisecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return
	}
	s.last++
	s.ring[s.last%maxEvents] = written{e.Type, blockOf(s.process+strconv.FormatUint(s.last, 10), e)}
	if s.grown != nil {
		close(s.grown)
		s.grown = nil
	}
	if over {
		s.over = true
		close(s.ended)
	}
}

// blockOf is an event in text/event-stream. One without an id leaves the client's last one as it is.
func blockOf(id string, e Event) []byte {
	data, _ := json.Marshal(e) // strings, numbers and times
	if id == "" {
		return fmt.Appendf(nil, "event: %s\ndata: %s\n\n", e.Type, data)
	}
	return fmt.Appendf(nil, "id: %s\nevent: %s\ndata: %s\n\n", id, e.Type, data)
}

// from is the number of the event behind which a client goes on that has seen this id last. One that has seen none begins
// behind the newest, one that has seen those of another process, or what there is not, at the first that is remembered.
func (s *Events) from(id string) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id == "" {
		return s.last
	}
	text, ours := strings.CutPrefix(id, s.process)
	n, err := strconv.ParseUint(text, 10, 64)
	if ours && err == nil && n <= s.last {
		return n
	}
	return s.last - min(s.last, maxEvents)
}

// behind returns the events behind number n, and the number of the last of them; how many more there were that are not
// remembered; and whether nothing follows. If it returns no event, grown is closed when there is one.
func (s *Events) behind(n uint64) (list []written, last, lost uint64, over bool, grown <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last-n > maxEvents {
		lost = s.last - maxEvents - n
		n += lost
	}
	for ; n < s.last; n++ {
		list = append(list, s.ring[(n+1)%maxEvents])
	}
	if len(list) == 0 && s.grown == nil && !s.over {
		s.grown = make(chan struct{})
	}
	return list, s.last, lost, s.over, s.grown
}
