package server

import (
	"reflect"

	"github.com/relevo-proxy/relevo/admin"
	"github.com/relevo-proxy/relevo/server/config"
)

// later are the fields that a running process does not change: the next upgrade, or a restart, does.
var later = []struct {
	pointer string
	of      func(c *config.Config) any
	early   bool // it is needed before the revisions of the process before this one are known, where they are in memory
}{
	{"/admin", func(c *config.Config) any { return doorOf(c.Admin) }, false},
	{"/metrics", func(c *config.Config) any { return c.Metrics }, false},
	{"/max_buffered", func(c *config.Config) any { return c.MaxBuffered }, false},
	{"/workers", func(c *config.Config) any { return c.Workers }, false},
	{"/upgrade/ready_timeout", func(c *config.Config) any { return c.Upgrade.ReadyTimeout }, true},
	{"/upgrade/handover_timeout", func(c *config.Config) any { return c.Upgrade.HandoverTimeout }, true},
	{"/runtime_dir", func(c *config.Config) any { return c.RuntimeDir }, true},
	{"/log/format", func(c *config.Config) any { return c.Log.Format }, true},
	{"/access_log", func(c *config.Config) any { return c.AccessLog }, false},
}

// doorOf is what opens the admin door: whether there are profiles behind it is asked each time.
func doorOf(a *config.Admin) *config.Admin {
	if a == nil {
		return nil
	}
	door := *a
	door.Pprof = false
	return &door
}

// needUpgrade are pointers to what differs from what the process was built from, and takes an upgrade.
func needUpgrade(built, now *config.Config) []string {
	out := []string{}
	for _, f := range later {
		if !reflect.DeepEqual(f.of(built), f.of(now)) {
			out = append(out, f.pointer)
		}
	}
	return out
}

// fixed refuses changes of what only the file can say.
func (s *Server) fixed(old, now *config.Config) error {
	faults := &config.Errors{}
	add := func(pointer, why string) {
		faults.Faults = append(faults.Faults, config.Fault{Pointer: pointer, Message: why})
	}
	if old.StateDir != now.StateDir {
		add("/state_dir", "is taken from the file, since that is where the revisions are looked for: change it there, and upgrade")
	}
	for _, f := range later {
		if f.early && s.live.store.Folder() == "" && !reflect.DeepEqual(f.of(old), f.of(now)) {
			add(f.pointer, "is taken from the file where the revisions are in memory, as there is no state_dir: change it there, and upgrade")
		}
	}
	if len(faults.Faults) > 0 {
		return faults
	}
	return nil
}

// cost is what a change does to connections, as far as the configurations and the road as it is now tell.
func (s *Server) cost(old, now *config.Config) (c admin.Cost) {
	road := s.road.Status()
	stays := make(map[string]config.Address)
	for _, l := range now.Listeners {
		stays[l.Name] = l.Address
	}
	for _, l := range old.Listeners {
		if at, ok := stays[l.Name]; ok && at == l.Address {
			continue
		}
		for _, status := range road.Listeners {
			if status.Name == l.Name {
				c.ClientsDraining += status.Connections
			}
		}
	}
	found := s.finder.setsNow()
	for i := range now.Clusters {
		k := &now.Clusters[i]
		if _, ok := found[k.Name]; !ok && k.Discovery != nil {
			found[k.Name] = configured(old, k.Name) // with which it begins
		}
	}
	before, after := endpointsOf(old, found), endpointsOf(now, found)
	for _, cluster := range road.Clusters {
		for _, e := range cluster.Endpoints {
			at := endpoint{cluster.Name, cluster.Protocol, e.Address}
			if _, was := before[at]; !was {
				continue // it drains already
			}
			if _, is := after[at]; !is {
				c.EndpointsDraining++
				c.ServersDraining += e.Connections
			}
		}
	}
	for at, connections := range after {
		if more := connections - before[at]; more > 0 {
			c.ServersDialled += more
		}
	}
	return c
}

// endpoint is one as the road tells them apart.
type endpoint struct{ cluster, protocol, address string }

// endpointsOf says how many connections each endpoint is to have that does not drain. What is found of a cluster is as good as
// configured.
func endpointsOf(c *config.Config, found sets) map[endpoint]int {
	out := make(map[endpoint]int)
	for i := range c.Clusters {
		k := &c.Clusters[i]
		for _, e := range k.Endpoints {
			if e.Drain {
				continue
			}
			_, address := e.Address.Split()
			out[endpoint{k.Name, string(k.Protocol), address}] = k.ConnectionsPerEndpoint
		}
		if k.Discovery == nil {
			continue
		}
		for _, e := range found[k.Name] {
			if !e.Drain {
				out[endpoint{k.Name, string(k.Protocol), e.Address}] = k.ConnectionsPerEndpoint
			}
		}
	}
	return out
}
