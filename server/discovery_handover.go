package server

import (
	"encoding/json"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder/discovery"
)

// inheritedSet is what is known of a cluster's endpoints, as it goes over to another process. It is JSON in a hand-over.
type inheritedSet struct {
	Cluster      string               `json:"cluster"`
	Source       string               `json:"source"` // that has told it
	Endpoints    []discovery.Endpoint `json:"endpoints"`
	Updated      time.Time            `json:"updated,omitzero"`
	FailingSince time.Time            `json:"failing_since,omitzero"`
	Error        string               `json:"error,omitempty"`
}

// state is a State to go on with. How the source was says something only where it is the same source.
func (i *inheritedSet) state(same bool) discovery.State {
	s := discovery.State{Endpoints: discovery.Normal(i.Endpoints)}
	if same {
		s.Asked, s.Updated, s.FailingSince = true, i.Updated, i.FailingSince
		if i.Error != "" {
			s.Err = errors.New(i.Error)
		}
	}
	return s
}

// give is what inherit goes on with, nil for nothing.
func (f *finder) give() []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []inheritedSet
	for name, w := range f.followed {
		if len(w.state.Endpoints) == 0 {
			continue
		}
		i := inheritedSet{name, sourceText(w.config), w.state.Endpoints, w.state.Updated, w.state.FailingSince, ""}
		if w.state.Err != nil {
			i.Error = w.state.Err.Error()
		}
		out = append(out, i)
	}
	if out == nil {
		return nil
	}
	text, _ := json.Marshal(out) // strings, numbers and times
	return text
}

// inherit goes on with the last good sets of the process before this one, whatever becomes of their sources. Nobody follows
// anything yet.
func (f *finder) inherit(text []byte) {
	if len(text) == 0 {
		return
	}
	var list []inheritedSet
	if err := json.Unmarshal(text, &list); err != nil {
		f.log.Warn("the endpoints that the process before this one has found are lost: this release writes others", zap.Error(err))
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, i := range list {
		if sane(i.Endpoints) {
			f.came[i.Cluster] = i
		}
	}
}

// sane says that a road can be built with this set.
func sane(set []discovery.Endpoint) bool {
	for _, e := range set {
		if e.Network != "tcp" && e.Network != "unix" || e.Address == "" || e.Weight < discovery.MinWeight || e.Weight > discovery.MaxWeight {
			return false
		}
	}
	return len(set) > 0
}
