package server

import "context"

// HoldForTest is what an upgrade does to changes, until release.
func (s *Server) HoldForTest(ctx context.Context) (release func()) {
	if err := s.live.hold(ctx); err != nil {
		panic(err)
	}
	return s.live.release
}
