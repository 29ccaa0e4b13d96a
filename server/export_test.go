package server

import "context"

// HoldForTest is what an upgrade does to changes, until release.
func (s *Server) HoldForTest(ctx context.Context) (release func()) {
	if err := s.live.hold(ctx); err != nil {
		panic(err)
	}
	return s.live.release
}

// PauseForTest brings the road to rest, as an upgrade does, until resume.
func (s *Server) PauseForTest(ctx context.Context) (resume func()) {
	if err := s.road.Pause(ctx); err != nil {
		panic(err)
	}
	return s.road.Resume
}
