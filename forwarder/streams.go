package forwarder

import (
	"cmp"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// StreamFilter says which requests are wanted; what is empty does not matter.
type StreamFilter struct {
	Listener, Cluster, Endpoint, Service string
	Limit                                int // the oldest
}

// StreamStatus is a request that has not ended.
type StreamStatus struct {
	Phase                    string
	Age, Left                time.Duration // since the read that brought it, to its deadline
	Listener, Client         string        // Client is empty where that is gone
	Service, Method          string        // empty where they are not known
	Route, Cluster, Endpoint string        // Route is table/rule; all are empty before it is matched
	ClientConnection         uint64        // ids, 0 where there is none
	ServerConnection         uint64
	ID, ServerID             uint32 // as the client gave it, and under which it was sent
	Attempts                 int
	Oneway                   bool
}

// The phases of a StreamStatus: which container has the request.
const (
	StreamSent    = "in-flight" // its reply is awaited
	StreamWaiting = "awaits-connection"
	StreamQueued  = "awaits-worker"
	StreamLater   = "awaits-retry"
)

// contained is an exchange in a container.
type contained struct {
	x        exchange
	phase    string
	endpoint *upEndpoint // nil: none was chosen
	u        *upstream   // nil: it was not sent
	id       uint32
}

// Streams are the oldest requests that the filter wants, oldest first, and how many it wants in all. A request that is inside a
// filter, or on its way from one container to the next, is in none and not seen.
func (f *Forwarder) Streams(of StreamFilter) (list []StreamStatus, total int) {
	now := f.now()
	for _, s := range f.oldest(&of, &total) {
		list = append(list, s.status(now))
	}
	return list, total
}

// InFilters is the number of requests that are inside filters which may block: in no container, so that Streams does not see them.
func (f *Forwarder) InFilters() int { return int(uint32(f.blocking.Load())) }

// oldest finds streams in all containers, and counts them.
func (f *Forwarder) oldest(of *StreamFilter, total *int) []contained {
	found := least[contained]{n: of.Limit, compare: func(a, b contained) int { return cmp.Compare(a.x.start, b.x.start) }}
	add := func(s contained) {
		if of.wants(&s) {
			*total++
			found.add(s)
		}
	}
	for _, c := range f.snap.Load().clusters {
		if of.Cluster != "" && of.Cluster != c.spec.Name {
			continue
		}
		for _, e := range c.endpoints {
			if of.Endpoint != "" && of.Endpoint != e.name() {
				continue
			}
			for _, p := range e.pools() {
				for _, u := range *p.conns.Load() {
					for entry := range u.table.All() {
						add(contained{entry.Value, StreamSent, e, u, entry.ID})
					}
				}
				p.eachWaiting(func(x *exchange) { add(contained{x: *x, phase: StreamWaiting, endpoint: e}) })
			}
		}
	}
	f.later.each(func(x *exchange) { add(contained{x: *x, phase: StreamLater}) })
	for from, done := 0, false; !done; from += lookAtOnce {
		done = true
		for task := range f.workers.Waiting(from, lookAtOnce) {
			done = false
			add(contained{x: task.given.x, phase: StreamQueued})
		}
	}
	return found.sorted()
}

// lookAtOnce is how many exchanges of a list are looked at while its lock is held.
const lookAtOnce = 1024

// eachWaiting calls fn for those that wait, under the pool's lock, which others get in between: what comes or goes then may be
// missed, or seen twice.
func (p *pool) eachWaiting(fn func(*exchange)) {
	for from, done := 0, false; !done; from += lookAtOnce {
		p.mu.Lock()
		to := min(from+lookAtOnce, len(p.waiting))
		for i := from; i < to; i++ {
			fn(&p.waiting[i].x)
		}
		done = to == len(p.waiting) || to <= from
		p.mu.Unlock()
	}
}

func (of *StreamFilter) wants(s *contained) bool {
	is := func(want, got string) bool { return want == "" || want == got }
	service, endpoint := "", ""
	if l := s.x.label; l != nil {
		service = l.service
	}
	if of.Endpoint != "" && s.endpoint != nil {
		endpoint = s.endpoint.name()
	}
	return s.x.down != nil && is(of.Listener, s.x.down.listener.name) && is(of.Cluster, s.cluster()) && is(of.Endpoint, endpoint) && is(of.Service, service)
}

// cluster is the name of the cluster that the exchange goes to, empty where that is not known.
func (s *contained) cluster() string {
	switch {
	case s.endpoint != nil:
		return s.endpoint.cluster().spec.Name
	case s.x.target != nil:
		return s.x.target.clusterName()
	}
	return ""
}

func (s *contained) status(now int64) StreamStatus {
	x := &s.x
	out := StreamStatus{
		Phase: s.phase, Age: time.Duration(now - x.start), Listener: x.down.listener.name, ClientConnection: x.down.id, ID: x.id, ServerID: s.id,
		Attempts: int(x.attempts), Oneway: x.kind == wire.Oneway,
	}
	if x.down.id > 0 {
		out.Client = x.down.name()
	}
	if x.deadline > 0 && x.deadline < math.MaxInt64 {
		out.Left = time.Duration(x.deadline - now)
	}
	if l := x.label; l != nil {
		out.Service, out.Method = l.service, l.method
	}
	if t := x.target; t != nil {
		out.Route = t.name
	}
	if out.Cluster = s.cluster(); s.endpoint != nil {
		out.Endpoint = s.endpoint.name()
	}
	if s.u != nil {
		out.ServerConnection = s.u.id
	}
	return out
}

// Oldest are the requests that have waited longest for their replies, oldest first, at most n, in words.
func (f *Forwarder) Oldest(n int) []string {
	var out []string
	list, _ := f.Streams(StreamFilter{Limit: n})
	for i := range list {
		s := &list[i]
		what := "a request"
		if s.Service != "" {
			what = strings.TrimSuffix(s.Service+" "+s.Method, " ")
		}
		text := fmt.Sprintf("%v old: %s from %s on listener %s", s.Age.Round(time.Millisecond), what, cmp.Or(s.Client, "a client that is gone"), s.Listener)
		if s.Endpoint != "" {
			text += fmt.Sprintf(" to endpoint %s of cluster %s", s.Endpoint, s.Cluster)
		}
		out = append(out, text)
	}
	return out
}
