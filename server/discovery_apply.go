package server

import (
	"context"
	"errors"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder"
)

// applyEvery is the least time between two sets that enter by themselves: what is found meanwhile enters together.
const applyEvery = time.Second

// in returns spec with these endpoints in the clusters that have a set; all else, such as filters and what they have counted, is
// spec's own. changed says whether there is a difference.
func (s sets) in(spec *forwarder.Spec) (out *forwarder.Spec, changed bool) {
	out = new(*spec)
	out.Clusters = slices.Clone(spec.Clusters)
	for i := range out.Clusters {
		c := &out.Clusters[i]
		set, ok := s[c.Name]
		if !ok {
			continue
		}
		found := make([]forwarder.EndpointSpec, len(set))
		for j, e := range set {
			found[j] = forwarder.EndpointSpec{Network: e.Network, Address: e.Address, Weight: e.Weight, Drain: e.Drain}
		}
		changed = changed || !slices.Equal(found, c.Endpoints)
		c.Endpoints = found
	}
	return out, changed
}

// run has what is found applied, until ctx ends. With released it may be found earlier: while nobody could apply it.
func (f *finder) run(ctx context.Context, released <-chan struct{}, apply func(ctx context.Context)) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-f.changed:
		case <-released:
		case <-ctx.Done():
			return
		}
		select {
		case <-pause.C:
		case <-ctx.Done():
			return
		}
		pause.Reset(applyEvery)
		select {
		case <-f.changed: // that came meanwhile is applied with the others
		default:
		}
		apply(ctx)
	}
}

// applyFound puts the sets as they are now into force, with the configuration as it is. It is one of the changes that come one at a
// time. While another process loads the configuration nothing changes: either that one has the sets, or release pokes.
func (s *Server) applyFound(ctx context.Context) {
	if err := s.live.take(ctx); err != nil {
		return
	}
	defer s.live.free()
	if s.live.held.Load() || stage(s.stage.Load()) != stageServing {
		return
	}
	spec, changed := s.finder.setsNow().in(s.live.spec)
	if !changed {
		return
	}
	switch err := s.road.Apply(spec, func() error { return nil }); {
	case errors.Is(err, forwarder.ErrResting):
		s.finder.poke() // once more, later: it ends, or it goes on
	case err != nil:
		s.log.Error("what discovery has found cannot be put into force", zap.Error(err))
	default:
		s.live.spec = spec
	}
}
