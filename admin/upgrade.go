package admin

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/relevo-proxy/relevo/server/revision"
)

// UpgradeStatus is what there is to say about upgrades.
type UpgradeStatus struct {
	State    string `json:"state"`            // idle or running
	Step     string `json:"step,omitempty"`   // of one that runs
	Possible bool   `json:"possible"`         // whether this process can be upgraded at all
	Reason   string `json:"reason,omitempty"` // why it cannot
	Binary   string `json:"binary,omitempty"` // the program that an upgrade starts which names none
	Reports  any    `json:"reports"`          // the last upgrades, the newest first, also one that runs
}

// upgradeDoor serves upgrades.
type upgradeDoor struct{ control Control }

func (d *upgradeDoor) get(w http.ResponseWriter, r *http.Request) {
	serveJSON(func() any { return d.control.Upgrade() }).ServeHTTP(w, r)
}

func (d *upgradeDoor) post(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Binary string `json:"binary"`
	}
	if _, ok := parameters(w, r); !ok {
		return
	}
	if r.ContentLength != 0 && !readJSON(w, r, &body) {
		return
	}
	author := authorOf(r)
	if body.Binary != "" && author.Door != revision.DoorUnix {
		writeProblem(w, http.StatusForbidden, "which program is started is said through the unix socket only")
		return
	}
	id, err := d.control.RequestUpgrade(author, body.Binary)
	if refused, ok := errors.AsType[*RefusedError](err); ok {
		writeFaults(w, "the program is not started", []fault{{"/binary", refused.Reason}})
		return
	}
	if err != nil {
		writeProblem(w, http.StatusConflict, err.Error())
		return
	}
	w.Header().Set("Location", "/v1/upgrade")
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusAccepted)
	_, _ = fmt.Fprintf(w, "{\n  \"id\": %d\n}\n", id)
}
