package discovery

import (
	"errors"
	"slices"
	"time"
)

// State is what is known of a cluster's endpoints: the last good set, and how the source is. The zero State knows nothing.
// It has no lock: its owner has.
type State struct {
	Endpoints    []Endpoint // normal; the slice is never changed, only replaced
	Asked        bool       // the source has answered, well or badly
	Updated      time.Time  // when it last told a good set, the same one or another; zero: never
	FailingSince time.Time  // zero: it does not fail
	Err          error      // why it fails
}

// Outcome is what an Update has brought.
type Outcome string

// The outcomes, which are a metric's label.
const (
	Changed   Outcome = "changed"
	Unchanged Outcome = "unchanged" // the set is the same, whatever its order
	Failed    Outcome = "failed"    // the last good set stays, for however long
)

// ErrEmpty is an Update without an endpoint.
var ErrEmpty = errors.New("there is no endpoint")

// Take brings the state up to date. news says whether somebody should hear of how the source is: it works again, it fails, or
// it fails for another reason.
func (s *State) Take(u Update, now time.Time) (o Outcome, news bool) {
	s.Asked = true
	if u.Err == nil && len(u.Endpoints) == 0 {
		u.Err = ErrEmpty
	}
	if u.Err != nil {
		news = s.Err == nil || s.Err.Error() != u.Err.Error()
		if s.Err == nil {
			s.FailingSince = now
		}
		s.Err = u.Err
		return Failed, news
	}
	news = s.Err != nil
	s.Err, s.FailingSince, s.Updated = nil, time.Time{}, now
	set := Normal(u.Endpoints)
	if slices.Equal(set, s.Endpoints) {
		return Unchanged, news
	}
	s.Endpoints = set
	return Changed, news
}

// Word is the state in a word.
func (s *State) Word() string {
	switch {
	case s.Err != nil:
		return "failing"
	case !s.Asked:
		return "waiting"
	}
	return "ok"
}
