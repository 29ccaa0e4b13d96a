package admin

import (
	"net/http"
	"strings"
	"time"
)

// State is what the doors ask of the process. Its methods are called from any goroutine, at the pace of
// probes, and must not block.
type State interface {
	// Ready reports whether the configuration is loaded, all listeners accept and the process is not stopping.
	// If not, it says what is missing, one reason a string. The health of an endpoint is none.
	Ready() (bool, []string)
	// Status returns what the process is doing now. The caller owns the result.
	Status() Status
	// Counted is closed once the metrics are complete: what the process before this one has counted has arrived, or
	// will not. nil says that they are.
	Counted() <-chan struct{}
}

// Status is what a process is doing at one moment. Everything is in the order of the configuration.
type Status struct {
	Started time.Time `json:"started"`
	// UnitChanged says that the unit of systemd is another one on disk than that which this process, or the first one before it,
	// was started by: only a restart brings what has changed.
	UnitChanged bool             `json:"unit_changed,omitempty"`
	Overload    Overload         `json:"overload"`
	Listeners   []ListenerStatus `json:"listeners"`
	Clusters    []ClusterStatus  `json:"clusters"`
}

// Overload is what the process uses of what it is granted, and what is done because that is nearly all.
type Overload struct {
	Memory      Resource         `json:"memory"` // bytes
	Descriptors Resource         `json:"descriptors"`
	Actions     []OverloadAction `json:"actions"`
}

// Resource is how much of something is used.
type Resource struct {
	Used    int64 `json:"used"`
	Limit   int64 `json:"limit,omitempty"`   // absent: it is not known, or there is none, and nothing is done about it
	Reserve int64 `json:"reserve,omitempty"` // what clients do not get
}

// OverloadAction is something that is done now.
type OverloadAction struct {
	Action   string  `json:"action"`   // stop-reading, stop-accepting, refuse-low, refuse-normal or stop-dialling
	Resource string  `json:"resource"` // memory or descriptors
	For      float64 `json:"for"`      // seconds
}

// ListenerStatus is one listener.
type ListenerStatus struct {
	Name        string `json:"name"`
	Address     string `json:"address"` // as bound: the port is known even if the configuration says 0
	Protocol    string `json:"protocol"`
	Accepting   bool   `json:"accepting"`
	Connections int    `json:"connections"`
}

// ClusterStatus is one cluster.
type ClusterStatus struct {
	Name      string           `json:"name"`
	Protocol  string           `json:"protocol"`
	InFlight  int              `json:"in_flight"` // requests sent that have no reply yet
	Waiting   int              `json:"waiting"`   // requests that wait for a connection
	Endpoints []EndpointStatus `json:"endpoints"`
}

// EndpointStatus is one endpoint of a cluster.
type EndpointStatus struct {
	Address     string `json:"address"`
	Weight      int    `json:"weight"`
	Usable      bool   `json:"usable"`           // false: passed over
	Failures    int    `json:"failures"`         // in a row; 0 once it has worked
	Reason      string `json:"reason,omitempty"` // why it is passed over
	Connections int    `json:"connections"`
	InFlight    int    `json:"in_flight"`
}

// statusAnswer is the body of /v1/status. Its lists are never null.
type statusAnswer struct {
	Ready   bool     `json:"ready"`
	Reasons []string `json:"reasons"` // why it is not ready
	Status
}

func status(state State) statusAnswer {
	ok, reasons := state.Ready()
	a := statusAnswer{ok, orEmpty(reasons), state.Status()}
	a.Overload.Actions = orEmpty(a.Overload.Actions)
	a.Listeners, a.Clusters = orEmpty(a.Listeners), orEmpty(a.Clusters)
	for i := range a.Clusters {
		a.Clusters[i].Endpoints = orEmpty(a.Clusters[i].Endpoints)
	}
	return a
}

func orEmpty[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// ready answers probes: 200 or 503, and with ?verbose one reason a line.
func ready(state State) func(*http.Request) (int, string) {
	return func(r *http.Request) (int, string) {
		ok, reasons := state.Ready()
		if ok {
			return http.StatusOK, "ready\n"
		}
		text := "not ready\n"
		if r.URL.Query().Has("verbose") && len(reasons) > 0 {
			text += strings.Join(reasons, "\n") + "\n"
		}
		return http.StatusServiceUnavailable, text
	}
}
