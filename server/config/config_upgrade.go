package config

import "strings"

// Upgrade bounds what a process does when another takes over from it.
type Upgrade struct {
	// ReadyTimeout is how long the new process may take until it is ready for the hand-over.
	ReadyTimeout Duration `json:"ready_timeout" default:"30s" min:"1s" max:"10m"`
	// HandoverTimeout bounds the hand-over itself, in which nothing is forwarded.
	HandoverTimeout Duration `json:"handover_timeout" default:"2s" min:"100ms" max:"30s"`
	// DrainTimeout is how long client connections are kept that came from another process and whose listener is not
	// configured any more. Zero keeps them no longer.
	DrainTimeout Duration `json:"drain_timeout" default:"60s" min:"0s" max:"1h"`
}

// RuntimeVariable is the environment variable in which systemd names the folders of RuntimeDirectory=.
const RuntimeVariable = "RUNTIME_DIRECTORY"

// StateVariable is the environment variable in which systemd names the folders of StateDirectory=.
const StateVariable = "STATE_DIRECTORY"

// RuntimeFolder is the folder for what is of use only while the process runs, "" for none: RuntimeDir, or where that
// says nothing the first of the folders in environment, which is what RuntimeVariable holds. The caller reads the
// variable, so that a tree says the same wherever it is loaded.
func (c *Config) RuntimeFolder(environment string) string { return folder(c.RuntimeDir, environment) }

// StateFolder is the folder for what outlives the process, "" for none: StateDir, or else the first of environment,
// which is what StateVariable holds.
func (c *Config) StateFolder(environment string) string { return folder(c.StateDir, environment) }

func folder(said, environment string) string {
	switch said {
	case none:
		return ""
	case "":
		first, _, _ := strings.Cut(environment, ":")
		if checkFolder(first) != nil {
			return ""
		}
		return first
	default:
		return said
	}
}
