package admin

import (
	"net/http"

	"github.com/relevo-proxy/relevo/forwarder/stats"
)

// observing returns what shows and steers a process at work: its numbers, log, events, profiles and upgrades.
func observing(reg *stats.Registry, state State, c Control, build BuildInfo) []route {
	log, upgrades := &logDoor{c}, &upgradeDoor{c}
	profiles := &pprofDoor{c.Profiles, oneProfile}
	return []route{
		{http.MethodGet, "/v1/stats", "all metrics as JSON; ?name=PREFIX", whenCounted(state, serveStats(reg, build))},
		{http.MethodGet, "/v1/events", "what happens, as it does (text/event-stream); ?types=config,upgrade", newEventDoor(c.Events())},
		{http.MethodGet, "/v1/log", "the level of the log", http.HandlerFunc(log.get)},
		{http.MethodPut, "/v1/log", "another level for a while, as in {\"level\": \"debug\", \"for\": \"10m\"}", http.HandlerFunc(log.put)},
		{http.MethodDelete, "/v1/log", "the configured level again", http.HandlerFunc(log.reset)},
		{http.MethodGet, "/v1/upgrade", "whether an upgrade runs or can be made, and the last reports", http.HandlerFunc(upgrades.get)},
		{http.MethodPost, "/v1/upgrade", "start an upgrade, as it is or with {\"binary\": \"/path\"}", http.HandlerFunc(upgrades.post)},
		{http.MethodGet, pprofPath, "profiles of the runtime, with admin.pprof", profiles.allowed(profiles.index)},
		{http.MethodGet, pprofPath + "{name}", "one of them; ?seconds=N, at most 60", profiles.allowed(profiles.take)},
	}
}
