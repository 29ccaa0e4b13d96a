package server

import "github.com/relevo-proxy/relevo/admin"

// Ready implements admin.State: the configuration is loaded, all listeners accept, nothing is stopping.
func (s *Server) Ready() (bool, []string) {
	switch stage(s.stage.Load()) {
	case stageBuilt:
		return false, []string{"not accepting yet"}
	case stageStopping:
		return false, []string{"stopping"}
	case stageGone:
		return false, []string{"handed over to another process"}
	case stageServing:
	}
	var missing []string
	for _, a := range s.road.Overload().Actions {
		if a.Accepting() {
			missing = append(missing, "overload: little is left of "+a.Resource+", so that no clients are accepted")
		}
	}
	if missing != nil {
		return false, missing // instead of a line for each listener
	}
	for _, l := range s.road.Status().Listeners {
		if !l.Accepting {
			missing = append(missing, "listener "+l.Name+" does not accept")
		}
	}
	return len(missing) == 0, missing
}

// overload is what is used of what the process is granted, and what is done about it.
func (s *Server) overload() admin.Overload {
	o := s.road.Overload()
	out := admin.Overload{
		Memory:      admin.Resource{Used: max(o.Memory, 0), Limit: o.MemoryLimit},
		Descriptors: admin.Resource{Used: int64(o.Descriptors), Limit: int64(o.DescriptorLimit), Reserve: int64(max(o.Reserve, 0))},
	}
	for _, a := range o.Actions {
		out.Actions = append(out.Actions, admin.OverloadAction{Action: a.Action, Resource: a.Resource, For: a.For.Seconds()})
	}
	return out
}

// Counted implements admin.State.
func (s *Server) Counted() <-chan struct{} { return s.counted }

// Status implements admin.State.
func (s *Server) Status() admin.Status {
	road := s.road.Status()
	out := admin.Status{Started: s.started, UnitChanged: s.unit.changed()}
	out.Overload = s.overload()
	for _, l := range road.Listeners {
		out.Listeners = append(out.Listeners, admin.ListenerStatus{
			Name: l.Name, Address: l.Address, Protocol: l.Protocol, Accepting: l.Accepting, Connections: l.Connections,
		})
	}
	for _, c := range road.Clusters {
		cs := admin.ClusterStatus{Name: c.Name, Protocol: c.Protocol, InFlight: c.Requests.Used, Waiting: c.Pending.Used}
		for _, e := range c.Endpoints {
			es := admin.EndpointStatus{
				Address: e.Address, Weight: e.Weight, Usable: e.Usable, Failures: e.Failures,
				Connections: e.Connections, InFlight: e.InFlight,
			}
			switch state := endpointState(&e); state {
			case "usable":
			case "passed-over":
				es.Reason = "passed over until a probe succeeds"
			case "probing":
				es.Reason = "passed over; being probed"
			case "unhealthy":
				es.Reason = "unhealthy: its checks fail"
				if c := e.Check; c != nil && !c.Passed {
					es.Reason += " (" + c.Reason + ")"
				}
			case "ejected":
				es.Reason = "ejected: too many of its requests failed"
			default:
				es.Reason = state
			}
			cs.Endpoints = append(cs.Endpoints, es)
		}
		out.Clusters = append(out.Clusters, cs)
	}
	return out
}
