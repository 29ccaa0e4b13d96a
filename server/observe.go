package server

import (
	"errors"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/admin"
	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/server/config"
	"github.com/relevo-proxy/relevo/server/revision"
	"github.com/relevo-proxy/relevo/upgrade"
)

// Events implements admin.Control.
func (s *Server) Events() *admin.Events { return s.events }

// Profiles implements admin.Control.
func (s *Server) Profiles() bool {
	a := s.config().Admin
	return a != nil && a.Pprof
}

// errTrial is why a process without a Generation is not upgraded.
var errTrial = errors.New("this process is not upgraded: it is a trial")

// Upgrade implements admin.Control.
func (s *Server) Upgrade() admin.UpgradeStatus {
	out := admin.UpgradeStatus{State: "idle", Reports: []upgrade.Report{}}
	if s.generation == nil {
		out.Reason = errTrial.Error()
		return out
	}
	if list := s.generation.Reports(); len(list) > 0 {
		out.Reports = list
		if list[0].Outcome == upgrade.Running {
			out.State, out.Step = "running", list[0].Step
		}
	}
	var err error
	if out.Binary, err = s.generation.Binary(); err == nil {
		err = s.generation.Able()
	}
	out.Possible = err == nil
	if err != nil {
		out.Reason = err.Error()
	}
	return out
}

// RequestUpgrade implements admin.Control.
func (s *Server) RequestUpgrade(by revision.Author, binary string) (id uint64, err error) {
	if s.generation == nil {
		return 0, errTrial
	}
	if binary != "" {
		id, err = s.generation.RequestBinary(binary)
		if refused, ok := errors.AsType[*upgrade.BinaryError](err); ok {
			return 0, &admin.RefusedError{Reason: refused.Error()}
		}
		if err == nil {
			s.log.Info("asked for an upgrade to another program", zap.Stringer("by", by), zap.String("binary", binary), zap.Uint64("upgrade", id))
		}
		return id, err
	}
	if err := s.generation.Able(); err != nil {
		return 0, err
	}
	id = s.generation.Last().ID + 1
	s.log.Info("asked for an upgrade", zap.Stringer("by", by), zap.Uint64("upgrade", id))
	s.generation.Request()
	return id, nil
}

// tellConfig makes a revision that is in force an event.
func (s *Server) tellConfig(r revision.Info, c config.Changes) {
	s.events.Publish(admin.Event{Type: admin.EventConfig, Config: &admin.ConfigEvent{
		Revision: r.Number, Author: r.Author, Why: r.Why, Changes: len(c.List) + c.More, Paths: changedPaths(c),
	}})
}

// tellChange makes what has become of a listener or endpoint an event.
func (s *Server) tellChange(c forwarder.Change) {
	if c.Listener != "" {
		s.events.Publish(admin.Event{Type: admin.EventListener, Listener: &admin.ListenerEvent{
			Name: c.Listener, Address: c.At, Accepting: c.State == forwarder.Accepting,
		}})
		return
	}
	s.events.Publish(admin.Event{Type: admin.EventEndpoint, Endpoint: &admin.EndpointEvent{
		Cluster: c.Cluster, Address: c.Endpoint, State: c.State,
	}})
}

// tellUpgrade makes a step of an upgrade an event.
func (s *Server) tellUpgrade(r *upgrade.Report) {
	s.events.Publish(admin.Event{Type: admin.EventUpgrade, Upgrade: &admin.UpgradeEvent{
		ID: r.ID, Outcome: string(r.Outcome), Step: r.Step, Reason: r.Reason, Generation: r.Generation, From: r.From, To: r.To,
	}})
}
