package health

import (
	"container/heap"

	"github.com/relevo-proxy/relevo/forwarder/cluster"
)

// schedule says whose check is due and whose time is over. It reads no clock and asks nobody. An endpoint's first check comes soon,
// but those of many are spread, so that they do not come at once; where in the interval its further ones come follows from its
// address. No more than a number are under way; those that are due meanwhile wait, in their order.
//
// Owned by the goroutine of Run, or by a test.
type schedule struct {
	most    int // checks under way at once
	entries map[*cluster.Endpoint]*entry
	times   times // those of entries that wait for their time: to be due, or to be over
	due     []*entry
	waiting int // of due, those that have not left it since
	under   int
}

// The bounds of times, in nanoseconds.
const (
	firstApart   = int64(1e6) // first checks are begun about this far apart, but within an interval
	postponement = int64(1e9) // behind a check that could not be made, or the interval if that is less
)

// state is what an entry waits for.
type state uint8

const (
	idle     state = iota // its time to be due
	due                   // its turn
	underWay              // its result, or its time to be over
	gone                  // nothing: the endpoint is not checked any more
)

// entry is a target and when its turn is.
type entry struct {
	target  *Target
	state   state
	settled bool  // its times are spread over the interval
	at      int64 // when something is due: to begin, or to be over
	place   int   // in times; -1: it is not in there
	begun   int64 // the last check
	since   int64 // while due: since when
	check   check // while underWay
}

func newSchedule(most int) *schedule {
	return &schedule{most: max(most, 1), entries: make(map[*cluster.Endpoint]*entry)}
}

// set makes targets all that there are. What is known of those that were there stays. It returns the entries whose check under way
// has become void: it is to be broken off, and ends here.
func (s *schedule) set(targets []*Target, now int64) (void []*entry) {
	stay := make(map[*cluster.Endpoint]bool, len(targets))
	var fresh []*entry
	for _, t := range targets {
		stay[t.Endpoint] = true
		e := s.entries[t.Endpoint]
		if e == nil {
			e = &entry{target: t, place: -1, check: check{fd: -1}}
			s.entries[t.Endpoint] = e
			if !s.resume(e, now) {
				fresh = append(fresh, e)
			}
			continue
		}
		old := e.target
		e.target = t
		switch {
		case e.state == underWay && !old.asksLike(t):
			void = append(void, e)
			s.again(e, now)
		case e.state == idle && e.at > now+int64(t.Interval): // the interval has become shorter
			e.settled = false
			s.wait(e, now+within(e, int64(t.Interval)))
		}
	}
	for _, e := range fresh {
		s.wait(e, now+within(e, min(int64(e.target.Interval), int64(len(fresh))*firstApart)))
	}
	for endpoint, e := range s.entries {
		if stay[endpoint] {
			continue
		}
		if e.state == underWay {
			void = append(void, e)
		}
		s.leave(e)
		e.state = gone
		delete(s.entries, endpoint)
	}
	return void
}

// resume goes on where another process has checked the endpoint, unless that is too long ago.
func (s *schedule) resume(e *entry, now int64) bool {
	last := e.target.Last
	if last == 0 || last > now {
		return false
	}
	at := last + e.target.Endpoint.Spread(int64(e.target.Interval), 10, last)
	if at <= now {
		return false
	}
	e.settled = true
	s.wait(e, at)
	return true
}

// asksLike says whether a check of the one target answers for the other.
func (t *Target) asksLike(o *Target) bool {
	return t.Network == o.Network && t.Address == o.Address && (t.Ask == nil) == (o.Ask == nil)
}

// within is a time within d that follows from the endpoint's address.
func within(e *entry, d int64) int64 { return e.target.Endpoint.Spread(d/2, 1, 0) }

// advance makes those due whose time has come, and returns the checks whose time is over. They are under way until end or extend.
func (s *schedule) advance(now int64, over []*entry) []*entry {
	for len(s.times) > 0 && s.times[0].at <= now {
		e := s.times[0]
		heap.Pop(&s.times)
		if e.state == underWay {
			over = append(over, e)
			continue
		}
		e.state, e.since = due, e.at
		s.due = append(s.due, e)
		s.waiting++
	}
	return over
}

// begin is the next check that is to be made, nil if none is due or no more may be under way.
func (s *schedule) begin(now int64) *entry {
	if s.under >= s.most {
		return nil
	}
	e := s.first()
	if e == nil {
		return nil
	}
	s.due[0] = nil
	s.due = s.due[1:]
	s.waiting--
	s.under++
	e.state, e.begun = underWay, now
	s.wait(e, now+int64(e.target.Timeout))
	return e
}

// first is who waits for its turn for longest.
func (s *schedule) first() *entry {
	for len(s.due) > 0 && s.due[0].state != due {
		s.due[0] = nil
		s.due = s.due[1:]
	}
	if len(s.due) == 0 {
		s.due = nil
		return nil
	}
	return s.due[0]
}

// extend gives a check that is under way until another time.
func (s *schedule) extend(e *entry, at int64) { s.wait(e, at) }

// end ends a check that had a result.
func (s *schedule) end(e *entry, now int64) {
	s.leave(e)
	e.state = idle
	interval := int64(e.target.Interval)
	next := e.target.Endpoint.Spread(interval, 10, e.begun)
	if !e.settled { // where in the interval its turn is
		e.settled = true
		next = e.target.Endpoint.Spread(interval, 2, 0)
	}
	s.wait(e, max(e.begun+next, now))
}

// postpone ends a check that could not be made.
func (s *schedule) postpone(e *entry, now int64) {
	s.leave(e)
	e.state = idle
	s.wait(e, now+min(postponement, int64(e.target.Interval)))
}

// again ends a check that was broken off. It is due at once.
func (s *schedule) again(e *entry, now int64) {
	s.leave(e)
	e.state = idle
	s.wait(e, now)
}

// leave takes an entry out of whatever it waits in.
func (s *schedule) leave(e *entry) {
	if e.place >= 0 {
		heap.Remove(&s.times, e.place)
	}
	switch e.state {
	case due:
		s.waiting-- // first passes over it
	case underWay:
		s.under--
	default:
	}
}

// wait has an entry wait for a time.
func (s *schedule) wait(e *entry, at int64) {
	e.at = at
	if e.place >= 0 {
		heap.Fix(&s.times, e.place)
		return
	}
	heap.Push(&s.times, e)
}

// next is when something is to be done; false: never.
func (s *schedule) next(now int64) (at int64, ok bool) {
	if s.under < s.most && s.first() != nil {
		return now, true
	}
	if len(s.times) == 0 {
		return 0, false
	}
	return s.times[0].at, true
}

// times is a heap of entries by their time.
type times []*entry

func (h times) Len() int           { return len(h) }
func (h times) Less(i, j int) bool { return h[i].at < h[j].at }
func (h times) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}

// Push implements heap.Interface.
func (h *times) Push(x any) {
	e := x.(*entry)
	e.place = len(*h)
	*h = append(*h, e)
}

// Pop implements heap.Interface.
func (h *times) Pop() any {
	last := len(*h) - 1
	e := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	e.place = -1
	return e
}
